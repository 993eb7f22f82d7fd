"""From stored bars to the market of the portfolio environment: alignment, adjustment, and no look ahead."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from quant_assets.environments.portfolio import (
    PortfolioEpisodes,
    PortfolioMarket,
    PortfolioParameters,
    buy_and_hold,
    decision_rows,
    equal_weight,
    minimum_variance,
    rollout_weights,
    shuffled,
)
from quant_assets.features import tables as feature_tables
from quant_assets.market import tables as market_tables
from quant_assets.market.series import SeriesError, bar_series
from quant_assets.models.dataset import DatasetError
from quant_assets.models.portfolio_market import (
    portfolio_market,
    read_minute_portfolio_market,
    read_portfolio_market,
    split_market,
)
from quant_resources.calendar import TradingCalendar
from quant_resources.iceberg import Warehouse
from quant_resources.sources import BARS

EXTRA = ("rsi_14", "sentiment_sma_1")


@pytest.fixture(scope="module")
def market(sample_bars: pa.Table, sample_technical: pa.Table, sample_sentiment: pa.Table) -> PortfolioMarket:
    return portfolio_market(
        bar_series(sample_bars), dict(zip(EXTRA, (sample_technical, sample_sentiment), strict=True))
    )


def bars_of(
    bar: Callable[..., dict[str, object]], prices: dict[str, list[float]], **values: dict[int, float]
) -> pa.Table:
    """Bars from 2012-01-02 on (every day, for brevity), open = close; NaN is no bar; `values` are by number of the bar."""
    rows = []
    for symbol, closes in prices.items():
        for i, price in enumerate(closes):
            if np.isnan(price):
                continue
            extra = {name: by_bar[i] for name, by_bar in values.items() if i in by_bar}
            day = (dt.date(2012, 1, 2) + dt.timedelta(days=i)).isoformat()
            rows.append(bar(day, symbol, open=price, high=price, low=price, close=price, **extra))
    return pa.Table.from_pylist(rows, schema=BARS)


def test_returns_are_those_from_open_to_open(market: PortfolioMarket, sample_bars: pa.Table) -> None:
    bars = bar_series(sample_bars, ["IBM"])["IBM"]
    asset = market.symbols.index("IBM")
    assert np.array_equal(market.sessions, bars.sessions)
    expected = bars.adj_open[2:] / bars.adj_open[1:-1] - 1
    np.testing.assert_allclose(market.next_return[:-2, asset], expected, rtol=1e-12)
    moves = np.log(
        bars.close[1:] * bars.split_factor[1:] * (1 + bars.dividend[1:] / bars.close[1:]) / bars.close[:-1]
    )
    np.testing.assert_allclose(market.log_return[1:, asset], moves, atol=1e-12)
    at = 1000
    assert market.volatility[at, asset] == pytest.approx(
        np.sqrt(np.mean(moves[at - 20 : at] ** 2)), rel=1e-12
    )
    scale = np.median(np.abs(moves[at - 60 : at])) / 0.6744897501960817
    assert market.features[at, 0, asset] == pytest.approx(np.clip(moves[at - 1] / scale, -5, 5), rel=1e-9)
    # Both halves of a session make up the return that the environment pays.
    day = np.log1p(market.open_to_close)
    night = market.log_return - day
    listed = market.tradable[:-2]
    np.testing.assert_allclose(
        np.expm1(day[1:-1] + night[2:])[listed], market.next_return[:-2][listed], atol=1e-12
    )


def test_an_asset_is_tradable_after_twenty_returns_and_unknown_before(market: PortfolioMarket) -> None:
    asset = market.symbols.index("FB")
    first = int(np.argmax(np.isfinite(market.log_return[:, asset])))
    assert market.sessions[first - 1] == np.datetime64("2012-05-18")
    assert not market.tradable[: first + 19, asset].any()
    assert market.tradable[first + 19 :, asset].all()
    assert not market.features[: first - 1, :, asset].any()
    assert not market.next_return[: first - 3, asset].any()


def test_cutting_the_tables_leaves_all_features_until_then_bit_for_bit(
    market: PortfolioMarket, sample_bars: pa.Table, sample_technical: pa.Table, sample_sentiment: pa.Table
) -> None:
    for last in (dt.date(2012, 9, 14), dt.date(2012, 12, 3)):
        cut = [
            table.filter(pc.less_equal(table["session"], last))
            for table in (sample_bars, sample_technical, sample_sentiment)
        ]
        shorter = portfolio_market(bar_series(cut[0]), dict(zip(EXTRA, cut[1:], strict=True)))
        rows = len(shorter)
        assert shorter.sessions[-1] == np.datetime64(last)
        assert shorter.symbols == market.symbols
        for name in ("features", "tradable", "volatility", "log_return", "open_to_close"):
            assert np.array_equal(getattr(shorter, name), getattr(market, name)[:rows], equal_nan=True), name
        assert np.array_equal(shorter.next_return[:-2], market.next_return[: rows - 2])


def test_what_comes_later_is_noticed_by_the_test_above(
    market: PortfolioMarket, sample_bars: pa.Table
) -> None:
    """Positive control: a scale over the whole sample would change with the cut."""
    cut = portfolio_market(
        bar_series(sample_bars.filter(pc.less_equal(sample_bars["session"], dt.date(2012, 12, 3))))
    )
    whole = market.log_return[1 : len(cut)] / np.nanstd(market.log_return[1:], axis=0)
    part = cut.log_return[1:] / np.nanstd(cut.log_return[1:], axis=0)
    assert not np.array_equal(whole, part, equal_nan=True)


def test_splits_and_dividends_are_no_moves(bar: Callable[..., dict[str, object]]) -> None:
    rng = np.random.default_rng(1)
    plain = (100 * np.exp(rng.normal(0, 0.01, 90).cumsum())).tolist()
    split = [price / (4 if i >= 50 else 1) for i, price in enumerate(plain)]
    volume = {i: 1e6 * (1 + i % 3) * (4 if i >= 50 else 1) for i in range(90)}
    one = portfolio_market(
        bar_series(bars_of(bar, {"A": plain}, volume={i: 1e6 * (1 + i % 3) for i in range(90)}))
    )
    two = portfolio_market(bar_series(bars_of(bar, {"A": split}, volume=volume, split_factor={50: 4.0})))
    for name in ("features", "next_return", "log_return", "volatility", "open_to_close"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), atol=1e-12, err_msg=name)
    assert np.abs(two.log_return[1:]).max() < 0.05

    # A dollar is paid at bar 60: the price falls by it and nobody is poorer.
    paid = [100.0 - (1.0 if i >= 60 else 0.0) for i in range(90)]
    flat = portfolio_market(bar_series(bars_of(bar, {"A": paid}, dividend={60: 1.0})))
    np.testing.assert_allclose(flat.log_return[1:], 0, atol=1e-12)
    np.testing.assert_allclose(flat.next_return[:-2], 0, atol=1e-12)


def test_a_missing_bar_keeps_the_last_close_and_earns_nothing(bar: Callable[..., dict[str, object]]) -> None:
    prices = {"A": [100.0 + i % 2 for i in range(40)], "B": [100.0 + i % 2 for i in range(40)]}
    prices["A"][30] = np.nan  # the 101 of bar 29 holds until 100.5
    prices["A"][31] = 100.5
    market = portfolio_market(bar_series(bars_of(bar, prices)))
    assert market.tradable[29].tolist() == [True, True]
    assert market.tradable[30].tolist() == [False, True]
    assert market.next_return[28, 0] == 0  # from the open of 29 to the carried close of 29
    assert market.next_return[29, 0] == pytest.approx(100.5 / 101 - 1)
    assert market.features[30, :, 0].tolist() == [0, 0]
    assert market.log_return[30, 0] == 0
    assert market.log_return[31, 0] == pytest.approx(np.log(100.5 / 101))

    # One that ends is sold at its last close.
    prices["A"] = prices["B"][:35]
    market = portfolio_market(bar_series(bars_of(bar, prices)))
    assert market.tradable[34, 0]
    assert not market.tradable[35:, 0].any()
    assert not market.next_return[33:-2, 0].any()
    assert market.volatility[-1, 0] == market.volatility[34, 0] > 0
    parameters = PortfolioParameters(look_back=21)
    rollout = rollout_weights(market, parameters, buy_and_hold(market, parameters))
    assert not rollout.weights[15:, 0].any()


def test_it_reads_the_warehouse_and_says_what_it_read(
    warehouse: Warehouse,
    sample_bars: pa.Table,
    sample_technical: pa.Table,
    sample_sentiment: pa.Table,
    market: PortfolioMarket,
) -> None:
    with pytest.raises(DatasetError, match="market/bars holds no bar until today"):
        read_portfolio_market(warehouse)
    written = warehouse.write(market_tables.BARS, sample_bars)
    warehouse.write(feature_tables.TECHNICAL, sample_technical)
    with pytest.raises(
        DatasetError, match=r"features\.sentiment holds no row until today; materialize features/sentiment"
    ):
        read_portfolio_market(warehouse, extra_features=EXTRA)
    warehouse.write(feature_tables.SENTIMENT, sample_sentiment)

    data = read_portfolio_market(warehouse, extra_features=EXTRA)
    assert data.snapshots["market.bars"] == written.snapshot_id
    assert set(data.snapshots) == {"market.bars", "features.technical", "features.sentiment"}
    assert data.sources == {"market.bars": "sample", "features.sentiment": "simulated"}
    assert data.market.feature_names == ("scaled_log_return", "scaled_log_volume_change", *EXTRA)
    assert np.array_equal(data.market.features, market.features)
    assert np.array_equal(data.market.next_return, market.next_return, equal_nan=True)

    first, last = dt.date(2010, 1, 4), dt.date(2011, 12, 30)
    part = read_portfolio_market(warehouse, ["MSFT", "AAPL"], first, last).market
    assert part.symbols == ("MSFT", "AAPL")
    assert part.sessions[part.first_decision] == np.datetime64(first)
    assert part.sessions[-1] == np.datetime64(last)
    assert np.array_equal(part.features[:, :, 1], market.features[: len(part), :2, 0])
    with pytest.raises(SeriesError, match="no bars of TSLA"):
        read_portfolio_market(warehouse, ["TSLA"])
    with pytest.raises(DatasetError, match="no table has a feature 'rsi'; there are atr_14, "):
        read_portfolio_market(warehouse, extra_features=["rsi"])


def test_no_return_of_one_window_ends_in_the_next(market: PortfolioMarket) -> None:
    split = split_market(market, embargo_sessions=5)
    parameters = PortfolioParameters()
    position = {session: i for i, session in enumerate(market.sessions)}
    spans = []
    for window in split[:3]:
        rows = decision_rows(window, parameters)
        spans.append((position[window.sessions[rows[0]]], position[window.sessions[rows[-1] + 2]]))
        assert np.array_equal(window.next_return[rows], market.next_return[rows])
    (_, train_end), (check_first, check_end), (unseen_first, unseen_end) = spans
    assert check_first - train_end > 5
    assert unseen_first - check_end > 5
    assert unseen_end == len(market) - 1
    with pytest.raises(DatasetError, match="are too few"):
        split_market(market.between(dt.date(2013, 2, 1), dt.date(2013, 3, 1)))


def test_the_plain_rules_run_on_every_window(market: PortfolioMarket) -> None:
    parameters = PortfolioParameters(cost_volatility_factor=0.05)
    for window in split_market(market)[:3]:
        equal = rollout_weights(window, parameters, equal_weight(window)).summary()
        held = rollout_weights(window, parameters, buy_and_hold(window, parameters)).summary()
        calm = rollout_weights(window, parameters, minimum_variance(window, parameters)).summary()
        assert calm["annual_volatility_pct"] < equal["annual_volatility_pct"]
        assert held["total_cost_pct"] < equal["total_cost_pct"]


def test_shuffled_sessions_are_those_of_the_sample(market: PortfolioMarket) -> None:
    mixed = shuffled(market, 3)
    for name in ("log_return", "open_to_close", "volatility"):
        before, after = (np.sort(getattr(m, name), axis=0) for m in (market, mixed))
        assert np.array_equal(before, after, equal_nan=True)
    held = market.tradable[:-2]
    assert np.array_equal(market.tradable, mixed.tradable)
    old, new = (m.next_return[:-2][held] for m in (market, mixed))
    assert new.mean() == pytest.approx(old.mean(), abs=2e-4)
    assert new.std() == pytest.approx(old.std(), rel=0.05)


# -- minutes -------------------------------------------------------------------------------------------------------------

DAYS = (dt.date(2014, 6, 5), dt.date(2014, 6, 6), dt.date(2014, 6, 9))


@pytest.fixture
def minute_warehouse(warehouse: Warehouse) -> Warehouse:
    """Two symbols, three sessions of minutes; ACME splits 7 for 1 on the third, so its price falls by that."""
    calendar = TradingCalendar(DAYS[0], DAYS[-1])
    rng = np.random.default_rng(4)
    minutes, daily = [], []
    for symbol, start in (("ACME", 700.0), ("ZETA", 50.0)):
        price = start
        for number, day in enumerate(DAYS):
            split = 7.0 if symbol == "ACME" and number == 2 else 1.0
            price /= split
            opening = dt.datetime.combine(day, dt.time(9, 30), ZoneInfo("America/New_York")).astimezone(
                dt.UTC
            )
            for minute in range(390):
                last, price = price, price * float(np.exp(rng.normal(0, 5e-4)))
                ts = opening + dt.timedelta(minutes=minute)
                minutes.append(
                    {
                        "symbol": symbol,
                        "session": day,
                        "ts": ts,
                        "available_at": ts + dt.timedelta(minutes=1),
                        "open": last,
                        "high": max(last, price),
                        "low": min(last, price),
                        "close": price,
                        "volume": 1000.0 * split,
                        "source": "test",
                    }
                )
            daily.append(
                {
                    "symbol": symbol,
                    "session": day,
                    "available_at": calendar.close(day),
                    "open": price,
                    "high": price,
                    "low": price,
                    "close": price,
                    "volume": 1e6,
                    "dividend": 0.0,
                    "split_factor": split,
                    "source": "test",
                }
            )
    for spec, rows in ((market_tables.MINUTE_BARS, minutes), (market_tables.BARS, daily)):
        names = [column.name for column in spec.columns]
        table = pa.Table.from_pylist(
            [{name: row.get(name) for name in names} for row in rows], schema=spec.arrow_schema
        )
        warehouse.write(spec, table, DAYS[0], DAYS[-1])
    return warehouse


def test_minutes_become_periods_that_are_known_at_their_end(minute_warehouse: Warehouse) -> None:
    market = read_minute_portfolio_market(minute_warehouse, 30).market
    assert market.symbols == ("ACME", "ZETA")
    assert len(market) == 3 * 13
    assert str(market.sessions[0]) == "2014-06-05T10:00", "New York time"
    assert str(market.sessions[12]) == "2014-06-05T16:00"
    assert market.periods_per_year == 252 * 13
    # the split between the second and the third session is no move
    assert np.abs(market.log_return[1:]).max() < 0.02
    assert np.abs(market.next_return[:-2]).max() < 0.02
    rows = minute_warehouse.read(market_tables.MINUTE_BARS).to_pandas()
    zeta = rows[(rows.symbol == "ZETA") & (rows.session == DAYS[0])].sort_values("ts")
    expected = (
        zeta.open.iloc[60] / zeta.open.iloc[30] - 1
    )  # decided at 10:00, traded at 10:00's open, until 10:30's
    assert market.next_return[0, 1] == pytest.approx(expected, rel=1e-12)


def test_a_portfolio_is_rebalanced_within_the_day(minute_warehouse: Warehouse) -> None:
    market = read_minute_portfolio_market(minute_warehouse, 5, ["ZETA"]).market
    episodes = PortfolioEpisodes(4, market, PortfolioParameters(look_back=10, episode_steps=50))
    observation = episodes.reset(np.random.default_rng(0))
    for _ in range(50):
        done = episodes.step(np.zeros((4, 2)))
        assert np.isfinite(done.observation).all()
    assert observation.shape == (4, 10 * 2 + 1)
    assert done.truncated


def test_a_cut_of_the_minutes_leaves_what_was_known(minute_warehouse: Warehouse) -> None:
    whole = read_minute_portfolio_market(minute_warehouse, 15).market
    cut = read_minute_portfolio_market(minute_warehouse, 15, last=DAYS[1]).market
    assert np.array_equal(whole.features[: len(cut)], cut.features)
    assert np.array_equal(whole.volatility[: len(cut)], cut.volatility)


def test_minutes_that_cannot_be_used_are_named(minute_warehouse: Warehouse, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="minutes = 0: a period has 1 to 390 of them"):
        read_minute_portfolio_market(minute_warehouse, 0)
    with pytest.raises(SeriesError, match="no minute bars of NOPE; there are bars of ACME, ZETA"):
        read_minute_portfolio_market(minute_warehouse, 5, ["NOPE"])
    with pytest.raises(DatasetError, match="market/minute_bars holds no bar from the beginning to today"):
        read_minute_portfolio_market(Warehouse(tmp_path / "empty"), 5)
    daily = minute_warehouse.read(market_tables.BARS)
    minute_warehouse.write(
        market_tables.BARS,
        daily.filter(pc.not_equal(daily["session"], pa.scalar(DAYS[1]))),
        DAYS[0],
        DAYS[-1],
    )
    with pytest.raises(DatasetError, match="ACME has minute bars on 2014-06-06 and no daily bar"):
        read_minute_portfolio_market(minute_warehouse, 5)
