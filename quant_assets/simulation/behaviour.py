"""Transitions of an agent that knows nothing: what a training's imagined buffer begins with. Pure.

Belongs here: running episodes under random actions and cutting them into rows. Does not belong here: files
(`transitions.py`), markets (`markets.py`), policies that were learned.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quant_assets.environments.episodes import Episodes
from quant_assets.simulation.transitions import TransitionBatch

HABIT_SD = 0.25  # of an episode's own mean action, and of each step's about it; the box is 1 wide


def random_transitions(
    episodes: Episodes, draw_id: np.ndarray, seed: int, rounds: int = 1
) -> Iterator[TransitionBatch]:
    """Rows of random episodes, one batch per round.

    Every episode has a habit, uniform over the box and the same for all of its actions, and every step actions about it:
    independent actions alone would average out, and no episode would ever be fast or slow as a whole. A habit for each action
    would quote one side near and the other far all day: such inventories no agent comes near, and their penalties would fill
    the critics (measured: an agent that began with them lost a sixth of what one without them earned).

    Args:
        episodes: an environment; its paths are taken in turn.
        draw_id: posterior draw of each path, shape (paths,).
        seed: of habits, actions and what the environment draws.
        rounds: sets of episodes.
    """
    rng = np.random.default_rng(seed)
    low, high = episodes.action_space.low, episodes.action_space.high
    for number in range(rounds):
        rows = (np.arange(episodes.n) + number * episodes.n) % episodes.paths
        observation = episodes.reset(rng, rows)
        habit = np.repeat(rng.random((episodes.n, 1)), len(low), axis=1)
        steps = []
        for _ in range(episodes.steps):
            share = np.clip(habit + HABIT_SD * rng.standard_normal(habit.shape), 0, 1)
            action = (low + (high - low) * share).astype(np.float32)
            done = episodes.step(action)
            steps.append((observation, action, done.reward, done.observation, done.terminated))
            observation = done.observation
        before, action_taken, reward, after, ended = zip(*steps, strict=True)

        def by_episode(arrays: tuple[np.ndarray, ...]) -> np.ndarray:
            stacked = np.stack(arrays, axis=1)
            return stacked.reshape(-1, *stacked.shape[2:])

        yield TransitionBatch(
            observation=by_episode(before),
            action=by_episode(action_taken),
            reward=by_episode(reward),
            next_observation=by_episode(after),
            terminated=np.tile(np.array(ended, bool), episodes.n),
            draw_id=np.repeat(draw_id[rows], episodes.steps),
            episode=np.repeat(np.arange(episodes.n) + number * episodes.n, episodes.steps),
            step=np.tile(np.arange(episodes.steps), episodes.n),
        )
