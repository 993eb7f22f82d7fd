"""Fixtures that every test may use. Settings are fixed before any project module is imported."""

import os
import tempfile

# The definitions read the settings when they are imported: the tests run on the sample, in a home of their own.
for name in [name for name in os.environ if name.startswith("QUANT_")]:
    del os.environ[name]
os.environ["QUANT_HOME"] = tempfile.mkdtemp(prefix="quant-home-")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from quant_assets.features import tables as feature_tables
from quant_assets.features.labels import labels as build_labels
from quant_assets.features.sentiment import sentiment_features
from quant_assets.features.technical import technical_features
from quant_assets.market import tables as market_tables
from quant_assets.market.validation import validate_bars, validate_news
from quant_resources.calendar import TradingCalendar
from quant_resources.iceberg import Warehouse
from quant_resources.sources.sample import FIRST_SESSION, LAST_SESSION, SampleSource

SHARED_FILES = Path(__file__).resolve().parents[2] / "shared" / "data" / "files"


@pytest.fixture(scope="session")
def calendar() -> TradingCalendar:
    """Sessions of the sample."""
    return TradingCalendar(FIRST_SESSION, LAST_SESSION)


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    """An empty Iceberg warehouse on disk."""
    return Warehouse(tmp_path / "home")


@pytest.fixture(scope="session")
def sample_bars(calendar: TradingCalendar) -> pa.Table:
    """All bars of the sample, as `market.bars` stores them."""
    rows = validate_bars(SampleSource().bars(FIRST_SESSION, LAST_SESSION), calendar).rows
    closes = [calendar.close(day) for day in rows["session"].to_pylist()]
    rows = rows.append_column("available_at", pa.array(closes, pa.timestamp("us", "UTC")))
    rows = rows.append_column("source", pa.array(["sample"] * rows.num_rows))
    return market_tables.BARS.conform(rows.drop_columns(["origin"]))


@pytest.fixture(scope="session")
def sample_news(calendar: TradingCalendar) -> pa.Table:
    """All simulated articles, as `market.news` stores them."""
    rows = validate_news(SampleSource(seed=20000301).news(FIRST_SESSION, LAST_SESSION), calendar).rows
    rows = rows.append_column("source", pa.array(["simulated"] * rows.num_rows))
    return market_tables.NEWS.conform(rows.select([c.name for c in market_tables.NEWS.columns]))


@pytest.fixture(scope="session")
def sample_technical(sample_bars: pa.Table, calendar: TradingCalendar) -> pa.Table:
    """Technical features of the whole sample."""
    return feature_tables.TECHNICAL.conform(
        technical_features(sample_bars, calendar, FIRST_SESSION, LAST_SESSION)
    )


@pytest.fixture(scope="session")
def sample_sentiment(sample_bars: pa.Table, sample_news: pa.Table, calendar: TradingCalendar) -> pa.Table:
    """Sentiment features of the whole sample."""
    rows = sentiment_features(sample_news, sample_bars, calendar, FIRST_SESSION, LAST_SESSION, "simulated")
    return feature_tables.SENTIMENT.conform(rows)


@pytest.fixture(scope="session")
def sample_labels(sample_bars: pa.Table, calendar: TradingCalendar) -> pa.Table:
    """Labels of the whole sample under the default rule."""
    return feature_tables.LABELS.conform(build_labels(sample_bars, calendar, FIRST_SESSION, LAST_SESSION))


@pytest.fixture(scope="session")
def bar() -> Callable[..., dict[str, object]]:
    """A function that makes one bar as a source hands it over: `bar("2012-01-03", close=99.0)`.

    A quiet day at 100 dollars unless said otherwise; collect several with
    `pa.Table.from_pylist(rows, schema=quant_resources.sources.BARS)`.
    """

    def make(session: str, symbol: str = "TEST", **values: object) -> dict[str, object]:
        return {
            "symbol": symbol,
            "session": dt.date.fromisoformat(session),
            "open": 100.0,
            "high": 101.0,
            "low": 99.0,
            "close": 100.0,
            "volume": 1e6,
            "dividend": 0.0,
            "split_factor": 1.0,
            "origin": f"test:{session}",
            **values,
        }

    return make
