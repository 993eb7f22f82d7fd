"""What planning buys: cost on unseen days against real steps, with k imagined transitions for each real one.

Belongs here: agents that learn to sell an order from few real days, with and without imagined ones beside them, judged on days
that neither has seen. Does not belong here: how fast the trainer is (`sac_training.py`).

"Real" are 20 days simulated under one true set of Heston parameters; the agents meet them again and again. Imagined are 1,000 days,
each under its own draw around the truth, as wide as a posterior (a third up or down). Unseen are 500 days under the truth. A
curve is the mean cost over the unseen days' orders, without the market's own move, as a share of what VWAP costs there.

The gradient updates for each real step are the same for all k: planning changes what a batch holds, and costs the time to step
k times as many episodes. A second pair of curves has twice the updates.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import last_line, print_table, spread
from quant_assets.environments.execution import (
    ExecutionEpisodes,
    ExecutionMarket,
    ExecutionParameters,
    run_schedule,
    twap_schedule,
)
from quant_assets.models.sac import SacParameters, SacPolicy, train

CORES = len(os.sched_getaffinity(0))
SEEDS = 5
REAL_DAYS, IMAGINED_DAYS, UNSEEN_DAYS = 20, 1_000, 500
TRUTH = {"mu": 0.05, "kappa": 5.0, "theta": 0.06, "sigma": 0.5, "rho": -0.5, "v0": 0.06}
POSTERIOR_LOG_SD = 0.3
WITHIN = (0.10, 0.05)
PICTURE = Path(__file__).parents[1] / "docs" / "sac-planning.png"

# 26 decisions a day, so that a real step is 15 minutes of a real day.
EXECUTION = ExecutionParameters(slippage="none", max_pace=2.0, minutes_per_decision=15)
AGENT = SacParameters(
    hidden_units=(64, 64),
    batch_size=256,
    learning_rate=1e-3,
    gamma=1.0,
    tau=0.01,
    episodes=1,
    steps=1_560,
    updates_per_step=4,
    learning_starts=104,
    buffer_size=50_000,
    initial_alpha=0.1,
    target_entropy=-3.0,
    final_learning_rate_factor=0.1,
    evaluations=30,
    keep_best=False,
)


class Case(NamedTuple):
    """One curve's setting."""

    k: int
    updates_per_step: int

    def __str__(self) -> str:
        return f"k = {self.k}, {self.updates_per_step} updates a step"


CASES = (Case(0, 4), Case(4, 4), Case(9, 4), Case(0, 8), Case(4, 8))


@dataclass
class Run:
    """One training.

    Attributes:
        case, seed: which.
        real_steps: at each evaluation.
        seconds: of training until then, evaluations not counted.
        cost: on unseen days, over VWAP's there.
    """

    case: Case
    seed: int
    real_steps: list[int]
    seconds: list[float]
    cost: list[float]

    def first_within(self, share: float, of: Sequence[float]) -> float:
        """Where (`real_steps` or `seconds`) the cost was first no more than VWAP's and that share; infinite if never."""
        return next((x for x, c in zip(of, self.cost, strict=True) if c <= 1 + share), float("inf"))


@functools.cache
def markets() -> tuple[ExecutionMarket, ExecutionMarket, ExecutionMarket]:
    """Real, imagined and unseen days."""
    from quant_assets.posterior.priors import HestonParameters
    from quant_assets.simulation.intraday import IntradayModel, simulate_days
    from quant_assets.simulation.markets import execution_market

    model = IntradayModel()

    def of(days: int, log_sd: float, seed: int) -> ExecutionMarket:
        rng = np.random.default_rng(seed)

        def positive(name: str) -> np.ndarray:
            return TRUTH[name] * np.exp(log_sd * rng.standard_normal(days) - log_sd**2 / 2)

        draws = HestonParameters(
            mu=TRUTH["mu"] + 0.15 * log_sd * rng.standard_normal(days),
            kappa=positive("kappa"),
            theta=positive("theta"),
            sigma=positive("sigma"),
            rho=np.clip(TRUTH["rho"] + 0.4 * log_sd * rng.standard_normal(days), -0.95, 0.95),
            v0=positive("v0"),
        )
        return execution_market(
            simulate_days(draws, days_per_draw=1, seed=seed, mid0=100.0, model=model), model
        )

    return of(REAL_DAYS, 0.0, 1), of(IMAGINED_DAYS, POSTERIOR_LOG_SD, 2), of(UNSEEN_DAYS, 0.0, 3)


class Judge:
    """Costs on the unseen days, each with its own order, bps of the order's value."""

    def __init__(self) -> None:
        self.market = markets()[2]
        self.episodes = ExecutionEpisodes(self.market, EXECUTION, UNSEEN_DAYS)
        pace = EXECUTION.max_pace or 1.0
        self.vwap = self._cost(lambda seen: np.full((len(seen), 1), 1 / pace))  # the profile's own pace
        orders = self.episodes.order_shares
        twap = run_schedule(
            self.market, EXECUTION, twap_schedule(EXECUTION, orders), np.arange(UNSEEN_DAYS), orders
        )
        self.twap = float((twap.implementation_shortfall_bps - twap.slippage_bps).mean())

    def cost(self, policy: SacPolicy) -> float:
        """Over VWAP's."""
        return self._cost(policy.act) / self.vwap

    def _cost(self, act: Callable[[np.ndarray], np.ndarray]) -> float:
        observation = self.episodes.reset(np.random.default_rng(0), np.arange(UNSEEN_DAYS))
        total = np.zeros(UNSEEN_DAYS)
        for _ in range(self.episodes.steps):
            done = self.episodes.step(act(observation))
            total -= done.reward
            observation = done.observation
        return float(total.mean())


@functools.cache
def judge() -> Judge:
    """One per process."""
    return Judge()


def learn(setting: tuple[Case, int, SacParameters]) -> Run:
    """One training with its curve."""
    case, seed, agent = setting
    real, imagined, _ = markets()
    judged, jury = 0.0, judge()
    seconds: list[float] = []
    started = time.perf_counter()

    def evaluate(policy: SacPolicy) -> float:
        nonlocal judged
        begun = time.perf_counter()
        seconds.append(begun - started - judged)
        cost = jury.cost(policy)
        judged += time.perf_counter() - begun
        return -cost

    parameters = replace(
        agent, seed=seed, imagined_per_step=case.k, updates_per_step=float(case.updates_per_step)
    )
    agent_found = train(
        ExecutionEpisodes(real, EXECUTION, parameters.episodes),
        parameters,
        imagined=ExecutionEpisodes(imagined, EXECUTION, case.k * parameters.episodes) if case.k else None,
        evaluate=evaluate,
    )
    history = agent_found.history
    return Run(
        case,
        seed,
        [int(row["real_steps"] or 0) for row in history],
        seconds,
        [-float(row["score"] or 0) for row in history],
    )


def draw(runs: dict[Case, list[Run]], path: Path) -> None:
    """Mean and sd over seeds of the cost beyond VWAP's, against real steps."""
    from quant_assets.presentation import COLORS, new_figure

    figure = new_figure(9.0, 4.0)
    axes = figure.subplots(1, 2, sharey=True)
    color = {k: COLORS[i] for i, k in enumerate(sorted({case.k for case in runs}))}
    for ax, updates in zip(axes, sorted({case.updates_per_step for case in runs}), strict=False):
        for case, found in runs.items():
            if case.updates_per_step != updates:
                continue
            cost = 100 * (np.array([r.cost for r in found]) - 1)
            middle, width = cost.mean(0), cost.std(0, ddof=1)
            steps = found[0].real_steps
            ax.plot(steps, middle, color=color[case.k], label=f"k = {case.k}")
            ax.fill_between(steps, middle - width, middle + width, color=color[case.k], alpha=0.18, lw=0)
        ax.axhline(0, color="#222222", lw=0.8)
        ax.text(AGENT.steps, 0.2, "VWAP", ha="right", va="bottom", fontsize=8)
        ax.set_ylim(-1, 25)
        ax.set_xlabel(f"real steps (15 minutes each) of {REAL_DAYS} days")
        ax.set_title(f"{updates} updates for each real step", fontsize=10)
        ax.legend(frameon=False, title="imagined per real", fontsize=8, title_fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("cost on unseen days beyond VWAP's, %")
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    """Train, compare, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a minute: two seeds, k = 0 and 4, fewer steps, no picture"
    )
    quick = parser.parse_args().quick
    from quant_resources.compute import Compute

    cases = CASES[:2] if quick else CASES
    seeds = range(2 if quick else SEEDS)
    agent = replace(AGENT, steps=780, evaluations=15) if quick else AGENT
    work = [(case, seed, agent) for seed in seeds for case in cases]
    runs: dict[Case, list[Run]] = {case: [] for case in cases}
    for run in Compute("loky", CORES).map(learn, work):
        runs[run.case].append(run)
        print(f"  {run.case}, seed {run.seed}: {run.cost[-1] - 1:+.1%} of VWAP's cost", flush=True)
    for found in runs.values():
        found.sort(key=lambda r: r.seed)
    jury = judge()

    def steps_text(values: Sequence[float]) -> str:
        reached = sum(v < float("inf") for v in values)
        middle = statistics.median(values)
        return (f"{middle:,.0f}" if middle < float("inf") else "never") + f" ({reached}/{len(values)})"

    rows = []
    for case, found in runs.items():
        last = [100 * (r.cost[-1] - 1) for r in found]
        lowest = [100 * (min(r.cost) - 1) for r in found]
        to_reach = [r.first_within(WITHIN[-1], r.seconds) for r in found]
        rows.append(
            [
                str(case),
                *(steps_text([r.first_within(share, r.real_steps) for r in found]) for share in WITHIN),
                f"{middle:.1f} s" if (middle := statistics.median(to_reach)) < float("inf") else "never",
                f"{statistics.mean(last):+.1f} % ± {statistics.stdev(last):.1f}",
                f"{statistics.mean(lowest):+.1f} %",
                f"{statistics.median(r.seconds[-1] for r in found):.1f} s",
            ]
        )
    print(
        f"  unseen days: VWAP costs {jury.vwap:.2f} bps, TWAP {jury.twap:.2f} bps; medians (seeds that got there)",
        flush=True,
    )
    print_table(
        [
            "real steps until within",
            *(f"{s:.0%} of VWAP" for s in WITHIN),
            f"time to {WITHIN[-1]:.0%}",
            "at the end",
            "lowest",
            "training",
        ],
        rows,
    )
    without, with_planning = runs[CASES[0]], runs[CASES[1]]
    needed = {
        name: [r.first_within(WITHIN[-1], r.real_steps) for r in found]
        for name, found in (("ours", with_planning), ("theirs", without))
    }
    # A seed that never gets there counts as one that needs all of its steps and one evaluation more.
    beyond = agent.steps * (1 + 1 / agent.evaluations)
    counted = {name: [min(v, beyond) for v in values] for name, values in needed.items()}
    ratios = {}
    for share in WITHIN[::-1]:
        for case, found in runs.items():
            base = runs[Case(0, case.updates_per_step)]
            if case.k:
                values = [
                    statistics.median(min(r.first_within(share, r.real_steps), beyond) for r in side)
                    for side in (base, found)
                ]
                ratios[f"{case}, real steps to within {share:.0%}"] = values[0] / values[1]
    if not quick:
        draw(runs, PICTURE)
        print(f"  {PICTURE}", flush=True)
    last_line(
        name="sac_planning",
        ratio=next(iter(ratios.values())),
        ratios=ratios,
        ours=spread(counted["ours"], "real steps"),
        theirs=spread(counted["theirs"], "real steps"),
        work=f"real steps until the cost on {UNSEEN_DAYS} unseen days is within {WITHIN[-1]:.0%} of VWAP's, k = 4 against k = 0, "
        f"{REAL_DAYS} real days, {len(seeds)} seeds, {agent.updates_per_step:g} updates a real step on both sides; never counts as "
        f"{beyond:,.0f}",
        equal=None,
        cost_beyond_vwap_at_end={str(c): [round(r.cost[-1] - 1, 4) for r in f] for c, f in runs.items()},
        reached={
            str(c): sum(r.first_within(WITHIN[-1], r.real_steps) < beyond for r in f) for c, f in runs.items()
        },
        vwap_bps=round(jury.vwap, 3),
        twap_bps=round(jury.twap, 3),
        quick=quick,
    )


if __name__ == "__main__":
    from benchmarks import sac_planning  # under its own name, by which other processes find what they run

    sac_planning.main()
