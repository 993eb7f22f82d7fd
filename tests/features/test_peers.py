"""Sentiment of competitors and industry: who counts when, the mean by hand, and the same bits whatever else is there."""

import datetime as dt
import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_assets.definitions import build_defs
from quant_assets.features.checks import competitors_known_then
from quant_assets.features.peers import ALWAYS, LOOKBACK_SESSIONS, RELATIONS, peer_features, relations
from quant_assets.features.plots import peers_correlations
from quant_assets.features.tables import COMPETITOR_INPUTS, INDUSTRY_INPUTS, PEERS, SENTIMENT_PERIODS
from quant_assets.features.truncation import truncation_violations
from quant_assets.launch import QUIET, RANGE_TAGS
from quant_assets.market import tables as market_tables
from quant_resources.calendar import TradingCalendar
from quant_resources.iceberg import Warehouse
from quant_resources.sources.sample import FIRST_SESSION, LAST_SESSION, SampleSource

INPUTS = (*COMPETITOR_INPUTS, *INDUSTRY_INPUTS)


def answers(*rows: tuple[str, str, str], finder: str = "table", at: dt.time | None = None) -> pa.Table:
    """(symbol, as_of, peers) as `market.peers`; known at midnight unless `at` says when."""
    made = [
        {
            "symbol": symbol,
            "as_of": dt.date.fromisoformat(as_of),
            "available_at": dt.datetime.combine(dt.date.fromisoformat(as_of), at or dt.time(), dt.UTC),
            "finder": finder,
            "peers": peers,
            "rejected": "",
        }
        for symbol, as_of, peers in rows
    ]
    return pa.Table.from_pylist(made, schema=market_tables.PEERS.arrow_schema)


def securities(*rows: tuple[str, str | None, str | None]) -> pa.Table:
    """(symbol, sector, industry) as `market.securities`."""
    made = [
        {"symbol": symbol, "name": "", "sector": sector, "industry": industry, "peers": "", "source": "x"}
        for symbol, sector, industry in rows
    ]
    return pa.Table.from_pylist(made, schema=market_tables.SECURITIES.arrow_schema)


def bars_of(calendar: TradingCalendar, sessions: Mapping[str, list[dt.date]]) -> pa.Table:
    """The columns of bars that are read: who traded when."""
    rows = [
        {"symbol": symbol, "session": day, "available_at": calendar.close(day)}
        for symbol, days in sessions.items()
        for day in days
    ]
    schema = pa.schema(
        [("symbol", pa.string()), ("session", pa.date32()), ("available_at", pa.timestamp("us", "UTC"))]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def articles(*rows: tuple[str, str, dt.date, float, float]) -> pa.Table:
    """(article_id, symbol, session, sentiment_score, relevance_score) as `market.news`."""
    names = ("article_id", "symbol", "session", "sentiment_score", "relevance_score")
    made = [
        {
            **dict(zip(names, row, strict=True)),
            "available_at": dt.datetime.combine(row[2], dt.time(15), dt.UTC),
            "source": "simulated",
        }
        for row in rows
    ]
    return pa.Table.from_pylist(made, schema=market_tables.NEWS.arrow_schema)


def bits(table: pa.Table) -> dict[str, bytes | list[object]]:
    """Every column down to the bits: -0.0 is not 0.0 here."""
    return {
        name: table[name].to_numpy().tobytes()
        if pa.types.is_floating(table.schema.field(name).type)
        else table[name].to_pylist()
        for name in table.column_names
    }


def between(table: pa.Table, first: dt.date, last: dt.date) -> pa.Table:
    day = table["session"]
    return table.filter(pc.and_(pc.greater_equal(day, pa.scalar(first)), pc.less_equal(day, pa.scalar(last))))


@pytest.fixture(scope="module")
def days(calendar: TradingCalendar) -> list[dt.date]:
    """Sixty consecutive sessions from 2012-01-03 on."""
    return calendar.sessions(dt.date(2012, 1, 3), LAST_SESSION)[:60]


def build(
    news: pa.Table, bars: pa.Table, related: pa.Table, calendar: TradingCalendar
) -> list[dict[str, object]]:
    return peer_features(news, bars, related, calendar, FIRST_SESSION, LAST_SESSION, "vendor").to_pylist()


# --------------------------------------------------------------------------------------------------------- relations


def of_kind(related: pa.Table, kind: str) -> set[tuple[object, ...]]:
    return {
        (row["symbol"], row["peer"], row["as_of"] and str(row["as_of"]), row["valid_from"])
        for row in related.to_pylist()
        if row["kind"] == kind
    }


def test_the_first_list_holds_from_the_beginning_and_each_until_the_next() -> None:
    lists = answers(("AAA", "2012-03-01", "BBB,CCC"), ("AAA", "2012-02-01", "BBB"), ("AAA", "2012-04-02", ""))
    related = relations(lists, securities())
    assert related.schema == RELATIONS
    assert of_kind(related, "competitor") == {
        ("AAA", "BBB", "2012-02-01", ALWAYS),
        ("AAA", "BBB", "2012-03-01", dt.date(2012, 3, 1)),
        ("AAA", "CCC", "2012-03-01", dt.date(2012, 3, 1)),
        # A list that names nobody ends the one before it.
        ("AAA", None, "2012-04-02", dt.date(2012, 4, 2)),
    }


def test_a_list_that_was_made_in_the_course_of_a_day_counts_from_the_next() -> None:
    lists = pa.concat_tables(
        [answers(("AAA", "2012-02-01", "BBB")), answers(("AAA", "2012-03-01", "CCC"), at=dt.time(22, 15))]
    )
    assert of_kind(relations(lists, securities()), "competitor") == {
        ("AAA", "BBB", "2012-02-01", ALWAYS),
        ("AAA", "CCC", "2012-03-01", dt.date(2012, 3, 2)),
    }


def test_only_the_chosen_finder_has_a_say_and_nobody_competes_with_himself() -> None:
    lists = pa.concat_tables(
        [
            answers(("AAA", "2012-02-01", "BBB, AAA")),
            answers(("AAA", "2012-03-01", "CCC"), finder="bedrock"),
        ]
    )
    assert of_kind(relations(lists, securities(), "table"), "competitor") == {
        ("AAA", "BBB", "2012-02-01", ALWAYS)
    }
    assert of_kind(relations(lists, securities(), "bedrock"), "competitor") == {
        ("AAA", "CCC", "2012-03-01", ALWAYS)
    }


def test_industry_falls_back_to_the_sector_and_empty_text_matches_nobody() -> None:
    master = securities(
        ("AAA", "Tech", "Software"),
        ("BBB", "TECH ", " software"),
        ("CCC", "Tech", "Chips"),  # alone in its industry
        ("DDD", "tech", ""),
        ("EEE", "", "Farming"),  # alone, and of no sector
        ("FFF", None, None),
        ("GGG", "", ""),
    )
    found = {(row[0], row[1]) for row in of_kind(relations(answers(), master), "industry")}
    assert found == {
        ("AAA", "BBB"),
        ("BBB", "AAA"),
        *(("CCC", other) for other in ("AAA", "BBB", "DDD")),
        *(("DDD", other) for other in ("AAA", "BBB", "CCC")),
    }


def test_share_classes_of_one_company_are_neither_competitors_nor_neighbours() -> None:
    names = {
        "GOOG": "Alphabet Inc. Class C",
        "GOOGL": "Alphabet Inc. Class A",
        "BRK.A": "Berkshire Hathaway",
        "BRK.B": " BERKSHIRE hathaway",
        "META": "Meta Platforms",
        "XXX": "",
        "YYY": "",
    }
    industries = {"BRK.A": "Insurance", "BRK.B": "Insurance"}
    master = pa.Table.from_pylist(
        [
            {
                "symbol": s,
                "name": name,
                "sector": "All",
                "industry": industries.get(s, "Media"),
                "peers": "",
                "source": "x",
            }
            for s, name in names.items()
        ],
        schema=market_tables.SECURITIES.arrow_schema,
    )
    lists = answers(
        ("GOOG", "2012-02-01", "META,GOOGL"), ("BRK.B", "2012-02-01", "BRK.A"), ("XXX", "2012-02-01", "YYY")
    )
    related = relations(lists, master)
    competitors = {(row[0], row[1]) for row in of_kind(related, "competitor")}
    # A list that names nobody else is a list all the same.
    assert competitors == {("GOOG", "META"), ("BRK.B", None), ("XXX", "YYY")}
    neighbours: dict[object, set[object]] = {}
    for row in of_kind(related, "industry"):
        neighbours.setdefault(row[0], set()).add(row[1])
    assert neighbours["GOOG"] == neighbours["GOOGL"] == {"META", "XXX", "YYY"}
    assert neighbours["META"] == {"GOOG", "GOOGL", "XXX", "YYY"}
    # Alone in its industry but for itself: the sector counts.
    assert neighbours["BRK.A"] == neighbours["BRK.B"] == {"GOOG", "GOOGL", "META", "XXX", "YYY"}


# ----------------------------------------------------------------------------------------------------------- by hand


def test_a_session_is_the_mean_of_all_mentions_of_the_peers(
    days: list[dt.date], calendar: TradingCalendar
) -> None:
    day = days[15]
    news = articles(
        ("a", "BBB", day, 0.5, 0.8),
        ("a", "CCC", day, -0.4, 0.3),  # the same article counts for both
        ("b", "ZZZ", day, 1.0, 0.4),  # a competitor that is only read about
        ("c", "AAA", day, -1.0, 1.0),  # its own news are not its peers'
        ("d", "DDD", day, 0.25, 0.5),
        ("e", "DDD", day, 0.9, 0.0),
    )
    related = relations(
        answers(("AAA", "2011-12-01", "BBB,CCC,ZZZ")), securities(("AAA", "", "X"), ("DDD", "", "X"))
    )
    (row,) = build(news, bars_of(calendar, {"AAA": days[:16]}), related, calendar)
    expected = (0.5 * 0.8 - 0.4 * 0.3 + 1.0 * 0.4) / 1.5
    assert row["competitor_sentiment_sma_1"] == pytest.approx(expected, rel=1e-15)
    assert row["competitor_sentiment_sma_16"] == pytest.approx(expected / 16, rel=1e-15)
    assert row["industry_sentiment_sma_1"] == 0.25
    assert (row["competitor_article_count"], row["industry_article_count"]) == (3, 2)
    assert row["available_at"] == calendar.close(day)
    assert row["peers_as_of"] == dt.date(2011, 12, 1)
    assert row["source"] == "simulated"


def test_without_relations_or_news_it_is_zero_and_the_count_says_why(
    days: list[dt.date], calendar: TradingCalendar
) -> None:
    bars = bars_of(calendar, {"AAA": days[:20]})
    nothing = (articles(), RELATIONS.empty_table())
    news = articles(("a", "BBB", days[19], 0.5, 1.0))
    for rows in (build(nothing[0], bars, nothing[1], calendar), build(news, bars, nothing[1], calendar)):
        assert len(rows) == 5
        for row in rows:
            assert {row[name] for name in INPUTS} == {0.0}
            assert (row["competitor_article_count"], row["industry_article_count"]) == (0, 0)
            assert (row["peers_as_of"], row["source"]) == (None, "vendor")


def test_a_new_list_changes_who_counts_and_nothing_that_was_said_before(
    days: list[dt.date], calendar: TradingCalendar
) -> None:
    news = articles(
        *((f"b{i}", "BBB", day, 0.5, 1.0) for i, day in enumerate(days[:40])),
        *((f"c{i}", "CCC", day, -0.5, 1.0) for i, day in enumerate(days[:40])),
    )
    bars = bars_of(calendar, {"AAA": days[:40]})
    change = days[30]
    one = answers(("AAA", str(days[20]), "BBB"))
    two = pa.concat_tables([one, answers(("AAA", str(change), "CCC"))])
    before, after = (build(news, bars, relations(lists, securities()), calendar) for lists in (one, two))
    assert {row["competitor_sentiment_sma_1"] for row in before} == {0.5}
    for old, new in zip(before, after, strict=True):
        if new["session"] < change:
            assert new == old
            assert new["peers_as_of"] == days[20]  # with hindsight before that day, and it says so
        else:
            since = days.index(new["session"]) - days.index(change) + 1
            assert new["peers_as_of"] == change
            for k in SENTIMENT_PERIODS:
                # A window over the change holds what counted on each of its sessions.
                expected = (0.5 * max(k - since, 0) - 0.5 * min(k, since)) / k
                assert new[f"competitor_sentiment_sma_{k}"] == pytest.approx(expected, abs=1e-15)


def test_mentions_that_are_not_about_the_peer_count_but_weigh_nothing(
    days: list[dt.date], calendar: TradingCalendar
) -> None:
    news = articles(("a", "BBB", days[15], 0.9, 0.0))
    related = relations(answers(("AAA", "2011-12-01", "BBB")), securities(("AAA", "", "X"), ("BBB", "", "X")))
    (row,) = build(news, bars_of(calendar, {"AAA": days[:16]}), related, calendar)
    assert {row[name] for name in INPUTS} == {0.0}
    assert (row["competitor_article_count"], row["industry_article_count"]) == (1, 1)


def test_relations_said_twice_or_of_oneself_change_nothing(
    days: list[dt.date], calendar: TradingCalendar
) -> None:
    news = articles(
        ("a", "BBB", days[15], 0.5, 0.8), ("b", "CCC", days[15], -0.5, 0.1), ("c", "AAA", days[15], 1, 1)
    )
    bars = bars_of(calendar, {"AAA": days[:16]})
    related = relations(answers(("AAA", "2011-12-01", "BBB,CCC")), securities())
    itself = related.slice(0, 1).to_pylist()[0] | {"peer": "AAA"}
    more = pa.concat_tables([related, related.slice(0, 1), pa.Table.from_pylist([itself], schema=RELATIONS)])
    assert build(news, bars, more, calendar) == build(news, bars, related, calendar)


@pytest.mark.parametrize(("missing", "expected"), [(15, 1), (16, 0)])
def test_a_symbol_with_gaps_has_a_row_while_its_16_bars_fit_31_sessions(
    days: list[dt.date], calendar: TradingCalendar, missing: int, expected: int
) -> None:
    kept = [*days[:8], *days[8 + missing : 16 + missing]]
    rows = build(articles(), bars_of(calendar, {"AAA": kept}), RELATIONS.empty_table(), calendar)
    assert [row["session"] for row in rows] == [kept[-1]] * expected


# ------------------------------------------------------------------------------------------- against a slow one

SYMBOLS = ("AAA", "BBB", "CCC", "DDD")
ONLY_READ = ("YYY", "ZZZ")


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, object]:
    """A few symbols with gaps and late starts, news of some and of none, industries with nulls, lists that change."""
    count = draw(st.integers(16, 45))
    traded = {}
    for symbol in draw(st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=4, unique=True)):
        start = draw(st.integers(0, count - 1))
        gaps = draw(st.sets(st.integers(0, count - 1), max_size=6))
        traded[symbol] = [i for i in range(start, count) if i not in gaps]
    score, relevance = st.floats(-1, 1), st.just(0.0) | st.floats(1e-6, 1)
    news = draw(
        st.lists(
            st.tuples(st.sampled_from(SYMBOLS + ONLY_READ), st.integers(0, count - 1), score, relevance),
            max_size=40,
        )
    )
    text = st.sampled_from(["tech", "Tech", "oil", "", None])
    named = st.lists(st.sampled_from(SYMBOLS + ONLY_READ), max_size=4, unique=True).map(",".join)
    lists = draw(
        st.lists(
            st.tuples(st.sampled_from(SYMBOLS), st.integers(0, count - 1), named, st.booleans()),
            max_size=8,
            unique_by=lambda row: row[:2],
        )
    )
    return {
        "count": count,
        "traded": traded,
        "news": news,
        "master": [(symbol, draw(text), draw(text)) for symbol in SYMBOLS],
        "lists": lists,
        "seed": draw(st.integers(0, 99)),
    }


def slow(world: dict, days: list[dt.date]) -> pd.DataFrame:
    """The definition, one session at a time."""
    news = pd.DataFrame(world["news"], columns=["symbol", "day", "score", "relevance"])
    master = {
        s: ((sector or "").lower(), (industry or "").lower()) for s, sector, industry in world["master"]
    }

    def neighbours(symbol: str) -> set[str]:
        for column in (1, 0):
            text = master[symbol][column]
            if found := {o for o, texts in master.items() if text and texts[column] == text and o != symbol}:
                return found
        return set()

    def in_force(symbol: str, day: int) -> tuple[set[str], dt.date | None]:
        # Known from the session itself when it was made before it, from the next day on when made in its course.
        lists = sorted((i, named, late) for s, i, named, late in world["lists"] if s == symbol)
        holding = [one for one in lists if days[day] >= days[one[0]] + dt.timedelta(days=one[2])]
        if not lists:
            return set(), None
        i, named, _ = (holding or lists[:1])[-1]
        return set(named.split(",")) - {"", symbol}, days[i]

    rows = []
    for symbol, traded in world["traded"].items():
        values: dict[str, list[float]] = {"competitor": [], "industry": []}
        for position, day in enumerate(traded):
            row: dict[str, object] = {"symbol": symbol, "session": days[day]}
            competitors, row["peers_as_of"] = in_force(symbol, day)
            heard = 0
            for kind, group in (("competitor", competitors), ("industry", neighbours(symbol))):
                said = news[(news["day"] == day) & news["symbol"].isin(group)]
                weight = said["relevance"].sum()
                values[kind].append((said["score"] * said["relevance"]).sum() / weight if weight > 0 else 0.0)
                row[f"{kind}_article_count"] = len(said)
                heard += len(said)
                for k in SENTIMENT_PERIODS:
                    row[f"{kind}_sentiment_sma_{k}"] = float(np.mean(values[kind][-k:]))
            row["source"] = "simulated" if heard else "vendor"
            if position >= 15 and day - traded[position - 15] <= LOOKBACK_SESSIONS:
                rows.append(row)
    return pd.DataFrame(rows)


def tables_of(world: dict, days: list[dt.date], calendar: TradingCalendar) -> tuple[pa.Table, ...]:
    news = articles(*((f"{i:02}", s, days[d], score, r) for i, (s, d, score, r) in enumerate(world["news"])))
    bars = bars_of(calendar, {s: [days[d] for d in traded] for s, traded in world["traded"].items()})
    lists = [
        answers((s, str(days[d]), named), at=dt.time(20) if late else None)
        for s, d, named, late in world["lists"]
    ]
    related = relations(pa.concat_tables([answers(), *lists]), securities(*world["master"]))
    return news, bars, related


@settings(max_examples=40, deadline=None)
@given(world=worlds())
def test_it_is_what_the_definition_says(world: dict, days: list[dt.date], calendar: TradingCalendar) -> None:
    news, bars, related = tables_of(world, days, calendar)
    first, last = days[0], days[world["count"] - 1]
    found = PEERS.conform(peer_features(news, bars, related, calendar, first, last, "vendor"))
    expected = slow(world, days)
    assert found.num_rows == len(expected)
    if not found.num_rows:
        return
    expected = expected.sort_values(["symbol", "session"])
    for name in (
        "symbol",
        "session",
        "peers_as_of",
        "competitor_article_count",
        "industry_article_count",
        "source",
    ):
        assert found[name].to_pylist() == [None if v is pd.NaT else v for v in expected[name]], name
    for name in INPUTS:
        np.testing.assert_allclose(found[name].to_numpy(), expected[name].to_numpy(), rtol=0, atol=1e-12)

    # One night, in which the table holds no more than its look-back, gives the bits of the whole history; so does any order of the rows.
    rng = np.random.default_rng(world["seed"])
    night = found["session"][int(rng.integers(found.num_rows))].as_py()
    since = calendar.shift(night, -LOOKBACK_SESSIONS)
    shuffled = (table.take(pa.array(rng.permutation(table.num_rows))) for table in (news, bars, related))
    news, bars, related = shuffled
    one = peer_features(
        between(news, since, night), between(bars, since, night), related, calendar, night, night, "vendor"
    )
    assert bits(PEERS.conform(one)) == bits(between(found, night, night))


# -------------------------------------------------------------------------------------------------- the whole sample


@pytest.fixture(scope="module")
def sample_relations() -> pa.Table:
    """Lists and industries of the sample, as `market/peers` stores them."""
    master = SampleSource().securities()
    lists = [(row["symbol"], str(LAST_SESSION), row["peers"]) for row in master.to_pylist()]
    return relations(answers(*lists), master)


@pytest.fixture(scope="module")
def sample_peers(
    sample_bars: pa.Table, sample_news: pa.Table, sample_relations: pa.Table, calendar: TradingCalendar
) -> pa.Table:
    rows = peer_features(
        sample_news, sample_bars, sample_relations, calendar, FIRST_SESSION, LAST_SESSION, "simulated"
    )
    return PEERS.conform(rows)


def test_peers_move_with_the_session_and_say_nothing_about_the_next(
    sample_peers: pa.Table, sample_technical: pa.Table
) -> None:
    assert all(np.abs(sample_peers[name].to_numpy()).max() <= 1 for name in INPUTS)
    found = {
        (row["kind"], row["session"]): (row["correlation"], row["pairs"])
        for row in peers_correlations(sample_peers, sample_technical)
    }
    for kind in ("competitor", "industry"):
        same, pairs = found[kind, "same"]
        # Shares of one trade move together, and the competitors' news with the competitors' shares.
        assert same > 0.08
        following, _ = found[kind, "next"]
        assert abs(following) < 3 / math.sqrt(pairs)


SESSIONS = [dt.date(2000, 3, 30), dt.date(2004, 9, 13), dt.date(2008, 10, 10), dt.date(2012, 6, 18)]


def test_peer_features_need_nothing_from_later(
    sample_bars: pa.Table,
    sample_news: pa.Table,
    sample_relations: pa.Table,
    sample_peers: pa.Table,
    calendar: TradingCalendar,
) -> None:
    def honest(inputs: Mapping[str, pa.Table], first: dt.date, last: dt.date) -> pa.Table:
        return peer_features(
            inputs["news"], inputs["bars"], sample_relations, calendar, first, last, "simulated"
        )

    inputs = {"bars": sample_bars, "news": sample_news}
    assert truncation_violations(honest, inputs, sample_peers, SESSIONS, calendar) == []


def _earlier(news: pa.Table, calendar: TradingCalendar) -> pa.Table:
    """Every article dated one session too early."""
    moved = [calendar.shift(day, -1) for day in news["session"].to_pylist()]
    index = news.schema.get_field_index("session")
    return news.set_column(index, news.schema.field(index), pa.array(moved, pa.date32()))


@pytest.mark.parametrize("leak", ["the whole feed", "one competitor", "how much is heard"])
def test_peers_that_peek_are_caught(
    sample_bars: pa.Table,
    sample_news: pa.Table,
    sample_relations: pa.Table,
    calendar: TradingCalendar,
    leak: str,
) -> None:
    first, last = dt.date(2008, 1, 2), dt.date(2008, 12, 31)

    def peeking(inputs: Mapping[str, pa.Table], first: dt.date, last: dt.date) -> pa.Table:
        news = inputs["news"]
        early = _earlier(news, calendar)
        if leak == "one competitor":
            mine = pc.equal(news["symbol"], "GOOG")
            news = pa.concat_tables([news.filter(pc.invert(mine)), early.filter(mine)])
        elif leak == "the whole feed":
            news = early
        honest = peer_features(news, inputs["bars"], sample_relations, calendar, first, last, "simulated")
        if leak == "how much is heard":
            late = peer_features(early, inputs["bars"], sample_relations, calendar, first, last, "simulated")
            name = "competitor_article_count"
            return honest.set_column(honest.schema.get_field_index(name), name, late[name])
        return honest

    inputs = {"bars": between(sample_bars, first, last), "news": between(sample_news, first, last)}
    whole = PEERS.conform(peeking(inputs, first, last))
    sessions = [dt.date(2008, 3, 3), dt.date(2008, 10, 10)]
    found = truncation_violations(peeking, inputs, whole, sessions, calendar)
    assert {row["session"] for row in found} == {str(day) for day in sessions}
    columns = {str(row["column"]) for row in found}
    assert "competitor_article_count" in columns
    assert ("competitor_sentiment_sma_1" in columns) == (leak != "how much is heard")


# --------------------------------------------------------------------------------------------------------- the asset


class OtherIndustries(SampleSource):
    """The sample after somebody put every company into a sector of its own."""

    def securities(self) -> pa.Table:
        rows = super().securities().to_pylist()
        return pa.Table.from_pylist([{**row, "industry": "", "sector": row["symbol"]} for row in rows])


@pytest.mark.parametrize(("of_others", "warns"), [(True, True), (False, False)])
def test_rows_without_a_list_are_told_when_another_finder_has_one(
    tmp_path: Path, of_others: bool, warns: bool
) -> None:
    warehouse = Warehouse(tmp_path)
    day = dt.date(2012, 2, 1)
    symbol = "AAA" if of_others else "BBB"
    warehouse.write(market_tables.PEERS, answers((symbol, "2012-01-02", "CCC"), finder="bedrock"))
    row = {
        name: 0.0 if pa.types.is_floating(field.type) else 0
        for name, field in zip(PEERS.arrow_schema.names, PEERS.arrow_schema, strict=True)
    }
    at = dt.datetime(2012, 2, 1, 21, tzinfo=dt.UTC)
    row |= {"symbol": "AAA", "session": day, "available_at": at, "peers_as_of": None, "source": "x"}
    warehouse.write(PEERS, pa.Table.from_pylist([row], schema=PEERS.arrow_schema))
    key = dg.AssetCheckKey(dg.AssetKey(["features", "peers"]), "competitors_known_then")
    defs = dg.Definitions(
        assets=[dg.AssetSpec(key.asset_key)],
        asset_checks=[competitors_known_then],
        resources={"warehouse": warehouse},
        jobs=[dg.define_asset_job("look", selection=dg.AssetSelection.checks(key))],
    )
    result = defs.resolve_job_def("look").execute_in_process(run_config=QUIET)
    (found,) = result.get_asset_check_evaluations()
    assert found.passed != warns
    assert found.severity == dg.AssetCheckSeverity.WARN
    assert ("1 of 1 row(s) have no list" in str(found.description)) == warns
    assert ("(AAA; of bedrock)" in str(found.description)) == warns


def test_asset_checks_and_automation(tmp_path: Path) -> None:
    """One story: five months of sessions, proved; a session that is brought in again; industries that change."""
    warehouse = Warehouse(tmp_path)
    names = ("bars", "news", "securities", "peers")
    market = [dg.AssetKey(["market", name]) for name in names]
    features = dg.AssetKey(["features", "peers"])
    symbols = ("AAPL", "MSFT")
    defs = build_defs({"source": SampleSource(symbols, seed=1), "warehouse": warehouse})
    other = build_defs({"source": OtherIndustries(symbols, seed=1), "warehouse": warehouse})

    def run(defs: dg.Definitions, keys: list[dg.AssetKey], **options: object) -> dg.ExecuteInProcessResult:
        job = dg.define_asset_job("some", selection=dg.AssetSelection.assets(*keys))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = dg.Definitions.merge(defs, dg.Definitions(jobs=[job]))
        result = whole.resolve_job_def("some").execute_in_process(
            instance=instance,
            run_config=QUIET,
            **options,  # type: ignore[arg-type]
        )
        assert result.success
        return result

    def checked(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
        return {e.check_name: e for e in result.get_asset_check_evaluations() if e.asset_key == features}

    with dg.DagsterInstance.ephemeral() as instance:
        tags = dict(zip(RANGE_TAGS, ("2011-11-01", "2012-03-30"), strict=True))
        found = checked(run(defs, [*market, features], tags=tags))
        assert found["no_look_ahead"].passed
        assert found["stored_table"].passed
        hindsight = found["competitors_known_then"]
        assert not hindsight.passed
        assert hindsight.severity == dg.AssetCheckSeverity.WARN
        assert hindsight.metadata["share of rows whose list is younger"].value == 1.0
        assert "have no list" not in str(hindsight.description)
        rows = warehouse.read(PEERS)
        assert rows.num_rows == 2 * (104 - 15)
        assert set(rows["source"].to_pylist()) == {"simulated"}
        quiet = dg.evaluate_automation_conditions(defs, instance)
        assert quiet.get_requested_partitions(features) == set()

        # A session that comes in again concerns the windows that hold it. The lists are written again too, and have not changed.
        run(defs, market, partition_key="2012-02-01")
        again = dg.evaluate_automation_conditions(defs, instance, cursor=quiet.cursor)
        requested = again.get_requested_partitions(features)
        assert {"2012-02-01", "2012-02-02", "2012-03-15"} <= requested
        assert "2012-01-31" not in requested

        # Other industries concern every session that is stored.
        run(other, [dg.AssetKey(["market", "securities"])])
        changed = dg.evaluate_automation_conditions(other, instance, cursor=again.cursor)
        assert {"2012-01-03", "2012-03-30"} <= changed.get_requested_partitions(features)

        # Until they are computed, a check without a run of its own warns of stale rows, and does not call them a leak.
        stale = dg.define_asset_job(
            "checks", selection=dg.AssetSelection.checks(dg.AssetCheckKey(features, "no_look_ahead"))
        )
        alone = dg.Definitions.merge(other, dg.Definitions(jobs=[stale])).resolve_job_def("checks")
        result = alone.execute_in_process(instance=instance, run_config=QUIET)
        warned = checked(result)["no_look_ahead"]
        assert not warned.passed
        assert warned.severity == dg.AssetCheckSeverity.WARN
        assert "Today's build does not look ahead" in str(warned.description)
        assert checked(run(other, [features], tags=tags))["no_look_ahead"].passed
