"""What alternative data add to a classifier, rung by rung. Pure.

Belongs here: the ladder of inputs, training on each rung, estimates with paired intervals, and the sentence that they allow. Does
not belong here: reading tables (`ablation_assets.py`), the network (`quant_assets/models/mlp.py`), metrics and resamples
(`quant_assets/models/evaluation.py`), drawing (`plots.py`, `pages`).

Each rung adds one kind of inputs to those of the rung before. All rungs have the same rows, windows, hyperparameters and seeds, so
what differs between two of them is the inputs, and with them what each network made of its initial weights. Intervals come from one
set of resamples of blocks of sessions: what two rungs share on the same sessions cancels in their difference. The plain ones are those
of the networks that were trained, and `seed_sd` tells how much one training differs from the next.

The sentence reads joint intervals. Twelve differences are looked at (three steps, two sides, AUC and Brier score), so they are as wide
as it takes for all of them to hold at once in 95 % (Bonferroni). They allow for other sessions and for other seeds, by Student's
quantile (`evaluation.student_reach`). Without four blocks of sessions, or with one seed, there are none, and the sentence says so.

The strategy enters above the break-even probability of its bracket on every rung. Probabilities of one rung spread wider than those of
another, so rungs trade differently often, and what the strategy earns compares that as well as the inputs; `trades` tells it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quant_assets.backtests import statistics
from quant_assets.backtests.engine import Account, Costs
from quant_assets.backtests.portfolio import Backtest, Window, run_backtest
from quant_assets.features.tables import (
    COMPETITOR_INPUTS,
    INDUSTRY_INPUTS,
    SENTIMENT_INPUTS,
    TECHNICAL_INPUTS,
)
from quant_assets.market.series import BarSeries
from quant_assets.models import evaluation
from quant_assets.models.dataset import Dataset, Windows
from quant_assets.models.gate import FEWEST_BLOCKS
from quant_assets.models.mlp import MlpParameters, train
from quant_assets.strategies.strategy import Strategy

# Rung -> its inputs, those of the rungs before included.
RUNGS: dict[str, tuple[str, ...]] = {
    "technical": TECHNICAL_INPUTS,
    "own sentiment": TECHNICAL_INPUTS + SENTIMENT_INPUTS,
    "competitors": TECHNICAL_INPUTS + SENTIMENT_INPUTS + COMPETITOR_INPUTS,
    "industry": TECHNICAL_INPUTS + SENTIMENT_INPUTS + COMPETITOR_INPUTS + INDUSTRY_INPUTS,
}
FIRST_RUNG = next(iter(RUNGS))
SIDES = ("long", "short")
BOTH = "both"
AUC, BRIER_GAIN, SHARPE, TOTAL_RETURN, TRADES = "auc", "brier_gain", "sharpe", "total_return", "trades"
# What the sentence is about: how well probabilities rank, and how far they lie from what happened.
JUDGED = (AUC, BRIER_GAIN)
# What somebody who knows nothing reaches.
NOTHING = {AUC: 0.5, BRIER_GAIN: 0.0}
NAMES = {AUC: "AUC", BRIER_GAIN: "Brier gain"}
CONFIDENCE = 0.95
FEWEST_SESSIONS = FEWEST_BLOCKS * evaluation.BLOCK_SESSIONS
# One training does not tell how far the next would be from it.
FEWEST_SEEDS = 2


@dataclass(frozen=True)
class Said:
    """Probabilities of one rung.

    Attributes:
        judged: of the labelled out-of-sample rows, shape (seeds, rows, 2).
        traded: of the rows that the strategy trades, shape (seeds, rows, 2).
    """

    judged: np.ndarray
    traded: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """One measure of one rung.

    Attributes:
        rung: of `RUNGS`.
        measure: auc; brier_gain: the base rate's Brier score less the model's; sharpe: annual; total_return: fraction; trades:
            their number.
        side: long, short, or both.
        value: mean over the seeds; NaN where one is undefined.
        seed_sd: standard deviation over the seeds; NaN for one.
        ensemble: of the mean of the seeds' probabilities.
        estimated: what `draws` are of: `value` of the classifier's measures, `ensemble` of the strategy's.
        draws: the same on each resample, shape (resamples,); NaN where undefined, and of the number of trades, which is counted.
    """

    rung: str
    measure: str
    side: str
    value: float
    seed_sd: float
    ensemble: float
    estimated: float
    draws: np.ndarray


# -- training ----------------------------------------------------------------------------------------------------------


def train_rungs(
    dataset: Dataset,
    windows: Windows,
    parameters: MlpParameters,
    seeds: Sequence[int],
    traded: tuple[np.ndarray, np.ndarray],
    progress: Callable[[str], None] | None = None,
) -> dict[str, Said]:
    """Train every rung with every seed on the training rows, and ask it about the out-of-sample rows.

    Args:
        dataset: has all inputs of the last rung.
        windows: same for all rungs.
        parameters: same for all rungs; its seed is replaced.
        seeds: of initial weights and batches, the same for all rungs.
        traded: inputs as `dataset.inputs`, shape (rows, inputs), and symbols, shape (rows,), of what the strategy trades.
        progress: called with a line of text for each rung.

    Raises:
        ValueError: no seed.
    """
    if not seeds:
        raise ValueError("seeds is empty: one training at least")
    said = {}
    for rung, inputs in RUNGS.items():
        part = dataset.with_inputs(inputs)
        rows = {window: part.take(mask) for window, mask in part.masks(windows).items()}
        training, validation, unseen = rows["train"], rows["validation"], rows["out_of_sample"]
        columns = [dataset.inputs.index(name) for name in inputs]
        judged, asked = [], []
        for seed in seeds:
            model = train(
                inputs,
                (training.x, training.y, training.symbol),
                (validation.x, validation.y, validation.symbol),
                dataclasses.replace(parameters, seed=seed),
            )
            judged.append(model.predict(unseen.x, unseen.symbol))
            asked.append(model.predict(traded[0][:, columns], traded[1]))
        said[rung] = Said(np.stack(judged), np.stack(asked))
        if progress:
            progress(f"{rung}: {len(inputs)} inputs, {len(seeds)} seeds, {len(training.y)} training rows")
    return said


# -- estimates ---------------------------------------------------------------------------------------------------------


def classifier_estimates(
    said: Mapping[str, np.ndarray], y: np.ndarray, base_rate: np.ndarray, weights: np.ndarray
) -> list[Estimate]:
    """AUC and Brier gain of each rung and side.

    Args:
        said: rung -> probabilities, shape (seeds, rows, 2).
        y: shape (rows, 2), 0 or 1.
        base_rate: shape (2,), of the training rows: what is said without any input.
        weights: of `evaluation.session_resamples`, shape (resamples, rows).
    """
    estimates = []
    for rung, probability in said.items():
        ensemble = probability.mean(axis=0)
        for i, side in enumerate(SIDES):
            truth, by_seed = y[:, i], probability[:, :, i]
            values = np.array([evaluation.auc(truth, p) for p in by_seed])
            draws = np.mean([evaluation.auc_draws(truth, p, weights) for p in by_seed], axis=0)
            estimates.append(_of_seeds(rung, AUC, side, values, evaluation.auc(truth, ensemble[:, i]), draws))
            constant = evaluation.brier(truth, base_rate[i])
            gains = np.stack([constant - evaluation.brier(truth, p) for p in by_seed]).astype(np.float64)
            draws = weights @ gains.mean(axis=0) / weights.sum(axis=1)
            of_ensemble = float((constant - evaluation.brier(truth, ensemble[:, i])).mean(dtype=np.float64))
            estimates.append(_of_seeds(rung, BRIER_GAIN, side, gains.mean(axis=1), of_ensemble, draws))
    return estimates


def _of_seeds(
    rung: str, measure: str, side: str, values: np.ndarray, ensemble: float, draws: np.ndarray
) -> Estimate:
    value = float(values.mean())
    return Estimate(rung, measure, side, value, _sd(values), ensemble, value, draws)


def strategy_estimates(
    said: Mapping[str, np.ndarray],
    symbols: np.ndarray,
    sessions: np.ndarray,
    strategy: Strategy,
    series: Mapping[str, BarSeries],
    window: Window,
    costs: Costs,
    account: Account,
    seed: int,
    resamples: int = evaluation.RESAMPLES,
) -> list[Estimate]:
    """Sharpe ratio and total return, net of costs, and number of trades of each rung; intervals are those of the mean probability.

    Args:
        said: rung -> probabilities, shape (seeds, rows, 2).
        symbols, sessions: of the rows, shape (rows,); sessions as `datetime64[D]`.
        strategy: takes probabilities; its thresholds are the same for every rung.
        series: bars by symbol.
        window: sessions to trade; the model was trained on none of them.
        costs, account: of the engine.
        seed, resamples: of the intervals.
    """

    def traded(probability: np.ndarray) -> Backtest:
        placed = {
            name: _on_bars(bars, symbols == name, sessions, probability) for name, bars in series.items()
        }
        return run_backtest(strategy, series, window, placed, costs, account)

    estimates = []
    for rung, probability in said.items():
        by_seed, ensemble = [traded(one) for one in probability], traded(probability.mean(axis=0))
        returns = statistics.period_returns(ensemble.equity)
        weights = evaluation.session_resamples(ensemble.sessions[1:], seed, resamples)
        for measure, of_equity, draws_of in (
            (SHARPE, _sharpe, sharpe_draws),
            (TOTAL_RETURN, statistics.total_return, total_return_draws),
        ):
            values = np.array([of_equity(run.equity) for run in by_seed])
            estimated = float(of_equity(ensemble.equity))
            value = float(values.mean())
            draws = draws_of(returns, weights)
            estimates.append(Estimate(rung, measure, BOTH, value, _sd(values), estimated, estimated, draws))
        counts, count = (
            np.array([float(run.trades.num_rows) for run in by_seed]),
            float(ensemble.trades.num_rows),
        )
        none = np.full(resamples, np.nan)
        estimates.append(Estimate(rung, TRADES, BOTH, float(counts.mean()), _sd(counts), count, count, none))
    return estimates


def _on_bars(bars: BarSeries, mine: np.ndarray, sessions: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Probabilities per bar, shape (bars, 2); NaN where there is no row."""
    values = np.full((len(bars), 2), np.nan)
    at = np.searchsorted(bars.sessions, sessions[mine])
    known = at < len(bars)
    known[known] = bars.sessions[at[known]] == sessions[mine][known]
    values[at[known]] = probability[mine][known]
    return values


def _sharpe(equity: np.ndarray) -> float:
    return statistics.sharpe_ratio(statistics.period_returns(equity))


def sharpe_draws(returns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Annual Sharpe ratio on each resample, as `statistics.sharpe_ratio` defines it; NaN without any variance.

    Args:
        returns: shape (sessions,).
        weights: how often each session counts, shape (resamples, sessions).
    """
    count = weights.sum(axis=1)
    mean = weights @ returns / count
    # Deviations first: a difference of sums of squares would cancel to noise.
    squares = (weights * (returns - mean[:, None]) ** 2).sum(axis=1)
    sd = np.sqrt(squares / (count - statistics.DEFAULT.ddof))
    varies = sd > 1e-12
    scale = np.sqrt(statistics.DEFAULT.periods_per_year)
    return np.where(varies, mean / np.where(varies, sd, 1.0) * scale, np.nan)


def total_return_draws(returns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Total return on each resample, a fraction; NaN after a ruin, which no resample without it could undo.

    Args:
        returns: shape (sessions,).
        weights: how often each session counts, shape (resamples, sessions).
    """
    if (returns <= -1).any():
        return np.full(len(weights), np.nan)
    return np.expm1(weights @ np.log1p(returns))


def _sd(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


# -- the table ---------------------------------------------------------------------------------------------------------


def ladder_rows(estimates: Sequence[Estimate], sessions: int, seeds: int) -> list[dict[str, Any]]:
    """One row per rung, measure and side: level, difference to the rung before, difference to `technical`.

    Every difference is paired: taken on each resample, then its interval. Undefined numbers are None, and so is an interval where more
    than one in twenty resamples is undefined. Joint bounds are None with fewer than `FEWEST_SESSIONS` sessions, and with one
    seed; those of the gain over `technical`, by which a leak is found, allow for the sessions alone then.

    Args:
        estimates: all of the same resamples, by measure and side.
        sessions: labelled out-of-sample sessions.
        seeds: trainings of each rung.

    Returns:
        Columns as `backtests.tables.SENTIMENT_ABLATION`, without what all of its rows share.
    """
    order = list(RUNGS)
    judged = [one for one in estimates if one.measure in JUDGED]
    levels, differences = len(judged), sum(one.rung != FIRST_RUNG for one in judged)
    blocks = sessions // evaluation.BLOCK_SESSIONS

    def joint(
        prefix: str, value: float, draws: np.ndarray, sds: Sequence[float], comparisons: int
    ) -> dict[str, float]:
        """Bounds that hold together with those of all other comparisons; NaN where there are none."""
        reach = float("nan")
        if comparisons and blocks >= FEWEST_BLOCKS:
            confidence = 1 - (1 - CONFIDENCE) / comparisons
            reach = evaluation.student_reach(draws, blocks, confidence, sds, seeds)
        return {f"{prefix}joint_low": value - reach, f"{prefix}joint_high": value + reach}

    found = {(one.rung, one.measure, one.side): one for one in estimates}
    rows = []
    for one in sorted(estimates, key=lambda one: order.index(one.rung)):
        position = order.index(one.rung)
        row: dict[str, Any] = {
            "rung": one.rung,
            "position": position,
            "inputs": len(RUNGS[one.rung]),
            "measure": one.measure,
            "side": one.side,
            "value": one.value,
            "seed_sd": one.seed_sd,
            "ensemble": one.ensemble,
            "sessions": sessions,
            "seeds": seeds,
        }
        row |= _bounds("", one.draws)
        row |= joint("", one.estimated, one.draws, [one.seed_sd], levels if one.measure in JUDGED else 0)
        for name, other in (("step", order[max(position - 1, 0)]), ("gain", FIRST_RUNG)):
            base = found[other, one.measure, one.side] if position else None
            difference = one.estimated - base.estimated if base else float("nan")
            draws = one.draws - base.draws if base else np.full(1, np.nan)
            row |= {name: difference, **_bounds(f"{name}_", draws)}
            sds = [one.seed_sd, base.seed_sd] if base and (name == "step" or seeds >= FEWEST_SEEDS) else []
            row |= joint(
                f"{name}_", difference, draws, sds, differences if base and one.measure in JUDGED else 0
            )
        rows.append({key: _defined(value) for key, value in row.items()})
    return rows


def _bounds(prefix: str, draws: np.ndarray) -> dict[str, float]:
    known = draws[np.isfinite(draws)]
    tail = (1 - CONFIDENCE) / 2
    # A strategy of a few trades has no Sharpe ratio on resamples without them, and what the others say is no interval.
    enough = len(known) >= CONFIDENCE * len(draws)
    low, high = np.quantile(known, [tail, 1 - tail]) if enough else (np.nan, np.nan)
    return {f"{prefix}low": float(low), f"{prefix}high": float(high)}


def _defined(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


# -- what follows from it ----------------------------------------------------------------------------------------------


def suspicious_rows(rows: Sequence[Mapping[str, Any]], limit: float) -> list[Mapping[str, Any]]:
    """Rungs whose AUC exceeds that of `technical` by more than `limit` beyond doubt: more than news can know of tomorrow."""
    return [
        row
        for row in rows
        if row["measure"] == AUC and row["gain_joint_low"] is not None and row["gain_joint_low"] > limit
    ]


def doubtful_rows(rows: Sequence[Mapping[str, Any]], limit: float) -> list[Mapping[str, Any]]:
    """Rungs whose AUC exceeds that of `technical` by more than `limit`, where too few sessions leave open whether by luck."""
    return [
        row
        for row in rows
        if row["measure"] == AUC
        and row["sessions"] < FEWEST_SESSIONS
        and row["gain"] is not None
        and row["gain"] > limit
    ]


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the intervals allow to say, in one to three sentences.

    Args:
        rows: of `ladder_rows`, or of the stored table.
    """
    sessions, seeds = rows[0]["sessions"], rows[0]["seeds"]
    if sessions is None:  # stored before the joint intervals knew of seeds and of few sessions
        return "Its intervals were too narrow to say anything beyond doubt: materialize backtests/sentiment_ablation again."
    if sessions < FEWEST_SESSIONS:
        return f"Too few sessions to say anything beyond doubt: {sessions} out of sample, and {FEWEST_SESSIONS} are needed."
    if seeds < FEWEST_SEEDS:
        return f"Too few seeds to say anything beyond doubt: {seeds}, and {FEWEST_SEEDS} are needed to tell inputs from luck in training."
    judged = [row for row in rows if row["measure"] in JUDGED]
    steps = [row for row in judged if row["position"] > 0]
    better = [row for row in steps if row["step_joint_low"] is not None and row["step_joint_low"] > 0]
    worse = [row for row in steps if row["step_joint_high"] is not None and row["step_joint_high"] < 0]
    sentences = [
        "Beyond doubt, " + "; ".join(f"{row['rung']} adds {_step(row)}" for row in better) + "."
        if better
        else f"No rung adds anything beyond doubt: of the {len(steps)} differences to the rung before (AUC and Brier score, long and "
        "short), no joint 95 % interval lies above 0."
    ]
    if worse:
        sentences.append(
            "Beyond doubt, " + "; ".join(f"{row['rung']} takes {_step(row, -1)}" for row in worse) + "."
        )
    knows = [
        row for row in judged if row["joint_low"] is not None and row["joint_low"] > NOTHING[row["measure"]]
    ]
    sentences.append(
        "Better than a coin or the base rate: "
        + "; ".join(f"{row['rung']} by its {NAMES[row['measure']]} of {row['side']}" for row in knows)
        + "."
        if knows
        else "No rung ranks better than a coin or is closer to the truth than the base rate, beyond doubt."
    )
    return " ".join(sentences)


def _step(row: Mapping[str, Any], sign: int = 1) -> str:
    """A difference with its joint interval; with the sign -1 as what is taken away."""
    low, high = sorted((sign * row["step_joint_low"], sign * row["step_joint_high"]))
    way = "to" if sign > 0 else "from"
    return (
        f"{sign * row['step']:.4f} [{low:.4f}, {high:.4f}] {way} the {NAMES[row['measure']]} of {row['side']}"
    )
