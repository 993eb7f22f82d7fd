"""Windows, events, silence on stationary worlds, a change that is seen, and that neither the range of a run nor the future matters."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.drift_false_alarms import CALENDAR, WORLDS, bars_of, feature_tables, naive, returns, toy_rows
from quant_assets.features.tables import TECHNICAL_INPUTS
from quant_assets.monitoring.drift import (
    DriftError,
    DriftParameters,
    Judged,
    Reference,
    Rows,
    Scored,
    drift_table,
    events,
    flags,
    judge,
    make_reference,
    score,
    score_orders,
    settled,
    watch,
    windows_ending,
)
from quant_assets.monitoring.remembered import RememberedNulls
from quant_assets.monitoring.statistics import holm
from quant_assets.monitoring.tables import DRIFT
from quant_assets.monitoring.watched import classifier_rows, scope_of, watched_columns
from quant_resources.calendar import TradingCalendar

PARAMETERS = DriftParameters(window_sessions=10, fewest_reference_windows=5)
REFERENCE, FRESH = 400, 120


def feature(_: str) -> str:
    return "feature"


def world(seed: int, sessions: int = REFERENCE + FRESH, columns: int = 6, persistence: float = 0.6) -> Rows:
    rows = toy_rows(persistence, np.random.default_rng(seed), sessions)
    return Rows(rows.columns[:columns], rows.session, rows.symbol, rows.values[:, :columns])


def shifted(rows: Rows, since: int, factor: float) -> Rows:
    values = rows.values.copy()
    values[rows.session >= since] *= factor
    return Rows(rows.columns, rows.session, rows.symbol, values)


def between(rows: Rows, first: int, last: int) -> Rows:
    return rows.take((rows.session >= first) & (rows.session <= last))


class Case:
    """A reference, and sessions after it."""

    def __init__(
        self, rows: Rows, reference_sessions: int = REFERENCE, parameters: DriftParameters = PARAMETERS
    ) -> None:
        self.rows, self.parameters = rows, parameters
        start = int(rows.session[0])
        self.first, self.last = start + reference_sessions, int(rows.session[-1])
        self.reference = make_reference(between(rows, start, self.first - 1), parameters)

    def compare(self, since: int, to: int) -> list[Scored]:
        """As the asset does: no more rows than the sessions can need."""
        back = since - int(self.parameters.longest_gap * self.parameters.window_sessions)
        return [score(self.reference, between(self.rows, back, to), range(since, to + 1), feature)]

    def watch(self, first: int, last: int) -> tuple[list[Judged], dict[int, int | None]]:
        return watch(self.compare, first, last, self.first, self.parameters)

    def table(self, first: int, last: int) -> list[dict[str, object]]:
        judged, going_on = self.watch(first, last)
        return drift_table("model", 1, judged, going_on, CALENDAR).to_pylist()


# -- windows -----------------------------------------------------------------------------------------------------------


def test_a_window_is_the_last_sessions_that_have_rows() -> None:
    parameters = DriftParameters(window_sessions=3)
    session = np.repeat([10, 11, 13, 14, 30], [2, 1, 3, 2, 2])
    found = windows_ending(session, range(9, 32), parameters)
    # 10 and 11 have too few before them, 12 has no rows, and the window of 30 would reach back to 13.
    assert found.end.tolist() == [13, 14]
    assert found.first.tolist() == [10, 11]
    assert [(int(a), int(b)) for a, b in zip(found.start, found.stop, strict=True)] == [(0, 6), (2, 8)]


def test_no_rows_no_windows() -> None:
    assert len(windows_ending(np.array([], np.int64), range(5), PARAMETERS)) == 0


# -- events ------------------------------------------------------------------------------------------------------------


def test_an_event_begins_with_the_third_session_and_ends_with_the_third_quiet_one() -> None:
    drifted = [bool(int(x)) for x in "0110111011000100"]
    assert events(drifted, 3) == [None] * 6 + [6, 6, 6, 6, 6, 6, None, None, None, None]


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 4))
def test_an_event_needs_its_sessions_in_a_row_to_begin_and_to_end(drifted: list[bool], k: int) -> None:
    found = events(drifted, k)
    for i, now in enumerate(found):
        before = found[i - 1] if i else None
        recent = drifted[max(i + 1 - k, 0) : i + 1]
        if now is not None and before is None:
            assert now == i
            assert recent == [True] * k
        elif now is None and before is not None:
            assert recent == [False] * k
        else:
            assert now == before


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 4), st.integers(0, 60))
def test_nothing_before_a_settled_stretch_matters(drifted: list[bool], k: int, cut: int) -> None:
    before, after = drifted[:cut], drifted[cut:]
    for start in range(len(before) + 1):
        if settled(before[start:], k):
            found = events(drifted[start:], k)
            expected = events(drifted, k)
            assert [None if e is None else e + start for e in found[cut - start :]] == expected[cut:]
    assert len(events([*before, *after], k)) == len(drifted)


# -- silence and change ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("persistence", [0.0, 0.9])
def test_stationary_columns_are_nearly_silent_and_textbook_p_values_are_not(persistence: float) -> None:
    """Six worlds of 120 sessions; the textbook counts every row as independent."""
    cases = [Case(world(seed, persistence=persistence, columns=12)) for seed in range(6)]
    begun = [{e for e in case.watch(case.first, case.last)[1].values() if e is not None} for case in cases]
    assert sum(len(events_of) for events_of in begun) <= 1
    if persistence:
        (scored,) = cases[0].compare(cases[0].first, cases[0].first + 39)
        assert sum(naive(scored, 3 * REFERENCE)) > 35


class Ignorant:
    """A network that always says the same."""

    def predict(self, x: np.ndarray, symbol: Sequence[str]) -> np.ndarray:
        return np.tile(x[:, :1] * 0.1 + 0.4, 2)


def simulated(seed: int, factor: float = 1.0) -> tuple[Case, int]:
    """Real technical features of simulated bars; returns are multiplied from 30 sessions after the reference on."""
    moves = returns(WORLDS[0], np.random.default_rng(seed), 30 + 400 + 30 + 60)
    moves[460:] *= factor
    tables = feature_tables(bars_of(moves, np.random.default_rng(seed)), None)
    bundle = {"inputs": list(TECHNICAL_INPUTS), "tables": list(tables)}
    rows = classifier_rows(bundle, tables, Ignorant(), CALENDAR)  # type: ignore[arg-type]
    assert rows.columns == watched_columns(bundle)
    case = Case(rows, 400, DriftParameters())
    return case, CALENDAR.ordinal(CALENDAR.sessions(CALENDAR.first, CALENDAR.last)[0]) + 460


def test_technical_features_of_a_stationary_market_are_silent() -> None:
    for seed in (1, 2):
        case, _ = simulated(seed)
        assert set(case.watch(case.first, case.last)[1].values()) == {None}


@pytest.mark.parametrize("factor", [2.5, 0.25])
def test_a_change_of_volatility_is_seen_within_twenty_sessions(factor: float) -> None:
    case, change = simulated(3, factor)
    begun = {e for e in case.watch(case.first, case.last)[1].values() if e is not None}
    assert len(begun) == 1
    assert change <= begun.pop() < change + 20


def test_the_columns_that_moved_are_named() -> None:
    rows = world(5)
    since = int(rows.session[0]) + REFERENCE + 20
    values = rows.values.copy()
    values[rows.session >= since, 2] += 4
    case = Case(Rows(rows.columns, rows.session, rows.symbol, values))
    table = [r for r in case.table(since + 30, since + 30) if r["drifted"]]
    assert [row["column"] for row in table] == [rows.columns[2]]
    assert table[0]["event_id"] is not None
    assert table[0]["mean_window"] > table[0]["mean_reference"] + 3  # type: ignore[operator]


def test_fewer_symbols_than_usual_are_no_drift() -> None:
    """One symbol alone is farther from the reference of all than all together are."""
    rows = world(6)
    offset = np.where(rows.symbol == "AAA", 1.5, 0.0)[:, None]
    rows = Rows(rows.columns, rows.session, rows.symbol, rows.values + offset)
    case = Case(rows)
    alone = rows.take((rows.symbol == "AAA") | (rows.session < case.first - 40))
    scored = score(case.reference, alone, range(case.first, case.last + 1), feature)
    assert not any(flags(judge([scored], PARAMETERS.alpha)).values())
    assert scored.p.min() > 1e-6


# -- what a run covers does not matter ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_event() -> Case:
    """A change early on, so that an event goes on for most sessions."""
    rows = world(7)
    return Case(shifted(rows, int(rows.session[0]) + REFERENCE + 15, 6.0))


def test_a_range_gives_the_rows_of_its_nights_bit_for_bit(long_event: Case) -> None:
    together = long_event.table(long_event.first, long_event.last)
    assert len({row["event_id"] for row in together}) == 2
    nights = [
        row
        for session in range(long_event.first, long_event.last + 1)
        for row in long_event.table(session, session)
    ]
    key = ("session", "column")
    assert sorted(nights, key=lambda r: [r[k] for k in key]) == sorted(
        together, key=lambda r: [r[k] for k in key]
    )


def test_a_range_in_the_middle_knows_the_event_that_goes_on(long_event: Case) -> None:
    whole = long_event.watch(long_event.first, long_event.last)[1]
    some = long_event.watch(long_event.last - 5, long_event.last)[1]
    assert some == {session: whole[session] for session in some}
    assert min(e for e in some.values() if e is not None) < long_event.last - 50


def test_rows_need_nothing_from_later(long_event: Case) -> None:
    for session in (long_event.first + 3, long_event.first + 40):
        cut = Case(between(long_event.rows, 0, session))
        assert cut.table(session, session) == long_event.table(session, session)


def test_sessions_of_the_reference_are_not_judged(long_event: Case) -> None:
    judged, going_on = long_event.watch(long_event.first, long_event.first)
    assert list(going_on) == [long_event.first]
    assert judged[0].scored.reference == (int(long_event.rows.session[0]), long_event.first - 1)


# -- many tests --------------------------------------------------------------------------------------------------------


def test_the_correction_is_over_everything_of_a_session(long_event: Case) -> None:
    session = long_event.first + 5
    (block,) = long_event.compare(session, session)
    twice = judge([block, block], 0.01)
    both = np.concatenate([block.p, block.p])
    assert np.stack([twice[0].adjusted, twice[1].adjusted]).min() == holm(both).min()
    (alone,) = judge([block], 0.01)
    assert (twice[0].adjusted >= alone.adjusted).all()
    assert alone.adjusted.min() == pytest.approx(min(block.p.min() * block.p.size, 1.0))
    assert (alone.p == block.p.min(axis=2)).all()


# -- orders ------------------------------------------------------------------------------------------------------------


def orders(participation: np.ndarray, horizon: float = 390.0, sessions: int = 15) -> Rows:
    count = len(participation)
    session = np.sort(np.arange(count) % sessions) + 100
    values = np.column_stack([np.log(participation), np.full(count, horizon)])
    return Rows(("log_participation", "horizon_minutes"), session, np.full(count, "AAPL"), values)


def judged_orders(rows: Rows) -> Judged:
    scored = score_orders(rows, 0.01, 0.2, 390, [114], DriftParameters())
    return judge([scored], 0.01)[0]


def test_orders_as_in_training_are_no_drift_and_tiny_ones_are() -> None:
    rng = np.random.default_rng(8)
    usual = judged_orders(orders(np.exp(rng.uniform(np.log(0.01), np.log(0.2), 60))))
    assert not usual.drifted.any()
    tiny = judged_orders(orders(np.exp(rng.uniform(np.log(0.0001), np.log(0.001), 60))))
    assert tiny.drifted.tolist() == [[True, False]]


def test_another_horizon_is_told_and_not_tested() -> None:
    rng = np.random.default_rng(9)
    found = judged_orders(orders(np.exp(rng.uniform(np.log(0.01), np.log(0.2), 60)), horizon=60.0))
    assert found.scored.found[0, 1, 1] == 1.0
    assert np.isnan(found.p[0, 1])
    assert found.scored.mean[0, 1] == 60.0


def test_one_order_sent_a_thousand_times_in_few_sessions_is_not_compared() -> None:
    assert not len(judged_orders(orders(np.full(1000, 0.1), sessions=4)).scored.session)
    assert not len(judged_orders(orders(np.full(19, 0.1))).scored.session)


# -- the reference -----------------------------------------------------------------------------------------------------


def test_a_short_reference_is_refused_with_the_way_out() -> None:
    with pytest.raises(DriftError, match=r"49 sessions with rows, 50 are needed .* train on more sessions"):
        make_reference(world(1, 49), PARAMETERS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window_sessions": 0}, "window_sessions = 0"),
        ({"alpha": 1.0}, "alpha = 1.0"),
        ({"psi_bins": 1}, "psi_bins = 1"),
        ({"longest_gap": 0.5}, "longest_gap = 0.5"),
    ],
)
def test_wrong_parameters_are_named(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(DriftError, match=message):
        DriftParameters(**wrong)  # type: ignore[arg-type]


class Counting:
    """Counts how often a null distribution is computed."""

    def __init__(self, folder: Path) -> None:
        self.inner, self.computed = RememberedNulls(folder, "model"), 0

    def __call__(self, key: str, compute: object) -> np.ndarray:
        def counted() -> np.ndarray:
            self.computed += 1
            return compute()  # type: ignore[operator, no-any-return]

        return self.inner(key, counted)

    def reference(self, rows: Rows, parameters: DriftParameters = PARAMETERS) -> Reference:
        return make_reference(rows, parameters, self)


def test_a_null_distribution_is_computed_once(tmp_path: Path) -> None:
    rows = world(2, 80)
    remember = Counting(tmp_path / "monitoring")
    first = remember.reference(rows).null(3)
    again = remember.reference(rows).null(3)
    assert remember.computed == 1
    assert (first.sorted == again.sorted).all()
    # Another reference, other parameters, fewer symbols: another null distribution.
    remember.reference(shifted(rows, 0, 2.0)).null(3)
    remember.reference(rows, DriftParameters(window_sessions=8, fewest_reference_windows=5)).null(3)
    remember.reference(rows).null(1)
    assert remember.computed == 4


def test_a_torn_file_costs_time_and_nothing_else(tmp_path: Path) -> None:
    rows = world(2, 80)
    whole = make_reference(rows, PARAMETERS, RememberedNulls(tmp_path, "model")).null(3)
    (file,) = tmp_path.glob("*.npy")
    content = file.read_bytes()
    for torn in (content[:100], b"", content[:-8]):
        file.write_bytes(torn)
        again = make_reference(rows, PARAMETERS, RememberedNulls(tmp_path, "model")).null(3)
        assert (again.sorted == whole.sorted).all()
        assert file.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_without_a_place_to_write_it_computes_each_time(tmp_path: Path) -> None:
    (tmp_path / "monitoring").write_text("a file where the folder should be")
    remember = Counting(tmp_path / "monitoring")
    rows = world(2, 80)
    remember.reference(rows).null(3)
    remember.reference(rows).null(3)
    assert remember.computed == 2


# -- the table ---------------------------------------------------------------------------------------------------------


def test_a_row_says_what_was_compared_with_what(long_event: Case) -> None:
    session = long_event.last
    row = long_event.table(session, session)[0]
    calendar = TradingCalendar(CALENDAR.first, CALENDAR.last)
    day = row["session"]
    assert isinstance(day, dt.date)
    assert (row["model"], row["model_version"], row["scope"]) == ("model", 1, "feature")
    assert row["available_at"] == calendar.close(day)
    assert calendar.ordinal(day) == session
    assert calendar.ordinal(row["window_first"]) == session - 9  # type: ignore[arg-type]
    assert (row["window_sessions"], row["window_rows"], row["reference_rows"]) == (10, 30, 3 * REFERENCE)
    model, version, begun = str(row["event_id"]).split(":")
    assert (model, version) == ("model", "v1")
    assert calendar.is_session(dt.date.fromisoformat(begun))
    assert DRIFT.conform(drift_table("model", 1, [], {}, CALENDAR)).num_rows == 0


def test_scopes_of_columns() -> None:
    assert {scope_of(c) for c in ("roc_2_pct", "log_return")} == {"feature"}
    assert scope_of("probability_long") == "prediction"
