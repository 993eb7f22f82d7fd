"""Stable-Baselines3's own SAC on our episodes: the reference that `sac.py` is held against. Pure.

Belongs here: what lets that library run on lock-step episodes with the same hyperparameters, and its actor as a `SacPolicy`.
Does not belong here: anything that a pipeline uses. Agents are trained by `sac.train`; this module is for tests, benchmarks
and notebooks.

What is the library's: networks and their initial weights, the replay buffer, the choice of actions, every update. What is
ours on both sides: the random transitions of the beginning (the same bits for the same seed) and the scale of observations
that follows from them, the learning rate of each set of episodes, when the policy is judged, which one is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from quant_assets.environments.episodes import Episodes
from quant_assets.models.sac import Losses, SacError, SacParameters, SacPolicy, TrainedAgent, _Training

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv


def train_stock(
    real: Episodes,
    parameters: SacParameters,
    evaluate: Callable[[SacPolicy], float] | None = None,
    progress: Callable[[dict[str, float | None]], None] | None = None,
) -> TrainedAgent:
    """Train with Stable-Baselines3 on the CPU; it seeds the global generators of Python, numpy and torch.

    Args:
        real: `parameters.episodes` episodes.
        parameters: as for `sac.train`, without imagined transitions. `updates_per_step` is a whole number, or one
            over a whole number that divides the steps of an episode.
        evaluate, progress: as for `sac.train`.

    Returns:
        As `sac.train`; in the history, losses are those of the newest step's updates and the entropy is that of one
        batch.

    Raises:
        SacError: something that the library cannot do.
    """
    import torch

    if parameters.imagined_per_step:
        raise SacError(
            f"imagined_per_step = {parameters.imagined_per_step}: Stable-Baselines3 knows no imagined transitions; "
            "set it to 0, or use sac.train"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(parameters.threads)
    try:
        return _StockTraining(real, parameters).finish(evaluate, float("inf"), False, progress)
    finally:
        torch.set_num_threads(threads)


class _StockTraining(_Training):
    """Our sets of episodes and reports around the library's `learn`."""

    def __init__(self, real: Episodes, parameters: SacParameters) -> None:
        from stable_baselines3 import SAC
        from stable_baselines3.common.logger import configure

        super().__init__(real, parameters, None, None, None, "stock")
        p = parameters
        steps_per_train, updates = _frequency(p.updates_per_step, real.steps)
        self.model = SAC(
            "MlpPolicy",
            _vec_env(self),
            learning_rate=lambda _: (
                p.learning_rate * (1 - (1 - p.final_learning_rate_factor) * self.sets_done / self.sets)
            ),
            buffer_size=p.buffer_size,
            learning_starts=0,  # the random transitions are there already
            batch_size=p.batch_size,
            tau=p.tau,
            gamma=p.gamma,
            train_freq=(steps_per_train, "step"),
            gradient_steps=updates,
            ent_coef=f"auto_{p.initial_alpha}",
            target_entropy="auto" if p.target_entropy is None else p.target_entropy,
            policy_kwargs={"net_arch": list(p.hidden_units)},
            seed=p.seed,
            device="cpu",
        )
        self.model.set_logger(configure(None, []))
        self.returns = np.zeros(real.n)
        random = self.buffers[0].rows[: len(self.buffers[0])].numpy()
        o, a, n = len(real.observation_names), len(real.action_names), real.n
        for at in range(0, len(random) - n + 1, n):
            row = random[at : at + n]
            self.model.replay_buffer.add(  # type: ignore[union-attr]
                row[:, :o],
                row[:, o + a + 1 : -1],
                row[:, o : o + a],
                row[:, o + a],
                row[:, -1],
                [{} for _ in range(n)],
            )

    def _one_set(self) -> tuple[float, Losses | None]:
        self.returns[:] = 0
        self.model.learn(self.real.n * self.real.steps, reset_num_timesteps=False, log_interval=None)  # type: ignore[arg-type]
        self.updates = self.model._n_updates
        self._take_actor()
        told = self.model.logger.name_to_value
        critic, actor, alpha = (
            float(told[f"train/{name}"]) for name in ("critic_loss", "actor_loss", "ent_coef")
        )
        losses = Losses(critic, actor, alpha, float("nan"))  # the entropy where it is reported
        return float(self.returns.mean()), losses

    def _report(self, returns: float, losses: Losses | None, *others: Any) -> None:
        import torch

        assert losses is not None
        assert self.model.replay_buffer is not None
        batch = self.model.replay_buffer.sample(self.parameters.batch_size)
        with torch.no_grad():
            log_pi = self.model.actor.action_log_prob(batch.observations)[1]
        super()._report(returns, replace(losses, entropy=-float(log_pi.mean())), *others)

    def _take_actor(self) -> None:
        """The library's weights into our actor, which makes the policies."""
        import torch

        actor, ours = self.model.actor, self.learner.actor
        hidden = [layer for layer in actor.latent_pi if isinstance(layer, torch.nn.Linear)]
        with torch.no_grad():
            for i, layer in enumerate(hidden):
                ours.weights[i][0] = layer.weight.T
                ours.biases[i][0, 0] = layer.bias
            heads: Any = (actor.mu, actor.log_std)
            ours.weights[-1][0] = torch.cat([head.weight.T for head in heads], 1)
            ours.biases[-1][0, 0] = torch.cat([head.bias for head in heads])


def _frequency(updates_per_step: float, steps: int) -> tuple[int, int]:
    """(steps between trainings, updates of each)."""
    if updates_per_step >= 1 and updates_per_step == int(updates_per_step):
        return 1, int(updates_per_step)
    every = round(1 / updates_per_step)
    if abs(every * updates_per_step - 1) > 1e-9 or steps % every:
        raise SacError(
            f"updates_per_step = {updates_per_step}: Stable-Baselines3 needs a whole number, or one over a whole number that "
            f"divides the {steps} steps of an episode"
        )
    return every, 1


def _vec_env(run: _StockTraining) -> VecEnv:
    """The episodes of `run` as the library steps them: observations and rewards scaled, the next set begins by itself."""
    from stable_baselines3.common.vec_env import VecEnv

    class LockStep(VecEnv):
        """All episodes end at once. A truncated end is said in `TimeLimit.truncated`; the library's buffer then keeps the value of
        what comes after."""

        def __init__(self) -> None:
            super().__init__(run.real.n, run.real.observation_space, run.real.action_space)
            self.action = np.zeros(0)

        def reset(self) -> np.ndarray:
            return run._scaled(run.real.reset(run.rng))

        def step_async(self, actions: np.ndarray) -> None:
            self.action = actions

        def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
            done = run.real.step(self.action)
            run.returns += done.reward
            after = run._scaled(done.observation)
            infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
            if ended := done.terminated or done.truncated:
                infos = [
                    {"terminal_observation": last, "TimeLimit.truncated": done.truncated} for last in after
                ]
                after = self.reset()
            return after, done.reward * run.parameters.reward_scale, np.full(self.num_envs, ended), infos

        def close(self) -> None:
            pass

        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            return [None] * self.num_envs  # asked for render_mode alone

        def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
            raise NotImplementedError(f"{attr_name}: {run.real.name} is stepped as one")

        def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
            raise NotImplementedError(f"{method_name}: {run.real.name} is stepped as one")

        def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
            return [False] * self.num_envs

        def seed(self, seed: int | None = None) -> Sequence[int | None]:
            return [None] * self.num_envs  # all randomness is that of the training's generator

    return LockStep()
