"""The canary: news that move with their own session and know nothing of the next must not make anybody rich here.

Two feeds of that kind: the simulated one of the sample, and real daily sentiment of INTC (skipped where ../shared/data is absent). On
both, the network with sentiment is no better out of sample than without. And the mistake that this is about, tomorrow's news joined to
today, is made on purpose: the truncation proof catches it, and the tests say what it would have seemed to earn.
"""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from quant_assets.features.labels import LabelParameters, labels
from quant_assets.features.peers import peer_features, relations
from quant_assets.features.plots import sentiment_correlations
from quant_assets.features.sentiment import sentiment_features
from quant_assets.features.tables import (
    COMPETITOR_INPUTS,
    INDUSTRY_INPUTS,
    PEERS,
    SENTIMENT,
    SENTIMENT_INPUTS,
    TECHNICAL_INPUTS,
)
from quant_assets.features.technical import technical_features
from quant_assets.features.truncation import truncation_violations
from quant_assets.market import tables as market_tables
from quant_assets.market.validation import validate_bars, validate_news
from quant_assets.models.assets import SUSPICIOUS_AUC_GAIN
from quant_assets.models.dataset import make_dataset, make_windows
from quant_assets.models.evaluation import auc, session_resamples
from quant_assets.models.mlp import MlpParameters, train
from quant_resources.calendar import TradingCalendar
from quant_resources.sources.files import FilesSource
from quant_resources.sources.sample import FIRST_SESSION, LAST_SESSION, SampleSource

SHARED_FILES = Path(__file__).resolve().parents[2] / "shared" / "data" / "files"
SEEDS = (1, 2, 3)
PEER_INPUTS = (*COMPETITOR_INPUTS, *INDUSTRY_INPUTS)
# A label that is decided on the very next session: what tomorrow's news would tell is worth most there.
NEXT_SESSION = LabelParameters(horizon_sessions=1, profit_target_pct=1.0, stop_loss_pct=1.0)
NIGHTS = [dt.date(2002, 7, 16), dt.date(2006, 1, 30), dt.date(2011, 12, 21)]

Features = Callable[[pa.Table, pa.Table], pa.Table]  # (news, bars)


def dated_a_session_early(news: pa.Table, calendar: TradingCalendar) -> pa.Table:
    """The shifted join: every article counts for the session before its own."""
    moved = [calendar.shift(day, -1) for day in news["session"].to_pylist()]
    index = news.schema.get_field_index("session")
    return news.set_column(index, news.schema.field(index), pa.array(moved, pa.date32()))


@pytest.fixture(scope="module")
def own(calendar: TradingCalendar) -> Features:
    return lambda news, bars: sentiment_features(
        news, bars, calendar, FIRST_SESSION, LAST_SESSION, "simulated"
    )


@pytest.fixture(scope="module")
def related() -> pa.Table:
    """The sample's competitors and industries."""
    master = SampleSource().securities()
    lists = [
        {
            "symbol": row["symbol"],
            "as_of": LAST_SESSION,
            "available_at": dt.datetime.combine(LAST_SESSION, dt.time(), dt.UTC),
            "finder": "table",
            "peers": row["peers"],
            "rejected": "",
        }
        for row in master.to_pylist()
    ]
    return relations(pa.Table.from_pylist(lists, schema=market_tables.PEERS.arrow_schema), master)


@pytest.fixture(scope="module")
def of_peers(related: pa.Table, calendar: TradingCalendar) -> Features:
    return lambda news, bars: peer_features(
        news, bars, related, calendar, FIRST_SESSION, LAST_SESSION, "simulated"
    )


# --------------------------------------------------------------------------------------------------- what it earns


@dataclass(frozen=True)
class Trial:
    """Out-of-sample rows, and the mean probability of networks that differ in their seed alone."""

    key: list[tuple[str, dt.date]]
    session: np.ndarray
    y: np.ndarray
    probability: np.ndarray


def trial(features: Sequence[pa.Table], inputs: Sequence[str], outcomes: pa.Table) -> Trial:
    """Train as `models/mlp_*` does, on the first 40 % of the sessions, purged and embargoed."""
    dataset = make_dataset(features, outcomes, inputs)
    windows = make_windows(sorted(set(dataset.session.astype(object))))
    parts = {name: dataset.take(mask) for name, mask in dataset.masks(windows).items()}
    known, checked, unseen = parts["train"], parts["validation"], parts["out_of_sample"]
    rows = (known.x, known.y, known.symbol), (checked.x, checked.y, checked.symbol)
    each = [train(inputs, *rows, MlpParameters(seed=seed)).predict(unseen.x, unseen.symbol) for seed in SEEDS]
    return Trial(
        list(zip(unseen.symbol.tolist(), unseen.session.astype(object), strict=True)),
        unseen.session,
        unseen.y,
        np.mean(each, axis=0),
    )


def gains(one: Trial, other: Trial) -> list[tuple[float, float, float]]:
    """AUC of `one` less that of `other`, with its 95 % interval over whole blocks of sessions; long, short."""
    assert one.key == other.key
    weights = session_resamples(one.session, seed=7, resamples=200)
    found = []
    for side in (0, 1):
        y, a, b = one.y[:, side], one.probability[:, side], other.probability[:, side]
        draws = [auc(y, a, w) - auc(y, b, w) for w in weights]
        low, high = np.nanquantile(draws, [0.025, 0.975])
        found.append((auc(y, a) - auc(y, b), float(low), float(high)))
    return found


def test_sentiment_earns_nothing_on_the_simulated_feed(
    sample_technical: pa.Table,
    sample_sentiment: pa.Table,
    sample_labels: pa.Table,
    sample_bars: pa.Table,
    sample_news: pa.Table,
    of_peers: Features,
) -> None:
    found = sentiment_correlations(sample_sentiment, sample_technical)
    assert found["same_session"] > 0.2
    assert abs(found["next_session"]) < 2 / np.sqrt(found["pairs"])
    peers = of_peers(sample_news, sample_bars)
    technical = trial([sample_technical], TECHNICAL_INPUTS, sample_labels)
    rungs = {
        "own sentiment": trial(
            [sample_technical, sample_sentiment], (*TECHNICAL_INPUTS, *SENTIMENT_INPUTS), sample_labels
        )
    }
    # The peers' table begins with the symbol's sixteenth bar, as the sentiment's does, so the rows are the same.
    rungs["and the peers'"] = trial(
        [sample_technical, sample_sentiment, peers],
        (*TECHNICAL_INPUTS, *SENTIMENT_INPUTS, *PEER_INPUTS),
        sample_labels,
    )
    for name, rung in rungs.items():
        for value, low, _ in gains(rung, technical):
            assert low < SUSPICIOUS_AUC_GAIN, name
            assert abs(value) < SUSPICIOUS_AUC_GAIN, name


@pytest.mark.skipif(not SHARED_FILES.is_dir(), reason="the real files are not part of the project")
def test_sentiment_earns_nothing_on_real_news() -> None:
    """INTC, 2022-2024. The file dates its sentiment by the day alone, so the pipeline knows it after that session's close."""
    first, last = dt.date(2022, 3, 3), dt.date(2024, 12, 31)
    calendar = TradingCalendar(first, last)
    source = FilesSource(SHARED_FILES, ("INTC",), first, last)
    bars = validate_bars(source.bars(first, last), calendar).rows
    closes = [calendar.close(day) for day in bars["session"].to_pylist()]
    bars = bars.append_column("available_at", pa.array(closes, pa.timestamp("us", "UTC")))
    news = validate_news(source.news(first, last), calendar).rows
    news = news.append_column("source", pa.array(["files"] * news.num_rows))
    technical = technical_features(bars, calendar, first, last)

    def sentiment(news: pa.Table) -> pa.Table:
        return sentiment_features(news, bars, calendar, first, last, "files")

    honest = sentiment(news)
    dated = sentiment_correlations(sentiment(dated_a_session_early(news, calendar)), technical)
    assert dated["same_session"] == pytest.approx(0.24, abs=0.03)
    assert abs(dated["next_session"]) < 2 / np.sqrt(dated["pairs"])
    known = sentiment_correlations(honest, technical)
    for when in ("same_session", "next_session"):
        assert abs(known[when]) < 2 / np.sqrt(known["pairs"])

    outcomes = labels(bars, calendar, first, last)
    without = trial([technical], TECHNICAL_INPUTS, outcomes)
    with_it = trial([technical, honest], (*TECHNICAL_INPUTS, *SENTIMENT_INPUTS), outcomes)
    for value, low, high in gains(with_it, without):
        # 400 rows of one symbol: nothing beyond doubt, and no more to be told apart than this.
        assert low < SUSPICIOUS_AUC_GAIN
        assert low < 0 < high
        assert abs(value) < 0.1


# ----------------------------------------------------------------------------------------------- the shifted join


def test_tomorrows_news_today_are_caught_by_truncation(
    sample_bars: pa.Table, sample_news: pa.Table, related: pa.Table, calendar: TradingCalendar
) -> None:
    inputs = {"bars": sample_bars, "news": sample_news}
    whole = FIRST_SESSION, LAST_SESSION

    def own(inputs: Mapping[str, pa.Table], first: dt.date, last: dt.date) -> pa.Table:
        rows = sentiment_features(inputs["news"], inputs["bars"], calendar, first, last, "simulated")
        return SENTIMENT.conform(rows)

    def of_peers(inputs: Mapping[str, pa.Table], first: dt.date, last: dt.date) -> pa.Table:
        rows = peer_features(inputs["news"], inputs["bars"], related, calendar, first, last, "simulated")
        return PEERS.conform(rows)

    for honest, inputs_of in ((own, SENTIMENT_INPUTS), (of_peers, PEER_INPUTS)):

        def shifted(
            inputs: Mapping[str, pa.Table], first: dt.date, last: dt.date, honest: Callable = honest
        ) -> pa.Table:
            return honest({**inputs, "news": dated_a_session_early(inputs["news"], calendar)}, first, last)

        assert truncation_violations(honest, inputs, honest(inputs, *whole), NIGHTS, calendar) == []
        found = truncation_violations(shifted, inputs, shifted(inputs, *whole), NIGHTS, calendar)
        assert {row["session"] for row in found} == {str(night) for night in NIGHTS}
        assert {row["column"] for row in found} >= set(inputs_of)


def test_tomorrows_news_today_would_have_seemed_to_know_the_next_session(
    sample_bars: pa.Table, sample_news: pa.Table, own: Features, calendar: TradingCalendar
) -> None:
    """Sentiment alone, for a label of one session: AUC 0.50 as it is, 0.56 with the shifted join."""
    outcomes = labels(sample_bars, calendar, FIRST_SESSION, LAST_SESSION, NEXT_SESSION)
    honest, leaking = (
        trial([own(news, sample_bars)], SENTIMENT_INPUTS, outcomes)
        for news in (sample_news, dated_a_session_early(sample_news, calendar))
    )
    for side in (0, 1):
        assert auc(honest.y[:, side], honest.probability[:, side]) == pytest.approx(0.5, abs=0.02)
        assert auc(leaking.y[:, side], leaking.probability[:, side]) > 0.54
    for _, low, _ in gains(leaking, honest):
        assert low > SUSPICIOUS_AUC_GAIN


def test_tomorrows_news_of_the_peers_would_have_told_less(
    sample_bars: pa.Table, sample_news: pa.Table, of_peers: Features, calendar: TradingCalendar
) -> None:
    """What is written of competitors loads on their returns, and on the symbol's own only as far as these move together: for a label of
    one session the bare score has an AUC of 0.54 (long; 0.46 short) with the shifted join, the own news' 0.57 (0.44). For the usual label of
    five sessions the network with such peers gained 0.01 (long) and 0.04 (short), with lower ends of -0.02 and 0.02 when this was written: the limit on
    the gain would not have found that leak. The truncation proof does.
    """
    outcomes = labels(sample_bars, calendar, FIRST_SESSION, LAST_SESSION, NEXT_SESSION)
    found = []
    for news in (sample_news, dated_a_session_early(sample_news, calendar)):
        dataset = make_dataset([of_peers(news, sample_bars)], outcomes, ["competitor_sentiment_sma_1"])
        found.append([auc(dataset.y[:, side], dataset.x[:, 0]) for side in (0, 1)])
    (long, short), (leaking_long, leaking_short) = found
    assert long == pytest.approx(0.5, abs=0.015)
    assert short == pytest.approx(0.5, abs=0.015)
    assert leaking_long > long + 0.03
    assert leaking_short < short - 0.03
