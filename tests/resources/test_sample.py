"""Source `sample`: real bars with the events recovered from them, and a simulated news feed without alpha."""

from __future__ import annotations

import datetime as dt
import importlib.resources
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from quant_resources.calendar import TradingCalendar
from quant_resources.settings import load_settings
from quant_resources.sources import BARS, NEWS, SECURITIES, SourceError, open_source
from quant_resources.sources.sample import FIRST_SESSION, LAST_SESSION, SampleSource, recover_events
from quant_resources.sources.simulated_news import simulate

SEED = 20000301


def day(text: str) -> dt.date:
    return dt.date.fromisoformat(text)


def own_sessions(news: pa.Table) -> list[dt.date]:
    """The session that each article was written for, which its url tells (`published_at` is what is judged)."""
    return [
        dt.datetime.strptime(url.split("/", 3)[3][:10], "%Y/%m/%d").date() for url in news["url"].to_pylist()
    ]


@pytest.fixture(scope="module")
def bars() -> pa.Table:
    return SampleSource().bars(FIRST_SESSION, LAST_SESSION)


@pytest.fixture(scope="module")
def vendor() -> pd.DataFrame:
    """The file as bokeh ships it."""
    file = importlib.resources.files("bokeh_sampledata") / "_data" / "stocks.csv.gz"
    return pd.read_csv(str(file), parse_dates=["Date"])


@pytest.fixture(scope="module")
def news() -> pa.Table:
    return SampleSource(seed=SEED).news(FIRST_SESSION, LAST_SESSION)


# -- bars --------------------------------------------------------------------------------------------------------------


def test_the_sample_has_12154_bars_of_five_symbols(bars: pa.Table) -> None:
    assert bars.schema == BARS
    assert Counter(bars["symbol"].to_pylist()) == {
        "AAPL": 3270,
        "FB": 196,
        "GOOG": 2148,
        "IBM": 3270,
        "MSFT": 3270,
    }
    assert bars.num_rows == 12_154


def test_prices_are_the_files_raw_prices_row_by_row(bars: pa.Table, vendor: pd.DataFrame) -> None:
    ours = bars.to_pandas().sort_values(["symbol", "session"], ignore_index=True)
    theirs = vendor.sort_values(["Ticker", "Date"], ignore_index=True)
    assert ours["symbol"].tolist() == theirs["Ticker"].tolist()
    assert ours["session"].tolist() == theirs["Date"].dt.date.tolist()
    for name in ("open", "high", "low", "close", "volume"):
        np.testing.assert_array_equal(ours[name], theirs[name.capitalize()].astype(float))


def test_origin_is_the_line_of_the_file(bars: pa.Table, vendor: pd.DataFrame) -> None:
    for row in bars.take([0, 3270, 6000, 12_153]).to_pylist():
        name, line = row["origin"].rsplit(":", 1)
        assert name == "bokeh_sampledata/stocks.csv.gz"
        there = vendor.iloc[int(line) - 2]  # line 1 is the header
        assert (there["Ticker"], there["Date"].date()) == (row["symbol"], row["session"])


def test_exactly_the_three_real_splits_are_found(bars: pa.Table) -> None:
    splits = bars.filter(pc.not_equal(bars["split_factor"], 1.0))
    found = {(r["symbol"], str(r["session"]), r["split_factor"]) for r in splits.to_pylist()}
    assert found == {
        ("AAPL", "2000-06-21", 2.0),
        ("AAPL", "2005-02-28", 2.0),
        ("MSFT", "2003-02-18", 2.0),
    }


def test_the_crash_of_apple_is_neither_a_split_nor_a_dividend(bars: pa.Table) -> None:
    rows = bars.filter(pc.equal(bars["symbol"], "AAPL")).to_pylist()
    crash = next(i for i, row in enumerate(rows) if row["session"] == day("2000-09-29"))
    # It halved overnight, which is what makes it look like one.
    assert rows[crash]["close"] / rows[crash - 1]["close"] < 0.5
    assert (rows[crash]["split_factor"], rows[crash]["dividend"]) == (1.0, 0.0)


def test_known_dividends_are_found_to_the_cent(bars: pa.Table) -> None:
    paid = bars.filter(pc.greater(bars["dividend"], 0.0)).to_pylist()
    by_symbol: dict[str, dict[str, float]] = {}
    for row in paid:
        by_symbol.setdefault(row["symbol"], {})[str(row["session"])] = row["dividend"]
    assert by_symbol["AAPL"] == {"2012-08-09": 2.65, "2012-11-07": 2.65, "2013-02-07": 2.65}
    assert by_symbol["MSFT"]["2004-11-15"] == 3.08
    assert by_symbol["MSFT"]["2013-02-19"] == 0.23
    # Facebook and Google paid nothing; IBM paid every quarter, 2000Q2 to 2013Q1.
    assert set(by_symbol) == {"AAPL", "IBM", "MSFT"}
    assert len(by_symbol["IBM"]) == 52
    assert len(by_symbol["MSFT"]) == 37


@pytest.mark.parametrize("symbol", ["AAPL", "FB", "GOOG", "IBM", "MSFT"])
def test_events_reproduce_the_vendors_adjusted_close_up_to_a_constant(
    bars: pa.Table, vendor: pd.DataFrame, symbol: str
) -> None:
    rows = bars.filter(pc.equal(bars["symbol"], symbol)).to_pandas()
    step = (rows["split_factor"] * (1 + rows["dividend"] / rows["close"])).to_numpy().copy()
    step[0] = 1.0
    adjusted = rows["close"].to_numpy() * np.cumprod(step)
    theirs = vendor[vendor["Ticker"] == symbol].sort_values("Date")["Adj Close"].to_numpy()
    constant = adjusted / theirs
    np.testing.assert_allclose(constant, constant[0], rtol=1e-9, atol=0)


def test_bars_of_a_range_are_the_rows_of_the_history_with_both_ends(bars: pa.Table) -> None:
    first, last = day("2012-05-18"), day("2012-05-22")
    part = SampleSource().bars(first, last)
    session = bars["session"]
    assert part == bars.filter(pc.and_(pc.greater_equal(session, first), pc.less_equal(session, last)))
    # Facebook's first day is inside.
    assert Counter(part["symbol"].to_pylist()) == dict.fromkeys(["AAPL", "FB", "GOOG", "IBM", "MSFT"], 3)


def test_the_sample_ends_and_has_no_minute_bars() -> None:
    source = SampleSource()
    assert source.span() == (day("2000-03-01"), day("2013-03-01"))
    assert source.minute_bars(FIRST_SESSION, LAST_SESSION).num_rows == 0
    assert (source.has_minute_bars, source.news_is_simulated) == (False, True)


def test_a_symbol_that_the_sample_does_not_have_is_named_with_those_it_has() -> None:
    with pytest.raises(SourceError, match=r"no TSLA, X; it has AAPL, FB, GOOG, IBM, MSFT.*QUANT_SYMBOLS"):
        SampleSource(symbols=("AAPL", "TSLA", "X"))


def test_the_security_master_covers_the_symbols_and_names_only_known_peers() -> None:
    master = SampleSource().securities()
    assert master.schema == SECURITIES
    known = master["symbol"].to_pylist()
    assert known == ["AAPL", "FB", "GOOG", "IBM", "MSFT"]
    for row in master.to_pylist():
        peers = row["peers"].split(",")
        assert row["symbol"] not in peers
        assert set(peers) <= set(known)
        assert row["name"]
        assert row["sector"]
        assert row["industry"]
    assert SampleSource(symbols=("IBM",)).securities()["symbol"].to_pylist() == ["IBM"]


def test_settings_choose_symbols_and_seed_of_the_sample() -> None:
    source = open_source(load_settings(source="sample", symbols=("MSFT", "IBM"), seed=5))
    assert isinstance(source, SampleSource)
    assert (source.symbols, source.seed) == (("IBM", "MSFT"), 5)
    assert set(source.bars(FIRST_SESSION, LAST_SESSION)["symbol"].to_pylist()) == {"IBM", "MSFT"}


# -- events ------------------------------------------------------------------------------------------------------------


def adjusted_backwards(close: np.ndarray, dividend: np.ndarray, split_factor: np.ndarray) -> np.ndarray:
    """A vendor's adjusted close: the last price stays, each event rescales everything before it."""
    step = split_factor * (1 + dividend / close)
    return close * np.r_[np.cumprod(step[::-1])[::-1][1:], 1.0] ** -1.0


def test_a_split_and_a_dividend_on_one_day_are_told_apart() -> None:
    close = np.array([100.0, 102.0, 50.5, 51.0])
    open_ = np.array([100.0, 101.0, 51.0, 50.0])
    dividend, split_factor = np.array([0, 0, 0.4, 0]), np.array([1.0, 1, 2, 1])
    found = recover_events(open_, close, adjusted_backwards(close, dividend, split_factor))
    np.testing.assert_array_equal(found[0], dividend)
    np.testing.assert_array_equal(found[1], split_factor)


def test_a_crash_to_half_without_a_step_of_the_adjusted_close_is_no_event() -> None:
    close = np.array([100.0, 50.0, 51.0])
    dividend, split_factor = recover_events(close, close, close / 7)
    np.testing.assert_array_equal(dividend, [0, 0, 0])
    np.testing.assert_array_equal(split_factor, [1, 1, 1])


@pytest.mark.parametrize(
    ("jump", "close"),
    [
        (2.0, [100.0, 101.0, 100.0]),  # the adjusted close doubles its ratio, the price did not halve
        (0.9, [100.0, 101.0, 100.0]),  # the ratio falls: a negative dividend
        (1.7, [100.0, 101.0, 100.0]),  # no split ratio, and 70 % of the price is no dividend
    ],
)
def test_a_jump_of_the_adjusted_close_that_nothing_explains_is_refused(
    jump: float, close: list[float]
) -> None:
    raw = np.array(close)
    adjusted = raw * np.array([1.0, 1.0, jump])
    with pytest.raises(SourceError, match=rf"row 2: adjusted close steps by {jump:.6f}"):
        recover_events(raw, raw, adjusted)


# -- simulated news ----------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_articles_and_another_seed_others(news: pa.Table) -> None:
    assert news.schema == NEWS
    assert SampleSource(seed=SEED).news(FIRST_SESSION, LAST_SESSION) == news
    first, last = day("2010-01-04"), day("2010-03-31")
    other = SampleSource(seed=SEED + 1).news(first, last)
    mine = SampleSource(seed=SEED).news(first, last)
    assert mine.num_rows > 100
    assert not set(other["article_id"].to_pylist()) & set(mine["article_id"].to_pylist())
    assert other["sentiment_score"].to_pylist() != mine["sentiment_score"].to_pylist()


@pytest.mark.parametrize(
    "session",
    ["2000-03-01", "2000-09-29", "2001-09-17", "2012-05-18", "2012-11-23", "2012-11-26", "2013-03-01"],
)
def test_one_session_alone_equals_that_session_in_the_whole_history(news: pa.Table, session: str) -> None:
    alone = SampleSource(seed=SEED).news(day(session), day(session))
    inside = news.filter(pa.array([own == day(session) for own in own_sessions(news)]))
    assert alone.num_rows > 0
    assert alone.equals(inside)


def test_every_article_lies_after_the_previous_close_and_not_after_its_own(
    news: pa.Table, calendar: TradingCalendar
) -> None:
    for own, published in zip(own_sessions(news), news["published_at"].to_pylist(), strict=True):
        assert calendar.close(calendar.shift(own, -1)) < published <= calendar.close(own)


def test_weekends_evenings_and_trading_hours_all_have_articles(
    news: pa.Table, calendar: TradingCalendar
) -> None:
    published = news["published_at"].to_pylist()
    weekday = Counter(instant.weekday() for instant in published)
    assert weekday[5] > 1000
    assert weekday[6] > 1000
    during = sum(
        calendar.is_session(instant.date())
        and calendar.opens(instant.date()) <= instant <= calendar.close(instant.date())
        for instant in published
    )
    assert 1000 < during < len(published) / 2


def test_every_traded_symbol_has_news_from_its_first_to_its_last_year(news: pa.Table) -> None:
    years = {(s, own.year) for s, own in zip(news["symbol"].to_pylist(), own_sessions(news), strict=True)}
    assert {s: sorted(y for symbol, y in years if symbol == s) for s in {s for s, _ in years}} == {
        "AAPL": list(range(2000, 2014)),
        "FB": [2012, 2013],
        "GOOG": list(range(2004, 2014)),
        "IBM": list(range(2000, 2014)),
        "MSFT": list(range(2000, 2014)),
    }


def test_articles_name_several_tickers_each_with_a_score_of_its_own(news: pa.Table) -> None:
    by_article: dict[str, list[dict[str, object]]] = {}
    for row in news.to_pylist():
        by_article.setdefault(row["article_id"], []).append(row)
    several = [rows for rows in by_article.values() if len(rows) > 1]
    assert len(several) > 0.2 * len(by_article)
    for rows in by_article.values():
        # One article is one text at one instant...
        assert len({(r["published_at"], r["title"], r["url"]) for r in rows}) == 1
        assert len({r["symbol"] for r in rows}) == len(rows)
    for rows in several:
        # ...that means something else for each ticker, and is mostly about one of them.
        assert len({r["sentiment_score"] for r in rows}) == len(rows)
        assert len({r["relevance_score"] for r in rows}) == len(rows)


def test_scores_and_relevance_lie_in_their_ranges_and_use_them(news: pa.Table) -> None:
    score, relevance = news["sentiment_score"].to_numpy(), news["relevance_score"].to_numpy()
    assert ((score >= -1) & (score <= 1)).all()
    assert ((relevance > 0) & (relevance <= 1)).all()
    assert score.min() < -0.5
    assert score.max() > 0.5
    assert relevance.min() < 0.1
    assert relevance.max() > 0.9


def test_every_row_says_that_it_is_simulated(news: pa.Table) -> None:
    assert all(origin.startswith("simulated:") for origin in news["origin"].to_pylist())
    assert all(url.startswith("https://simulated-news.example/") for url in news["url"].to_pylist())


@pytest.mark.parametrize("seed", [SEED, 0, 1])
def test_sentiment_moves_with_its_own_session_and_knows_nothing_of_the_next(
    bars: pa.Table, seed: int
) -> None:
    news = SampleSource(seed=seed).news(FIRST_SESSION, LAST_SESSION)
    articles = news.select(["symbol", "sentiment_score", "relevance_score"]).to_pandas()
    articles["session"] = own_sessions(news)
    articles["weighted"] = articles["sentiment_score"] * articles["relevance_score"]
    sums = articles.groupby(["symbol", "session"])[["weighted", "relevance_score"]].sum()
    sentiment = (sums["weighted"] / sums["relevance_score"]).rename("sentiment")
    frame = bars.to_pandas().sort_values(["symbol", "session"])
    previous = frame.groupby("symbol")["close"].shift(1)
    frame["same"] = (frame["close"] + frame["dividend"]) * frame["split_factor"] / previous - 1
    frame["next"] = frame.groupby("symbol")["same"].shift(-1)
    both = frame.set_index(["symbol", "session"]).join(sentiment, how="inner").dropna(subset=["same", "next"])
    assert len(both) > 7000
    # What INTC's real news show (2022-2024): +0.24 with the same session's return, 0.00 with the next's. The
    # standard error of a correlation over 8,000 session means is 0.011.
    assert both["sentiment"].corr(both["same"]) == pytest.approx(0.24, abs=0.03)
    assert abs(both["sentiment"].corr(both["next"])) < 0.03


def test_dropping_symbols_leaves_the_articles_of_the_others_unchanged(news: pa.Table) -> None:
    part = SampleSource(symbols=("AAPL", "IBM"), seed=SEED).news(FIRST_SESSION, LAST_SESSION)
    assert part.equals(news.filter(pc.is_in(news["symbol"], pa.array(["AAPL", "IBM"]))))


def test_the_start_of_one_symbol_does_not_move_the_news_that_another_leads(news: pa.Table) -> None:
    # Google lists on 2004-08-19. As if it had listed in 2005, IBM's own articles of 2004 stay as they are (Apple's do
    # not: it may no longer mention Google, so it mentions IBM or Microsoft more often).
    source = SampleSource(seed=SEED)
    bars = source.bars(FIRST_SESSION, LAST_SESSION)
    late = bars.filter(
        pc.or_(pc.not_equal(bars["symbol"], "GOOG"), pc.greater(bars["session"], day("2004-12-31")))
    )
    names = {row["symbol"]: row["name"] for row in source.securities().to_pylist()}
    peers = {row["symbol"]: tuple(row["peers"].split(",")) for row in source.securities().to_pylist()}
    first, last = day("2004-08-01"), day("2004-12-31")

    def led_by_ibm(articles: pa.Table) -> list[dict[str, object]]:
        return [r for r in articles.to_pylist() if r["symbol"] == "IBM" and r["relevance_score"] >= 0.5]

    without = simulate(late, names, peers, source.calendar, SEED, first, last)
    assert "GOOG" not in without["symbol"].to_pylist()
    assert "GOOG" in source.news(first, last)["symbol"].to_pylist()
    assert len(led_by_ibm(without)) > 50
    assert led_by_ibm(without) == led_by_ibm(source.news(first, last))
