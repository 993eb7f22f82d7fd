"""From reference rows and the last sessions' rows to what drifted: one row per watched column and session. Pure.

Belongs here: windows of sessions, the reference with its null distribution, the correction over all that a session tests, drift events.
Does not belong here: the distances and their tails (`statistics.py`), which columns are watched (`watched.py`), what a model achieved
(`performance.py`), where rows come from and go to (`assets.py`).

Sessions are positions on the calendar (`TradingCalendar.ordinal`), so that they can be counted.

A *window* is the last W sessions that have rows, and it ends with the session that it is judged for. A *drift event* of a model begins with
the K-th session in a row in which some column drifted and goes on until no column did for K sessions in a row. It is found again from the
data each time, back to a time at which no event can have been going on, so it does not matter which nights ran before: a range of sessions
in one run gives the same rows as night by night, and a session that is computed again does not depend on what was stored.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from quant_assets.monitoring.statistics import (
    STATISTICS,
    Null,
    ReferenceColumn,
    distances,
    drawn_null,
    effective_draws,
    fit_null,
    holm,
    p_values,
    uniform_reference,
)
from quant_assets.monitoring.tables import DRIFT

if TYPE_CHECKING:
    from quant_resources.calendar import TradingCalendar

FEATURE, PREDICTION, ENDPOINT_INPUT, PERFORMANCE = "feature", "prediction", "endpoint_input", "performance"
# Which symbols a window of the reference keeps where the new one has fewer than usual.
SUBSET_SEED = 20000301
# Values of one column in memory at once; with hundreds of symbols all windows together would take gigabytes.
VALUES_AT_ONCE = 1_000_000
# Part of the identity of a null distribution: counts up when its computation changes.
NULL_FORMAT = 1


class DriftError(ValueError):
    """Rows that nothing can be compared with. Says what is missing and the way out."""


@dataclass(frozen=True)
class DriftParameters:
    """When a difference is drift. The defaults are measured in docs/monitoring.md (`python -m benchmarks.drift_false_alarms`).

    Attributes:
        window_sessions: W, sessions that are compared with the reference. More of them tell smaller changes, and later.
        alpha: of all that is tested for a model in one session, the chance that anything drifts where nothing has changed.
        hysteresis_sessions: K, sessions in a row with (without) a drifted column until an event begins (ends).
        psi_bins: quantile bins of the population stability index.
        longest_gap: a window whose W sessions stretch over more than so many times W sessions of the calendar says nothing of now.
        fewest_reference_windows: windows of W sessions without overlap that the reference has to hold.
        fewest_request_sessions, fewest_requests: captured orders are compared from so many on; a window that holds fewer has no row.
        adwin_delta: of ADWIN, for all series of a model together; smaller is less sensitive.
        adwin_scale_sessions: first values of a series, whose mean and three standard deviations to both sides become ADWIN's range of 0
            to 1; what lies beyond counts as its ends. It detects nothing before it has these.
    """

    window_sessions: int = 15
    alpha: float = 0.01
    hysteresis_sessions: int = 3
    psi_bins: int = 10
    longest_gap: float = 2.0
    fewest_reference_windows: int = 8
    fewest_request_sessions: int = 5
    fewest_requests: int = 20
    adwin_delta: float = 0.002
    adwin_scale_sessions: int = 50

    def __post_init__(self) -> None:
        for name in (
            "window_sessions",
            "hysteresis_sessions",
            "fewest_request_sessions",
        ):
            if getattr(self, name) < 1:
                raise DriftError(f"{name} = {getattr(self, name)}: at least 1 session is needed")
        for name in ("psi_bins", "fewest_reference_windows", "fewest_requests", "adwin_scale_sessions"):
            if getattr(self, name) < 2:
                raise DriftError(f"{name} = {getattr(self, name)}: at least 2 are needed")
        if not 0 < self.alpha < 1 or not 0 < self.adwin_delta < 1:
            raise DriftError(
                f"alpha = {self.alpha}, adwin_delta = {self.adwin_delta}: probabilities between 0 and 1"
            )
        if not self.longest_gap >= 1:
            raise DriftError(f"longest_gap = {self.longest_gap}: W sessions stretch over at least W sessions")


# -- rows and windows --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rows:
    """Values of watched columns, in the order of sessions.

    Attributes:
        columns: names.
        session: positions on the calendar, ascending, int64, shape (rows,).
        symbol: shape (rows,), str.
        values: float64, shape (rows, columns).
    """

    columns: tuple[str, ...]
    session: np.ndarray
    symbol: np.ndarray
    values: np.ndarray

    def take(self, rows: np.ndarray | slice) -> Rows:
        """Some rows, in order."""
        return Rows(self.columns, self.session[rows], self.symbol[rows], self.values[rows])


@dataclass(frozen=True, eq=False)
class Windows:
    """Stretches of rows.

    Attributes:
        end: session that each window ends with, shape (windows,).
        first: its first session.
        start, stop: its rows.
    """

    end: np.ndarray
    first: np.ndarray
    start: np.ndarray
    stop: np.ndarray

    def __len__(self) -> int:
        return len(self.end)


def windows_ending(
    session: np.ndarray, ends: Sequence[int] | np.ndarray, parameters: DriftParameters
) -> Windows:
    """The windows that end with these sessions; sessions without rows, or with too few before them, have none.

    Args:
        session: of the rows, ascending.
        ends: sessions.
        parameters: W and the longest gap.
    """
    known, offset = np.unique(session, return_index=True)
    offset = np.append(offset, len(session))
    count = parameters.window_sessions
    wanted = np.asarray(ends, np.int64)
    last = np.searchsorted(known, wanted)
    fine = (last < len(known)) & (last >= count - 1)
    last, wanted = last[fine], wanted[fine]
    fine = (known[last] == wanted) & (wanted - known[last - count + 1] < parameters.longest_gap * count)
    last = last[fine]
    before = last - count + 1
    return Windows(known[last], known[before], offset[before], offset[last + 1])


def session_symbols(rows: Rows, windows: Windows) -> np.ndarray:
    """Symbols per session of each window, on average, whole and at least 1, shape (windows,)."""
    _, code = np.unique(rows.symbol, return_inverse=True)
    pair = rows.session * (code.max(initial=0) + 1) + code
    counts = np.empty(len(windows), np.int64)
    for i, (start, stop) in enumerate(zip(windows.start, windows.stop, strict=True)):
        part = slice(start, stop)
        counts[i] = max(len(np.unique(pair[part])) // max(len(np.unique(rows.session[part])), 1), 1)
    return counts


def _by_length(picked: Sequence[np.ndarray]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for i, rows in enumerate(picked):
        groups.setdefault(len(rows), []).append(i)
    return groups


def _measure(
    columns: Sequence[ReferenceColumn], values: np.ndarray, picked: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances (windows, columns, 3), means and standard deviations (windows, columns) of the rows of each window."""
    found = np.empty((len(picked), len(columns), len(STATISTICS)))
    mean, sd = np.empty((2, len(picked), len(columns)))
    for length, group in _by_length(picked).items():
        step = max(VALUES_AT_ONCE // max(length, 1), 1)
        for some in (group[i : i + step] for i in range(0, len(group), step)):
            at = np.stack([picked[i] for i in some])
            for j, column in enumerate(columns):
                part = values[:, j][at]
                found[some, j] = distances(column, part)
                mean[some, j], sd[some, j] = part.mean(axis=1), part.std(axis=1)
    return found, mean, sd


# -- the reference -----------------------------------------------------------------------------------------------------

# Distances of windows by the key that identifies them, computed when they are not known yet.
Remember = Callable[[str, Callable[[], np.ndarray]], np.ndarray]


def _compute(key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    return compute()


@dataclass(frozen=True, eq=False)
class Reference:
    """What a model was trained on, ready to be compared with; made by `make_reference`.

    Attributes:
        rows: all rows.
        columns: one per column of the rows.
        symbols: per session, typically.
        parameters: W and bins.
        remember: keeps null distributions that take long.
    """

    rows: Rows
    columns: tuple[ReferenceColumn, ...]
    symbols: int
    parameters: DriftParameters
    remember: Remember = _compute
    _nulls: dict[int, Null] = field(default_factory=dict)

    def null(self, symbols: int) -> Null:
        """What distances of windows of so many symbols are where nothing has changed."""
        symbols = min(symbols, self.symbols)
        if symbols not in self._nulls:
            found = self.remember(self._key(symbols), lambda: self._null_distances(symbols))
            self._nulls[symbols] = fit_null(found, overlap=self.parameters.window_sessions)
        return self._nulls[symbols]

    def _null_distances(self, symbols: int) -> np.ndarray:
        rows = self.rows
        windows = windows_ending(rows.session, np.unique(rows.session), self.parameters)
        picked = [np.arange(start, stop) for start, stop in zip(windows.start, windows.stop, strict=True)]
        if symbols < self.symbols:
            # As many symbols as the new window has, always the same ones within a window: a window of one symbol is further from
            # the reference of all than a window of all is, drift or not.
            rng = np.random.default_rng([SUBSET_SEED, symbols])
            for i, at in enumerate(picked):
                there = np.unique(rows.symbol[at])
                kept = rng.choice(there, min(symbols, len(there)), replace=False)
                picked[i] = at[np.isin(rows.symbol[at], kept)]
        return _measure(self.columns, rows.values, picked)[0]

    def _key(self, symbols: int) -> str:
        digest = hashlib.blake2b(digest_size=12)
        rows, p = self.rows, self.parameters
        about = (
            NULL_FORMAT,
            rows.columns,
            symbols,
            self.symbols,
            p.window_sessions,
            p.psi_bins,
            p.longest_gap,
        )
        digest.update(repr(about).encode())
        digest.update(np.ascontiguousarray(rows.session).tobytes())
        digest.update("\n".join(rows.symbol.tolist()).encode())
        digest.update(np.ascontiguousarray(rows.values).tobytes())
        return digest.hexdigest()


def make_reference(rows: Rows, parameters: DriftParameters, remember: Remember = _compute) -> Reference:
    """Prepare a reference.

    Raises:
        DriftError: too few sessions for a null distribution.
    """
    sessions = len(np.unique(rows.session))
    needed = parameters.fewest_reference_windows * parameters.window_sessions
    if sessions < needed:
        raise DriftError(
            f"the reference has {sessions} sessions with rows, {needed} are needed ({parameters.fewest_reference_windows} windows "
            f"of {parameters.window_sessions} sessions): train on more sessions, or shorten window_sessions"
        )
    columns = tuple(
        ReferenceColumn.of(rows.values[:, j], parameters.psi_bins) for j in range(len(rows.columns))
    )
    return Reference(rows, columns, max(round(len(rows.session) / sessions), 1), parameters, remember)


# -- comparing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scored:
    """Columns that were compared with one reference, over sessions.

    Attributes:
        scope: of each column, shape (columns,).
        columns: names.
        session: what each window ends with, shape (windows,).
        window_first, window_sessions, window_rows: of each window.
        found: distances, NaN where there are none, shape (windows, columns, 3).
        p: their p-values, NaN where nothing is tested.
        mean, sd: of each window, shape (windows, columns).
        reference_mean: shape (windows, columns) or (columns,).
        reference_sd: shape (columns,).
        reference: first and last session; None where no sessions are behind it.
        reference_rows: number, None likewise.
        drifted: where something else than p decides, shape (windows, columns).
    """

    scope: tuple[str, ...]
    columns: tuple[str, ...]
    session: np.ndarray
    window_first: np.ndarray
    window_sessions: np.ndarray
    window_rows: np.ndarray
    found: np.ndarray
    p: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    reference_mean: np.ndarray
    reference_sd: np.ndarray
    reference: tuple[int, int] | None = None
    reference_rows: int | None = None
    drifted: np.ndarray | None = None


def score(
    reference: Reference,
    rows: Rows,
    sessions: Sequence[int] | np.ndarray,
    scope: Callable[[str], str],
) -> Scored:
    """Compare the windows that end with these sessions with the reference.

    Args:
        reference: of the model.
        rows: hold the sessions and those before them; more changes nothing. Their columns are some of the reference's.
        sessions: positions; those without a window have no row.
        scope: of a column.
    """
    at = [reference.rows.columns.index(name) for name in rows.columns]
    windows = windows_ending(rows.session, sessions, reference.parameters)
    picked = [np.arange(start, stop) for start, stop in zip(windows.start, windows.stop, strict=True)]
    columns = [reference.columns[j] for j in at]
    found, mean, sd = _measure(columns, rows.values, picked)
    p = np.empty(found.shape)
    symbols = session_symbols(rows, windows)
    for count in np.unique(symbols):
        null, some = reference.null(int(count)), symbols == count
        null = Null(null.sorted[:, at], null.mean[at], null.sd[at], null.independent[at])
        p[some] = p_values(null, found[some])
    known = reference.rows.session
    return Scored(
        scope=tuple(scope(name) for name in rows.columns),
        columns=rows.columns,
        session=windows.end,
        window_first=windows.first,
        window_sessions=np.full(len(windows), reference.parameters.window_sessions),
        window_rows=windows.stop - windows.start,
        found=found,
        p=p,
        mean=mean,
        sd=sd,
        reference_mean=np.array([c.mean for c in columns]),
        reference_sd=np.array([c.sd for c in columns]),
        reference=(int(known[0]), int(known[-1])),
        reference_rows=len(known),
    )


def score_orders(
    rows: Rows,
    low: float,
    high: float,
    horizon_minutes: int,
    sessions: Sequence[int] | np.ndarray,
    parameters: DriftParameters,
) -> Scored:
    """Compare captured orders with those that an agent was trained on, whose distribution is known: log participation is uniform.

    Orders are no series with a past: the null distribution is that of as many independent draws as the window's orders are worth
    (`effective_draws`), where orders of one session count as a cluster. A horizon other than the one that was trained is told (ks is
    the share of such orders) and not tested: the agent sees time as a part of the horizon.

    Args:
        rows: columns log participation and horizon (minutes); one row per order.
        low, high: of the participation in training.
        horizon_minutes: of training.
        sessions: positions.
        parameters: W, bins, how many orders and sessions are enough.
    """
    reference = uniform_reference(np.log(low), np.log(high), parameters.psi_bins)
    kept: list[dict[str, Any]] = []
    for end in sessions:
        first = int(end) - parameters.window_sessions + 1
        part = rows.take((rows.session >= first) & (rows.session <= end))
        there = len(np.unique(part.session))
        if there < parameters.fewest_request_sessions or len(part.session) < parameters.fewest_requests:
            continue
        shares, horizon = part.values[:, 0], part.values[:, 1]
        found = np.full((2, len(STATISTICS)), np.nan)
        found[0] = distances(reference, shares[None])[0]
        found[1, STATISTICS.index("ks")] = (horizon != horizon_minutes).mean()
        p = np.full((2, len(STATISTICS)), np.nan)
        draws = max(int(effective_draws(shares, part.session)), 1)
        p[0] = p_values(drawn_null(draws, parameters.psi_bins), found[None, :1])[0, 0]
        kept.append(
            {
                "session": int(end),
                "first": int(part.session[0]),
                "sessions": there,
                "rows": len(part.session),
                "found": found,
                "p": p,
                "mean": part.values.mean(axis=0),
                "sd": part.values.std(axis=0),
            }
        )

    def column(name: str, shape: tuple[int, ...] = (), kind: type = np.int64) -> np.ndarray:
        return np.array([row[name] for row in kept], kind).reshape(len(kept), *shape)

    return Scored(
        scope=(ENDPOINT_INPUT,) * 2,
        columns=rows.columns,
        session=column("session"),
        window_first=column("first"),
        window_sessions=column("sessions"),
        window_rows=column("rows"),
        found=column("found", (2, 3), np.float64),
        p=column("p", (2, 3), np.float64),
        mean=column("mean", (2,), np.float64),
        sd=column("sd", (2,), np.float64),
        reference_mean=np.array([reference.mean, horizon_minutes]),
        reference_sd=np.array([reference.sd, 0.0]),
    )


# -- verdicts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Judged:
    """Verdicts on what was scored.

    Attributes:
        scored: what they are about.
        statistic: index of the statistic with the smallest p-value, shape (windows, columns).
        p: the smallest p-value, shape (windows, columns), NaN where nothing is tested.
        adjusted: the same, corrected.
        drifted: bool, shape (windows, columns).
    """

    scored: Scored
    statistic: np.ndarray
    p: np.ndarray
    adjusted: np.ndarray
    drifted: np.ndarray


def judge(blocks: Sequence[Scored], alpha: float) -> list[Judged]:
    """Correct over everything that was tested in a session and say what drifted."""
    adjusted = [np.full(block.p.shape, np.nan) for block in blocks]
    sessions = np.unique(np.concatenate([block.session for block in blocks])) if blocks else np.array([])
    for session in sessions:
        rows = [np.flatnonzero(block.session == session) for block in blocks]
        p = [block.p[at] for block, at in zip(blocks, rows, strict=True)]
        tested = np.concatenate([part[np.isfinite(part)] for part in p])
        corrected = iter(np.split(holm(tested), np.cumsum([np.isfinite(part).sum() for part in p])[:-1]))
        for result, at, part in zip(adjusted, rows, p, strict=True):
            part[np.isfinite(part)] = next(corrected)
            result[at] = part
    judged = []
    for block, of in zip(blocks, adjusted, strict=True):
        best = np.where(np.isfinite(block.p), block.p, np.inf).argmin(axis=2)[..., None]
        smallest = np.take_along_axis(block.p, best, axis=2)[..., 0]
        corrected_of = np.take_along_axis(of, best, axis=2)[..., 0]
        drifted = np.nan_to_num(corrected_of, nan=1.0) < alpha if block.drifted is None else block.drifted
        judged.append(Judged(block, best[..., 0], smallest, corrected_of, drifted))
    return judged


def flags(judged: Sequence[Judged]) -> dict[int, bool]:
    """Whether any column drifted, by session, in order."""
    found: dict[int, bool] = {}
    for part in judged:
        for session, row in zip(part.scored.session.tolist(), part.drifted, strict=True):
            found[session] = found.get(session, False) or bool(row.any())
    return dict(sorted(found.items()))


def events(drifted: Sequence[bool], hysteresis_sessions: int) -> list[int | None]:
    """Which event goes on: of each session, the place of the session in which it began; None when none goes on.

    >>> events([True, True, False, True, True, False, False, True], 2)
    [None, 1, 1, 1, 1, 1, None, None]
    """
    begun: int | None = None
    run = 0
    found: list[int | None] = []
    for i, now in enumerate(drifted):
        run = run + 1 if i and now == drifted[i - 1] else 1
        if run >= hysteresis_sessions:
            begun = (i if begun is None else begun) if now else None
        found.append(begun)
    return found


def settled(drifted: Sequence[bool], hysteresis_sessions: int) -> bool:
    """Whether so many sessions in a row were quiet: after them no event goes on, whatever came before."""
    run = 0
    for now in drifted:
        run = 0 if now else run + 1
        if run >= hysteresis_sessions:
            return True
    return False


def watch(
    compare: Callable[[int, int], Sequence[Scored]],
    first: int,
    last: int,
    earliest: int,
    parameters: DriftParameters,
) -> tuple[list[Judged], dict[int, int | None]]:
    """Verdicts of a range of sessions, and the event that goes on in each.

    Args:
        compare: scores of the sessions from .. to, both included.
        first, last: range, positions.
        earliest: first session that can be judged at all.
        parameters: alpha and K.

    Returns:
        Verdicts, and by session the first session of the event that goes on, or None.
    """
    judged = judge(compare(first, last), parameters.alpha)
    found = flags(judged)
    before, back, to = dict[int, bool](), parameters.hysteresis_sessions, first - 1
    while to >= earliest and not settled(list(before.values()), parameters.hysteresis_sessions):
        since = max(to - back + 1, earliest)
        before = flags(judge(compare(since, to), parameters.alpha)) | before
        to, back = since - 1, 2 * back
    sessions = [*before, *found]
    begun = events([*before.values(), *found.values()], parameters.hysteresis_sessions)
    going_on = {
        session: None if place is None else sessions[place]
        for session, place in zip(sessions, begun, strict=True)
    }
    return judged, {session: going_on[session] for session in found}


def day_at(calendar: TradingCalendar, position: int) -> dt.date:
    """The session at a position, clamped to the calendar's range."""
    first = calendar.sessions(calendar.first, calendar.last)[0]
    return calendar.shift(first, position - calendar.ordinal(first))


def event_id(model: str, version: int, session: dt.date) -> str:
    """Name of a drift event: model, version, first session."""
    return f"{model}:v{version}:{session}"


# -- the table ---------------------------------------------------------------------------------------------------------


def drift_table(
    model: str,
    version: int,
    judged: Sequence[Judged],
    going_on: Mapping[int, int | None],
    calendar: TradingCalendar,
) -> pa.Table:
    """Rows of `monitoring.drift`.

    Args:
        model, version: what is watched.
        judged, going_on: of `watch`.
        calendar: gives dates and closes to positions.
    """
    parts = [
        _block_table(model, version, part, going_on, calendar) for part in judged if len(part.scored.session)
    ]
    return DRIFT.conform(pa.concat_tables(parts) if parts else DRIFT.arrow_schema.empty_table())


def _block_table(
    model: str,
    version: int,
    judged: Judged,
    going_on: Mapping[int, int | None],
    calendar: TradingCalendar,
) -> pa.Table:
    scored = judged.scored
    windows, columns = judged.p.shape
    session = [day_at(calendar, s) for s in scored.session.tolist()]
    window_first = [day_at(calendar, s) for s in scored.window_first.tolist()]
    begun = [going_on[s] for s in scored.session.tolist()]
    ids = [None if b is None else event_id(model, version, day_at(calendar, b)) for b in begun]
    reference = [day_at(calendar, s) for s in scored.reference] if scored.reference else [None, None]

    def each(values: Sequence[object]) -> list[object]:
        """One value per window, for each of its columns."""
        return [value for value in values for _ in range(columns)]

    def numbers(values: np.ndarray) -> pa.Array:
        flat = np.ascontiguousarray(np.broadcast_to(values, (windows, columns)), np.float64).ravel()
        return pa.array(flat, pa.float64(), mask=~np.isfinite(flat))

    statistic = [
        STATISTICS[i] if np.isfinite(p) else None
        for i, p in zip(judged.statistic.ravel().tolist(), judged.p.ravel().tolist(), strict=True)
    ]
    rows = windows * columns
    return pa.table(
        {
            "model": [model] * rows,
            "model_version": [version] * rows,
            "scope": list(scored.scope) * windows,
            "column": list(scored.columns) * windows,
            "session": pa.array(each(session), pa.date32()),
            "available_at": pa.array(each([calendar.close(s) for s in session]), pa.timestamp("us", "UTC")),
            "window_first": pa.array(each(window_first), pa.date32()),
            "window_sessions": each(scored.window_sessions.tolist()),
            "window_rows": each(scored.window_rows.tolist()),
            "reference_first": pa.array([reference[0]] * rows, pa.date32()),
            "reference_last": pa.array([reference[1]] * rows, pa.date32()),
            "reference_rows": pa.array([scored.reference_rows] * rows, pa.int64()),
            **{name: numbers(scored.found[..., i]) for i, name in enumerate(STATISTICS)},
            "statistic": pa.array(statistic, pa.string()),
            "p_value": numbers(judged.p),
            "p_adjusted": numbers(judged.adjusted),
            "drifted": judged.drifted.ravel().tolist(),
            "event_id": pa.array(each(ids), pa.string()),
            "mean_reference": numbers(scored.reference_mean),
            "mean_window": numbers(scored.mean),
            "sd_reference": numbers(scored.reference_sd),
            "sd_window": numbers(scored.sd),
        }
    ).cast(pa.schema([f.with_nullable(True) for f in DRIFT.arrow_schema]))
