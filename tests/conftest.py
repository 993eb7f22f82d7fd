"""Fixtures that every test may use. Settings are fixed before any project module is imported."""

import os
import tempfile

# The definitions read the settings when they are imported: the tests run on the sample, in a home of their own.
for name in [name for name in os.environ if name.startswith("QUANT_")]:
    del os.environ[name]
os.environ["QUANT_HOME"] = tempfile.mkdtemp(prefix="quant-home-")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    import dagster as dg

    from quant_resources.iceberg import TableSpec

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


# Groups of tests that take longest, in that order.
LONGEST = (
    "chain",
    "test_drift_demo.py",
    "test_heston.py",
    "test_calibration.py",
    "test_first_hour.py",
    "test_live_source.py",
    "test_sac.py",
    "test_iceberg.py",
    "test_own_data.py",
    "test_local_endpoint.py",
    "test_sagemaker_endpoint.py",
    "test_alpha_vantage.py",
    "test_optimum.py",
    "test_paths.py",
    "test_app_process.py",
    "test_peers.py",
    "test_ui.py",
)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two workers share the suite by file; everything that needs the filled home stays in one, so that it is filled once."""

    def group(item: pytest.Item) -> str:
        return "chain" if "chain" in getattr(item, "fixturenames", ()) else item.path.name

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    # The longest first: a long group that begins last leaves one of two workers idle.
    items.sort(key=lambda item: LONGEST.index(group(item)) if group(item) in LONGEST else len(LONGEST))


class Chain:
    """A filled home: definitions, instance, where things are, and what it was filled with."""

    first, last = dt.date(2010, 1, 4), dt.date(2012, 3, 30)
    nights = (dt.date(2012, 4, 2), dt.date(2012, 4, 3))
    symbols = ("AAPL", "IBM", "MSFT")
    # 40 % of 26 months are too few returns for a posterior
    posterior = {"posterior__heston": {"in_sample_fraction": 0.7, "draws": 500, "max_r_hat": 1.02}}  # noqa: RUF012
    posterior_symbol = "IBM"
    days = {"simulation__intraday_paths": {"draws": 200}}  # noqa: RUF012
    # Seconds of training: what the agents are worth is tested elsewhere, here they go through everything.
    _short = {"hidden_units": [16, 16], "batch_size": 64, "evaluations": 3}  # noqa: RUF012
    portfolio = {  # noqa: RUF012
        "models__sac_portfolio": {"seeds": 2, "parameters": {**_short, "steps": 4032, "updates_per_step": 1}}
    }
    agents = {  # noqa: RUF012
        "models__sac_execution": {"seeds": 1, "parameters": {**_short, "steps": 2600, "episodes": 4}},
        "models__sac_market_maker": {
            "seeds": 1,
            "parameters": {**_short, "steps": 3900, "episodes": 4, "updates_per_step": 1},
        },
    }
    calibration = {"posterior__heston_calibration": {"datasets": {"250": 24}}}  # noqa: RUF012

    def __init__(self, instance: "dg.DagsterInstance") -> None:
        from quant_assets.definitions import build_defs
        from quant_assets.partitions import settings
        from quant_resources.registry import ModelRegistry

        self.home = settings().home
        self.instance = instance
        self.defs = build_defs({"source": SampleSource(symbols=self.symbols, seed=settings().seed)})
        self.warehouse = Warehouse(self.home)
        self.registry = ModelRegistry(self.home)

    @staticmethod
    def range_tags(first: dt.date, last: dt.date) -> dict[str, str]:
        """Run tags for a range of sessions."""
        from quant_assets.launch import RANGE_TAGS

        return dict(zip(RANGE_TAGS, (first.isoformat(), last.isoformat()), strict=True))

    def night(self, session: dt.date) -> "dg.ExecuteInProcessResult":
        """The run that the schedule requests for a session."""
        return self.run("daily_signals_job", partition_key=session.isoformat())

    def run(
        self,
        job: str,
        ops: dict[str, dict[str, object]] | None = None,
        only: Iterable[str] = (),
        **options: object,
    ) -> "dg.ExecuteInProcessResult":
        """A job in this process; `ops` holds the config of assets by op name, `only` the assets to run."""
        import dagster as dg

        from quant_assets.launch import QUIET

        config = {**QUIET, "ops": {name: {"config": values} for name, values in (ops or {}).items()}}
        definition = self.defs.resolve_job_def(job)
        if only:
            keys = {dg.AssetKey(name.split("/")) for name in only}
            definition = definition.get_subset(asset_selection=keys)
        result = definition.execute_in_process(
            instance=self.instance,
            raise_on_error=False,
            run_config=config,
            **options,  # type: ignore[arg-type]
        )
        for event in result.all_events:  # the log is quiet: whoever expected success wants to know why
            if event.is_step_failure:
                print(event.event_specific_data.error.to_string())  # type: ignore[union-attr]
        return result

    def read(self, spec: "TableSpec") -> pa.Table:
        """All rows of a table."""
        return self.warehouse.read(spec)


@pytest.fixture(scope="session")
def chain() -> Iterator[Chain]:
    """The main job on 26 months of three symbols, a portfolio agent, two nights, a posterior with days simulated from it and
    agents trained on them, a small calibration, and every backtest with a small sweep: real runs."""
    from quant_assets.launch import open_instance, run_job
    from quant_assets.partitions import settings

    with open_instance(settings()) as instance:
        made = Chain(instance)
        assert run_job(made.defs, instance, "chain_job", Chain.range_tags(Chain.first, Chain.last))
        assert made.run("train_agents_job", Chain.portfolio, ["models/sac_portfolio"]).success
        for session in Chain.nights:
            assert made.night(session).success
        ops = {**Chain.posterior, **Chain.days}
        assert made.run("posterior_job", ops, partition_key=Chain.posterior_symbol).success
        others = ["models/sac_execution", "models/sac_market_maker"]
        others += [f"backtests/{name}" for name in ("execution", "market_making", "portfolio")]
        assert made.run("train_agents_job", Chain.agents, others).success
        assert made.run("calibration_job", Chain.calibration).success
        sweep = {"method": "random", "trials": 12, "seed": 7, "min_trades": 1}
        assert made.run("backtest_job", {"backtests__parameter_sweep": sweep}).success
        yield made
