"""Soft actor-critic against Stable-Baselines3's: updates a second, learning curves, and both against theory.

Belongs here: our trainer and the stock one on the same episodes with the same hyperparameters, and agents against the closed
forms. Does not belong here: what imagined transitions bring (`sac_planning.py`); that an update is the library's, weight by
weight (`tests/models/test_sac.py`, of which one case runs here again).

* **Updates.** Sampling a batch and one update of everything, from a full buffer of numbers. Each side with the number of
  threads that is best for it, found in the same run.
* **Steps.** A set of execution episodes at once, against one episode after the other through the gymnasium view.
* **Execution.** The example of Almgren and Chriss (2000), lambda = 1e-6: seconds until E + lambda Var of the cost over unseen
  paths is within 5 % of the best schedule's, and learning curves over seeds. Clocks stand still while a policy is judged.
* **Market making.** The example of Cartea and Jaimungal: the agent's mean reward over unseen paths as a share of the best value,
  and again with a hundred times the penalty on inventory, where quotes that ignore it lose.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import last_line, print_table, spread
from quant_assets.environments import execution, market_making
from quant_assets.environments.closed_form import (
    AlmgrenChriss,
    almgren_chriss_cost,
    almgren_chriss_trajectory,
    quote_table_value,
)
from quant_assets.environments.episodes import Single
from quant_assets.models.sac import (
    Learner,
    ReplayBuffer,
    SacParameters,
    SacPolicy,
    TrainedAgent,
    train,
)
from quant_assets.models.sac_stock import train_stock

REPEATS = 5
SEEDS = 8
OBSERVATIONS, ACTIONS = 7, 1  # of an execution agent
BUFFER = 20_000
WITHIN = 0.05
# Two standard deviations of eight normal draws hold a ninth one in 90 of 100 cases; a curve's points go together.
ALIKE = 0.75

# The example of Almgren and Chriss (2000): a million shares in five days.
RISK_AVERSION = 1e-6
ORDER = AlmgrenChriss(1e6, 5, 5, 0.95, 2.5e-7, 2.5e-6, 0.0625)
EXECUTION = SacParameters(
    hidden_units=(64, 64),
    batch_size=256,
    learning_rate=1e-3,
    gamma=1.0,
    tau=0.01,
    episodes=64,
    steps=24_000,
    updates_per_step=8,
    reward_scale=0.01,
    learning_starts=2_000,
    initial_alpha=0.1,
    target_entropy=-3.0,
    final_learning_rate_factor=0.1,
    buffer_size=200_000,
    evaluations=24,
    keep_best=False,
)
# Many episodes at once: what an inventory's price moves add to a reward is far larger than what a quote does, and only
# the number of transitions averages it out. The discount keeps what that noise adds to later values out of this one.
MARKET_MAKING = SacParameters(
    hidden_units=(64, 64),
    batch_size=512,
    learning_rate=1e-3,
    gamma=0.8,
    tau=0.01,
    episodes=1_000,
    steps=3_000_000,
    updates_per_step=3,
    reward_scale=5.0,
    learning_starts=400_000,
    initial_alpha=0.1,
    target_entropy=-2.0,
    final_learning_rate_factor=0.02,
    buffer_size=3_000_000,
    evaluations=0,
)


# -- updates and steps -------------------------------------------------------------------------------------------------


def stock_model(hidden: int, batch: int) -> Any:
    """Stable-Baselines3's SAC with a full buffer."""
    import gymnasium
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import configure

    class Nothing(gymnasium.Env[np.ndarray, np.ndarray]):
        observation_space = gymnasium.spaces.Box(-10, 10, (OBSERVATIONS,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (ACTIONS,), np.float32)

    model = SAC(
        "MlpPolicy",
        Nothing(),
        learning_rate=1e-4,
        batch_size=batch,
        gamma=0.98,
        tau=0.01,
        buffer_size=BUFFER,
        policy_kwargs={"net_arch": [hidden, hidden]},
        device="cpu",
        seed=0,
    )
    model.set_logger(configure(None, []))
    rng, buffer = np.random.default_rng(0), model.replay_buffer
    assert buffer is not None
    for part in (buffer.observations, buffer.next_observations, buffer.rewards):
        part[:] = rng.normal(size=part.shape)
    buffer.actions[:] = rng.uniform(-1, 1, buffer.actions.shape)
    buffer.full = True
    return model


def updates(hidden: int, batch: int, count: int, tried: Sequence[int]) -> dict[str, Any]:
    """Updates a second of both sides with each number of threads, in turn."""
    import torch

    parameters = SacParameters(
        hidden_units=(hidden, hidden), batch_size=batch, gamma=0.98, buffer_size=BUFFER
    )
    learner, buffer = Learner(OBSERVATIONS, ACTIONS, parameters), ReplayBuffer(BUFFER, OBSERVATIONS, ACTIONS)
    rng = np.random.default_rng(0)
    buffer.add(
        rng.normal(size=(BUFFER, OBSERVATIONS)),
        rng.uniform(-1, 1, (BUFFER, ACTIONS)),
        rng.normal(size=BUFFER),
        rng.normal(size=(BUFFER, OBSERVATIONS)),
        False,
    )
    model = stock_model(hidden, batch)

    def ours() -> None:
        with torch.no_grad():
            for _ in range(count):
                buffer.sample(learner.batch, learner.generator)
                learner.update()

    def stock() -> None:
        model.train(count, batch)

    rates: dict[tuple[str, int], list[float]] = {}
    sides: dict[str, Callable[[], None]] = {"ours": ours, "stock": stock}
    before = torch.get_num_threads()
    for i in range(REPEATS + 1):
        for threads in tried:
            torch.set_num_threads(threads)
            for name, side in list(sides.items())[:: 1 if i % 2 else -1]:
                started = time.perf_counter()
                side()
                if i:  # the first round warms up
                    rates.setdefault((name, threads), []).append(count / (time.perf_counter() - started))
    torch.set_num_threads(before)
    best = {name: max(tried, key=lambda t: statistics.median(rates[name, t])) for name in sides}
    return {"rates": rates, "threads": best, **{name: rates[name, best[name]] for name in sides}}


def steps(n: int) -> tuple[list[float], list[float]]:
    """Environment steps a second, (n at once, one at a time): random paces on a day of 390 minutes."""
    rng = np.random.default_rng(0)
    minutes = 390
    mid = 100 * np.exp(np.cumsum(rng.normal(size=(n, minutes + 1)) * 5e-4, axis=1))
    volume = rng.lognormal(10, 0.5, (n, minutes))
    market = execution.ExecutionMarket(
        mid, np.full_like(mid, 0.02), volume, np.full_like(volume, np.exp(10)), np.full(n, 0.01), np.arange(n)
    )
    together = execution.ExecutionEpisodes(market, execution.ExecutionParameters(), n)
    alone = Single(execution.ExecutionEpisodes(market, execution.ExecutionParameters(), 1))
    many, one = [], []
    for i in range(REPEATS + 1):
        actions = rng.random((minutes, n, 1))
        started = time.perf_counter()
        together.reset(rng)
        for action in actions:
            together.step(action)
        many.append(n * minutes / (time.perf_counter() - started))
        started = time.perf_counter()
        for episode in range(4):
            alone.reset(seed=episode)
            for action in actions[:, episode]:
                alone.step(action)
        one.append(4 * minutes / (time.perf_counter() - started))
        if not i:
            many, one = [], []  # the first round warms up
    return many, one


# -- the example of Almgren and Chriss ---------------------------------------------------------------------------------


class Textbook:
    """Their order: episodes to train on, unseen paths to judge on."""

    def __init__(self, unseen_paths: int = 20_000) -> None:
        cost, variance = almgren_chriss_cost(ORDER, almgren_chriss_trajectory(ORDER, RISK_AVERSION))
        self.best = float(cost + RISK_AVERSION * variance)
        self.seen = execution.textbook_market(paths=20_000, steps=5, seed=1)
        self.unseen = execution.textbook_market(paths=unseen_paths, steps=5, seed=2)
        self.still = execution.textbook_market(paths=1, steps=5, seed=3, moves=False)

    def parameters(self, market: execution.ExecutionMarket) -> execution.ExecutionParameters:
        """Their costs; a penalty on the rest, or the end would be a sixth period."""
        return execution.ExecutionParameters.almgren_chriss(
            market,
            order_shares=ORDER.order_shares,
            eta=ORDER.temporary_impact,
            gamma=ORDER.permanent_impact,
            risk_aversion=RISK_AVERSION,
            leftover_penalty_bps=200.0,
        )

    def episodes(self, n: int) -> execution.ExecutionEpisodes:
        """To train on."""
        return execution.ExecutionEpisodes(self.seen, self.parameters(self.seen), n)

    def excess(self, policy: SacPolicy) -> float:
        """E + lambda Var of the cost over unseen moving paths, relative to the best, less 1."""
        shortfall, _ = self._run(policy, self.unseen)
        return float(shortfall.mean() + RISK_AVERSION * shortfall.var()) / self.best - 1

    def excess_without_noise(self, policy: SacPolicy) -> float:
        """The same of the schedule that it sells while the price rests, exactly."""
        _, reward = self._run(policy, self.still)
        return float(-reward[0] * 1e-4 * ORDER.order_shares * self.still.mid[0, 0]) / self.best - 1

    def excess_of_schedule(self, schedule: np.ndarray) -> float:
        """The same of sales fixed in advance, on the same unseen paths."""
        cost = execution.run_schedule(self.unseen, self.parameters(self.unseen), schedule).shortfall_dollars
        return float(cost.mean() + RISK_AVERSION * cost.var()) / self.best - 1

    def _run(self, policy: SacPolicy, market: execution.ExecutionMarket) -> tuple[np.ndarray, np.ndarray]:
        """(shortfall in dollars, reward) of an order on each path."""
        episodes = execution.ExecutionEpisodes(market, self.parameters(market), market.paths)
        observation = episodes.reset(np.random.default_rng(0), np.arange(market.paths))
        shortfall, reward = np.zeros(market.paths), np.zeros(market.paths)
        for _ in range(episodes.steps):
            done = episodes.step(policy.act(observation))
            shortfall += done.info["shortfall_dollars"]
            reward += done.reward
            observation = done.observation
        return shortfall, reward


@dataclass
class Curve:
    """How one training went.

    Attributes:
        seconds: of training at each evaluation, random beginning included, evaluations not.
        excess, excess_without_noise: of the policy then.
        within: seconds until the excess over unseen paths was within 5 % for the first time; infinite if never.
    """

    seconds: list[float]
    excess: list[float]
    excess_without_noise: list[float]
    within: float


def curve(textbook: Textbook, parameters: SacParameters, trainer: Callable[..., TrainedAgent]) -> Curve:
    """One training, judged on the way."""
    found = Curve([], [], [], float("inf"))
    judged = 0.0
    started = time.perf_counter()

    def judge(policy: SacPolicy) -> float:
        nonlocal judged
        begun = time.perf_counter()
        found.seconds.append(begun - started - judged)
        found.excess.append(textbook.excess(policy))
        found.excess_without_noise.append(textbook.excess_without_noise(policy))
        if found.excess[-1] <= WITHIN:
            found.within = min(found.within, found.seconds[-1])
        judged += time.perf_counter() - begun
        return -found.excess[-1]

    trainer(textbook.episodes(parameters.episodes), parameters, evaluate=judge)
    return found


def inside(curves: np.ndarray, others: np.ndarray) -> float:
    """Share of the points of `curves`, shape (seeds, evaluations), within two standard deviations of the others' mean."""
    middle, width = others.mean(0), 2 * others.std(0, ddof=1)
    return float((np.abs(curves - middle) <= width).mean())


def inside_by_chance(curves: np.ndarray) -> float:
    """What `inside` gives where both sides are the same: each seed against the band of the others."""
    if len(curves) < 3:
        return float("nan")
    alone = [inside(curves[i : i + 1], np.delete(curves, i, 0)) for i in range(len(curves))]
    return statistics.mean(alone)


def ten_updates_are_equal() -> bool:
    """The same weights after ten updates on the same batches and normals, as the test proves it."""
    import pytest

    test = Path(__file__).parents[1] / "tests/models/test_sac.py"
    with contextlib.redirect_stdout(io.StringIO()):
        return (
            pytest.main(["-p", "no:cacheprovider", f"{test}::test_updates_are_those_of_stable_baselines3"])
            == 0
        )


# -- the example of Cartea and Jaimungal -------------------------------------------------------------------------------


def market_making_shares(
    running_penalty: float, parameters: SacParameters, unseen_paths: int = 20_000
) -> dict[str, float]:
    """Shares of the best value: the agent's and the best fixed spread's; the agent's standard error and seconds."""
    terms = market_making.MarketMakingParameters(max_depth=2.0, running_penalty=running_penalty)
    seen = market_making.textbook_market(2_000, 200, 100.0, 2.0, 1.0, seed=1)
    unseen = market_making.textbook_market(unseen_paths, 200, 100.0, 2.0, 1.0, seed=5)
    episodes = market_making.MarketMaking(unseen, terms, unseen_paths)
    table = market_making.cartea_jaimungal_table(episodes)
    limit = terms.inventory_limit
    best = float(table.value[0, limit])
    started = time.perf_counter()
    agent = train(market_making.MarketMaking(seen, terms, parameters.episodes), parameters)
    seconds = time.perf_counter() - started
    reward = market_making.rollout(
        episodes, lambda _, seen: agent.policy.act(seen), np.random.default_rng(7), np.arange(unseen_paths)
    ).reward
    fixed = max(
        float(
            quote_table_value(
                *[np.full((200, 2 * limit + 1), depth)] * 2,
                arrival_rate=terms.arrival_rate,
                depth_decay=terms.depth_decay,
                dt=unseen.dt,
                running_penalty=terms.running_penalty,
                terminal_penalty=terms.terminal_penalty,
            )[0, limit]
        )
        for depth in np.arange(0.5, 2.0, 0.02)
    )
    return {
        "best_dollars": best,
        "agent": float(reward.mean()) / best,
        "standard_error": float(reward.std()) / np.sqrt(unseen_paths) / best,
        "best_on_these_steps": float(market_making.table_value(episodes, table)[0, limit]) / best,
        "fixed_spread": fixed / best,
        "seconds": seconds,
    }


# ----------------------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a minute: few seeds, one thread, no market making"
    )
    quick = parser.parse_args().quick
    ratios: dict[str, float] = {}
    ours: dict[str, object] = {}
    theirs: dict[str, object] = {}

    rows: list[list[object]] = []
    threads: dict[str, int] = {}
    for hidden, batch, count in ((64, 256, 400), (256, 512, 60)):
        case = f"{hidden}x{hidden}, batch {batch}"
        found = updates(hidden, batch, count // 4 if quick else count, (1,) if quick else (1, 2))
        ratios[f"updates, {case}"] = statistics.median(found["ours"]) / statistics.median(found["stock"])
        ours[case], theirs[case] = (spread(found[name], "updates/s") for name in ("ours", "stock"))
        if hidden == EXECUTION.hidden_units[0]:
            threads = found["threads"]
        for (name, count), rates in sorted(found["rates"].items()):
            mark = "  best" if found["threads"][name] == count else ""
            rows.append(
                [
                    f"{case}: {name}, {count} thread{'s' if count > 1 else ''}{mark}",
                    *(f"{f(rates):.0f}" for f in (statistics.median, min, max)),
                ]
            )
    print_table(["updates a second", "median", "min", "max"], rows)

    many, one = steps(1024)
    ratios["environment steps, 1,024 at once"] = statistics.median(many) / statistics.median(one)
    ours["steps"], theirs["steps"] = spread(many, "steps/s"), spread(one, "steps/s")
    print_table(
        ["execution steps a second", "median", "min", "max"],
        [
            ["1,024 episodes at once", *(f"{f(many):,.0f}" for f in (statistics.median, min, max))],
            [
                "one at a time, gymnasium view",
                *(f"{f(one):,.0f}" for f in (statistics.median, min, max)),
            ],
        ],
    )

    textbook = Textbook()
    seeds = range(2 if quick else SEEDS)
    parameters = replace(EXECUTION, steps=8_000, evaluations=8) if quick else EXECUTION
    curves: dict[str, list[Curve]] = {"ours": [], "stock": []}
    for seed in seeds:
        for name, trainer in (("ours", train), ("stock", train_stock))[:: -1 if seed % 2 else 1]:
            mine = replace(parameters, seed=seed, threads=threads[name])
            curves[name].append(curve(textbook, mine, trainer))
    rows = []
    for name, found_curves in curves.items():
        within = [c.within for c in found_curves]
        rows.append(
            [
                name,
                *(f"{f(within):.2f} s" for f in (statistics.median, min, max)),
                *(
                    f"{100 * statistics.mean(values):+.2f} % ± {100 * statistics.stdev(values):.2f}"
                    for values in (
                        [c.excess[-1] for c in found_curves],
                        [c.excess_without_noise[-1] for c in found_curves],
                    )
                ),
                f"{statistics.median(c.seconds[-1] for c in found_curves):.1f} s",
            ]
        )
    print_table(
        [f"within {WITHIN:.0%} of the best", "median", "min", "max", "at the end", "price at rest", "whole"],
        rows,
    )
    known = {
        name: textbook.excess_of_schedule(execution.whole_schedule(sales))
        for name, sales in (
            ("Almgren-Chriss", almgren_chriss_trajectory(ORDER, RISK_AVERSION)),
            ("TWAP", np.full(5, ORDER.order_shares / 5)),
        )
    }
    print("  on the same paths: " + ", ".join(f"{k} {100 * v:+.2f} %" for k, v in known.items()), flush=True)
    all_curves = {k: np.array([c.excess for c in v]) for k, v in curves.items()}
    bands = {
        "ours_in_stock": inside(all_curves["ours"], all_curves["stock"]),
        "stock_in_ours": inside(all_curves["stock"], all_curves["ours"]),
    }
    alike = {k: inside_by_chance(v) for k, v in all_curves.items()}
    print(
        f"  of the learning curves' points, ours within stock's mean ± 2 sd: {bands['ours_in_stock']:.0%}, stock's within "
        f"ours: {bands['stock_in_ours']:.0%}; one seed within the band of the others of its own side: "
        + ", ".join(f"{k} {v:.0%}" for k, v in alike.items()),
        flush=True,
    )
    ends = [values[:, -1] for values in all_curves.values()]
    errors = float(abs(ends[0].mean() - ends[1].mean()) / np.sqrt(sum(e.var(ddof=1) / len(e) for e in ends)))
    print(f"  the two means at the end are {errors:.1f} standard errors apart", flush=True)
    same_weights = ten_updates_are_equal()
    for name, side in (("ours", ours), ("stock", theirs)):
        side["seconds to within 5 %"] = spread([c.within for c in curves[name]])
    ratios["seconds to within 5 % of Almgren-Chriss"] = statistics.median(
        c.within for c in curves["stock"]
    ) / statistics.median(c.within for c in curves["ours"])

    shares = {}
    if not quick:
        for penalty in (0.01, 1.0):
            shares[penalty] = market_making_shares(penalty, MARKET_MAKING)
        print_table(
            [
                "market making, share of the best value",
                "agent",
                "best fixed spread",
                "best table",
                "training",
            ],
            [
                [
                    f"phi = {penalty:g}, best {s['best_dollars']:.2f} dollars",
                    f"{s['agent']:.1%} ± {2 * s['standard_error']:.1%}",
                    f"{s['fixed_spread']:.1%}",
                    f"{s['best_on_these_steps']:.1%}",
                    f"{s['seconds']:.0f} s",
                ]
                for penalty, s in shares.items()
            ],
        )
    last_line(
        name="sac_training",
        ratio=next(iter(ratios.values())),
        ratios=ratios,
        ours=ours,
        theirs=theirs,
        work="SAC updates a second from a full buffer, 7 observations, 1 action, each side with its best number of threads; "
        "steps of execution episodes of 390 minutes; seconds of training on the example of Almgren and Chriss",
        equal=same_weights and (quick or (min(bands.values()) >= ALIKE and errors < 3)),
        equal_how="weights after ten updates on the same batches and normals agree to 2e-5; learning curves: "
        f"{bands['ours_in_stock']:.2f} of our points within stock's mean ± 2 sd over {len(seeds)} seeds, "
        f"{bands['stock_in_ours']:.2f} of stock's within ours, means at the end {errors:.1f} standard errors apart",
        bands=bands,
        excess_at_end={k: [round(c.excess[-1], 5) for c in v] for k, v in curves.items()},
        market_making={str(k): {n: round(x, 4) for n, x in v.items()} for k, v in shares.items()},
        quick=quick,
    )


if __name__ == "__main__":
    main()
