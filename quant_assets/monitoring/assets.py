"""Assets of the layer `monitoring`: drift of what served models see and say, and what they achieved.

Belongs here: the Dagster face: what is read, for which models, what a run shows. Does not belong here: the comparison (`drift.py`), the
outcomes (`performance.py`), what reacts to an event (`sensors`).
"""

import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa

from quant_assets.features import tables as feature_tables
from quant_assets.market import tables as market_tables
from quant_assets.models.feature_sets import FEATURE_TABLES
from quant_assets.models.inference import FeatureSchemaMismatch, require_same_features
from quant_assets.monitoring import tables
from quant_assets.monitoring.drift import (
    ENDPOINT_INPUT,
    FEATURE,
    PREDICTION,
    DriftError,
    DriftParameters,
    Reference,
    Rows,
    Scored,
    day_at,
    drift_table,
    make_reference,
    score,
    score_orders,
    watch,
)
from quant_assets.monitoring.performance import (
    COST_RESIDUAL,
    EARLIER_SESSIONS,
    Series,
    ServedOrder,
    cost_series,
    performance_scored,
    performance_table,
    served_orders,
    signal_series,
)
from quant_assets.monitoring.remembered import RememberedNulls
from quant_assets.monitoring.watched import (
    FRESH_SESSIONS,
    VOLUME_SESSIONS,
    captured_order_rows,
    captured_signal_rows,
    classifier_rows,
    scope_of,
)
from quant_assets.partitions import CALENDAR, SESSIONS, look_back, run_sessions
from quant_assets.presentation import (
    data_version,
    figure_markdown,
    markdown_table,
    show,
    with_recent_sessions,
)
from quant_assets.serving import tables as serving_tables
from quant_resources.iceberg import Warehouse
from quant_resources.io_manager import table_metadata
from quant_resources.registry import ModelRegistry, ModelVersion

if TYPE_CHECKING:
    from quant_assets.monitoring.plots import Compared
    from quant_assets.simulation.intraday import RealDays

GROUP = "monitoring"
OWNERS = ["team:research"]
CLASSIFIERS = ["mlp_technical", "mlp_sentiment", "mlp_enhanced"]
EXECUTION = "sac_execution"
NO_DRIFT = "no_drift"
WORST_SHOWN = 12
DISTRIBUTIONS_SHOWN = 6
# What a window can reach back: twice its sessions, and the sessions that decide whether an event goes on.
DECLARED_LOOK_BACK = 40
# Sessions that are read beyond that, since an event that goes on is followed back to its beginning.
LOOK_BACK_READ = 20
# Captured requests of one session that are looked at, the first ones: a distribution is known from fewer than a busy endpoint gets.
MOST_REQUESTS = 200
# The same for orders whose schedule is run again on minute bars.
MOST_ORDERS = 50


class MonitoringConfig(dg.Config):
    """Which models are watched, and when a difference is drift; see `DriftParameters`."""

    models: list[str] = CLASSIFIERS
    execution_model: str | None = EXECUTION
    window_sessions: int = DriftParameters.window_sessions
    alpha: float = DriftParameters.alpha
    hysteresis_sessions: int = DriftParameters.hysteresis_sessions
    adwin_delta: float = DriftParameters.adwin_delta


def _parameters(config: MonitoringConfig) -> DriftParameters:
    return DriftParameters(
        window_sessions=config.window_sessions,
        alpha=config.alpha,
        hysteresis_sessions=config.hysteresis_sessions,
        adwin_delta=config.adwin_delta,
    )


# -- performance -------------------------------------------------------------------------------------------------------


@dg.asset(
    key=[GROUP, "performance"],
    metadata=table_metadata(tables.PERFORMANCE),
    group_name=GROUP,
    description="What each served model achieved, by the session at whose close it became known: hit rate of the sides taken, Brier score "
    "beyond that of the base rate, cost of served schedules beyond what was expected (basis points, on minute bars where there are "
    "some). ADWIN follows each series from the version's first outcome on; a change for the worse is drift.",
    partitions_def=SESSIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=[
        dg.AssetDep(["serving", "live_signals"]),
        dg.AssetDep(["serving", "captured_requests"]),
        dg.AssetDep(["features", "labels"]),
        *(dg.AssetDep(["models", name]) for name in (*CLASSIFIERS, EXECUTION)),
    ],
    kinds={"python", "iceberg"},
    owners=OWNERS,
    code_version="1",
)
def performance(
    context: dg.AssetExecutionContext,
    config: MonitoringConfig,
    warehouse: dg.ResourceParam[Warehouse],
    registry: dg.ResourceParam[ModelRegistry],
) -> dg.Output[pa.Table]:
    """Outcomes that became known in the run's sessions."""
    first, last = run_sessions(context)
    parameters = _parameters(config)
    champions = {model: registry.find(model) for model in config.models}
    notes = [f"{model}: no champion (train_job makes one)" for model, found in champions.items() if not found]
    parts = []
    there = [champion for champion in champions.values() if champion]
    signals, labels = _signals_and_labels(warehouse, there, last)
    for champion in there:
        of_version = _of_version(signals, champion)
        series = signal_series(of_version, labels, champion.bundle["base_rate"], CALENDAR)
        parts.append(
            performance_table(champion.name, champion.version, series, first, last, parameters, CALENDAR)
        )
        notes.append(_said(champion, parts[-1], "no outcome of its signals became known"))
    if config.execution_model:
        part, note = _execution_performance(warehouse, registry, config, parameters, first, last)
        parts += part
        notes.append(note)
    data = tables.PERFORMANCE.conform(
        pa.concat_tables(parts) if parts else tables.PERFORMANCE.arrow_schema.empty_table()
    )
    for note in notes:
        context.log.info("%s", note)
    newest = [row for row in data.to_pylist() if row["session"] == last]
    columns = (
        "model",
        "measure",
        "value",
        "yardstick",
        "adwin_mean",
        "mean_before",
        "series_sessions",
        "drifted",
    )
    show(
        context,
        {
            "summary": "; ".join(notes),
            f"known at {last}": markdown_table(
                [{k: "" if row[k] is None else row[k] for k in columns} for row in newest]
            ),
            **_performance_figure(warehouse, data, first, last),
        },
    )
    return dg.Output(data, data_version=data_version(data, (first, last)))


def _performance_figure(
    warehouse: Warehouse, data: pa.Table, first: dt.date, last: dt.date
) -> dict[str, object]:
    from quant_assets.monitoring import plots

    recent = with_recent_sessions(warehouse, tables.PERFORMANCE, data, first, last)
    if not recent.num_rows:
        return {}
    caption = "Outcomes: mean of 20 sessions (thin), of ADWIN's window (thick), of the base rate (dotted)"
    return {"performance": figure_markdown(plots.performance_figure(recent), caption)}


def _signals_and_labels(
    warehouse: Warehouse, champions: Sequence[ModelVersion], last: dt.date
) -> tuple[pa.Table, pa.Table]:
    """From the first session that one of the champions was not trained on."""
    trained = [dt.date.fromisoformat(champion.bundle["windows"]["in_sample_last"]) for champion in champions]
    since = min(trained, default=last)
    columns = ["model", "model_version", "symbol", "session", "available_at", "side"]
    columns += ["probability_long", "probability_short"]
    signals = warehouse.read(serving_tables.LIVE_SIGNALS, since, last, columns)
    labels = warehouse.read(
        feature_tables.LABELS, since, last, ["symbol", "session", "available_at", "long", "short"]
    )
    return signals, labels


def _execution_performance(
    warehouse: Warehouse,
    registry: ModelRegistry,
    config: MonitoringConfig,
    parameters: DriftParameters,
    first: dt.date,
    last: dt.date,
) -> tuple[list[pa.Table], str]:
    from quant_assets.environments.execution import ExecutionParameters

    model = str(config.execution_model)
    champion = registry.find(model)
    if champion is None:
        return [], f"{model}: no champion (train_agents_job makes one)"
    name = f"{champion.name} v{champion.version}"
    # Bodies are large, so orders of earlier sessions are not run again: their costs are in the table.
    captured, late = _captured(
        warehouse,
        champion,
        "execution",
        CALENDAR.shift(first, -FRESH_SESSIONS),
        last,
        "response",
        MOST_ORDERS,
    )
    low, high = CALENDAR.ordinal(first), CALENDAR.ordinal(last)
    orders = [order for order in served_orders(captured, CALENDAR) if low <= order.known <= high]
    days = _minute_days(warehouse, orders) if orders else {}
    if not days:
        why = "no minute bars to sell them on" if orders else f"{late} answered beyond the calendar"
        return [], f"{name}: {len(orders)} captured orders became known, {why}"
    series = cost_series(orders, days, ExecutionParameters(**champion.bundle["parameters"]), CALENDAR)
    stored = _of_version(
        warehouse.read(tables.PERFORMANCE, CALENDAR.first, CALENDAR.shift(first, -1)), champion
    )
    series = Series.stored(stored, COST_RESIDUAL, CALENDAR).followed_by(series)
    data = performance_table(model, champion.version, [series], first, last, parameters, CALENDAR)
    return [data], _said(champion, data, "no order of these sessions has minute bars")


def _minute_days(warehouse: Warehouse, orders: Sequence[ServedOrder]) -> "dict[str, RealDays]":
    """Minute bars of the orders' symbols, with the quarter before the first order."""
    import pyarrow.compute as pc

    from quant_assets.simulation.inputs import MINUTE_COLUMNS
    from quant_assets.simulation.intraday import real_days

    spec = market_tables.MINUTE_BARS
    if not warehouse.exists(spec):
        return {}
    first = CALENDAR.shift(min(order.session for order in orders), -EARLIER_SESSIONS)
    stored = warehouse.read(spec, first, max(order.session for order in orders), MINUTE_COLUMNS)
    days = {}
    for symbol in sorted({order.ticker for order in orders}):
        bars = stored.filter(pc.equal(stored["symbol"], symbol))
        try:
            days[symbol] = real_days(bars)
        except ValueError:  # no whole session: its orders have no outcome
            continue
    return days


def _said(champion: ModelVersion, data: pa.Table, nothing: str) -> str:
    name = f"{champion.name} v{champion.version}"
    if not data.num_rows:
        return f"{name}: {nothing}"
    worse = sorted({row["measure"] for row in data.to_pylist() if row["drifted"]})
    return f"{name}: {data.num_rows} rows, " + (
        f"became worse: {', '.join(worse)}" if worse else "none became worse"
    )


# -- drift -------------------------------------------------------------------------------------------------------------


@dg.asset(
    key=[GROUP, "drift"],
    metadata=table_metadata(tables.DRIFT),
    group_name=GROUP,
    description="Per served model and session: how far the last 15 sessions of each feature, prediction and captured endpoint input are "
    "from what the champion was trained on (PSI, Kolmogorov-Smirnov, Wasserstein), with p-values from windows of the training itself, "
    "Holm-corrected over all of the session, and whether a drift event goes on (event_id). Rests on what was available at the "
    "session's close. A session that the champion was trained on has no row.",
    partitions_def=SESSIONS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=[
        *(
            dg.AssetDep(spec.name.split("."), partition_mapping=look_back(DECLARED_LOOK_BACK))
            for spec in FEATURE_TABLES.values()
        ),
        dg.AssetDep([GROUP, "performance"], partition_mapping=look_back(DECLARED_LOOK_BACK)),
        dg.AssetDep(["serving", "captured_requests"]),
        *(dg.AssetDep(["models", name]) for name in (*CLASSIFIERS, EXECUTION)),
    ],
    kinds={"python", "onnx", "iceberg"},
    owners=OWNERS,
    code_version="1",
    check_specs=[
        dg.AssetCheckSpec(
            NO_DRIFT,
            asset=dg.AssetKey([GROUP, "drift"]),
            description="No drift event goes on at the newest session of the run. A warning: what to do about drift is decided elsewhere.",
        )
    ],
)
def drift(
    context: dg.AssetExecutionContext,
    config: MonitoringConfig,
    warehouse: dg.ResourceParam[Warehouse],
    registry: dg.ResourceParam[ModelRegistry],
) -> Iterator[dg.AssetCheckResult | dg.Output[pa.Table]]:
    """Compare what the champions see and say in the run's sessions with what they were trained on."""
    first, last = run_sessions(context)
    parameters = _parameters(config)
    watched: list[_Watched] = []
    for model in config.models:
        watched.append(_watch_classifier(warehouse, registry, model, first, last, parameters))
    if config.execution_model:
        watched.append(_watch_execution(warehouse, registry, config.execution_model, first, last, parameters))
    data = tables.DRIFT.conform(pa.concat_tables([one.rows for one in watched]))
    notes = [note for one in watched for note in one.notes]
    for note in notes:
        context.log.info("%s", note)
    newest = [row for row in data.to_pylist() if row["session"] == last]
    verdict = _verdict(newest, last)
    yield dg.AssetCheckResult(
        check_name=NO_DRIFT,
        passed=not any(row["event_id"] for row in newest),
        severity=dg.AssetCheckSeverity.WARN,
        description=verdict,
        metadata={"drifted": sum(row["drifted"] for row in newest), "tested": len(newest)},
    )
    show(
        context,
        {
            "summary": f"{verdict} {'; '.join(notes)}",
            "worst columns": _worst_table(newest),
            **_figures(warehouse, data, watched, newest, first, last, parameters),
        },
    )
    yield dg.Output(data, data_version=data_version(data, (first, last)))


@dataclass
class _Watched:
    """One model's part of a run.

    Attributes:
        rows: of `monitoring.drift`.
        notes: sentences on what was compared, or why nothing was.
        reference, live: for the figures; None where nothing was compared.
    """

    rows: pa.Table = field(default_factory=tables.DRIFT.arrow_schema.empty_table)
    notes: list[str] = field(default_factory=list)
    reference: Reference | None = None
    live: Rows | None = None


def _watch_classifier(
    warehouse: Warehouse,
    registry: ModelRegistry,
    model: str,
    first: dt.date,
    last: dt.date,
    parameters: DriftParameters,
) -> _Watched:
    from quant_assets.models.mlp import OnnxMlp

    champion = registry.find(model)
    if champion is None:
        return _Watched(notes=[f"{model}: no champion (train_job makes one), so nothing is watched"])
    name = f"{model} v{champion.version}"
    try:
        require_same_features(model, champion.bundle)
    except FeatureSchemaMismatch as error:
        return _Watched(notes=[f"{name} is not watched: {error}"])
    trained = dt.date.fromisoformat(champion.bundle["windows"]["in_sample_last"])
    if last <= trained:
        return _Watched(notes=[f"{name} was trained on sessions up to {trained}, so on all of these"])
    network = OnnxMlp(champion.onnx, champion.bundle["symbols"])

    def read(since: dt.date, to: dt.date) -> Rows:
        stored = {t: warehouse.read(FEATURE_TABLES[t], since, to) for t in champion.bundle["tables"]}
        return classifier_rows(champion.bundle, stored, network, CALENDAR)

    train_first = dt.date.fromisoformat(champion.bundle["windows"]["train_first"])
    try:
        reference = make_reference(
            read(train_first, trained),
            parameters,
            RememberedNulls(warehouse.home / "monitoring", model),
        )
    except DriftError as error:
        return _Watched(notes=[f"{name} is not watched: {error}"])
    achieved = warehouse.read(tables.PERFORMANCE, trained, last)
    achieved = _of_version(achieved, champion)
    margin = int(parameters.longest_gap * parameters.window_sessions)
    earliest = CALENDAR.ordinal(trained) + 1
    since = max(CALENDAR.ordinal(first), earliest)
    live = _LiveRows(read, since - margin - LOOK_BACK_READ, CALENDAR.ordinal(last))
    left_out: list[str] = []

    def compare(since: int, to: int) -> list[Scored]:
        sessions = range(since, to + 1)
        found = [score(reference, live.between(since - margin, to), sessions, scope_of)]
        back, until = _day(since - margin - FRESH_SESSIONS), _day(to + FRESH_SESSIONS)
        captured, late = _captured(warehouse, champion, "signal", back, until, "request", MOST_REQUESTS)
        rows, other = captured_signal_rows(captured, tuple(champion.bundle["inputs"]), CALENDAR)
        left_out.append(_left_out(name, late, other))
        found.append(score(reference, rows, sessions, lambda _: ENDPOINT_INPUT))
        return [*found, *performance_scored(achieved, since, to, CALENDAR)]

    judged, going_on = watch(compare, since, CALENDAR.ordinal(last), earliest, parameters)
    rows = drift_table(model, champion.version, judged, going_on, CALENDAR)
    notes = [_compared(name, rows, reference, trained)]
    notes += [left_out[0]] if left_out[0] else []
    return _Watched(
        rows, notes, reference, live.between(CALENDAR.ordinal(last) - margin, CALENDAR.ordinal(last))
    )


class _LiveRows:
    """Rows of a range of sessions, read once, and again from farther back when those are asked for."""

    def __init__(self, read: Callable[[dt.date, dt.date], Rows], since: int, to: int) -> None:
        self.read, self.since, self.to = read, since, to
        self.rows = read(_day(since), _day(to))

    def between(self, since: int, to: int) -> Rows:
        """Positions, both included."""
        if since < self.since:
            self.since = since - (self.to - since)
            self.rows = self.read(_day(self.since), _day(self.to))
        start, stop = self.rows.session.searchsorted([since, to + 1])
        return self.rows.take(slice(start, stop))


def _watch_execution(
    warehouse: Warehouse,
    registry: ModelRegistry,
    model: str,
    first: dt.date,
    last: dt.date,
    parameters: DriftParameters,
) -> _Watched:
    champion = registry.find(model)
    if champion is None:
        return _Watched(
            notes=[f"{model}: no champion (train_agents_job makes one), so no orders are watched"]
        )
    name = f"{model} v{champion.version}"
    trained = champion.bundle["parameters"]
    if trained.get("order_shares") is not None:
        return _Watched(notes=[f"{name} was trained on one size of order, so sizes are not compared"])
    achieved = _of_version(warehouse.read(tables.PERFORMANCE, CALENDAR.first, last), champion)
    left_out: list[str] = []

    def compare(since: int, to: int) -> list[Scored]:
        back, until = _day(since - parameters.window_sessions - FRESH_SESSIONS), _day(to + FRESH_SESSIONS)
        captured, late = _captured(warehouse, champion, "execution", back, until, "request", MOST_REQUESTS)
        volumes = ["symbol", "session", "volume", "split_factor"]
        bars = warehouse.read(market_tables.BARS, CALENDAR.shift(back, -2 * VOLUME_SESSIONS), until, volumes)
        orders, other = captured_order_rows(captured, bars, CALENDAR)
        left_out.append(_left_out(name, late, other))
        low, high = trained["order_participation_low"], trained["order_participation_high"]
        sessions = range(since, to + 1)
        compared = score_orders(orders, low, high, trained["horizon_minutes"], sessions, parameters)
        return [compared, *performance_scored(achieved, since, to, CALENDAR)]

    asked_about = _answered(warehouse, champion)
    if not asked_about:
        return _Watched(notes=[f"{name}: it has answered no captured request"])
    # Nothing can have drifted before somebody asked.
    earliest = CALENDAR.ordinal(CALENDAR.shift(min(asked_about), -FRESH_SESSIONS))
    judged, going_on = watch(compare, CALENDAR.ordinal(first), CALENDAR.ordinal(last), earliest, parameters)
    rows = drift_table(model, champion.version, judged, going_on, CALENDAR)
    said = (
        f"{name}: {rows.num_rows} rows on captured orders and their costs"
        if rows.num_rows
        else f"{name}: too few captured orders in the windows of these sessions ({parameters.fewest_requests} in "
        f"{parameters.fewest_request_sessions} sessions are needed)"
    )
    return _Watched(rows, [said, *([left_out[0]] if left_out[0] else [])])


def _captured(
    warehouse: Warehouse,
    champion: ModelVersion,
    kind: str,
    first: dt.date,
    last: dt.date,
    body: str,
    most: int,
) -> tuple[pa.Table, int]:
    """Captured requests about a range of sessions that the champion answered.

    Bodies are large and endpoints busy: of each session the first answers are taken, and none whose answer came when the calendar was
    over.

    Args:
        body: column that is read, request or response.
        most: answers of one session.

    Returns:
        Columns event_id, session, available_at and the body; and how many answers came too late.
    """
    import pyarrow.compute as pc

    spec = serving_tables.CAPTURED_REQUESTS
    heads = warehouse.read(
        spec, first, last, ["event_id", "session", "available_at", "kind", "model", "model_version"]
    )
    heads = _of_version(heads.filter(pc.equal(heads["kind"], kind)), champion)
    taken: list[str] = []
    count: dict[dt.date, int] = {}
    late = 0
    for row in heads.sort_by([("available_at", "ascending"), ("event_id", "ascending")]).to_pylist():
        if not CALENDAR.covers(row["available_at"]):
            late += 1
            continue
        count[row["session"]] = count.get(row["session"], 0) + 1
        if count[row["session"]] <= most:
            taken.append(row["event_id"])
    columns = ["event_id", "session", "available_at", body]
    if not taken:
        return spec.arrow_schema.empty_table().select(columns), late
    rows = warehouse.read(spec, min(count), max(count), columns)
    return rows.filter(pc.is_in(rows["event_id"], pa.array(taken, pa.string()))), late


def _answered(warehouse: Warehouse, champion: ModelVersion) -> list[dt.date]:
    """Sessions that the champion answered captured requests about."""
    rows = warehouse.read(serving_tables.CAPTURED_REQUESTS, columns=["model", "model_version", "session"])
    return _of_version(rows, champion)["session"].unique().to_pylist()


def _of_version(rows: pa.Table, champion: ModelVersion) -> pa.Table:
    import pyarrow.compute as pc

    return rows.filter(
        pc.and_(pc.equal(rows["model"], champion.name), pc.equal(rows["model_version"], champion.version))
    )


def _day(position: int) -> dt.date:
    return day_at(CALENDAR, position)


# -- what a run says ---------------------------------------------------------------------------------------------------


def _compared(name: str, rows: pa.Table, reference: Reference, trained: dt.date) -> str:
    sessions = rows["session"].unique()
    if not len(sessions):
        return f"{name}: none of these sessions has features to compare (materialize features/* first)"
    known = reference.rows.session
    return (
        f"{name}: {len(reference.columns)} columns over {len(sessions)} session(s) against {len(known)} rows of "
        f"{_day(int(known[0]))} to {trained}"
    )


def _left_out(name: str, late: int, other: int) -> str:
    """Why captured requests say nothing; '' where all do."""
    why = []
    if late:
        why.append(f"{late} answered when no session of the calendar could know them (a replay of the past)")
    if other:
        why.append(f"{other} without features, without a known volume, or not about the time of their answer")
    return f"{name}: captured requests left out: {', '.join(why)}" if why else ""


def _verdict(newest: Sequence[dict[str, Any]], last: dt.date) -> str:
    """A sentence on the newest session of a run."""
    if not newest:
        return f"Nothing was compared in session {last}."
    sentences = []
    for event in sorted({row["event_id"] for row in newest if row["event_id"]}):
        model, version, since = event.split(":")
        mine = [row for row in newest if row["event_id"] == event]
        drifted = sorted((row for row in mine if row["drifted"]), key=lambda row: row["p_adjusted"] or 0.0)
        names = ", ".join(f"{row['scope']} {row['column']}" for row in drifted[:6])
        more = f" and {len(drifted) - 6} more" if len(drifted) > 6 else ""
        sentences.append(
            f"{model} {version} has been drifting since {since}: "
            + (f"{names}{more}." if names else f"quiet in session {last}, and not long enough to end.")
        )
    quiet = sorted({row["model"] for row in newest if row["event_id"] is None})
    if quiet:
        sentences.append(f"No drift event goes on for {', '.join(quiet)}.")
    return " ".join(sentences)


def _worst_table(newest: Sequence[dict[str, Any]]) -> dg.MarkdownMetadataValue:
    from quant_assets.monitoring.plots import worst_columns

    shown = [
        "model", "scope", "column", "psi", "ks", "wasserstein", "statistic", "p_value", "p_adjusted", "drifted",
        "mean_reference", "mean_window", "sd_reference", "sd_window",
    ]  # fmt: skip
    return markdown_table([{k: row[k] for k in shown} for row in worst_columns(newest, WORST_SHOWN)])


def _figures(
    warehouse: Warehouse,
    data: pa.Table,
    watched: Sequence[_Watched],
    newest: Sequence[dict[str, Any]],
    first: dt.date,
    last: dt.date,
    parameters: DriftParameters,
) -> dict[str, object]:
    from quant_assets.monitoring import plots

    recent = with_recent_sessions(warehouse, tables.DRIFT, data, first, last)
    if not recent.num_rows:
        return {}
    figures: dict[str, object] = {
        "p-values": figure_markdown(
            plots.heat_figure(recent, parameters.alpha),
            f"Adjusted p-values of the last {plots.HEAT_SESSIONS} sessions, by column",
        ),
        "PSI": figure_markdown(
            plots.psi_figure(recent),
            "Population stability index of the columns that drifted most; events shaded",
        ),
    }
    compared = _distributions(watched, newest)
    if compared:
        figures["distributions"] = figure_markdown(
            plots.distributions_figure(compared),
            f"The {len(compared)} columns that are farthest from their reference, {last}",
        )
    return figures


def _distributions(watched: Sequence[_Watched], newest: Sequence[dict[str, Any]]) -> "list[Compared]":
    """Values of the worst columns: of the window, and of the reference."""
    from quant_assets.monitoring.plots import Compared, worst_columns

    of_model = {
        one.rows["model"][0].as_py(): one
        for one in watched
        if one.reference is not None and one.rows.num_rows
    }
    found: list[Compared] = []
    shown: set[str] = set()
    rows = [row for row in newest if row["model"] in of_model and row["scope"] in (FEATURE, PREDICTION)]
    for row in worst_columns(rows, len(rows)):
        # Models share features; the same picture twice says nothing.
        if (row["scope"] == FEATURE and row["column"] in shown) or len(found) == DISTRIBUTIONS_SHOWN:
            continue
        shown.add(row["column"])
        one = of_model[row["model"]]
        assert one.reference is not None
        assert one.live is not None
        at = one.live.columns.index(row["column"])
        inside = (one.live.session >= CALENDAR.ordinal(row["window_first"])) & (
            one.live.session <= CALENDAR.ordinal(row["session"])
        )
        found.append(
            Compared(
                title=f"{row['model']}: {row['column']}",
                reference=one.reference.rows.values[:, at],
                window=one.live.values[inside, at],
                note=f"PSI {row['psi']:.2f}, KS {row['ks']:.2f}, Wasserstein {row['wasserstein']:.2f} sd; adjusted p "
                f"{row['p_adjusted']:.2g}",
            )
        )
    return found
