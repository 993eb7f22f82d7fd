"""Simulation-based calibration: are the posteriors of `heston.fit` the posteriors of the model? Pure.

Belongs here: datasets drawn from the prior, the ranks of the truth among the posterior's draws, the verdict on their
uniformity, its figures. Does not belong here: the sampler (`heston.py`) and the limits on one fit (`diagnostics.py`).

**The idea** (Talts et al. 2018, *Validating Bayesian inference algorithms with simulation-based calibration*). Draw
parameters from the prior, simulate returns with them, sample the posterior given the returns. If model, likelihood and
sampler are right, then the truth is one more draw from the posterior, and its rank among L independent draws is uniform
on 0..L, for every quantity and every length of the series. Truth too often in the middle: the posterior is too wide; at
both ends: too narrow; at one end: biased.

**Refused fits** are counted, and their ranks are left out. That does not spoil the others: a refusal depends on the
returns and on the sampler's own random numbers, neither of which knows the truth once the returns are given. So for the
datasets that are left the truth still follows its posterior given the returns, and its ranks stay uniform. (It would
not do to leave fits out by how their draws compare with the truth.) What the accepted ones say nothing about is
returns of the refused kind; hence the count, with reasons.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from quant_assets.posterior.diagnostics import Limits
from quant_assets.posterior.heston import (
    DIMENSIONS,
    FEWEST_RETURNS,
    FitRefused,
    HestonError,
    HestonPosterior,
    SamplerSettings,
    check_returns,
    fit,
)
from quant_assets.posterior.priors import QUANTITIES, HestonPriors
from quant_assets.posterior.variance_filter import simulate_returns
from quant_resources.compute import Compute

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CODE_VERSION = (
    3  # raise it when priors, filter, sampler or ranks change: outcomes of older code are not reused
)
PROGRESS_SECONDS = 5.0
MOST_BINS = 20
FEWEST_EXPECTED = 5.0  # per bin of the chi-square test
MOST_REFUSED = 0.1  # of the datasets of a length
FEWEST_RANKS = 20  # per length: with fewer, hardly anything could fail
BAND_SIMULATIONS = 4000
Status = Literal["accepted", "rerouted", "refused"]


class CalibrationError(ValueError):
    """A calibration cannot be run or judged. The message names the thing, its value and the way out."""


def _quick_sampler() -> SamplerSettings:
    return SamplerSettings(
        draws=250, threads=1, fall_back=False, limits=Limits(r_hat=1.04, ess=100.0, pareto_k=0.7)
    )


@dataclass(frozen=True)
class CalibrationPlan:
    """What is simulated and how it is fitted.

    Attributes:
        datasets: sessions of a series -> how many series.
        ranked_draws: L: so many draws of a fit, evenly spaced over all chains, are kept for the ranks 0..L. They should
            be nearly independent, so `sampler.limits.ess` may not be below it.
        priors: of truth and fit alike.
        sampler: shorter than in production: 4 x 250 draws. The two limits that depend on the number of draws are
            scaled with it: an ESS of 100 (production: 400 of 4000) and an R-hat of 1.04 (its distance from 1 goes
            with 1 / draws: 1.01 at 1000 a chain). Its seed is not used; every dataset has its own. `fall_back` is off:
            the latent sampler takes minutes; with it on, a fit that the marginal sampler refuses is sampled again and
            counts as rerouted, with ranks.
        seed: of everything; each dataset's seed follows from it, the sessions and the replicate's number alone, so that
            a plan with more datasets goes on where a smaller one ended.
    """

    datasets: Mapping[int, int] = field(default_factory=lambda: {500: 200, 2000: 50})
    ranked_draws: int = 99
    priors: HestonPriors = field(default_factory=HestonPriors)
    sampler: SamplerSettings = field(default_factory=_quick_sampler)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.datasets:
            raise CalibrationError("datasets is empty: name at least one length and how many series of it")
        for sessions, count in self.datasets.items():
            if sessions < FEWEST_RETURNS or count < 1:
                raise CalibrationError(
                    f"datasets = {dict(self.datasets)}: lengths are at least {FEWEST_RETURNS} sessions, counts at least 1"
                )
        total = self.sampler.chains * self.sampler.draws
        if not 1 <= self.ranked_draws <= min(total, self.sampler.limits.ess):
            raise CalibrationError(
                f"ranked_draws = {self.ranked_draws} must lie in 1..{min(total, self.sampler.limits.ess):.0f}: a fit has "
                f"{total} draws, and is accepted with {self.sampler.limits.ess:.0f} effective ones"
            )
        if not 0 <= self.seed < 2**32:
            raise CalibrationError(f"seed = {self.seed} must lie in 0..2^32 - 1")

    @property
    def cases(self) -> list[Case]:
        """All datasets, the longest series first: the short ones fill the end of a parallel run evenly."""
        return [
            Case(sessions, replicate)
            for sessions in sorted(self.datasets, reverse=True)
            for replicate in range(self.datasets[sessions])
        ]

    @property
    def key(self) -> str:
        """Identity of everything that an outcome depends on, 24 hex digits; how many datasets there are is not part of it."""
        description = {
            "code": CODE_VERSION,
            "ranked_draws": self.ranked_draws,
            "priors": self.priors.as_dict(),
            # results depend neither on the sampler's threads nor on its seed
            "sampler": asdict(replace(self.sampler, threads=1, seed=0)),
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:24]

    def seed_of(self, case: Case) -> int:
        """The seed of a dataset: truth, returns and sampler follow from it. Non-negative, below 2^63."""
        words = np.random.SeedSequence((self.seed, case.sessions, case.replicate)).generate_state(
            1, np.uint64
        )
        return int(words[0] >> np.uint64(1))


class Case(NamedTuple):
    """One dataset of a plan.

    Attributes:
        sessions: T, the length of the series.
        replicate: its number among those of this length, from 0.
    """

    sessions: int
    replicate: int


@dataclass(frozen=True)
class Outcome:
    """What came of one dataset.

    Attributes:
        sessions, replicate, seed: which one; see `CalibrationPlan.seed_of`.
        status: `accepted`, `rerouted` (accepted from the latent sampler after the marginal one was refused), `refused`.
        reason: why it was refused or rerouted; else empty.
        ranked_draws: L.
        ranks: by quantity, how many of the L draws lie below the truth; empty for a refused fit.
        truth: by quantity, per year.
        min_ess: smallest bulk or tail ESS of any quantity; NaN where the returns were refused before any sampling, like
            the next three.
        max_r_hat: largest over the quantities.
        pareto_k, weight_efficiency: of the importance weights; NaN for a rerouted fit.
        seconds: wall-clock; the only thing that differs when the case is run again.
    """

    sessions: int
    replicate: int
    seed: int
    status: Status
    reason: str
    ranked_draws: int
    ranks: dict[str, int]
    truth: dict[str, float]
    min_ess: float
    max_r_hat: float
    pareto_k: float
    weight_efficiency: float
    seconds: float

    def as_row(self) -> dict[str, Any]:
        """Flat, for tables: `rank_mu` (None where refused) .. `truth_v_T` in place of the two dictionaries."""
        row = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("ranks", "truth")}
        row |= {f"rank_{name}": self.ranks.get(name) for name in QUANTITIES}
        return row | {f"truth_{name}": self.truth[name] for name in QUANTITIES}


# ---- run -----------------------------------------------------------------------------------------------------------


def simulate_case(plan: CalibrationPlan, case: Case) -> tuple[np.ndarray, dict[str, float], int]:
    """Returns (T,) of a dataset, the truth by quantity, and the seed of its fit."""
    for_truth, for_returns, for_fit = (
        int(s) for s in np.random.SeedSequence(plan.seed_of(case)).generate_state(3) >> np.uint32(1)
    )
    x = np.random.default_rng(for_truth).standard_normal((1, DIMENSIONS))
    matrix = np.stack(plan.priors.parameters(x), axis=-1)
    returns, variances = simulate_returns(
        matrix, case.sessions, plan.priors.variance_floor, for_returns, plan.priors.own_v0
    )
    truth = [*matrix[0], variances[0, 0], variances[0, -1]]
    return returns[0], {name: float(v) for name, v in zip(QUANTITIES, truth, strict=True)}, for_fit


def ranks_of(truth: Mapping[str, float], draws: Mapping[str, np.ndarray], ranked: int) -> dict[str, int]:
    """By quantity, how many of `ranked` draws, evenly spaced over all chains, lie below the truth."""
    ranks = {}
    for name in truth:
        flat = np.ravel(draws[name])
        ranks[name] = int((flat[np.arange(ranked) * flat.size // ranked] < truth[name]).sum())
    return ranks


def run_case(plan: CalibrationPlan, case: Case) -> Outcome:
    """Simulate one dataset, fit it, rank the truth. Anything but a refusal of the returns or of the fit is raised."""
    from threadpoolctl import threadpool_limits

    start = time.perf_counter()
    returns, truth, seed = simulate_case(plan, case)
    status: Status = "refused"
    posterior: HestonPosterior | None = None
    # One thread, in a pool of processes and outside of one: faster for both, and sums come out alike to the last bit.
    with threadpool_limits(1):
        try:
            check_returns(returns, plan.priors)
        except HestonError as error:
            reason = str(error)
        else:
            try:
                posterior = fit(returns, plan.priors, replace(plan.sampler, seed=seed, threads=1))
                status = "rerouted" if posterior.fell_back_because else "accepted"
                reason = "; ".join(posterior.fell_back_because)
            except FitRefused as error:
                posterior = error.posterior
                reason = "; ".join(posterior.failures)
    measured = posterior.diagnostics if posterior else None
    return Outcome(
        sessions=case.sessions,
        replicate=case.replicate,
        seed=plan.seed_of(case),
        status=status,
        reason=reason,
        ranked_draws=plan.ranked_draws,
        ranks=ranks_of(truth, posterior.draws, plan.ranked_draws)
        if posterior and status != "refused"
        else {},
        truth=truth,
        min_ess=min(*measured.ess_bulk.values(), *measured.ess_tail.values()) if measured else math.nan,
        max_r_hat=max(measured.r_hat.values()) if measured else math.nan,
        pareto_k=math.nan if measured is None or measured.pareto_k is None else measured.pareto_k,
        weight_efficiency=math.nan
        if measured is None or measured.weight_efficiency is None
        else measured.weight_efficiency,
        seconds=time.perf_counter() - start,
    )


@dataclass(frozen=True)
class _Work:
    """`run_case` as a worker gets it; `own_process`: of a pool, so that it may set its environment."""

    plan: CalibrationPlan
    own_process: bool

    def __call__(self, case: Case) -> Outcome:
        # XLA reads it when JAX is first imported; without it every worker starts a thread per core.
        if self.own_process and "jax" not in sys.modules:
            os.environ.setdefault(
                "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
            )
        return run_case(self.plan, case)


def run_calibration(
    plan: CalibrationPlan,
    store_path: Path,
    compute: Compute,
    progress: Callable[[str], None] = lambda message: None,
) -> list[Outcome]:
    """The outcome of every dataset of the plan; only those run that are not in the store.

    Args:
        plan: what to run.
        store_path: an SQLite file, created with its folder when it is missing; plans share it. Every outcome is written
            as soon as it is there: a kill loses the datasets in flight.
        compute: workers; outcomes do not depend on them.
        progress: is told how far things are, about every 5 seconds.

    Returns:
        By length, then by replicate.

    Raises:
        CalibrationError: the store cannot be read or written.
        Exception: whatever a dataset raised that is not a refusal; what was finished before is kept.
    """
    store, cases = _Store(Path(store_path)), plan.cases
    done = {case: outcome for case, outcome in store.finished(plan.key).items() if case in set(cases)}
    todo = [case for case in cases if case not in done]
    reused, sessions_done, start = len(done), 0, time.monotonic()
    sessions_todo = sum(case.sessions for case in todo)
    told = start

    def tell() -> None:
        counts = Counter(outcome.status for outcome in done.values())
        message = f"{len(done)} of {len(cases)} datasets: " + ", ".join(
            f"{counts[status]} {status}" for status in ("accepted", "rerouted", "refused")
        )
        if reused:
            message += f", {reused} of them found finished"
        if 0 < sessions_done < sessions_todo:
            # A fit's time grows with the length of its series.
            left = (time.monotonic() - start) * (sessions_todo - sessions_done) / sessions_done
            message += f", about {left / 60:.0f} min left" if left > 90 else f", about {left:.0f} s left"
        progress(message)

    tell()
    for outcome in compute.map(_Work(plan, compute.backend == "loky" and compute.workers > 1), todo):
        store.record(plan.key, outcome)
        done[Case(outcome.sessions, outcome.replicate)] = outcome
        sessions_done += outcome.sessions
        if time.monotonic() - told >= PROGRESS_SECONDS or len(done) == len(cases):
            told = time.monotonic()
            tell()
    return [done[case] for case in sorted(cases)]


class _Store:
    """Finished datasets of all plans, in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._transaction() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS outcomes (plan TEXT NOT NULL, sessions INTEGER NOT NULL, "
                "replicate INTEGER NOT NULL, content TEXT NOT NULL, PRIMARY KEY (plan, sessions, replicate))"
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
                yield connection
        except sqlite3.DatabaseError as error:
            raise CalibrationError(
                f"finished datasets in {self.path} cannot be read or written: {error}. Free space or permissions there, "
                "or end the process that holds the file; a file that is damaged may be deleted, its work is then done again."
            ) from error

    def finished(self, plan: str) -> dict[Case, Outcome]:
        with self._transaction() as connection:
            rows = connection.execute("SELECT content FROM outcomes WHERE plan = ?", (plan,)).fetchall()
        # Python's JSON keeps floats to the last bit, and NaN and infinity.
        outcomes = [Outcome(**json.loads(content)) for (content,) in rows]
        return {Case(outcome.sessions, outcome.replicate): outcome for outcome in outcomes}

    def record(self, plan: str, outcome: Outcome) -> None:
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?)",
                (plan, outcome.sessions, outcome.replicate, json.dumps(asdict(outcome))),
            )


# ---- judge ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UniformityTest:
    """Ranks of one quantity at one length against the uniform distribution.

    Attributes:
        sessions, quantity: whose ranks.
        test: `ks` (Kolmogorov-Smirnov) or `chi_square`.
        ranks: how many.
        bins: of the chi-square test; 0 for the other.
        statistic, p: of the test by itself.
        holm_p: corrected for all tests of the judgement.
    """

    sessions: int
    quantity: str
    test: Literal["ks", "chi_square"]
    ranks: int
    bins: int
    statistic: float
    p: float
    holm_p: float


@dataclass(frozen=True)
class Judgement:
    """Whether the ranks are uniform.

    Attributes:
        tests: two for every length and quantity.
        counts: sessions -> status -> datasets.
        refusals: why datasets were refused or rerouted, without quantity and numbers -> how many of them.
        failures: one sentence for each thing that is wrong; empty: passed.
    """

    tests: tuple[UniformityTest, ...]
    counts: dict[int, dict[str, int]]
    refusals: dict[str, int]
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """No failure."""
        return not self.failures


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction, which holds whatever the dependence of the tests.

    >>> holm([0.01, 0.04, 0.03]).round(4).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, float)
    order = np.argsort(values, kind="stable")
    corrected = np.empty(len(values))
    steps = (len(values) - np.arange(len(values))) * values[order]
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def bin_edges(ranks: int, ranked_draws: int) -> np.ndarray:
    """Edges of the bins of the ranks 0..L, as even as they go, so that at least 5 ranks are expected in each.

    Returns:
        (bins + 1,), from 0 to L + 1; bin k holds the ranks edge[k] .. edge[k + 1] - 1.
    """
    values = ranked_draws + 1
    bins = min(MOST_BINS, values)
    while bins > 1 and ranks * (values // bins) / values < FEWEST_EXPECTED:
        bins -= 1
    return np.arange(bins + 1) * values // bins


def judge(outcomes: Sequence[Outcome], level: float = 0.01, seed: int = 0) -> Judgement:
    """Are the ranks uniform? Two tests for each length and quantity, all corrected together.

    Kolmogorov-Smirnov sees a shift; its ranks are spread over their cell, (rank + U) / (L + 1) with U uniform, which is
    exactly uniform on (0, 1) where ranks are on 0..L. Chi-square sees a posterior too wide or too narrow sooner.

    Args:
        outcomes: of one plan.
        level: the smallest corrected p that passes.
        seed: of U.
    """
    from scipy.stats import chisquare, kstest

    table = _ranks(outcomes)
    measured: list[tuple[int, str, Literal["ks", "chi_square"], int, int, float, float]] = []
    failures = []
    for sessions, (ranks, ranked_draws) in table.items():
        n = len(ranks)
        if n < FEWEST_RANKS:
            failures.append(
                f"T = {sessions}: {n} of {sum(o.sessions == sessions for o in outcomes)} datasets have ranks, at least "
                f"{FEWEST_RANKS} are needed to say anything"
            )
        mine = [o for o in outcomes if o.sessions == sessions]
        refused = sum(o.status == "refused" for o in mine)
        if refused > MOST_REFUSED * len(mine):
            failures.append(
                f"T = {sessions}: {refused} of {len(mine)} datasets were refused, more than {MOST_REFUSED:.0%}: the ranks of the "
                "others do not speak for such returns"
            )
        if not n:
            continue
        # a generator for each length: what is said of one does not depend on which others there are
        spread = (ranks + np.random.default_rng((seed, sessions)).random(ranks.shape)) / (ranked_draws + 1)
        edges = bin_edges(n, ranked_draws)
        expected = n * np.diff(edges) / (ranked_draws + 1)
        for k, quantity in enumerate(QUANTITIES):
            ks = kstest(spread[:, k], "uniform")
            measured.append((sessions, quantity, "ks", n, 0, ks.statistic, ks.pvalue))
            if len(edges) > 2:
                chi = chisquare(np.histogram(ranks[:, k], edges - 0.5)[0], expected)
                measured.append(
                    (sessions, quantity, "chi_square", n, len(edges) - 1, chi.statistic, chi.pvalue)
                )
    corrected = holm([row[-1] for row in measured])
    tests = tuple(
        UniformityTest(*row[:-2], float(row[-2]), float(row[-1]), float(p))
        for row, p in zip(measured, corrected, strict=True)
    )
    failures += [
        f"T = {t.sessions}: {t.ranks} ranks of {t.quantity} are not uniform, {t.test} p = {t.p:.2g}, corrected "
        f"{t.holm_p:.2g}, below {level}"
        for t in tests
        if not t.holm_p >= level
    ]
    return Judgement(tests, _counts(outcomes), _refusals(outcomes), tuple(failures))


def _ranks(outcomes: Sequence[Outcome]) -> dict[int, tuple[np.ndarray, int]]:
    """Sessions -> ranks (n, 7) in the order of the replicates, and L."""
    if len(sizes := {o.ranked_draws for o in outcomes}) != 1:
        raise CalibrationError(f"outcomes of one plan are needed; these rank {sorted(sizes) or 'no'} draws")
    (ranked_draws,) = sizes
    table = {}
    for sessions in sorted({o.sessions for o in outcomes}):
        mine = sorted((o for o in outcomes if o.sessions == sessions and o.ranks), key=lambda o: o.replicate)
        rows = [[o.ranks[name] for name in QUANTITIES] for o in mine]
        table[sessions] = np.array(rows, int).reshape(-1, len(QUANTITIES)), ranked_draws
    return table


def _counts(outcomes: Sequence[Outcome]) -> dict[int, dict[str, int]]:
    return {
        sessions: {
            status: sum(o.sessions == sessions and o.status == status for o in outcomes)
            for status in ("accepted", "rerouted", "refused")
        }
        for sessions in sorted({o.sessions for o in outcomes})
    }


def _refusals(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Reasons with `#` for every number, whatever the quantity, the most frequent first."""
    import re

    quantity = re.compile(rf" of ({'|'.join(QUANTITIES)}) is ")
    number = re.compile(r"(?<![A-Za-z_])-?(\d[\d.,]*\d|\d)(e[-+]?\d+)?%?")
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        plain = number.sub("#", quantity.sub(" is ", outcome.reason))
        # once for each dataset
        counts.update(list(dict.fromkeys(reason for reason in plain.split("; ") if reason)))
    return dict(counts.most_common())


# ---- show ----------------------------------------------------------------------------------------------------------


@lru_cache
def ecdf_band(ranks: int, ranked_draws: int, probability: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Where the ECDF of uniform ranks lies, minus its expectation, at all of 0..L at once with the given probability.

    At a rank k, n ECDF(k) is Binomial(n, (k + 1) / (L + 1)). The pointwise level is chosen such that that many of
    simulated sets of n uniform ranks stay inside everywhere (Säilynoja, Bürkner & Vehtari 2022, *Graphical test for
    discrete uniformity and its applications in goodness-of-fit evaluation and multiple sample comparison*).

    Returns:
        Lower and upper edge, each (L + 1,).
    """
    from scipy.stats import binom

    values = ranked_draws + 1
    inside = (np.arange(values) + 1) / values
    drawn = np.random.default_rng(0).integers(values, size=(BAND_SIMULATIONS, ranks))
    counts = np.stack([np.bincount(row, minlength=values) for row in drawn]).cumsum(axis=1)
    possible = np.arange(ranks + 1)[:, None]
    # the smaller tail of each count at each rank, twice
    tail = 2 * np.minimum(binom.cdf(possible, ranks, inside), binom.sf(possible - 1, ranks, inside))
    most_extreme = tail[counts, np.arange(values)].min(axis=1)
    level = np.quantile(most_extreme, 1 - probability, method="lower")
    # the counts that are no more extreme than that
    allowed = tail >= level * (1 - 1e-9)
    lower = allowed.argmax(axis=0) / ranks - inside
    upper = (ranks - allowed[::-1].argmax(axis=0)) / ranks - inside
    return lower, upper


def ecdf_difference_figure(outcomes: Sequence[Outcome]) -> Figure:
    """ECDF of the ranks minus that of uniform ones, a panel for each quantity and a line for each length.

    A calibrated sampler's line stays inside its band everywhere, in 95 of 100 panels. Above 0 on the left and below on
    the right: posterior too narrow; the reverse: too wide; above all along: draws too large.
    """
    from quant_assets.presentation import COLORS, new_figure

    table = _ranks(outcomes)
    figure = new_figure(11, 5.6)
    panels = figure.subplots(2, 4, sharex=True, sharey=True)
    for k, (ax, quantity) in enumerate(zip(panels.flat, QUANTITIES, strict=False)):
        for color, (sessions, (ranks, ranked_draws)) in zip(cycle(COLORS), table.items(), strict=False):
            n = len(ranks)
            if not n:
                continue
            at = (np.arange(ranked_draws + 1) + 1) / (ranked_draws + 1)
            ecdf = np.bincount(ranks[:, k], minlength=ranked_draws + 1).cumsum() / n
            lower, upper = ecdf_band(n, ranked_draws)
            ax.fill_between(at, lower, upper, step="mid", color=color, alpha=0.13, lw=0)
            ax.step(at, ecdf - at, where="mid", color=color, lw=1.3, label=f"T = {sessions}, {n} fits")
        ax.axhline(0, color="black", lw=0.5)
        _panel(ax, quantity, k >= 3)
    for ax in panels[:, 0]:
        ax.set_ylabel("ECDF minus uniform", fontsize=9)
    # the legend in the panel that no quantity needs
    spare, note = panels.flat[len(QUANTITIES)], "shaded: where 95 % of calibrated\nsamplers stay all along"
    spare.axis("off")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    spare.legend(handles, labels, loc="center", fontsize=9, frameon=False, title=note, title_fontsize=9)
    return figure


def rank_histogram_figure(outcomes: Sequence[Outcome]) -> Figure:
    """Histograms of the ranks, a panel for each quantity; grey: where 95 % of the bars of uniform ranks end.

    Heights are relative to the expected one, so that lengths with different numbers of fits share an axis.
    """
    from scipy.stats import binom

    from quant_assets.presentation import COLORS, new_figure

    table = {sessions: entry for sessions, entry in _ranks(outcomes).items() if len(entry[0])}
    figure = new_figure(1.5 + 1.75 * len(QUANTITIES), 0.8 + 2.0 * max(len(table), 1))
    panels = figure.subplots(max(len(table), 1), len(QUANTITIES), sharex=True, sharey=True, squeeze=False)
    for number, (color, (sessions, (ranks, ranked_draws))) in enumerate(
        zip(cycle(COLORS), table.items(), strict=False)
    ):
        row = panels[number]
        n, edges = len(ranks), bin_edges(len(ranks), ranked_draws)
        part = np.diff(edges) / (ranked_draws + 1)
        band = binom.ppf([[0.025], [0.975]], n, part) / (n * part)
        for k, (ax, quantity) in enumerate(zip(row, QUANTITIES, strict=True)):
            heights = np.histogram(ranks[:, k], edges - 0.5)[0] / (n * part)
            at = edges / (ranked_draws + 1)
            ax.fill_between(at, *(np.append(b, b[-1]) for b in band), step="post", color="#dddddd", lw=0)
            ax.stairs(heights, at, fill=True, color=color, alpha=0.45)
            ax.stairs(heights, at, color=color, lw=1.0)
            ax.axhline(1, color="black", lw=0.5)
            _panel(ax, quantity if number == 0 else "", number == len(panels) - 1)
        row[0].set_ylabel(f"T = {sessions}, {n} fits\ncount / expected", fontsize=9)
    figure.supxlabel("grey: where 95 % of the bars end if ranks are uniform", fontsize=9)
    return figure


def _panel(ax: Axes, title: str, bottom: bool) -> None:
    ax.set_title(title, fontsize=10)
    ax.set_xlim(0, 1)
    ax.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    ax.tick_params(labelsize=8)
    if bottom:
        ax.tick_params(labelbottom=True)
        ax.set_xlabel("rank / L", fontsize=9)
