"""Assets of the layer `serving`: what the champions say about a session.

Belongs here: the Dagster face. Does not belong here: the decision rule (`signals.py`).
"""

import datetime as dt
from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg
import pyarrow as pa

from quant_assets.features import tables as feature_tables
from quant_assets.models.feature_sets import FEATURE_TABLES, NEWS_TABLES
from quant_assets.models.inference import inputs_of, model_rows, require_same_features
from quant_assets.partitions import CALENDAR, SESSIONS, run_sessions, settings
from quant_assets.presentation import data_version, figure_markdown, markdown_table, show
from quant_assets.serving import tables
from quant_assets.serving.asking import ask_signals, endpoint_name
from quant_assets.serving.signals import (
    follow,
    make_portfolio_signals,
    make_signals,
    remove_stale_files,
    write_signal_files,
)
from quant_assets.strategies.mlp_long_short import (
    MlpEnhancedLongShort,
    MlpLongShort,
    MlpSentimentLongShort,
)
from quant_resources.endpoints import EndpointError, Endpoints
from quant_resources.iceberg import Warehouse
from quant_resources.io_manager import table_metadata
from quant_resources.registry import ModelRegistry, ModelVersion, RegistryError

if TYPE_CHECKING:
    import numpy as np

    from quant_assets.models.mlp import OnnxMlp

GROUP = "serving"
OWNERS = ["team:trading"]
# The strategies that are traded live: the same rule that is backtested.
STRATEGIES = (MlpLongShort, MlpSentimentLongShort, MlpEnhancedLongShort)
PORTFOLIO = "sac_portfolio"  # registered model and strategy
WEIGHTS_CHECK = "portfolio_weights"
CHAMPIONS_CHECK = "every_strategy_has_a_champion"
# A run over more sessions than this fills in the past: the registered champion is asked, and no endpoint is loaded with history.
LIVE_SESSIONS = 31


class LiveSignalConfig(dg.Config):
    """Decision rule of the live signals; see `MlpLongShort`.

    The bracket (target and stop) is the one that the champion's labels were made with. Weights of the portfolio become whole
    shares of `portfolio_equity_dollars`.
    """

    long_threshold: float | None = None
    short_threshold: float | None = None
    size_shares: float = 100.0
    portfolio_equity_dollars: float = 100_000.0


@dg.asset(
    key=["serving", "live_signals"],
    metadata=table_metadata(tables.LIVE_SIGNALS),
    group_name=GROUP,
    description="What each strategy would do at the next open, one row per strategy and symbol: probabilities or portfolio weight, "
    "side, target (shares), bracket (percent), model version, snapshots. Known at the session's close. Also as CSV, "
    "one file per strategy and session. The classifiers' deployed endpoints are asked; where one is down, the registered champion is, and "
    "the row says so (served_by). Sessions that the champion was trained on have none, and before an agent is trained "
    "the portfolio has none. Where the portfolio fails, the classifiers' rows are written all the same and the check "
    "portfolio_weights says why.",
    partitions_def=SESSIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    ins={
        "technical": dg.AssetIn(["features", "technical"]),
        "sentiment": dg.AssetIn(["features", "sentiment"]),
        "peers": dg.AssetIn(["features", "peers"]),
    },
    deps=[
        *(dg.AssetKey(["models", model]) for model in (strategy.model for strategy in STRATEGIES) if model),
        dg.AssetKey(["models", PORTFOLIO]),
        dg.AssetKey(["serving", "signal_endpoint"]),
    ],
    kinds={"onnx", "iceberg"},
    owners=OWNERS,
    code_version="3",
    check_specs=[
        dg.AssetCheckSpec(
            CHAMPIONS_CHECK,
            asset=dg.AssetKey(["serving", "live_signals"]),
            description="Every classifier that is traded has a champion in the registry. A warning: the other strategies' signals are there.",
        ),
        dg.AssetCheckSpec(
            WEIGHTS_CHECK,
            asset=dg.AssetKey(["serving", "live_signals"]),
            description="The portfolio's champion, if there is one, gave its weights. A warning: the other strategies' signals are there.",
        ),
    ],
)
def live_signals(
    context: dg.AssetExecutionContext,
    config: LiveSignalConfig,
    technical: pa.Table,
    sentiment: pa.Table,
    peers: pa.Table,
    warehouse: dg.ResourceParam[Warehouse],
    registry: dg.ResourceParam[ModelRegistry],
    endpoints: dg.ResourceParam[Endpoints],
) -> Iterator[dg.AssetCheckResult | dg.Output[pa.Table]]:
    """Ask every champion about every symbol of the run's sessions."""
    import pyarrow.compute as pc

    from quant_assets.models.mlp import OnnxMlp

    first, last = run_sessions(context)
    sessions = CALENDAR.sessions(first, last)
    have = {
        feature_tables.TECHNICAL.name: technical,
        feature_tables.SENTIMENT.name: sentiment,
        feature_tables.PEERS.name: peers,
    }
    parts = []
    rules: dict[str, MlpLongShort] = {}
    untrained: list[str] = []
    for traded in STRATEGIES:
        strategy, model = traded.name, str(traded.model)
        champion = registry.find(model)
        if champion is None:
            # A model that came with newer code: the night goes on with those that there are.
            untrained.append(model)
            continue
        require_same_features(model, champion.bundle)
        label = champion.bundle["label"]
        rules[strategy] = traded(
            profit_target_pct=label["profit_target_pct"],
            stop_loss_pct=label["stop_loss_pct"],
            long_threshold=config.long_threshold,
            short_threshold=config.short_threshold,
            sizing="shares",
            size=config.size_shares,
        )
        rows = model_rows(champion.bundle, have)
        network = OnnxMlp(champion.onnx, champion.bundle["symbols"])
        snapshots = ", ".join(
            f"{name}={warehouse.snapshot_id(FEATURE_TABLES[name])}" for name in champion.bundle["tables"]
        )
        seen_until = dt.date.fromisoformat(champion.bundle["windows"]["in_sample_last"])
        live = _Live(context, registry, endpoints, champion, network, len(sessions) <= LIVE_SESSIONS)
        for session in sessions:
            if session <= seen_until:
                # What a model says about sessions that it was trained on is no signal.
                continue
            today = rows.filter(pc.equal(rows["session"], pa.scalar(session)))
            if not today.num_rows:
                continue
            probability, version, served_by = live.probability(session, today)
            parts.append(
                make_signals(
                    strategy,
                    today["symbol"].to_pylist(),
                    session,
                    CALENDAR.close(session),
                    probability,
                    rules[strategy],
                    {
                        "model": model,
                        "model_version": version,
                        "served_by": served_by,
                        "feature_snapshots": snapshots,
                        "news_source": today["news_source"][0].as_py(),
                    },
                )
            )
    if not rules:
        raise dg.Failure(
            f"no champion of {', '.join(untrained)} in the registry: run train_job first.",
            allow_retries=False,
        )
    yield dg.AssetCheckResult(
        check_name=CHAMPIONS_CHECK,
        passed=not untrained,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"no champion of {', '.join(untrained)}: run train_job" if untrained else None,
    )
    weights, found = _weights_or_why_not(context, config, warehouse, registry, first, last)
    yield found
    if weights is not None:
        parts.append(weights)
    if not parts:
        raise dg.Failure(
            f"no signal in {first}..{last}: no symbol has features there (a symbol needs 21 bars before its first "
            f"signal; materialize features/* first), or every session lies in the champion's in-sample window, which "
            f"ends on {seen_until}.",
            allow_retries=False,
        )
    data = tables.LIVE_SIGNALS.conform(pa.concat_tables(parts))
    files = write_signal_files(data, settings().signals_dir)
    published = [*(traded.name for traded in STRATEGIES), PORTFOLIO]
    for stale in remove_stale_files(data, settings().signals_dir, published, CALENDAR.sessions(first, last)):
        context.log.warning("removed %s: an earlier run wrote it, and this one has no such signal", stale)

    from quant_assets.serving import plots

    shown = data.filter(pc.equal(data["session"], pa.scalar(last)))
    ruled = shown.filter(pc.is_valid(shown["probability_long"]))
    columns = (
        "strategy",
        "symbol",
        "side",
        "probability_long",
        "probability_short",
        "target_weight",
        "model_version",
        "served_by",
    )
    show(
        context,
        {
            "signals": markdown_table(
                [{k: "" if row[k] is None else row[k] for k in columns} for row in shown.to_pylist()]
            ),
            **(
                {
                    "probabilities": figure_markdown(
                        plots.signals_figure(ruled, rules), f"Probabilities and thresholds, {last}"
                    )
                }
                if ruled.num_rows
                else {}
            ),
            **(
                {
                    "weights": figure_markdown(
                        plots.weights_figure(data.filter(pc.is_valid(data["target_weight"]))),
                        f"Weights of the portfolio after the next open, {last}",
                    )
                }
                if ruled.num_rows < shown.num_rows
                else {}
            ),
            "files": markdown_table([{"file": str(path)} for path in files[-8:]]),
            "thresholds": markdown_table(
                [
                    {"strategy": name, "long": p.thresholds[0], "short": p.thresholds[1]}
                    for name, p in rules.items()
                ]
            ),
        },
    )
    yield dg.Output(data, data_version=data_version(data, (first, last)))


class _Live:
    """One classifier during a run: its endpoint as long as that answers, the registered champion otherwise."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        registry: ModelRegistry,
        endpoints: Endpoints,
        champion: ModelVersion,
        network: "OnnxMlp",
        live: bool,
    ) -> None:
        self.context, self.registry, self.champion, self.network = context, registry, champion, network
        self.endpoint = endpoints.endpoint(endpoint_name(champion.name))
        self.why_not = "" if live else "registry: a run over the past"
        if live:
            self.why_not = self._why_not_asked()

    def probability(self, session: dt.date, today: pa.Table) -> "tuple[np.ndarray, int, str]":
        """Probabilities of the rows, the version that gave them, and who answered."""
        if not self.why_not:
            asked = ask_signals(self.endpoint, self.champion.bundle, today)
            if asked.probability is not None:
                self._refuse_what_it_was_trained_on(asked.model_version, session)
            if asked.probability is not None and not self.why_not:
                return asked.probability, asked.model_version, asked.served_by
            # The night does not wait for an endpoint that is down: the same champion is in the registry.
            self.why_not = self.why_not or f"registry: {asked.served_by}"
            self.context.log.warning(
                "%s; %s v%d of the registry answers", self.why_not, self.champion.name, self.champion.version
            )
        x, symbols = inputs_of(self.champion.bundle, today)
        return self.network.predict(x, symbols), self.champion.version, self.why_not

    def _why_not_asked(self) -> str:
        """Why the endpoint is not even asked; '' when it is."""
        name = self.endpoint.name
        try:
            status = self.endpoint.status()
        except EndpointError as error:
            return f"registry: endpoint {name} cannot be seen: {error}"
        if status.phase == "absent":
            return f"registry: endpoint {name} is not deployed"
        if status.config is None or status.phase in ("failed", "stopped", "deleting"):
            said = f"registry: endpoint {name} is down ({status.phase}): {status.message}"
            self.context.log.warning("%s", said)
            return said
        return ""

    def _refuse_what_it_was_trained_on(self, version: int, session: dt.date) -> None:
        if version == self.champion.version:
            return
        try:
            windows = self.registry.version(self.champion.name, version).bundle["windows"]
        except RegistryError as error:
            self.why_not = (
                f"registry: endpoint {self.endpoint.name} serves what the registry cannot read: {error}"
            )
            return
        if session <= dt.date.fromisoformat(windows["in_sample_last"]):
            self.why_not = (
                f"registry: endpoint {self.endpoint.name} serves version {version}, which was trained on sessions up to "
                f"{windows['in_sample_last']}"
            )


def _weights_or_why_not(
    context: dg.AssetExecutionContext,
    config: LiveSignalConfig,
    warehouse: Warehouse,
    registry: ModelRegistry,
    first: dt.date,
    last: dt.date,
) -> tuple[pa.Table | None, dg.AssetCheckResult]:
    """The portfolio's weights, and the check that says why there are none."""
    passed, why, model, weights = True, None, "none", None
    try:
        champion = registry.find(PORTFOLIO)
        if champion is None:
            why = f"no champion: models/{PORTFOLIO} is not trained yet (train_agents_job)"
        else:
            model = f"{champion.name} v{champion.version}"
            weights = _portfolio_signals(config, warehouse, champion, first, last)
            if weights is None:
                why = f"{model} was trained on all of these sessions, or the market has none of them"
    except Exception as error:
        # Whatever it is: the other strategies have their signals, and nobody wants the night without them.
        passed, why = False, f"no weights of {model}: {type(error).__name__}: {error}"
        context.log.error("%s. The other strategies' signals are written.", why, exc_info=True)
    if passed and why:
        context.log.info("no weights: %s", why)
    return weights, dg.AssetCheckResult(
        check_name=WEIGHTS_CHECK,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=why,
        metadata={"model": model, "rows": weights.num_rows if weights is not None else 0},
    )


def _portfolio_signals(
    config: LiveSignalConfig, warehouse: Warehouse, champion: ModelVersion, first: dt.date, last: dt.date
) -> pa.Table | None:
    """The portfolio's weights of the run's sessions; None where the champion was trained on all of them."""
    import pyarrow.compute as pc

    from quant_assets.environments.portfolio import PortfolioEpisodes, PortfolioParameters
    from quant_assets.market.tables import BARS
    from quant_assets.models.portfolio_market import read_portfolio_market
    from quant_assets.models.sac import OnnxPolicy

    seen_until = dt.date.fromisoformat(champion.bundle["windows"]["in_sample_last"])
    if last <= seen_until:
        return None
    data = read_portfolio_market(
        warehouse, champion.bundle["symbols"], last=last, extra_features=champion.bundle["market"]["features"]
    )
    parameters = PortfolioParameters(**champion.bundle["parameters"])
    policy = OnnxPolicy(champion.onnx, champion.bundle)
    policy.require(PortfolioEpisodes(1, data.market, parameters))
    followed = follow(data.market, parameters, policy.act, seen_until)
    sessions = [session for session in CALENDAR.sessions(first, last) if session in followed]
    if not sessions:
        return None
    bars = warehouse.read(BARS, sessions[0], last, snapshot_id=data.snapshots[BARS.name])
    bars = bars.filter(pc.is_in(bars["symbol"], pa.array(data.market.symbols, pa.string())))
    closes: dict[dt.date, dict[str, float]] = {}
    for row in bars.select(["session", "symbol", "close"]).to_pylist():
        closes.setdefault(row["session"], {})[row["symbol"]] = row["close"]
    return make_portfolio_signals(
        PORTFOLIO,
        data.market,
        followed,
        sessions,
        closes,
        CALENDAR.close,
        config.portfolio_equity_dollars,
        {
            "model": PORTFOLIO,
            "model_version": champion.version,
            "served_by": "registry: portfolios have no endpoint",
            "feature_snapshots": ", ".join(f"{name}={snapshot}" for name, snapshot in data.snapshots.items()),
            "news_source": next(
                (data.sources[spec.name] for spec in NEWS_TABLES if spec.name in data.sources), "none"
            ),
        },
    )
