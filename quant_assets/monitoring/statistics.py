"""How far two samples are apart, and how far is too far when rows hang together. Pure numpy; scipy for tails only.

Belongs here: the distances, their null distributions over blocks of sessions, p-values, Holm's correction. Does not belong here:
which columns are compared with what (`drift.py`).

Distances of a window of m rows with distribution F from a reference of n rows with distribution G:

    psi          sum over bins of (f - g) ln(f / g), bins are quantiles of the reference, a share is at least half a row of the window
    ks           sup |F - G|
    wasserstein  integral |F - G| dx, over the reference's standard deviation

ks and wasserstein are exact, ties included: the quantities of `scipy.stats.ks_2samp` and `wasserstein_distance`.

The null distribution. Rows of one session move together and features of neighbouring sessions share most of their prices, so the
textbook p-values, which count every row as independent, find drift nearly every day. Here a window is compared with all
windows of as many sessions that the reference itself holds: each of those against the whole reference. They hang together as the
new window does. Their number is large and their information is not: overlapping windows repeat each other, so the number n* of
independent ones comes from the autocorrelation of the distance along the reference. A transformed distance is taken as normal: the
log of ks and wasserstein, the eighth root of psi (a sum of squares, whose log is skewed to the left, and whose cube root, which
Wilson and Hilferty took for independent rows, is skewed to the right where rows hang together). Its mean and variance are estimates
from n* windows, and a new one is predicted by Student's t:

    t = (g(d) - mean) / (sd sqrt(1 + 1 / n*))       with n* - 1 degrees of freedom

which reaches the small p-values that a correction for hundreds of tests needs, and reaches them the later the less the reference
knows. Within what the reference has seen, p is at least the share of its windows that are as far away: a window that is no
farther than some window of the reference is no alarm, whatever the fit says.

References:
    Kuensch (1989), The jackknife and the bootstrap for general stationary observations, Annals of Statistics 17.
    Geyer (1992), Practical Markov chain Monte Carlo, Statistical Science 7: the initial positive sequence.
    Wilson and Hilferty (1931), The distribution of chi-square, PNAS 17.
    Holm (1979), A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.
    Kish (1965), Survey sampling: the design effect of clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

STATISTICS = ("psi", "ks", "wasserstein")
# Smaller distances are taken as this: the log of a distance of 0 has no place in a fit.
LEAST_DISTANCE = 1e-3
PSI_POWER = 1 / 8
# Of a transformed distance over windows, in the order of STATISTICS. Dense columns have 0.06, 0.3 and 0.4; a column that hardly ever
# varies would have nearly none, and the first window that is a little different would look impossible.
LEAST_SD = np.array([0.02, 0.2, 0.2])
FEWEST_INDEPENDENT = 3.0
# Samples behind the null distribution of independent draws, and points that stand for their known distribution.
DRAWN_SAMPLES, DRAWN_POINTS = 2000, 1000
DRAWN_SEED = 20000301


# -- distances ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ReferenceColumn:
    """One column of the reference, ready to be compared with.

    Attributes:
        values: sorted, shape (n,).
        edges: inner edges of the bins, at most bins - 1 (tied quantiles are one); a bin holds its upper edge.
        shares: of the reference in each bin, shape (edges + 1,).
        mean, sd: of the values.
    """

    values: np.ndarray
    edges: np.ndarray
    shares: np.ndarray
    mean: float
    sd: float

    @staticmethod
    def of(values: np.ndarray, bins: int) -> ReferenceColumn:
        """From values in any order, at least one, all finite.

        Raises:
            ValueError: no value, or one that is NaN or infinite.
        """
        values = np.sort(np.asarray(values, np.float64))
        if not len(values) or not np.isfinite(values[[0, -1]]).all():
            raise ValueError(
                f"a reference of {len(values)} values, from {values[:1]} to {values[-1:]}: at least one is needed and "
                "all have to be finite"
            )
        # Quantiles that are values of the reference: an edge between two values could fall on either side of a tie by rounding.
        edges = np.unique(np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf"))
        edges = edges[edges < values[-1]]
        shares = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) / len(values)
        return ReferenceColumn(values, edges, shares, float(values.mean()), float(values.std()))


def distances(reference: ReferenceColumn, windows: np.ndarray) -> np.ndarray:
    """PSI, Kolmogorov-Smirnov and Wasserstein distance of each window, shape (windows, 3).

    Args:
        reference: the column's.
        windows: values, shape (windows, rows).
    """
    windows = np.sort(np.asarray(windows, np.float64), axis=1)
    values, n, rows = reference.values, len(reference.values), windows.shape[1]
    upper = np.searchsorted(values, windows, side="right") / n
    lower = np.searchsorted(values, windows, side="left") / n
    steps = np.arange(rows + 1) / rows
    ks = np.maximum((steps[1:] - upper).max(axis=1), (lower - steps[:-1]).max(axis=1))

    # Between the quantiles i / m and (i + 1) / m a window has one value x, and the reference's quantile function Q crosses it
    # where G reaches x; with the integral of Q known, so is that of |x - Q|.
    known = np.concatenate([[0.0], np.cumsum(values)]) / n
    at = np.arange(n + 1) / n
    crossing = np.clip(upper, steps[:-1], steps[1:])
    to_crossing, to_steps = np.interp(crossing, at, known), np.interp(steps, at, known)
    below = windows * (crossing - steps[:-1]) - (to_crossing - to_steps[:-1])
    above = (to_steps[1:] - to_crossing) - windows * (steps[1:] - crossing)
    # Where the reference never varies its own unit is as good as any.
    wasserstein = (below + above).sum(axis=1) / (reference.sd or 1.0)

    inside = np.concatenate(
        [
            np.zeros((len(windows), 1)),
            np.column_stack(
                [(windows <= edge).sum(axis=1) for edge in reference.edges] + [np.full(len(windows), rows)]
            ),
        ],
        axis=1,
    )
    found = np.maximum(np.diff(inside, axis=1) / rows, 0.5 / rows)
    expected = np.maximum(reference.shares, 0.5 / rows)
    psi = ((found - expected) * np.log(found / expected)).sum(axis=1)
    return np.column_stack([psi, ks, np.maximum(wasserstein, 0.0)])


# -- null distributions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Null:
    """What distances are where nothing has changed.

    Attributes:
        sorted: distances of the reference's windows, ascending, shape (windows, columns, 3).
        mean, sd: of the transformed distances, shape (columns, 3).
        independent: number of independent windows that they are worth, shape (columns, 3).
    """

    sorted: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    independent: np.ndarray


def fit_null(found: np.ndarray, overlap: int) -> Null:
    """Fit the null distribution to distances of windows that follow each other in time.

    Args:
        found: shape (windows, columns, 3).
        overlap: windows that hold one session; 1 for independent samples.

    Raises:
        ValueError: fewer windows than a fit needs.
    """
    if len(found) <= FEWEST_INDEPENDENT:
        raise ValueError(f"{len(found)} windows of the reference say nothing about its spread")
    normal = _normal(found)
    return Null(
        sorted=np.sort(found, axis=0),
        mean=normal.mean(axis=0),
        sd=np.maximum(normal.std(axis=0, ddof=1), LEAST_SD),
        independent=independent_windows(normal, overlap),
    )


def _normal(found: np.ndarray) -> np.ndarray:
    """Distances, transformed so that they are nearly normal over windows; shape (..., 3)."""
    found = np.maximum(found, LEAST_DISTANCE)
    return np.where(np.array(STATISTICS) == "psi", found**PSI_POWER, np.log(found))


def independent_windows(series: np.ndarray, overlap: int) -> np.ndarray:
    """How many independent values a series along the first axis is worth: its length over its integrated autocorrelation time.

    Autocorrelations are summed in pairs as long as the pairs are positive (Geyer). Of a series that never varies, as many as do not
    overlap.

    Args:
        series: shape (n, ...).
        overlap: values that share a session with one of them.
    """
    n = len(series)
    centred = series - series.mean(axis=0)
    spectrum = np.abs(np.fft.rfft(centred, 2 * n, axis=0)) ** 2
    covariance = np.fft.irfft(spectrum, axis=0)[:n]
    varies = covariance[0] > 1e-20 * n
    correlation = covariance / np.where(varies, covariance[0], 1.0)
    pairs = correlation[: n // 2 * 2].reshape(n // 2, 2, *series.shape[1:]).sum(axis=1)
    positive = np.cumprod(pairs > 0, axis=0)
    time = np.maximum(2 * (pairs * positive).sum(axis=0) - 1, 1.0)
    return np.clip(np.where(varies, n / time, n / overlap), FEWEST_INDEPENDENT, n)


def p_values(null: Null, found: np.ndarray) -> np.ndarray:
    """Probability of a distance as large where nothing has changed, shape as `found`.

    Args:
        null: of the columns.
        found: distances, shape (windows, columns, 3).
    """
    from scipy import special

    t = (_normal(found) - null.mean) / (null.sd * np.sqrt(1 + 1 / null.independent))
    p = special.stdtr(null.independent - 1, -t)
    windows = len(null.sorted)
    as_far = np.empty(found.shape)
    for column in range(found.shape[1]):
        for statistic in range(found.shape[2]):
            ascending = null.sorted[:, column, statistic]
            as_far[:, column, statistic] = windows - np.searchsorted(
                ascending, found[:, column, statistic], side="left"
            )
    return np.where(as_far > 0, np.maximum(p, (1 + as_far) / (1 + windows)), p)


# -- independent draws -------------------------------------------------------------------------------------------------


def effective_draws(values: np.ndarray, group: np.ndarray) -> float:
    """How many independent draws values are worth that come in groups: n / (1 + (mean group - 1) * intraclass correlation).

    The correlation is that of a one-way analysis of variance, at least 0; 1 where no value differs from another, so that a request
    that is sent a thousand times in a session is one.

    Args:
        values, group: shape (n,), n at least 1.
    """
    _, code, size = np.unique(group, return_inverse=True, return_counts=True)
    n, groups = len(values), len(size)
    if groups == n:
        return float(n)
    correlation = 1.0
    if groups > 1 and np.ptp(values) > 0:
        means = np.bincount(code, values) / size
        within = ((values - means[code]) ** 2).sum() / (n - groups)
        between = (size * (means - values.mean()) ** 2).sum() / (groups - 1)
        # Size of a typical group where they differ (Kish).
        typical = (n - (size**2).sum() / n) / (groups - 1)
        correlation = min(max((between - within) / (between + (typical - 1) * within), 0.0), 1.0)
    return float(n / (1 + (n / groups - 1) * correlation))


def uniform_reference(low: float, high: float, bins: int) -> ReferenceColumn:
    """A column whose distribution is known to be uniform between two bounds."""
    points = (np.arange(DRAWN_POINTS) + 0.5) / DRAWN_POINTS
    return ReferenceColumn.of(low + (high - low) * points, bins)


@lru_cache(maxsize=64)
def drawn_null(draws: int, bins: int) -> Null:
    """The null distribution for so many independent draws from a known distribution, one column; the same each time.

    Uniform draws stand for all continuous distributions: psi and ks do not depend on it, wasserstein is that of a uniform one.
    """
    rng = np.random.default_rng([DRAWN_SEED, draws])
    samples = rng.random((DRAWN_SAMPLES, draws))
    return fit_null(distances(uniform_reference(0.0, 1.0, bins), samples)[:, None, :], overlap=1)


# -- many tests --------------------------------------------------------------------------------------------------------


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values, same shape: reject where they are below alpha, and any false rejection has probability alpha at
    most, however the tests depend on each other.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    flat = np.asarray(p, np.float64).ravel()
    order = np.argsort(flat, kind="stable")
    steps = flat[order] * np.arange(len(flat), 0, -1)
    adjusted = np.empty(len(flat))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.reshape(np.shape(p))
