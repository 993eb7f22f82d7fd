"""A signal bundle says what the trained network says, of rows bit for bit, of bars by the features that it was trained on."""

import datetime as dt
import json
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_assets.features import peers, tables
from quant_assets.features.peers import ALWAYS, peer_features
from quant_assets.models import mlp
from quant_assets.models.feature_sets import FEATURE_SETS
from quant_assets.models.inference import inputs_of, model_rows
from quant_assets.serving import signal_answer
from quant_assets.serving.bundle import Bundle, BundleError, pack, signal_description, unpack
from quant_assets.serving.refusals import InvalidAnswer, RequestRefused
from quant_assets.serving.signal_answer import (
    Article,
    Bar,
    FeatureRow,
    SignalAnswer,
    SignalAnswerer,
    SignalRequest,
)
from quant_assets.serving.signals import SIDES
from quant_assets.strategies.mlp_long_short import choose_side
from quant_resources.calendar import TradingCalendar
from tests.serving import bundles

NOW = dt.datetime(2013, 3, 2, tzinfo=dt.UTC)
LAST = dt.date(2013, 3, 1)
SYMBOLS = ("AAPL", "IBM", "MSFT")
THRESHOLDS = (0.45, 0.4)
MODELS = ("mlp_technical", "mlp_sentiment", "mlp_enhanced")
# MSFT has no list of competitors; ORCL has news and no bars; FB is nobody's.
RELATIONS = [
    {"symbol": "AAPL", "peer": "MSFT", "kind": "competitor"},
    {"symbol": "AAPL", "peer": "GOOG", "kind": "competitor"},
    {"symbol": "AAPL", "peer": "IBM", "kind": "industry"},
    {"symbol": "IBM", "peer": "ORCL", "kind": "competitor"},
    {"symbol": "IBM", "peer": "AAPL", "kind": "industry"},
    {"symbol": "IBM", "peer": "GOOG", "kind": "industry"},
    {"symbol": "MSFT", "peer": "GOOG", "kind": "industry"},
]
PEERS = {relation["peer"] for relation in RELATIONS}


def bundle_of(
    name: str = "mlp_technical",
    network: bytes | None = None,
    symbols: tuple[str, ...] = ("*",),
    change: Callable[[dict[str, Any]], None] = lambda description: None,
) -> Bundle:
    onnx = bundles.linear_probability(len(FEATURE_SETS[name].inputs)) if network is None else network
    registered = bundles.registered_classifier(name, symbols)
    description = signal_description(name, 5, registered, THRESHOLDS, bundles.hours(), onnx)
    description = json.loads(json.dumps(description))
    change(description)
    return unpack(pack(onnx, description))


@pytest.fixture(scope="module")
def peer_news(sample_news: pa.Table) -> pa.Table:
    """The sample's articles, and some on a company that has no bars: what was said of FB in 2013 was of ORCL."""
    of_facebook = sample_news.filter(pc.equal(sample_news["symbol"], "FB")).to_pylist()
    rows = [{**row, "symbol": "ORCL", "article_id": f"o{row['article_id']}"} for row in of_facebook]
    return pa.concat_tables([sample_news, pa.Table.from_pylist(rows, schema=sample_news.schema)])


@pytest.fixture(scope="module")
def sample_peers(sample_bars: pa.Table, peer_news: pa.Table, calendar: TradingCalendar) -> pa.Table:
    """Features of the peers as they are stored."""
    rows = [
        {**r, "as_of": LAST if r["kind"] == "competitor" else None, "valid_from": ALWAYS} for r in RELATIONS
    ]
    related = pa.Table.from_pylist(rows, peers.RELATIONS)
    made = peer_features(peer_news, sample_bars, related, calendar, bundles.FIRST, LAST, "simulated")
    return tables.PEERS.conform(made)


@pytest.fixture(scope="module")
def stored(
    sample_technical: pa.Table, sample_sentiment: pa.Table, sample_peers: pa.Table
) -> dict[str, pa.Table]:
    """Feature tables as they are stored, of the years 2012 and 2013."""
    found = {
        tables.TECHNICAL.name: sample_technical,
        tables.SENTIMENT.name: sample_sentiment,
        tables.PEERS.name: sample_peers,
    }
    since = pa.scalar(bundles.FIRST)
    return {name: table.filter(pc.greater_equal(table["session"], since)) for name, table in found.items()}


@pytest.fixture(scope="module", params=MODELS)
def trained(
    request: pytest.FixtureRequest, stored: dict[str, pa.Table]
) -> tuple[SignalAnswerer, mlp.OnnxMlp, pa.Table]:
    """A small network that was trained on stored rows, one per symbol: served, asked directly, and all of its rows."""
    name = request.param
    rows = model_rows(bundles.registered_classifier(name), stored)
    rows = rows.filter(pc.is_in(rows["symbol"], pa.array(SYMBOLS)))
    x, symbol = inputs_of(bundles.registered_classifier(name), rows)
    y = np.random.default_rng(0).integers(0, 2, (len(x), 2)).astype(np.float32)
    part = (x[:600].astype(np.float32), y[:600], np.array(symbol[:600]))
    parameters = mlp.MlpParameters(max_epochs=3, per_symbol=True)
    network = mlp.train(FEATURE_SETS[name].inputs, part, part, parameters)
    onnx = network.to_onnx()
    answerer = SignalAnswerer(bundle_of(name, onnx, network.symbols))
    return answerer, mlp.OnnxMlp(onnx, network.symbols), rows


def as_request(rows: pa.Table, inputs: tuple[str, ...]) -> SignalRequest:
    """Through JSON, as a client sends it."""
    body = json.dumps(
        {
            "rows": [
                {
                    "symbol": row["symbol"],
                    "session": row["session"].isoformat(),
                    "features": {name: row[name] for name in inputs},
                }
                for row in rows.to_pylist()
            ]
        }
    )
    return msgspec.json.decode(body, type=SignalRequest)


def bars_of(bars: pa.Table, symbols: tuple[str, ...] = SYMBOLS, sessions: int = 60) -> list[dict[str, Any]]:
    """The newest bars, as a client sends them."""
    since = bundles.hours().sessions(bundles.FIRST, LAST)[-sessions]
    fields = ("symbol", "session", *signal_answer.BAR_BOUNDS)
    kept = bars.filter(
        pc.and_(
            pc.greater_equal(bars["session"], pa.scalar(since)), pc.is_in(bars["symbol"], pa.array(symbols))
        )
    )
    return [{**row, "session": row["session"].isoformat()} for row in kept.select(list(fields)).to_pylist()]


def news_of(news: pa.Table, sessions: int = 60, symbols: Collection[str] = SYMBOLS) -> list[dict[str, Any]]:
    since = bundles.hours().sessions(bundles.FIRST, LAST)[-sessions]
    fields = ["article_id", "symbol", "session", "sentiment_score", "relevance_score"]
    kept = news.filter(
        pc.and_(
            pc.greater_equal(news["session"], pa.scalar(since)),
            pc.is_in(news["symbol"], pa.array(sorted(symbols))),
        )
    )
    return [{**row, "session": row["session"].isoformat()} for row in kept.select(fields).to_pylist()]


def beside_bars(answerer: SignalAnswerer, news: pa.Table) -> dict[str, Any]:
    """What a model needs beside bars."""
    if answerer.reads_peers:
        return {"news": news_of(news, symbols={*SYMBOLS, *PEERS}), "relations": RELATIONS}
    return {"news": news_of(news)} if answerer.reads_news else {}


def request_of(**content: Any) -> SignalRequest:
    return msgspec.json.decode(json.dumps(content), type=SignalRequest)


def probabilities(answer: SignalAnswer) -> np.ndarray:
    return np.array([[one.probability_long, one.probability_short] for one in answer.predictions], np.float32)


# -- against the trained network ---------------------------------------------------------------------------------------


def test_rows_get_what_the_network_says_bit_for_bit(
    trained: tuple[SignalAnswerer, mlp.OnnxMlp, pa.Table],
) -> None:
    answerer, network, rows = trained
    x, symbols = inputs_of({"inputs": answerer.inputs}, rows)
    wanted = network.predict(x, symbols)
    answer = answerer.answer(as_request(rows, answerer.inputs), NOW)
    assert np.array_equal(probabilities(answer), wanted)
    assert [(one.symbol, one.session) for one in answer.predictions] == list(
        zip(symbols, rows["session"].to_pylist(), strict=True)
    )
    assert [one.side for one in answer.predictions] == [
        SIDES[side] for side in choose_side(wanted, THRESHOLDS).tolist()
    ]
    assert answer.session == LAST


def test_bars_get_what_the_stored_features_get_bit_for_bit(
    trained: tuple[SignalAnswerer, mlp.OnnxMlp, pa.Table], sample_bars: pa.Table, peer_news: pa.Table
) -> None:
    answerer, network, rows = trained
    today = rows.filter(pc.equal(rows["session"], pa.scalar(LAST)))
    x, symbols = inputs_of({"inputs": answerer.inputs}, today)
    content = beside_bars(answerer, peer_news)
    bars = bars_of(sample_bars)
    answer = answerer.answer(request_of(bars=bars, **content), NOW)
    assert [one.symbol for one in answer.predictions] == symbols == list(SYMBOLS)
    assert {one.session for one in answer.predictions} == {answer.session} == {LAST}
    assert np.array_equal(probabilities(answer), network.predict(x, symbols))
    # The order in which they come means nothing.
    backwards = {name: items[::-1] for name, items in content.items()}
    assert answerer.answer(request_of(bars=bars[::-1], **backwards), NOW) == answer


def test_news_matter_where_they_are_read(
    trained: tuple[SignalAnswerer, mlp.OnnxMlp, pa.Table], sample_bars: pa.Table, sample_news: pa.Table
) -> None:
    answerer, _, _ = trained
    bars, news = bars_of(sample_bars), news_of(sample_news)
    more = {"relations": []} if answerer.reads_peers else {}
    if not answerer.reads_news:
        with pytest.raises(RequestRefused, match="news: mlp_technical reads none"):
            answerer.answer(request_of(bars=bars, news=news), NOW)
        return
    told = [answerer.answer(request_of(bars=bars, news=some, **more), NOW) for some in (news, [])]
    assert not np.array_equal(*map(probabilities, told))
    with pytest.raises(RequestRefused, match=r"news: is missing: mlp_[a-z]+ reads sentiment"):
        answerer.answer(request_of(bars=bars, **more), NOW)


def test_relations_matter_where_they_are_read(
    trained: tuple[SignalAnswerer, mlp.OnnxMlp, pa.Table], sample_bars: pa.Table, peer_news: pa.Table
) -> None:
    answerer, _, _ = trained
    bars, content = bars_of(sample_bars), beside_bars(answerer, peer_news)
    if not answerer.reads_peers:
        refusal = refusal_of(answerer, request_of(bars=bars, **content, relations=[]))
        assert (refusal.field, "reads none" in refusal.reason) == ("relations", True)
        return
    told = answerer.answer(request_of(bars=bars, **content), NOW)
    for kind in ("competitor", "industry"):
        fewer = [relation for relation in RELATIONS if relation["kind"] != kind]
        kept = {*SYMBOLS, *(relation["peer"] for relation in fewer)}
        news = [article for article in content["news"] if article["symbol"] in kept]
        other = answerer.answer(request_of(bars=bars, news=news, relations=fewer), NOW)
        changed = (probabilities(other) != probabilities(told)).any(axis=1).tolist()
        assert changed == [any(r["kind"] == kind and r["symbol"] == s for r in RELATIONS) for s in SYMBOLS]
    refusal = refusal_of(answerer, request_of(bars=bars, news=content["news"]))
    assert refusal.field == "relations"
    assert "is missing: mlp_enhanced reads the news of competitors and industry" in refusal.reason


def test_splits_and_dividends_are_adjusted_for() -> None:
    """Twice the shares at half the price is the same company."""
    bars = bundles.bars_request()["bars"]
    answerer = SignalAnswerer(bundle_of())
    before = answerer.answer(request_of(bars=bars), NOW)
    ex = sorted({bar["session"] for bar in bars})[-7]
    split = [
        {
            **bar,
            **{name: bar[name] / 2 for name in ("open", "high", "low", "close")},
            "split_factor": 2.0 if bar["session"] == ex else 1.0,
        }
        if bar["session"] >= ex
        else bar
        for bar in bars
    ]
    after = answerer.answer(request_of(bars=split), NOW)
    assert probabilities(after) == pytest.approx(probabilities(before), abs=1e-6)
    unrecorded = [{**bar, "split_factor": 1.0} for bar in split]
    other = answerer.answer(request_of(bars=unrecorded), NOW)
    assert np.abs(probabilities(other) - probabilities(before)).max() > 1e-3


def test_one_network_for_all_symbols_takes_any() -> None:
    answerer = SignalAnswerer(bundle_of())
    request = bundles.signal_request()
    request["rows"][0]["symbol"] = "ZZZZ"  # type: ignore[index]
    assert answerer.answer(request_of(**request), NOW).predictions[0].symbol == "ZZZZ"


def test_an_answer_says_who_gave_it_and_survives_json() -> None:
    bundle = bundle_of()
    answer = SignalAnswerer(bundle).answer(request_of(**bundles.signal_request()), NOW)
    assert f"{answer.model}:{answer.model_version}:{answer.bundle}" == bundle.served_by
    assert msgspec.json.decode(msgspec.json.encode(answer), type=SignalAnswer) == answer


def test_sides_are_called_as_in_the_live_signals() -> None:
    assert signal_answer.SIDES == SIDES
    named = (signal_answer.TECHNICAL_TABLE, signal_answer.SENTIMENT_TABLE, signal_answer.PEERS_TABLE)
    assert named == (tables.TECHNICAL.name, tables.SENTIMENT.name, tables.PEERS.name)


# -- refusals ----------------------------------------------------------------------------------------------------------

ROWS = bundles.signal_request()["rows"]
BARS = bundles.bars_request()["bars"]
KNOWING = SignalAnswerer(bundle_of(symbols=("AAPL", "IBM")))
READING = SignalAnswerer(bundle_of("mlp_sentiment"))
RELATED = SignalAnswerer(bundle_of("mlp_enhanced", symbols=("AAPL", "IBM")))
ARTICLE = {
    "article_id": "a1",
    "symbol": "AAPL",
    "session": "2013-02-28",
    "sentiment_score": 0.5,
    "relevance_score": 1.0,
}


def refusal_of(answerer: SignalAnswerer, request: SignalRequest) -> RequestRefused:
    with pytest.raises(RequestRefused) as refusal:
        answerer.answer(request, NOW)
    assert len(refusal.value.reason) < 1000
    return refusal.value


@pytest.mark.parametrize(
    ("content", "field", "reason"),
    [
        ({}, "rows", "neither of rows and bars came"),
        ({"rows": ROWS, "bars": BARS}, "rows", "both of rows and bars came"),
        ({"rows": []}, "rows", "has 0 entries: 1 to 5000"),
        ({"bars": []}, "bars", "has 0 entries: 1 to 20000"),
        ({"rows": ROWS * 2501}, "rows", "has 5002 entries"),
        ({"rows": ROWS, "news": []}, "news", "news goes with bars"),
        ({"rows": ROWS, "relations": []}, "relations", "relations go with bars"),
        ({"bars": BARS, "news": []}, "news", "mlp_technical reads none"),
        ({"bars": BARS, "relations": []}, "relations", "mlp_technical reads none"),
        ({"rows": [*ROWS, ROWS[1]]}, "rows[2]", "IBM on 2013-03-01 is there already, as rows[1]"),
        ({"bars": [*BARS, BARS[3]]}, "bars[80]", "is there already, as bars[3]"),
    ],
)
def test_a_request_that_is_none_is_refused(content: dict[str, Any], field: str, reason: str) -> None:
    refusal = refusal_of(KNOWING, request_of(**content))
    assert refusal.field == field
    assert reason in refusal.reason


@pytest.mark.parametrize(
    ("at", "change", "field", "reason"),
    [
        (1, {"symbol": "TSLA"}, "rows[1].symbol", "'TSLA' is unknown; mlp_technical knows AAPL, IBM"),
        (0, {"symbol": ""}, "rows[0].symbol", "has 0 characters"),
        (0, {"symbol": "A" * 10_000}, "rows[0].symbol", "has 10000 characters"),
        (1, {"session": dt.date(2013, 3, 2)}, "rows[1].session", "2013-03-02 is no session"),
        (1, {"session": dt.date(2013, 3, 29)}, "rows[1].session", "2013-03-29 is no session"),
        (0, {"session": dt.date(1999, 3, 1)}, "rows[0].session", "outside 2012-01-03..2027-12-31"),
    ],
)
def test_a_row_that_cannot_be_is_refused_by_its_path(
    at: int, change: dict[str, Any], field: str, reason: str
) -> None:
    request = request_of(rows=ROWS)
    assert request.rows is not None
    request.rows[at] = msgspec.structs.replace(request.rows[at], **change)
    refusal = refusal_of(KNOWING, request)
    assert refusal.field == field
    assert reason in refusal.reason


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e7, -1e300])
def test_a_feature_that_is_no_number_is_refused_by_its_path(value: float) -> None:
    request = request_of(rows=ROWS)
    assert request.rows is not None
    request.rows[1].features["roc_2_pct"] = value
    refusal = refusal_of(KNOWING, request)
    assert refusal.field == "rows[1].features.roc_2_pct"
    assert f"{value:g} is not possible" in refusal.reason


def test_features_are_those_that_the_model_reads() -> None:
    request = request_of(rows=ROWS)
    assert request.rows is not None
    del request.rows[1].features["roc_2_pct"]
    refusal = refusal_of(KNOWING, request)
    assert refusal.field == "rows[1].features.roc_2_pct"
    assert "is missing; mlp_technical reads 31 features, 1 are not there" in refusal.reason
    request.rows[1].features.update(roc_2_pct=1.0, tomorrows_return=0.1)
    refusal = refusal_of(KNOWING, request)
    assert refusal.field == "rows[1].features.tomorrows_return"
    assert "is unknown; mlp_technical reads scaled_close, " in refusal.reason


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"high": 50.0}, "bars[3].high", "50 is below open"),
        ({"low": 500.0}, "bars[3].low", "500 is above open"),
        ({"low": -1.0}, "bars[3].low", "-1 is not possible"),
        ({"open": 0.0}, "bars[3].open", "0 is not possible"),
        ({"close": float("nan")}, "bars[3].close", "nan is not possible"),
        ({"high": float("inf")}, "bars[3].high", "inf is not possible"),
        ({"volume": 0.0}, "bars[3].volume", "0 is not possible"),
        ({"dividend": -0.1}, "bars[3].dividend", "-0.1 is not possible"),
        ({"split_factor": 0.0}, "bars[3].split_factor", "0 is not possible"),
        ({"symbol": "TSLA"}, "bars[3].symbol", "'TSLA' is unknown"),
        ({"session": dt.date(2013, 2, 18)}, "bars[3].session", "2013-02-18 is no session"),
        # One symbol then has a newer bar than the other.
        ({"session": dt.date(2013, 3, 4)}, "bars", "IBM has no features on 2013-03-04: it needs a bar"),
    ],
)
def test_a_bar_that_cannot_be_is_refused_by_its_path(change: dict[str, Any], field: str, reason: str) -> None:
    request = request_of(bars=BARS)
    assert request.bars is not None
    request.bars[3] = msgspec.structs.replace(request.bars[3], **change)
    refusal = refusal_of(KNOWING, request)
    assert refusal.field == field
    assert reason in refusal.reason


def test_a_symbol_needs_21_bars_up_to_the_newest_session() -> None:
    sessions = sorted({bar["session"] for bar in BARS})
    enough = [bar for bar in BARS if bar["session"] in sessions[-21:]]
    assert len(KNOWING.answer(request_of(bars=enough), NOW).predictions) == 2
    few = [bar for bar in enough if bar["symbol"] == "IBM" or bar["session"] != sessions[-21]]
    stale = [bar for bar in BARS if bar["symbol"] == "AAPL" or bar["session"] != sessions[-1]]
    for bars, symbol in ((few, "AAPL"), (stale, "IBM")):
        refusal = refusal_of(KNOWING, request_of(bars=bars))
        assert refusal.field == "bars"
        assert (
            f"{symbol} has no features on 2013-03-01: it needs a bar of that session and 20" in refusal.reason
        )


def _answered_or_refused(request: SignalRequest) -> None:
    try:
        answer = KNOWING.answer(request, NOW)
    except RequestRefused as refusal:
        assert (refusal.field, "look at its prices" in refusal.reason) == ("bars", True)  # noqa: PT017
    else:
        assert np.isfinite(probabilities(answer)).all()


@pytest.mark.parametrize("close", signal_answer.BAR_BOUNDS["close"])
@pytest.mark.parametrize("dividend", signal_answer.BAR_BOUNDS["dividend"])
@pytest.mark.parametrize("split_factor", signal_answer.BAR_BOUNDS["split_factor"])
def test_events_at_the_bounds_of_what_is_possible_break_nothing(
    close: float, dividend: float, split_factor: float
) -> None:
    """The same event on every session: what earlier prices are divided by grows beyond any number, or shrinks to nothing."""
    request = request_of(bars=[bar for bar in BARS if bar["symbol"] == "AAPL"])
    assert request.bars is not None
    for bar in request.bars:
        bar.open = bar.high = bar.low = bar.close = close
        bar.dividend, bar.split_factor = dividend, split_factor
    _answered_or_refused(request)


def test_bars_at_the_bounds_of_what_is_possible_break_nothing() -> None:
    """Whatever passes the checks of single bars: no crash, no number that is none."""
    rng = np.random.default_rng(0)
    bounds = signal_answer.BAR_BOUNDS
    for _ in range(10):
        request = request_of(bars=[bar for bar in BARS if bar["symbol"] == "AAPL"])
        assert request.bars is not None
        for bar in request.bars:
            low, high = sorted(rng.choice(bounds["open"], 2).tolist())
            bar.low, bar.high, bar.open, bar.close = low, high, low, float(rng.choice([low, high]))
            for name in ("volume", "dividend", "split_factor"):
                setattr(bar, name, float(rng.choice(bounds[name])))
        _answered_or_refused(request)


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"symbol": "ORCL"}, "news[1].symbol", "'ORCL' has no bars"),
        ({"session": dt.date(2013, 3, 2)}, "news[1].session", "2013-03-02 is no session"),
        ({"session": dt.date(2013, 3, 4)}, "news[1].session", "comes after the newest bar, 2013-03-01"),
        ({"sentiment_score": 1.5}, "news[1].sentiment_score", "1.5 is not possible: -1 to 1"),
        ({"sentiment_score": float("nan")}, "news[1].sentiment_score", "nan is not possible"),
        ({"relevance_score": -0.1}, "news[1].relevance_score", "-0.1 is not possible: 0 to 1"),
        ({"article_id": "a1"}, "news[1]", "article a1 on AAPL is there already, as news[0]"),
    ],
)
def test_an_article_that_cannot_be_is_refused_by_its_path(
    change: dict[str, Any], field: str, reason: str
) -> None:
    request = request_of(bars=BARS, news=[ARTICLE, {**ARTICLE, "article_id": "a2"}])
    assert len(READING.answer(request, NOW).predictions) == 2
    assert request.news is not None
    request.news[1] = msgspec.structs.replace(request.news[1], **change)
    refusal = refusal_of(READING, request)
    assert refusal.field == field
    assert reason in refusal.reason


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"symbol": "ORCL"}, "relations[1].symbol", "'ORCL' has no bars: leave the relation out"),
        ({"symbol": ""}, "relations[1].symbol", "has 0 characters"),
        ({"peer": ""}, "relations[1].peer", "has 0 characters"),
        ({"peer": "P" * 33}, "relations[1].peer", "has 33 characters: 1 to 32"),
        ({"peer": "AAPL"}, "relations[1].peer", "'AAPL' is no peer of itself"),
        ({"peer": "MSFT"}, "relations[1]", "MSFT as competitor of AAPL is there already, as relations[0]"),
    ],
)
def test_a_relation_that_cannot_be_is_refused_by_its_path(
    change: dict[str, Any], field: str, reason: str
) -> None:
    request = request_of(bars=BARS, news=[ARTICLE], relations=RELATIONS[:2])
    assert len(RELATED.answer(request, NOW).predictions) == 2
    assert request.relations is not None
    request.relations[1] = msgspec.structs.replace(request.relations[1], **change)
    refusal = refusal_of(RELATED, request)
    assert refusal.field == field
    assert reason in refusal.reason


def test_news_of_a_peer_needs_neither_bars_nor_a_network_and_of_a_stranger_is_refused() -> None:
    """MSFT and GOOG are peers of AAPL; there is a network for AAPL and one for IBM."""
    news = [ARTICLE, {**ARTICLE, "symbol": "MSFT"}, {**ARTICLE, "symbol": "TSLA"}]
    answer = RELATED.answer(request_of(bars=BARS, news=news[:2], relations=RELATIONS[:2]), NOW)
    assert [one.symbol for one in answer.predictions] == ["AAPL", "IBM"]
    refusal = refusal_of(RELATED, request_of(bars=BARS, news=news, relations=RELATIONS[:2]))
    assert (refusal.field, refusal.reason) == (
        "news[2].symbol",
        "'TSLA' has no bars and is nobody's peer: leave the article out",
    )


def test_too_many_relations_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal_answer, "MOST_RELATIONS", 1)
    refusal = refusal_of(RELATED, request_of(bars=BARS, news=[], relations=RELATIONS[:2]))
    assert (refusal.field, refusal.reason) == ("relations", "2 relations are too many: at most 1")


def test_too_many_articles_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal_answer, "MOST_ARTICLES", 1)
    refusal = refusal_of(READING, request_of(bars=BARS, news=[ARTICLE, {**ARTICLE, "article_id": "a2"}]))
    assert (refusal.field, refusal.reason) == ("news", "2 articles are too many: at most 1")


NUMBERS = st.floats() | st.floats(-2, 2)
DATES = st.dates() | st.sampled_from([LAST, dt.date(2013, 2, 28)])
TICKERS = st.sampled_from(["AAPL", "IBM"]) | st.text(max_size=40)
FUZZED_ROWS = st.builds(
    FeatureRow,
    symbol=TICKERS,
    session=DATES,
    features=st.fixed_dictionaries(dict.fromkeys(FEATURE_SETS["mlp_technical"].inputs, NUMBERS))
    | st.dictionaries(st.text(), NUMBERS, max_size=3),
)
FUZZED_BARS = st.builds(
    Bar,
    symbol=TICKERS,
    session=DATES,
    **{name: NUMBERS | st.floats(1, 2) for name in signal_answer.BAR_BOUNDS},
)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.none() | st.lists(FUZZED_ROWS, max_size=3),
    bars=st.none() | st.lists(FUZZED_BARS, max_size=3),
    news=st.none() | st.just([]),
)
def test_any_request_is_answered_or_refused(
    rows: list[FeatureRow] | None, bars: list[Bar] | None, news: list[Article] | None
) -> None:
    try:
        answer = KNOWING.answer(SignalRequest(rows=rows, bars=bars, news=news), NOW)
    except RequestRefused as refusal:
        assert refusal.reason  # noqa: PT017
    else:
        assert len(answer.predictions) == len(rows or [])


@pytest.mark.parametrize(
    "body",
    [
        b'{"rows": [{"symbol": "AAPL", "session": "2013-03-01", "features": {"roc_2_pct": NaN}}]}',
        b'{"rows": [{"symbol": "AAPL", "session": "2013-03-01", "features": {"roc_2_pct": null}}]}',
        b'{"rows": [{"symbol": "AAPL", "session": "2013-03-01", "features": {"roc_2_pct": "1"}}]}',
        b'{"rows": [{"symbol": "AAPL", "session": "1st of March", "features": {}}]}',
        b'{"rows": [{"symbol": "AAPL", "session": "2013-03-01", "features": {}, "label": 1}]}',
        b'{"bars": [{"symbol": "AAPL", "session": "2013-03-01"}]}',
        b'{"bars": [], "relations": [{"symbol": "AAPL", "peer": "MSFT", "kind": "friend"}]}',
        b'{"bars": [], "relations": [{"symbol": "AAPL", "kind": "industry"}]}',
    ],
)
def test_what_is_of_another_type_does_not_become_a_request(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(body, type=SignalRequest)


# -- networks that fail, bundles that cannot be served -----------------------------------------------------------------


def test_probabilities_that_are_none_are_an_invalid_answer() -> None:
    answerer = SignalAnswerer(bundle_of(network=bundles.wrong_probability(31)))
    with pytest.raises(InvalidAnswer, match="not all probabilities"):
        answerer.answer(request_of(**bundles.signal_request(first_feature=1.0)), NOW)
    assert answerer.answer(request_of(**bundles.signal_request(first_feature=-1.0)), NOW).predictions


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_probabilities_that_are_no_numbers_are_an_invalid_answer(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer = SignalAnswerer(bundle_of())
    monkeypatch.setattr(answerer._network, "predict", lambda x, symbol: np.full((len(x), 2), value))
    with pytest.raises(InvalidAnswer, match=r"shape \(2, 2\) that are not all probabilities"):
        answerer.answer(request_of(rows=ROWS), NOW)


def test_a_network_that_fails_while_it_runs_is_an_invalid_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answerer = SignalAnswerer(bundle_of())

    def fail(x: np.ndarray, symbol: list[str]) -> np.ndarray:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(answerer._network, "predict", fail)
    with pytest.raises(InvalidAnswer, match="the network fails: no memory left"):
        answerer.answer(request_of(rows=ROWS), NOW)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["hashes"].update(feature_code="0" * 16), "trained on features 0000000000000000"),
        (lambda d: d["inputs"].reverse(), "trained on features"),
        (lambda d: d.update(model="mlp_oracle"), "no features are known of mlp_oracle"),
        (lambda d: d.update(model="mlp_sentiment"), "trained on features"),
        (lambda d: d["thresholds"].update(long=1.5), "no probabilities"),
        (lambda d: d.pop("thresholds"), "thresholds"),
        (lambda d: d["hashes"].pop("feature_code"), "feature_code"),
        (lambda d: d["hours"].update(first="never"), "hours cannot be read"),
        (lambda d: d.update(kind="execution"), "is of kind execution, signal is asked for"),
    ],
)
def test_a_description_that_does_not_fit_refuses_to_load(
    change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    with pytest.raises(BundleError, match=reason):
        SignalAnswerer(bundle_of(change=change))


def test_features_of_other_code_refuse_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle stays as it is, the code that computes features becomes another one."""
    bundle = bundle_of()
    SignalAnswerer(bundle)
    features = FEATURE_SETS["mlp_technical"]
    other = type(features)(features.tables, features.inputs, (features.definitions[0] + " ",))
    monkeypatch.setitem(FEATURE_SETS, "mlp_technical", other)
    with pytest.raises(BundleError, match=f"the code computes {other.schema_hash}"):
        SignalAnswerer(bundle)


@pytest.mark.parametrize(
    "network",
    [b"", b"no network", bundles.linear_probability(30), bundles.constant_pace()],
    ids=["empty", "text", "other inputs", "an agent"],
)
def test_a_network_that_is_none_refuses_to_load(network: bytes) -> None:
    with pytest.raises(BundleError, match="mlp_technical:5"):
        SignalAnswerer(bundle_of(network=network))


# -- what a process needs ----------------------------------------------------------------------------------------------

HEAVY = ("torch", "jax", "dagster", "pandas", "mlflow", "pyiceberg", "gymnasium", "exchange_calendars")
PROCESS = """
import datetime as dt, json, sys
from pathlib import Path
import msgspec
from quant_assets.serving.bundle import read_bundle
from quant_assets.serving.signal_answer import SignalAnswerer, SignalRequest
answerer = SignalAnswerer(read_bundle(Path(sys.argv[1])))
request = msgspec.json.decode(sys.stdin.read(), type=SignalRequest)
answer = answerer.answer(request, dt.datetime.now(dt.UTC))
heavy = sorted(name for name in json.loads(sys.argv[2]) if name in sys.modules)
print(msgspec.json.encode([answer, heavy]).decode())
"""


def test_an_endpoint_loads_nothing_heavy_to_make_features_of_bars(tmp_path: Path) -> None:
    path = bundles.signal_bundle(tmp_path, name="mlp_enhanced")
    body = json.dumps({"bars": BARS, "news": [ARTICLE], "relations": RELATIONS[:2]})
    ran = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", PROCESS, str(path), json.dumps(HEAVY)],
        input=body,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    answer, heavy = json.loads(ran.stdout)
    assert [one["symbol"] for one in answer["predictions"]] == ["AAPL", "IBM"]
    assert heavy == []
