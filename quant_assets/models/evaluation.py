"""How good probabilities are, and how sure we can be of it. Pure numpy; scikit-learn only for the yardstick.

Belongs here: metrics and intervals. Does not belong here: the decision who becomes champion (`gate.py`).

Rows of one session move together and labels of neighbouring sessions overlap, so intervals come from a moving-block
bootstrap over sessions (Kuensch 1989), never over rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK_SESSIONS = 20
RESAMPLES = 400
# Where more resamples than one in twenty leave a number undefined, the others do not say how far it is off.
_DEFINED = 0.95
_CLIP = 1e-7


def auc(y: np.ndarray, p: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Area under the ROC curve, ties counted half (Mann-Whitney); NaN when only one class occurs.

    Args:
        y: shape (rows,), 0 or 1.
        p: shape (rows,), score.
        weight: shape (rows,), how often each row counts.
    """
    return float(auc_draws(y, p, np.ones((1, len(y))) if weight is None else weight[None])[0])


def auc_draws(y: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`auc` of each resample, shape (resamples,).

    Args:
        y: shape (rows,), 0 or 1.
        p: shape (rows,), score.
        weights: how often each row counts, shape (resamples, rows).
    """
    order = np.argsort(p, kind="stable")
    y, p = y[order], p[order]
    starts = np.flatnonzero(np.r_[True, p[1:] != p[:-1]])
    return np.array([_auc_in_order(y, starts, weight[order]) for weight in weights])


def _auc_in_order(y: np.ndarray, starts: np.ndarray, weight: np.ndarray) -> float:
    """Of rows in order of their score; equal scores begin at `starts`."""
    positive = np.add.reduceat(weight * y, starts)
    negative = np.add.reduceat(weight * (1 - y), starts)
    below = np.cumsum(negative) - negative
    total = positive.sum() * negative.sum()
    return float((positive * (below + negative / 2)).sum() / total) if total > 0 else float("nan")


def brier(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Squared error of each probability, shape (rows,)."""
    return (p - y) ** 2


def log_loss(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Negative log likelihood of each probability, nats, shape (rows,); probabilities are clipped at 1e-7."""
    p = np.clip(p, _CLIP, 1 - _CLIP)
    return -(y * np.log(p) + (1 - y) * np.log(1 - p))


def calibration_curve(y: np.ndarray, p: np.ndarray, bins: int = 10) -> list[dict[str, float]]:
    """Mean probability and observed frequency in bins of equal count: `predicted`, `observed`, `rows`."""
    order = np.argsort(p, kind="stable")
    return [
        {"predicted": float(p[rows].mean()), "observed": float(y[rows].mean()), "rows": float(len(rows))}
        for rows in np.array_split(order, bins)
        if len(rows)
    ]


def roc_curve(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates over all thresholds, each starting at 0 and ending at 1."""
    order = np.argsort(-p, kind="stable")
    hits = y[order]
    return (
        np.r_[0, np.cumsum(1 - hits) / max((1 - hits).sum(), 1)],
        np.r_[0, np.cumsum(hits) / max(hits.sum(), 1)],
    )


@dataclass(frozen=True)
class Interval:
    """A statistic with its bootstrap interval."""

    value: float
    low: float
    high: float


def session_resamples(
    session: np.ndarray, seed: int, resamples: int = RESAMPLES, block_sessions: int = BLOCK_SESSIONS
) -> np.ndarray:
    """How often each row counts in each resample of whole blocks of sessions, shape (resamples, rows).

    Args:
        session: shape (rows,), any sortable type.
        seed: same seed, same resamples.
        resamples: number of resamples.
        block_sessions: length of a block; longer than a label's horizon.
    """
    unique, row_session = np.unique(session, return_inverse=True)
    count = len(unique)
    block = min(block_sessions, count)
    rng = np.random.default_rng(seed)
    blocks = -(-count // block)
    starts = rng.integers(0, count - block + 1, size=(resamples, blocks))
    drawn = (starts[:, :, None] + np.arange(block)).reshape(resamples, -1)[:, :count]
    weights = np.zeros((resamples, count))
    for i, row in enumerate(drawn):
        weights[i] = np.bincount(row, minlength=count)
    return weights[:, row_session]


def block_interval(
    values: np.ndarray, session: np.ndarray, block_sessions: int, confidence: float = 0.95
) -> Interval:
    """Mean of `values` (rows,) with Student's interval over the means of contiguous blocks of sessions.

    For few blocks, where resampling them understates how far the mean may be off: with 30 sessions of no difference and labels that
    overlap by five sessions, the lower end of the 95 % interval lies above 0 in 5 % of the cases, of a bootstrap's in 14 % (2.5 % would be
    right).

    Args:
        values: shape (rows,).
        session: shape (rows,), any sortable type.
        block_sessions: shortest length of a block; at least two blocks.
        confidence: of the two-sided interval.
    """
    from scipy import stats

    unique, row_session = np.unique(session, return_inverse=True)
    of_session = np.bincount(row_session, weights=values) / np.bincount(row_session)
    blocks = [part.mean() for part in np.array_split(of_session, len(unique) // block_sessions)]
    error = float(np.std(blocks, ddof=1) / np.sqrt(len(blocks)))
    reach = float(stats.t.ppf(0.5 + confidence / 2, len(blocks) - 1)) * error
    value = float(np.mean(blocks))
    return Interval(value, value - reach, value + reach)


def mean_interval(values: np.ndarray, weights: np.ndarray, confidence: float = 0.95) -> Interval:
    """Mean of `values` (rows,) with a percentile interval over the resamples `weights` (resamples, rows)."""
    means = weights @ values / weights.sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def auc_interval(y: np.ndarray, p: np.ndarray, weights: np.ndarray, confidence: float = 0.95) -> Interval:
    """AUC with a percentile interval over the resamples `weights` (resamples, rows)."""
    draws = auc_draws(y, p, weights)
    low, high = np.nanquantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(auc(y, p), float(low), float(high))


def student_reach(
    draws: np.ndarray,
    blocks: int,
    confidence: float = 0.95,
    seed_sds: Sequence[float] = (),
    seeds: int = 1,
) -> float:
    """How far a number lies from the ends of its interval, by Student's quantile.

    Two things could have come out differently. Which sessions came: that varies as the resamples do, times sqrt(B / (B - 1)),
    because what is drawn from B blocks varies about their own mean; B - 1 degrees of freedom. And which seeds the networks were
    trained with: each mean over the seeds has the variance sd^2 / seeds; seeds - 1 degrees of freedom. The variances are summed, and
    the sum has the degrees of freedom of Satterthwaite (1946). The quantile of the normal distribution, or the resamples'
    own quantiles, would be too narrow for few blocks.

    Args:
        draws: the number on each resample of `session_resamples`, shape (resamples,).
        blocks: B, how many whole blocks of sessions there are.
        confidence: of the two-sided interval.
        seed_sds: standard deviation over the seeds of each mean that the number is made of; of two for a difference. Empty: the
            interval is that of the networks that were trained.
        seeds: how many there were.

    Returns:
        Half the interval's width; NaN for fewer than two blocks, where a standard deviation is unknown, and where more than one
        resample in twenty is undefined.
    """
    from scipy import stats

    known = draws[np.isfinite(draws)]
    if blocks < 2 or len(known) < _DEFINED * len(draws) or (seed_sds and seeds < 2):
        return float("nan")
    parts = [(float(known.var()) * blocks / (blocks - 1), blocks - 1)]
    parts += [(sd**2 / seeds, seeds - 1) for sd in seed_sds]
    total = sum(variance for variance, _ in parts)
    if not total > 0:
        return total
    freedom = total**2 / sum(variance**2 / free for variance, free in parts)
    return float(stats.t.ppf(0.5 + confidence / 2, freedom) * np.sqrt(total))


def score(y: np.ndarray, p: np.ndarray) -> dict[str, float]:
    """Point metrics of one output: auc, brier, log_loss, positive_rate, rows."""
    return {
        "auc": auc(y, p),
        "brier": float(brier(y, p).mean()),
        "log_loss": float(log_loss(y, p).mean()),
        "positive_rate": float(y.mean()),
        "rows": float(len(y)),
    }


def fit_logistic(x: np.ndarray, y: np.ndarray) -> list[object]:
    """The yardstick: a logistic regression per output on standardized inputs (scikit-learn, default penalty)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return [
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y[:, i])
        for i in range(y.shape[1])
    ]


def predict_logistic(models: list[object], x: np.ndarray) -> np.ndarray:
    """Probabilities of `fit_logistic`'s models, shape (rows, outputs)."""
    return np.column_stack([model.predict_proba(x)[:, 1] for model in models])  # type: ignore[attr-defined]
