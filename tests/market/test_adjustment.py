"""Price adjustment: total returns, no revision of history, and the SQL products agree with the arrays."""

import datetime as dt
import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_assets.market.adjustment import STEP_SQL, adjust_bars, future_factor_sql, past_factor_sql
from quant_resources.duckdb import query

SPLITS = [
    ("AAPL", dt.date(2000, 6, 21)),
    ("AAPL", dt.date(2005, 2, 28)),
    ("MSFT", dt.date(2003, 2, 18)),
]
PRICES = ("open", "high", "low", "close")


def bars(closes: list[float], events: dict[int, tuple[float, float]] | None = None, symbol: str = "AAA"):
    """Bars with these closes; `events` maps a row to (split_factor, dividend)."""
    events = events or {}
    n = len(closes)
    close = np.array(closes, dtype=float)
    return pa.table(
        {
            "symbol": pa.array([symbol] * n, pa.string()),
            "session": pa.array([dt.date(2012, 1, 2) + dt.timedelta(days=i) for i in range(n)], pa.date32()),
            "open": close * 0.99,
            "high": close * 1.02,
            "low": close * 0.97,
            "close": close,
            "volume": np.full(n, 1000.0),
            "dividend": pa.array([events.get(i, (1.0, 0.0))[1] for i in range(n)], pa.float64()),
            "split_factor": pa.array([events.get(i, (1.0, 0.0))[0] for i in range(n)], pa.float64()),
        }
    )


def by_symbol(table: pa.Table) -> dict[str, dict[str, np.ndarray]]:
    parts = {}
    for symbol in table["symbol"].unique().to_pylist():
        part = table.filter(pc.equal(table["symbol"], symbol))
        parts[symbol] = {name: part[name].to_numpy() for name in part.column_names if name != "available_at"}
    return parts


@pytest.fixture(scope="module")
def adjusted(sample_bars: pa.Table) -> pa.Table:
    return adjust_bars(sample_bars)


def test_the_change_of_the_adjusted_close_is_the_total_return(adjusted: pa.Table) -> None:
    for part in by_symbol(adjusted).values():
        close = part["close"]
        step = part["split_factor"] * (1 + part["dividend"] / close)
        np.testing.assert_allclose(
            part["adj_close"][1:] / part["adj_close"][:-1], close[1:] * step[1:] / close[:-1], rtol=1e-13
        )
        # In words: what a holder has tonight, shares and cash, over what he had last night.
        holding = part["split_factor"][1:] * (close[1:] + part["dividend"][1:])
        np.testing.assert_allclose(
            part["adj_close"][1:] / part["adj_close"][:-1], holding / close[:-1], rtol=1e-13
        )


def test_the_sample_agrees_with_a_holder_who_reinvests_every_dividend(adjusted: pa.Table) -> None:
    # One share is bought at the first close. A split multiplies the shares, a dividend buys more of them.
    for part in by_symbol(adjusted).values():
        shares, split = 1.0, 1.0
        expected = {name: [] for name in (*PRICES, "volume")}
        for t in range(len(part["close"])):
            if t > 0:
                shares *= part["split_factor"][t]
                split *= part["split_factor"][t]
                shares += shares * part["dividend"][t] / part["close"][t]
            for name in PRICES:
                expected[name].append(part[name][t] * shares)
            expected["volume"].append(part["volume"][t] / split)
        for name, values in expected.items():
            np.testing.assert_allclose(part[f"adj_{name}"], values, rtol=1e-12)


def test_known_answer_by_hand() -> None:
    # 100, then 2:1 at 55 (the share of yesterday is worth 110), then 50 after paying 5 (again 110 of them).
    table = adjust_bars(bars([100.0, 55.0, 50.0], {1: (2.0, 0.0), 2: (1.0, 5.0)}))
    np.testing.assert_allclose(table["adj_close"].to_numpy(), [100.0, 110.0, 110.0], rtol=1e-15)
    np.testing.assert_allclose(table["adj_open"].to_numpy(), [99.0, 108.9, 108.9], rtol=1e-15)
    # A dividend leaves the number of shares alone.
    np.testing.assert_allclose(table["adj_volume"].to_numpy(), [1000.0, 500.0, 500.0], rtol=0)


def test_the_first_row_is_the_anchor_even_when_it_has_an_event() -> None:
    table = adjust_bars(bars([40.0, 41.0], {0: (2.0, 1.0)}))
    assert table["adj_close"].to_pylist() == [40.0, 41.0]
    assert table["adj_volume"].to_pylist() == [1000.0, 1000.0]


def test_every_symbol_has_its_own_anchor_and_its_own_events() -> None:
    one = bars([100.0, 50.0, 51.0], {1: (2.0, 0.0)}, "AAA")
    two = bars([30.0, 29.0], {1: (1.0, 1.0)}, "BBB")
    both = adjust_bars(pa.concat_tables([one, two]))
    assert both.slice(0, 3).equals(adjust_bars(one))
    assert both.slice(3).equals(adjust_bars(two))
    assert both["adj_close"].to_pylist() == pytest.approx([100.0, 100.0, 102.0, 30.0, 30.0], rel=1e-15)


def test_an_empty_table_gains_the_columns() -> None:
    table = adjust_bars(bars([]))
    assert table.num_rows == 0
    assert table.column_names[-5:] == ["adj_open", "adj_high", "adj_low", "adj_close", "adj_volume"]


def test_the_raw_columns_stay_as_they_are(sample_bars: pa.Table, adjusted: pa.Table) -> None:
    assert adjusted.select(sample_bars.column_names).equals(sample_bars)


@pytest.mark.parametrize(("symbol", "session"), SPLITS)
def test_a_split_does_not_show_in_adjusted_returns(adjusted: pa.Table, symbol: str, session: dt.date) -> None:
    part = by_symbol(adjusted)[symbol]
    t = list(part["session"].astype(object)).index(session)
    raw = part["close"][t] / part["close"][t - 1] - 1
    total = part["adj_close"][t] / part["adj_close"][t - 1] - 1
    assert raw < -0.4
    assert abs(total) < 0.11
    assert total == pytest.approx(2 * (1 + raw) - 1, abs=1e-12)
    # Volume counts the shares of the first row, so it does not double either.
    assert part["adj_volume"][t] / part["adj_volume"][t - 1] == pytest.approx(
        part["volume"][t] / part["volume"][t - 1] / 2
    )


def test_the_crash_of_aapl_does_show_because_it_was_real(adjusted: pa.Table) -> None:
    part = by_symbol(adjusted)["AAPL"]
    t = list(part["session"].astype(object)).index(dt.date(2000, 9, 29))
    assert part["adj_close"][t] / part["adj_close"][t - 1] - 1 == pytest.approx(-0.5187, abs=5e-5)


def test_a_bar_keeps_its_shape(adjusted: pa.Table) -> None:
    for name in ("open", "high", "low"):
        np.testing.assert_allclose(
            adjusted[f"adj_{name}"].to_numpy() / adjusted["adj_close"].to_numpy(),
            adjusted[name].to_numpy() / adjusted["close"].to_numpy(),
            rtol=1e-13,
        )


# -------------------------------------------------------------------------------------- point in time

price = st.floats(0.5, 1e4)
split = st.sampled_from([1.0, 1.0, 1.0, 2.0, 3.0, 1.5, 0.1, 7.0])
yield_ = st.sampled_from([0.0, 0.0, 0.0, 0.001, 0.02, 0.5])
row = st.tuples(price, split, yield_)


def made(rows: list[tuple[float, float, float]], symbol: str = "AAA") -> pa.Table:
    closes = [r[0] for r in rows]
    return bars(closes, {i: (r[1], r[2] * r[0]) for i, r in enumerate(rows)}, symbol)


@settings(max_examples=100, deadline=None)
@given(past=st.lists(row, min_size=1, max_size=25), future=st.lists(row, min_size=1, max_size=5))
def test_later_events_never_change_earlier_rows(
    past: list[tuple[float, float, float]], future: list[tuple[float, float, float]]
) -> None:
    # Bit for bit: Arrow compares values exactly.
    before = adjust_bars(made(past))
    after = adjust_bars(made([*past, *future]))
    assert after.slice(0, len(past)).equals(before)


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(row, min_size=2, max_size=25), anchor=st.integers(0, 24))
def test_returns_do_not_depend_on_where_the_series_begins(
    rows: list[tuple[float, float, float]], anchor: int
) -> None:
    anchor %= len(rows) - 1
    whole = adjust_bars(made(rows))["adj_close"].to_numpy()[anchor:]
    rest = adjust_bars(made(rows[anchor:]))["adj_close"].to_numpy()
    np.testing.assert_allclose(whole[1:] / whole[:-1], rest[1:] / rest[:-1], rtol=1e-12)


def test_the_sample_of_any_year_is_the_beginning_of_the_whole(
    sample_bars: pa.Table, adjusted: pa.Table
) -> None:
    # The cuts lie right before a split, right behind one, before the special dividend of MSFT and of nothing special.
    for cut in ("2000-06-20", "2003-02-18", "2004-11-12", "2005-02-25", "2012-08-08"):
        instant = pa.scalar(dt.date.fromisoformat(cut))
        known = adjust_bars(sample_bars.filter(pc.less_equal(sample_bars["session"], instant)))
        assert known.equals(adjusted.filter(pc.less_equal(adjusted["session"], instant)))


# ------------------------------------------------------------------------------------------------ SQL


def factors(table: pa.Table, sessions: int) -> list[dict[str, float]]:
    """The products of both SQL helpers at every row that has `sessions` rows on both sides."""
    lags = ", ".join(f"lag(step, {j}) OVER w AS g{j}" for j in range(1, sessions + 1))
    leads = ", ".join(f"lead(step, {j}) OVER w AS h{j}" for j in range(1, sessions + 1))
    sql = f"""
    WITH steps AS (SELECT symbol, session, {STEP_SQL} AS step FROM bars),
    near AS (
      SELECT *, step AS g0, {lags}, {leads}, row_number() OVER w - 1 AS row,
        count(*) OVER (PARTITION BY symbol) AS n
      FROM steps WINDOW w AS (PARTITION BY symbol ORDER BY session)
    )
    SELECT symbol, session, {", ".join(past_factor_sql(sessions))},
      {", ".join(future_factor_sql(sessions, step="h"))}
    FROM near WHERE row >= {sessions} AND row + {sessions} < n ORDER BY symbol, session"""
    return query(sql, {"bars": table}).to_pylist()


def test_sql_factors_are_the_ratios_of_adjusted_prices_on_the_whole_sample(adjusted: pa.Table) -> None:
    n = 20
    cumulative = {symbol: part["adj_close"] / part["close"] for symbol, part in by_symbol(adjusted).items()}
    columns: dict[str, dict[str, list[float]]] = {}
    for found in factors(adjusted, n):
        own = columns.setdefault(found["symbol"], {})
        for name, value in found.items():
            own.setdefault(name, []).append(value)
    assert set(columns) == set(cumulative)
    for symbol, own in columns.items():
        c = cumulative[symbol]
        here = np.arange(n, len(c) - n)
        assert len(own["session"]) == len(here)
        for j in range(1, n + 1):
            # A price of j rows ago in today's units is price / p_j; one of j rows ahead, in the units of the next
            # row, is price * f_j.
            np.testing.assert_allclose(own[f"p{j}"], c[here] / c[here - j], rtol=1e-12)
            np.testing.assert_allclose(own[f"f{j}"], c[here + j] / c[here + 1], rtol=1e-12)
        assert set(own["f1"]) == {1.0}


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(row, min_size=7, max_size=12))
def test_sql_factors_are_the_ratios_of_adjusted_prices_under_any_events(
    rows: list[tuple[float, float, float]],
) -> None:
    n = 3
    table = adjust_bars(made(rows))
    cumulative = table["adj_close"].to_numpy() / table["close"].to_numpy()
    for i, found in enumerate(factors(table, n), start=n):
        for j in range(1, n + 1):
            assert found[f"p{j}"] == pytest.approx(cumulative[i] / cumulative[i - j], rel=1e-12)
            assert found[f"f{j}"] == pytest.approx(cumulative[i + j] / cumulative[i + 1], rel=1e-12)


def test_sql_products_run_in_a_fixed_order() -> None:
    assert past_factor_sql(3) == ["g0 AS p1", "g0 * g1 AS p2", "g0 * g1 * g2 AS p3"]
    assert future_factor_sql(3) == ["CAST(1 AS DOUBLE) AS f1", "g2 AS f2", "g2 * g3 AS f3"]


def test_the_step_of_sql_is_the_definition() -> None:
    table = bars([50.0], {0: (2.0, 5.0)})
    step = query(f"SELECT {STEP_SQL} AS g FROM bars", {"bars": table})["g"].to_pylist()
    assert math.isclose(step[0], 2 * 1.1, rel_tol=1e-15)
