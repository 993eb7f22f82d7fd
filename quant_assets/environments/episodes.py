"""Many episodes in lock-step, and one of them as a gymnasium environment.

Belongs here: what the three environments share: checks of actions, the order of calls, the single view. Does not belong
here: any market or reward.

All episodes of an environment have the same number of steps, so n of them step as one array operation and end together.
That is what makes them fast, and it makes the boundary between two sets of episodes a place at which nothing but a random
generator has a state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import gymnasium
import numpy as np

# An actor's tanh rounds in float32: that far outside its box an action is still the bound.
BOX_TOLERANCE = 1e-5


class EnvironmentRefusal(ValueError):
    """A market, an order, an action or a call that an environment cannot work with. Names the thing and the value."""


class Step(NamedTuple):
    """What n environments answer to n actions.

    Attributes:
        observation: after the step, float32, shape (n, observation dimensions).
        reward: float64, shape (n,).
        terminated: whether the episodes ended, all at once, and nothing comes after them.
        truncated: whether they ended, all at once, because they are looked at no longer (`Episodes.time_limited`).
        info: arrays of shape (n, ...), named with their units.
    """

    observation: np.ndarray
    reward: np.ndarray
    terminated: bool
    truncated: bool
    info: dict[str, np.ndarray]


class Episodes(ABC):
    """n episodes in lock-step.

    A subclass sets the class attributes, calls `__init__` and implements `_begin` and `_advance`.

    Args:
        n: episodes at once.
        steps: of each episode.
        paths: rows of the market; every episode runs on one of them.
        observation_bound: observations are clipped to plus or minus this before they are handed out.

    Attributes:
        time_limited: the world goes on after the last step; it is only looked at no longer. The last step is then truncated, and
            what the last observation is still worth belongs to the value of the one before.
        observation_names, action_names: of each dimension, in order, with units.
        observation_space, action_space: of one environment.
    """

    name: ClassVar[str]
    time_limited: ClassVar[bool] = False
    observation_names: tuple[str, ...]
    action_names: tuple[str, ...]

    def __init__(
        self,
        n: int,
        steps: int,
        paths: int,
        action_low: np.ndarray | float = 0.0,
        action_high: np.ndarray | float = 1.0,
        observation_bound: float = 10.0,
    ) -> None:
        if n < 1 or steps < 1 or paths < 1:
            raise EnvironmentRefusal(
                f"{self.name}: n = {n} episodes of {steps} steps on {paths} market paths: each must be at least 1"
            )
        self.n, self.steps, self.paths = n, steps, paths
        self.observation_bound = np.float32(observation_bound)
        shape = (len(self.action_names),)
        self.action_space = gymnasium.spaces.Box(
            np.broadcast_to(np.float32(action_low), shape).copy(),
            np.broadcast_to(np.float32(action_high), shape).copy(),
            dtype=np.float32,
        )
        bound = np.full(len(self.observation_names), observation_bound, np.float32)
        self.observation_space = gymnasium.spaces.Box(-bound, bound, dtype=np.float32)
        self.rng: np.random.Generator | None = None
        self.rows = np.zeros(n, np.int64)
        self.step_index = steps  # nothing has begun

    def reset(self, rng: np.random.Generator, rows: np.ndarray | None = None) -> np.ndarray:
        """Begin n new episodes.

        Args:
            rng: all randomness of these episodes comes from it: the choice of paths and what happens on them.
            rows: market path of each episode, shape (n,); drawn when None: without replacement while there are enough.

        Returns:
            Observations, float32, shape (n, observation dimensions).
        """
        if rows is None:
            rows = (
                rng.choice(self.paths, self.n, replace=False)
                if self.n <= self.paths
                else rng.integers(self.paths, size=self.n)
            )
        rows = np.asarray(rows, np.int64)
        if rows.shape != (self.n,) or rows.min() < 0 or rows.max() >= self.paths:
            raise EnvironmentRefusal(
                f"{self.name}: rows of shape {rows.shape} from {rows.min()} to {rows.max()}: {self.n} whole numbers from 0 to "
                f"{self.paths - 1} are needed"
            )
        self.rng, self.rows, self.step_index = rng, rows, 0
        return self._seen(self._begin())

    def step(self, action: np.ndarray) -> Step:
        """One action for each episode.

        Args:
            action: shape (n, action dimensions), inside the box.

        Raises:
            EnvironmentRefusal: NaN, outside the box, wrong shape, or the episodes have ended.
        """
        if self.step_index >= self.steps:
            raise EnvironmentRefusal(
                f"{self.name}: the episodes have ended (or never begun): call reset first"
            )
        action = np.asarray(action, np.float64)
        if action.shape != (self.n, len(self.action_names)):
            raise EnvironmentRefusal(
                f"{self.name}: actions have shape {action.shape}, it must be {(self.n, len(self.action_names))}: "
                f"{', '.join(self.action_names)}"
            )
        low, high = self.action_space.low, self.action_space.high
        # A NaN compares false, so it is caught as well.
        inside = (action >= low - BOX_TOLERANCE) & (action <= high + BOX_TOLERANCE)
        if not inside.all():
            at, which = np.argwhere(~inside)[0]
            raise EnvironmentRefusal(
                f"{self.name}: action {self.action_names[which]} = {action[at, which]} of episode {at} is outside its box "
                f"[{low[which]:g}, {high[which]:g}]"
            )
        self.step_index += 1
        observation, reward, info = self._advance(np.clip(action, low, high))
        ended = self.step_index >= self.steps
        return Step(
            self._seen(observation),
            reward,
            ended and not self.time_limited,
            ended and self.time_limited,
            info,
        )

    def _seen(self, observation: np.ndarray) -> np.ndarray:
        seen = np.clip(observation, -self.observation_bound, self.observation_bound).astype(np.float32)
        if not np.isfinite(seen).all():
            at, which = np.argwhere(~np.isfinite(seen))[0]
            raise EnvironmentRefusal(
                f"{self.name}: observation {self.observation_names[which]} of episode {at} on market path "
                f"{self.rows[at]} is {seen[at, which]} at step {self.step_index}: look at the market's arrays there"
            )
        return seen

    @abstractmethod
    def _begin(self) -> np.ndarray:
        """State of n fresh episodes on `self.rows`; the first observations, any float, shape (n, dimensions)."""

    @abstractmethod
    def _advance(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """One step; `self.step_index` is already that of the state afterwards. (observations, rewards, info)."""


class Single(gymnasium.Env[np.ndarray, np.ndarray]):
    """One episode after the other, as gymnasium wants it.

    Args:
        episodes: an environment with n = 1; it is driven by this view from now on.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  # gymnasium declares it so

    def __init__(self, episodes: Episodes) -> None:
        if episodes.n != 1:
            raise EnvironmentRefusal(
                f"{episodes.name}: the single view needs n = 1 episode, not {episodes.n}"
            )
        self.episodes = episodes
        self.observation_space, self.action_space = episodes.observation_space, episodes.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; the same seed gives the same one. `options={"row": i}` chooses the market path."""
        super().reset(seed=seed)
        row = (options or {}).get("row")
        return self.episodes.reset(self.np_random, None if row is None else np.array([row]))[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One action; the last one of an episode terminates it, or truncates it where the environment is time-limited."""
        done = self.episodes.step(np.asarray(action)[None])
        info = {name: values[0] for name, values in done.info.items()}
        return done.observation[0], float(done.reward[0]), done.terminated, done.truncated, info
