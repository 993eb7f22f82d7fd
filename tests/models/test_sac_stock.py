"""Stable-Baselines3 on our episodes: it learns, its actor is the policy, what it cannot do is refused."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from quant_assets.environments.episodes import Episodes
from quant_assets.models.sac import OnnxPolicy, SacError, SacParameters, SacPolicy, train
from quant_assets.models.sac_stock import _StockTraining, train_stock


class Target(Episodes):
    """Four steps; the reward falls with the squared distance of the action from half the observed number."""

    name: ClassVar[str] = "target"
    observation_names = ("number", "constant")
    action_names = ("guess",)

    def __init__(self, n: int = 8) -> None:
        super().__init__(n, 4, 1000, -2.0, 3.0)

    def _begin(self) -> np.ndarray:
        assert self.rng is not None
        self.number = self.rng.uniform(-3, 3, self.n)
        return np.column_stack([self.number, np.ones(self.n)])

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        reward = -((action[:, 0] - self.number / 2) ** 2)
        return self._begin(), reward, {}


class Endless(Target):
    """The same, looked at for four steps."""

    time_limited: ClassVar[bool] = True


QUICK = SacParameters(
    hidden_units=(32, 32),
    learning_rate=3e-3,
    batch_size=64,
    buffer_size=4_000,
    gamma=0.0,
    tau=0.05,
    learning_starts=128,
    episodes=8,
    steps=1_600,
    updates_per_step=4,
    evaluations=5,
)


def error_of(policy: SacPolicy) -> float:
    number = np.linspace(-2.5, 2.5, 21)
    guess = policy.act(np.column_stack([number, np.ones(21)]))[:, 0]
    return -float(np.abs(guess - number / 2).mean())


def test_it_learns_and_reports_what_ours_reports() -> None:
    told: list[dict[str, float | None]] = []
    agent = train_stock(Target(), QUICK, evaluate=error_of, progress=told.append)
    assert agent.score is not None
    assert agent.score > -0.12
    assert agent.history == told
    ours = train(Target(), QUICK, evaluate=error_of)
    assert [row.keys() for row in told] == [row.keys() for row in ours.history]
    for name in ("real_steps", "imagined_steps", "updates"):
        assert [row[name] for row in told] == [row[name] for row in ours.history], name
    # Both began with the same random transitions.
    assert np.array_equal(agent.policy.mean, ours.policy.mean)
    assert np.array_equal(agent.policy.scale, ours.policy.scale)


def test_the_policy_acts_as_the_librarys_does() -> None:
    run = _StockTraining(Target(), replace(QUICK, steps=400))
    policy = run.finish(None, float("inf"), False, None).policy
    x = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32) * 2
    theirs, _ = run.model.predict(run._scaled(x), deterministic=True)
    np.testing.assert_allclose(policy.act(x), theirs, atol=1e-5)
    np.testing.assert_allclose(OnnxPolicy(policy.to_onnx(), {**policy.__dict__}).act(x), theirs, atol=1e-5)


def test_transitions_cross_no_end_of_an_episode() -> None:
    run = _StockTraining(Target(), replace(QUICK, steps=400))
    run.finish(None, float("inf"), False, None)
    buffer = run.model.replay_buffer
    assert buffer is not None
    rows = slice(0, buffer.pos)
    assert buffer.pos * run.real.n == 416
    assert np.array_equal(np.flatnonzero(buffer.dones[rows, 0]), np.arange(3, buffer.pos, 4))
    inside = np.flatnonzero(buffer.dones[: buffer.pos - 1, 0] == 0)
    assert np.array_equal(buffer.next_observations[inside], buffer.observations[inside + 1])
    ends = np.flatnonzero(buffer.dones[: buffer.pos - 1, 0])
    assert not (buffer.next_observations[ends] == buffer.observations[ends + 1])[:, :, 0].any()
    assert not buffer.timeouts.any()


def test_the_end_of_a_look_is_no_end_for_both() -> None:
    run = _StockTraining(Endless(), replace(QUICK, steps=400))
    run.finish(None, float("inf"), False, None)
    buffer = run.model.replay_buffer
    assert buffer is not None
    # The random beginning has ends of neither kind, as ours stores it; what the library saw itself is marked as a timeout.
    random = QUICK.learning_starts // 8
    assert not buffer.dones[:random].any()
    assert np.array_equal(
        np.flatnonzero(buffer.timeouts[: buffer.pos, 0]), np.arange(random + 3, buffer.pos, 4)
    )
    assert np.array_equal(buffer.timeouts[random : buffer.pos], buffer.dones[random : buffer.pos])
    assert not buffer.sample(4_000).dones.any()
    # Beyond the last look lies what was seen last, not the beginning of the next one.
    ends = np.flatnonzero(buffer.timeouts[: buffer.pos - 1, 0])
    assert not (buffer.next_observations[ends] == buffer.observations[ends + 1])[:, :, 0].any()


def test_what_the_library_cannot_do_is_refused() -> None:
    with pytest.raises(
        SacError, match="imagined_per_step = 2: Stable-Baselines3 knows no imagined transitions"
    ):
        train_stock(Target(), replace(QUICK, imagined_per_step=2))
    for updates in (1.5, 0.3, 1 / 3):
        with pytest.raises(SacError, match="divides the 4 steps"):
            train_stock(Target(), replace(QUICK, updates_per_step=updates))
    few = train_stock(Target(), replace(QUICK, steps=400, updates_per_step=0.5))
    assert few.history[-1]["updates"] == (416 - 128) // 8 / 2
    with pytest.raises(SacError, match="runs 4 episodes, episodes = 8"):
        train_stock(Target(4), QUICK)
