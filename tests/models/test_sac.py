"""Soft actor-critic: one update is Stable-Baselines3's, gradients are torch's, a training survives a kill bit for bit."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch

from quant_assets.environments.episodes import Episodes
from quant_assets.models.sac import (
    Adam,
    Learner,
    LossIsNotFinite,
    OnnxPolicy,
    Perceptrons,
    ReplayBuffer,
    SacError,
    SacParameters,
    SacPolicy,
    Workspace,
    _Training,
    train,
)


class Target(Episodes):
    """Four steps; the reward falls with the squared distance of the action from half the observed number."""

    name: ClassVar[str] = "target"
    observation_names = ("number", "constant")
    action_names = ("guess",)

    def __init__(self, n: int = 8, scale: float = 1.0) -> None:
        super().__init__(n, 4, 1000, -2.0, 3.0)
        self.scale_ = scale

    def _begin(self) -> np.ndarray:
        assert self.rng is not None
        self.number = self.rng.uniform(-3, 3, self.n)
        return np.column_stack([self.number, np.ones(self.n)])

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        reward = -((action[:, 0] - self.number / 2) ** 2) * self.scale_
        return self._begin(), reward, {}


class Endless(Episodes):
    """A dollar a step for ever, looked at for four steps."""

    name: ClassVar[str] = "endless"
    time_limited: ClassVar[bool] = True
    observation_names = ("noise",)
    action_names = ("nothing",)

    def __init__(self, n: int = 8) -> None:
        super().__init__(n, 4, 1000)

    def _begin(self) -> np.ndarray:
        assert self.rng is not None
        return self.rng.normal(size=(self.n, 1))

    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        return self._begin(), np.ones(self.n), {}


class FourSteps(Endless):
    """A dollar a step until the world ends."""

    time_limited: ClassVar[bool] = False


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


# -- against others ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("actions", [1, 3])
def test_updates_are_those_of_stable_baselines3(monkeypatch: pytest.MonkeyPatch, actions: int) -> None:
    """Same weights, same batches, same normals: the same weights after ten updates."""
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import configure
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

    observations, batch = 5, 32

    class Nothing(gymnasium.Env[np.ndarray, np.ndarray]):
        observation_space = gymnasium.spaces.Box(-10, 10, (observations,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (actions,), np.float32)

    theirs = SAC(
        "MlpPolicy",
        Nothing(),
        learning_rate=1e-2,
        batch_size=batch,
        gamma=0.9,
        tau=0.1,
        ent_coef="auto_0.7",
        policy_kwargs={"net_arch": [16, 8]},
        device="cpu",
        seed=3,
    )
    theirs.set_logger(configure(None, []))
    ours = Learner(
        observations,
        actions,
        SacParameters(
            hidden_units=(16, 8), learning_rate=1e-2, batch_size=batch, gamma=0.9, tau=0.1, initial_alpha=0.7
        ),
    )

    def layers(module: Any) -> list[Any]:
        return [m for m in module.modules() if isinstance(m, torch.nn.Linear)]

    hidden = layers(theirs.actor.latent_pi)
    for i, layer in enumerate(hidden):
        ours.actor.weights[i][0] = layer.weight.detach().T
        ours.actor.biases[i][0, 0] = layer.bias.detach()
    for i, head in enumerate((theirs.actor.mu, theirs.actor.log_std)):
        some = slice(i * actions, (i + 1) * actions)
        ours.actor.weights[2][0, :, some] = head.weight.detach().T
        ours.actor.biases[2][0, 0, some] = head.bias.detach()
    for network, module in ((ours.critics, theirs.critic), (ours.targets, theirs.critic_target)):
        for twin, q in enumerate(module.q_networks):
            for i, layer in enumerate(layers(q)):
                network.weights[i][twin] = layer.weight.detach().T
                network.biases[i][twin, 0] = layer.bias.detach()

    generator = torch.Generator().manual_seed(1)
    normals: list[torch.Tensor] = []
    monkeypatch.setattr(
        torch.distributions.normal, "_standard_normal", lambda *_, **__: normals.pop(0).clone()
    )
    batches = []
    for _ in range(10):
        o, after = (torch.randn(batch, observations, generator=generator) for _ in range(2))
        a = torch.rand(batch, actions, generator=generator) * 2 - 1
        r = torch.randn(batch, 1, generator=generator)
        ended = (torch.rand(batch, 1, generator=generator) < 0.2).float()
        batches.append((o, a, r, after, ended))
    noises = [torch.randn(2, batch, actions, generator=generator) for _ in batches]

    queue = list(batches)
    monkeypatch.setattr(
        theirs.replay_buffer,
        "sample",
        lambda *_, **__: (lambda b: ReplayBufferSamples(b[0], b[1], b[3], b[4], b[2]))(queue.pop(0)),
    )
    for (o, a, r, after, ended), noise in zip(batches, noises, strict=True):
        normals += [noise[0], noise[1]]
        theirs.train(1, batch)
        ours.batch.copy_(torch.cat([o, a, r, after, ended], 1))
        ours.update(noise[0].clone(), noise[1].clone())

    for i, layer in enumerate(hidden):
        torch.testing.assert_close(ours.actor.weights[i][0], layer.weight.detach().T, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(
        ours.actor.biases[2][0, 0, :actions], theirs.actor.mu.bias.detach(), atol=2e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        ours.actor.biases[2][0, 0, actions:], theirs.actor.log_std.bias.detach(), atol=2e-5, rtol=1e-4
    )
    for network, module in ((ours.critics, theirs.critic), (ours.targets, theirs.critic_target)):
        for twin, q in enumerate(module.q_networks):
            for i, layer in enumerate(layers(q)):
                torch.testing.assert_close(
                    network.weights[i][twin], layer.weight.detach().T, atol=2e-5, rtol=1e-4
                )
    assert float(ours.log_alpha) == pytest.approx(float(theirs.log_ent_coef.detach()), abs=1e-5)


@pytest.mark.parametrize("count", [1, 2])
def test_written_gradients_are_those_of_autograd(count: int) -> None:
    network = Perceptrons(count, (3, 7, 6, 2))
    network.initialize(torch.Generator().manual_seed(0))
    x, slope = torch.randn(11, 3), torch.randn(count, 11, 2)
    work = Workspace(count, network.sizes, 11)
    out = network.forward(x, work).clone()
    by_input = network.backward(slope, work, weights=True, inputs=True).clone()
    flat, leaf = network.flat.clone().requires_grad_(), x.clone().requires_grad_()
    again = Perceptrons(count, network.sizes)
    weights, biases = again._views(flat)
    value = leaf.expand(count, -1, -1)
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        value = value @ w + b
        if i < 2:
            value = torch.relu(value)
    value.backward(slope)
    torch.testing.assert_close(out, value.detach())
    assert flat.grad is not None
    torch.testing.assert_close(network.gradient, flat.grad)
    torch.testing.assert_close(by_input.sum(0), leaf.grad)


def test_the_optimizer_is_adam() -> None:
    ours, theirs = torch.randn(50), None
    theirs = ours.clone().requires_grad_()
    mine, peer = Adam(ours, 1e-2), torch.optim.Adam([theirs], lr=1e-2)
    for _ in range(20):
        gradient = torch.randn(50)
        mine.step(gradient)
        theirs.grad = gradient
        peer.step()
    torch.testing.assert_close(ours, theirs.detach())


# -- the buffer ----------------------------------------------------------------------------------------------------


def numbered(first: int, n: int) -> tuple[Any, ...]:
    number = np.arange(first, first + n, dtype=np.float32)
    return number[:, None], number[:, None] / 1000, number, number[:, None] + 1, False


def test_the_oldest_transitions_go_first() -> None:
    buffer = ReplayBuffer(10, 1, 1)
    for first, n in ((0, 4), (4, 4), (8, 5), (13, 25)):
        buffer.add(*numbered(first, n))
        newest = first + n
        assert sorted(buffer.rows[: len(buffer), 0].tolist()) == list(range(max(0, newest - 10), newest))
    assert torch.equal(buffer.rows[:, 3], buffer.rows[:, 0] + 1)


def test_an_empty_buffer_and_a_number_that_is_none_are_refused() -> None:
    buffer = ReplayBuffer(10, 1, 1)
    with pytest.raises(SacError, match="the replay buffer is empty"):
        buffer.sample(torch.empty(3, 5), torch.Generator())
    observation, action, _, after, ended = numbered(0, 3)
    reward = np.array([0, np.nan, 0], np.float32)
    with pytest.raises(SacError, match="transition 1: reward is nan"):
        buffer.add(observation, action, reward, after, ended)
    assert not len(buffer)


# -- training ------------------------------------------------------------------------------------------------------


def test_it_finds_the_best_action_and_says_how_it_went() -> None:
    told: list[dict[str, float | None]] = []
    agent = train(Target(), QUICK, evaluate=error_of, progress=told.append)
    assert agent.score is not None
    assert agent.score > -0.12
    assert agent.history == told
    assert len(told) >= 4
    assert agent.score == max(row["score"] for row in told if row["score"] is not None)
    assert all(row["updates_per_second"] > 0 for row in told if row["critic_loss"] is not None)  # type: ignore[operator]
    assert told[-1]["real_steps"] == 1_600


def test_imagined_transitions_alone_teach_as_well() -> None:
    parameters = replace(QUICK, imagined_per_step=3, imagined_share=1.0)
    agent = train(Target(), parameters, imagined=Target(24), evaluate=error_of)
    assert agent.score is not None
    assert agent.score > -0.12
    assert agent.history[-1]["imagined_steps"] == 4_800


@pytest.mark.parametrize("k", [0, 2])
def test_the_same_seed_gives_the_same_bits(k: int) -> None:
    parameters = replace(QUICK, steps=400, imagined_per_step=k)
    runs = [train(Target(), parameters, imagined=Target(8 * k) if k else None).policy.flat for _ in range(2)]
    assert np.array_equal(*runs)
    other = train(Target(), replace(parameters, seed=1), imagined=Target(8 * k) if k else None).policy.flat
    assert not np.array_equal(runs[0], other)


@pytest.mark.parametrize("kind", [Endless, FourSteps])
def test_only_an_end_of_the_world_ends_what_a_state_is_worth(kind: type[Endless]) -> None:
    environment = kind()
    environment.reset(np.random.default_rng(0))
    last = [environment.step(np.zeros((8, 1))) for _ in range(4)][-1]
    assert (last.terminated, last.truncated) == (kind is FourSteps, kind is Endless)

    parameters = replace(QUICK, gamma=0.8, initial_alpha=1e-6)
    run = _Training(environment, parameters, None, None, None, "")
    with torch.no_grad():
        run.finish(None, float("inf"), False, None)
        assert run.buffers[0].rows[: len(run.buffers[0]), -1].mean() == (0.25 if kind is FourSteps else 0)
        seen = torch.from_numpy(run.rng.normal(size=(500, 2)).astype(np.float32)).clamp(-1, 1)
        work = Workspace(2, run.learner.critics.sizes, 500)
        worth = float(run.learner.critics.forward(seen, work).mean())
    # 1 + gamma + ...: for ever, or one to four dollars at the four steps, which look alike.
    expected = 5.0 if kind is Endless else 1 / (1 - 0.8 * 0.75)
    assert worth == pytest.approx(expected, rel=0.1)


def test_a_world_without_end_needs_a_discount() -> None:
    with pytest.raises(SacError, match="gamma = 1: endless goes on after the last step"):
        train(Endless(), replace(QUICK, gamma=1.0))


def test_an_imagined_environment_that_ends_otherwise_is_refused() -> None:
    with pytest.raises(SacError, match=r"differs from the real one in .*time_limited"):
        train(Endless(), replace(QUICK, imagined_per_step=1), imagined=FourSteps())


KILLED = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("toy", sys.argv[1])
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
toy.train_long(Path(sys.argv[2]))
"""


def train_long(checkpoint: Path | None) -> Any:
    parameters = replace(QUICK, steps=6_400, imagined_per_step=2)
    return train(
        Target(),
        parameters,
        imagined=Target(16),
        evaluate=error_of,
        checkpoint=checkpoint,
        checkpoint_seconds=0,
    )


def test_a_kill_and_a_resumed_training_give_the_same_bits(tmp_path: Path) -> None:
    checkpoint = tmp_path / "agent.pt"
    process = subprocess.Popen([sys.executable, "-c", KILLED, __file__, str(checkpoint)], cwd=os.getcwd())
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = torch.load(checkpoint, weights_only=True)["progress"][0]
    assert 0 < done < 200
    resumed, whole = train_long(checkpoint), train_long(None)
    assert np.array_equal(resumed.policy.flat, whole.policy.flat)
    wall_clock = {"updates_per_second"}
    assert [{k: v for k, v in row.items() if k not in wall_clock} for row in resumed.history] == [
        {k: v for k, v in row.items() if k not in wall_clock} for row in whole.history
    ]
    assert not checkpoint.exists(), "a finished training leaves none"


def test_a_checkpoint_of_another_training_or_of_nothing_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "agent.pt"

    class Stop(Exception):
        pass

    def stop(row: dict[str, float | None]) -> None:
        if row["updates"] and row["updates"] > 100:
            raise Stop

    with pytest.raises(Stop):
        train(Target(), QUICK, checkpoint=checkpoint, checkpoint_seconds=0, progress=stop)
    with pytest.raises(SacError, match=r"agent\.pt belongs to a training with other parameters or markets"):
        train(Target(), replace(QUICK, gamma=0.5), checkpoint=checkpoint)
    with pytest.raises(SacError, match="belongs to a training with other"):
        train(Target(), QUICK, checkpoint=checkpoint, identity="another market")
    checkpoint.write_bytes(b"half of one")
    with pytest.raises(SacError, match=r"(?s)cannot be read .* delete it to begin anew"):
        train(Target(), QUICK, checkpoint=checkpoint)


def test_a_finished_agent_can_wait_in_its_checkpoint(tmp_path: Path) -> None:
    checkpoint = tmp_path / "agent.pt"
    first = train(Target(), QUICK, evaluate=error_of, checkpoint=checkpoint, keep_checkpoint=True)
    told: list[Any] = []
    again = train(
        Target(), QUICK, evaluate=error_of, checkpoint=checkpoint, keep_checkpoint=True, progress=told.append
    )
    assert not told, "nothing was trained"
    assert np.array_equal(first.policy.flat, again.policy.flat)
    assert (first.score, first.history) == (again.score, again.history)
    assert checkpoint.stat().st_size < 100_000, "without its buffers"


def test_a_loss_that_is_not_finite_stops_with_its_batch(tmp_path: Path) -> None:
    with pytest.raises(LossIsNotFinite, match=r"target: after \d+ updates .* Lower learning_rate") as caught:
        train(Target(scale=1e25), QUICK, checkpoint=tmp_path / "agent.pt")
    (file,) = tmp_path.glob("nan-batch-*.npz")
    assert str(file) in str(caught.value)
    assert np.load(file)["batch"].shape == (64, 2 * 2 + 1 + 2)


def test_initial_transitions_begin_the_imagined_buffer() -> None:
    from quant_assets.simulation.transitions import Transitions

    rng = np.random.default_rng(0)
    number = rng.uniform(-3, 3, 2000).astype(np.float32)
    action = rng.uniform(-2, 3, 2000).astype(np.float32)
    observation = np.column_stack([number, np.ones_like(number)])[:, None]
    nothing = np.zeros(2000, np.int32)
    initial = Transitions(
        observation,
        np.ascontiguousarray(observation[::-1]),
        action[:, None, None],
        -((action - number / 2) ** 2)[:, None],
        np.zeros((2000, 1), np.float32),
        nothing,
        nothing,
        nothing,
        None,  # type: ignore[arg-type]
    )
    agent = train(Target(), replace(QUICK, imagined_share=1.0), initial=initial, evaluate=error_of)
    assert agent.score is not None
    assert agent.score > -0.12, "of real transitions it saw none"
    with pytest.raises(SacError, match="the initial transitions have 1 observations"):
        train(Target(), QUICK, initial=initial._replace(observations=observation[:, :, :1]))


# -- the policy ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy() -> SacPolicy:
    return train(Target(), replace(QUICK, steps=400)).policy


def test_onnx_and_torch_give_the_same_action(policy: SacPolicy) -> None:
    exported = OnnxPolicy(policy.to_onnx(), {**policy.__dict__})
    x = np.random.default_rng(0).normal(size=(1000, 2)) * [3, 1]
    assert np.abs(exported.act(x) - policy.act(x)).max() <= 1e-5
    assert exported.act(x).min() >= -2
    assert exported.act(x).max() <= 3
    exported.require(Target())


def test_a_policy_refuses_what_it_was_not_made_for(policy: SacPolicy) -> None:
    exported = OnnxPolicy(policy.to_onnx(), {**policy.__dict__})
    for asked in (policy, exported):
        with pytest.raises(SacError, match="observation constant in row 1 is nan"):
            asked.act(np.array([[0.0, 1.0], [1.0, np.nan]]))
        with pytest.raises(SacError, match=r"shape \(1, 3\), the policy takes \(n, 2\): number, constant"):
            asked.act(np.zeros((1, 3)))

    class Other(Target):
        action_names = ("guess", "hedge")

    with pytest.raises(
        SacError, match=r"trained for actions \('guess',\), the environment has \('guess', 'hedge'\)"
    ):
        exported.require(Other())
    with pytest.raises(SacError, match="gives 1 actions, its bundle names 2 and 2"):
        OnnxPolicy(policy.to_onnx(), {**policy.__dict__, "action_names": ("guess", "hedge")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate = 0.0: it must be a number above 0"),
        ({"gamma": 1.5}, "gamma = 1.5: it must be from 0 to 1"),
        ({"hidden_units": ()}, "at least one layer"),
        ({"buffer_size": 10}, "buffer_size = 10 holds no batch of batch_size = 64"),
        ({"imagined_per_step": -1}, "imagined_per_step = -1"),
        ({"imagined_per_step": 0.5}, "imagined_per_step = 0.5: it must be a whole number"),
        ({"steps": "100"}, "steps = 100: it must be a number above 0"),
    ],
)
def test_impossible_parameters_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SacError, match=message):
        replace(QUICK, **change)


def test_steps_that_exploration_takes_whole_are_refused() -> None:
    with pytest.raises(
        SacError, match=r"steps = 100: the random actions of the beginning .* take all of them"
    ):
        train(Target(), replace(QUICK, steps=100))


def test_environments_that_do_not_fit_are_named() -> None:
    with pytest.raises(SacError, match="runs 4 episodes, episodes = 8"):
        train(Target(4), QUICK)
    with pytest.raises(SacError, match="imagined_per_step = 2 needs an imagined environment"):
        train(Target(), replace(QUICK, imagined_per_step=2))
    with pytest.raises(SacError, match="runs 8 episodes, 2 x 8 are needed"):
        train(Target(), replace(QUICK, imagined_per_step=2), imagined=Target(8))
