"""Assets of deployment: champions behind endpoints, and what those answered.

Belongs here: the Dagster face of a rollout: bundle, preflight, canary, what the registry is told, metadata. Does not belong here: what a
bundle is (`bundle.py`), what it must do (`preflight.py`), traffic and alarms (`quant_resources/endpoints`), and live signals
(`assets.py`).
"""

import datetime as dt
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa

from quant_assets.models.feature_sets import FEATURE_TABLES
from quant_assets.models.inference import FeatureSchemaMismatch, model_rows, require_same_features
from quant_assets.partitions import CALENDAR, FIRST_SESSION, settings
from quant_assets.presentation import figure_markdown, markdown_table
from quant_assets.serving import tables
from quant_assets.serving.asking import endpoint_name
from quant_resources.calendar import TradingCalendar
from quant_resources.endpoints import (
    CapturedRequest,
    Endpoint,
    EndpointError,
    Endpoints,
    EndpointStatus,
    Release,
    Rollout,
)
from quant_resources.iceberg import Warehouse, WarehouseError
from quant_resources.io_manager import table_metadata
from quant_resources.registry import APPROVED_TAG, GATE_TAG, ModelRegistry, ModelVersion, RegistryError

if TYPE_CHECKING:
    from quant_assets.serving.preflight import Preflight

GROUP = "serving"
OWNERS = ["team:platform"]
EXECUTION_MODEL, EXECUTION_ENDPOINT = "sac_execution", "execution"
SIGNAL_MODELS = ("mlp_technical", "mlp_sentiment", "mlp_enhanced")
# Of stored feature rows: so many newest sessions are tried before any traffic.
EXAMPLE_SESSIONS = 20
# Until a rollout has ended; on SageMaker a fleet starts, bakes twice at least three minutes, and the old one stays for two more.
STATUS_SECONDS = 2700.0
# Captured requests that are older say little of what is asked now, and reading all of them takes ever longer.
REPLAY_DAYS = 7
SHOWN_PROBLEMS = 20
# How far captured requests were read; requests outside the calendar are in no table that could tell.
READ_UNTIL_FILE = "captured-until.json"


class EndpointConfig(dg.Config):
    """How a champion takes over an endpoint; see `Rollout` and `Release`.

    Attributes:
        version: of the model, instead of the champion.
        canary_share: part of the traffic that the new version gets first, at most 0.5.
        bake_seconds: how long it stays there.
        max_errors_5xx, max_invalid: such answers that are suffered meanwhile.
        max_p99_latency_ms: of the new version's answers.
        capture_share: part of the requests that are captured; None: QUANT_ENDPOINT_CAPTURE_SHARE, so that deployments by sensors agree.
        workers: processes, or instances on SageMaker; None: QUANT_ENDPOINT_WORKERS.
        replay_requests: captured requests, the newest, that the new version is compared on before it gets traffic.
    """

    version: int | None = None
    canary_share: float = 0.1
    bake_seconds: float = 30.0
    max_errors_5xx: int = 0
    max_invalid: int = 0
    max_p99_latency_ms: float = 1000.0
    capture_share: float | None = None
    workers: int | None = None
    replay_requests: int = 200


class SignalEndpointConfig(EndpointConfig):
    """The same for the classifiers.

    Attributes:
        models: each has an endpoint of its own.
    """

    models: list[str] = list(SIGNAL_MODELS)  # noqa: RUF012  # a pydantic field, copied per instance


def _check_specs(name: str) -> list[dg.AssetCheckSpec]:
    asset = dg.AssetKey([GROUP, name])
    return [
        dg.AssetCheckSpec(
            "gate_passed",
            asset=asset,
            description="The version to be deployed has passed its gate (challenger against champion out of sample: Brier score, cost "
            "or Sharpe ratio with its interval), or a person has approved it.",
        ),
        dg.AssetCheckSpec(
            "preflight",
            asset=asset,
            description="Before any traffic, in a process of its own: smoke and contract requests, refusals, and captured requests answered "
            "no worse than by what serves now.",
        ),
        dg.AssetCheckSpec(
            "rollout",
            asset=asset,
            description="The new version took all traffic; no alarm (5xx, p99 latency, invalid answers) brought the previous one back.",
        ),
    ]


def hours_calendar() -> TradingCalendar:
    """The exchange's sessions that a bundle carries: from the source's first one to the end of next year, so that a bundle made
    tomorrow is the same to the byte."""
    return TradingCalendar(FIRST_SESSION, dt.date(dt.date.today().year + 1, 12, 31))


@dg.asset(
    key=[GROUP, "execution_endpoint"],
    group_name=GROUP,
    description="The champion of sac_execution behind the endpoint `execution`: ticker, shares and minutes in, a schedule of whole shares by "
    "minute out, with TWAP, VWAP and expected costs (basis points). Deployed by canary with automatic rollback; deploying the "
    "same bundle again changes nothing. A version that fails is taken back in the registry as well.",
    deps=[
        dg.AssetKey(["models", EXECUTION_MODEL]),
        dg.AssetDep(
            dg.AssetKey(["simulation", "intraday_paths"]), partition_mapping=dg.AllPartitionMapping()
        ),
    ],
    kinds={"onnx", "sagemaker"},
    owners=OWNERS,
    code_version="1",
    pool="deployment",
    check_specs=_check_specs("execution_endpoint"),
)
def execution_endpoint(
    context: dg.AssetExecutionContext,
    config: EndpointConfig,
    warehouse: dg.ResourceParam[Warehouse],
    registry: dg.ResourceParam[ModelRegistry],
    endpoints: dg.ResourceParam[Endpoints],
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Bundle, preflight, canary."""
    from quant_assets.serving.bundle import execution_description, pack
    from quant_assets.serving.hours import ExchangeHours
    from quant_assets.serving.inputs import read_expected_markets

    def plan() -> _Plan:
        version = _wanted(registry, EXECUTION_MODEL, config.version)
        learned = version.bundle["lineage"]
        markets, days = read_expected_markets(warehouse, version.bundle["symbols"], context.log)
        for symbol, identity in days.items():
            if learned.get(f"days.{symbol}") not in (None, identity):
                context.log.warning(
                    "%s plans in days that %s v%d was not trained on: they were simulated again since (train_agents_job)",
                    symbol,
                    version.name,
                    version.version,
                )
        served = {f"market_days.{symbol}": identity for symbol, identity in days.items()}
        calendar = hours_calendar()
        description = execution_description(
            version.name,
            version.version,
            {**version.bundle, "lineage": {**learned, **served}},
            markets,
            ExchangeHours.from_calendar(calendar),
            version.onnx,
        )
        return _Plan(version, pack(version.onnx, description), description, calendar, [])

    done = _Deployed(EXECUTION_MODEL, endpoints.endpoint(EXECUTION_ENDPOINT))
    _deploy(context, registry, config, plan, done)
    yield from _report("execution_endpoint", [done])


@dg.asset(
    key=[GROUP, "signal_endpoint"],
    group_name=GROUP,
    description="The champions of the classifiers, each behind an endpoint (`signal-mlp-technical`, `signal-mlp-sentiment`, `signal-mlp-enhanced`): "
    "features or bars in, probabilities and side out. Features are computed by the training code, whose hash travels in the bundle. Deployed by canary "
    "with automatic rollback; deploying the same bundle again changes nothing.",
    deps=[dg.AssetKey(["models", model]) for model in SIGNAL_MODELS],
    kinds={"onnx", "sagemaker"},
    owners=OWNERS,
    code_version="1",
    pool="deployment",
    check_specs=_check_specs("signal_endpoint"),
)
def signal_endpoint(
    context: dg.AssetExecutionContext,
    config: SignalEndpointConfig,
    warehouse: dg.ResourceParam[Warehouse],
    registry: dg.ResourceParam[ModelRegistry],
    endpoints: dg.ResourceParam[Endpoints],
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Bundle, preflight, canary, of every classifier; one that fails does not keep the others from being deployed."""
    from quant_assets.serving.bundle import pack, signal_description
    from quant_assets.serving.hours import ExchangeHours
    from quant_assets.strategies.mlp_long_short import MlpLongShort

    if config.version is not None and len(config.models) != 1:
        raise dg.Failure(
            f"version = {config.version} of {len(config.models)} models: name the one model that it is a version of",
            allow_retries=False,
        )
    calendar = hours_calendar()
    hours = ExchangeHours.from_calendar(calendar)

    def plan_of(model: str) -> _Plan:
        version = _wanted(registry, model, config.version)
        label = version.bundle["label"]
        rule = MlpLongShort(
            profit_target_pct=label["profit_target_pct"], stop_loss_pct=label["stop_loss_pct"]
        )
        description = signal_description(
            version.name, version.version, version.bundle, rule.thresholds, hours, version.onnx
        )
        examples = example_requests(warehouse, version.bundle)
        return _Plan(version, pack(version.onnx, description), description, calendar, examples)

    all_done = []
    for model in config.models:
        done = _Deployed(model, endpoints.endpoint(endpoint_name(model)))
        all_done.append(done)
        _deploy(context, registry, config, functools.partial(plan_of, model), done)
    yield from _report("signal_endpoint", all_done)


def example_requests(warehouse: Warehouse, bundle: Mapping[str, Any]) -> list[bytes]:
    """Requests of the newest stored sessions, one each, for a classifier's endpoint."""
    import pyarrow.compute as pc

    from quant_assets.serving.inputs import feature_rows

    newest = None
    for name in bundle["tables"]:
        sessions = warehouse.read(FEATURE_TABLES[name], columns=["session"])["session"]
        last = pc.max(sessions).as_py()
        if last is None:
            return []
        newest = last if newest is None else min(newest, last)
    assert newest is not None
    first = CALENDAR.shift(newest, 1 - EXAMPLE_SESSIONS)
    have = {name: warehouse.read(FEATURE_TABLES[name], first, newest) for name in bundle["tables"]}
    rows = model_rows(bundle, have)
    return [
        json.dumps({"rows": feature_rows(bundle, rows.filter(pc.equal(rows["session"], session)))}).encode()
        for session in rows["session"].unique()
    ]


# -- one endpoint ------------------------------------------------------------------------------------------------------


class _Plan:
    """What is to be deployed."""

    def __init__(
        self,
        version: ModelVersion,
        archive: bytes,
        description: Mapping[str, Any],
        calendar: TradingCalendar,
        examples: Sequence[bytes],
    ) -> None:
        self.version, self.archive = version, archive
        self.description, self.calendar, self.examples = description, calendar, examples


class _Deployed:
    """What came of it; what is wrong ends the deployment."""

    def __init__(self, model: str, endpoint: Endpoint) -> None:
        self.model, self.endpoint = model, endpoint
        self.checks: dict[str, tuple[bool, str]] = {}
        self.problem = ""
        self.changed = False
        self.status: EndpointStatus | None = None
        self.preflight: Preflight | None = None
        self.plan: _Plan | None = None
        self.release: Release | None = None

    def check(self, name: str, passed: bool, said: str) -> bool:
        """Note a check; what is wrong ends the deployment."""
        self.checks[name] = passed, said
        if not passed:
            self.problem = said
        return passed


def _wanted(registry: ModelRegistry, model: str, version: int | None) -> ModelVersion:
    return registry.champion(model) if version is None else registry.version(model, version)


def _deploy(
    context: dg.AssetExecutionContext,
    registry: ModelRegistry,
    config: EndpointConfig,
    make_plan: Callable[[], _Plan],
    done: _Deployed,
) -> None:
    """Deploy one version; `done` takes down what comes of it. What keeps one endpoint from being deployed is said of that one."""
    from quant_assets.serving.bundle import BundleError
    from quant_assets.simulation.markets import MarketError
    from quant_assets.simulation.transitions import BufferFileError

    try:
        plan = done.plan = make_plan()
        _roll_out(context, registry, config, plan, done)
    except (EndpointError, RegistryError, BundleError, MarketError, BufferFileError, WarehouseError) as error:
        done.problem = f"{type(error).__name__}: {error}"
        context.log.error("%s: %s", done.endpoint.name, done.problem)


def _roll_out(
    context: dg.AssetExecutionContext,
    registry: ModelRegistry,
    config: EndpointConfig,
    plan: _Plan,
    done: _Deployed,
) -> None:
    """Gate, preflight, canary. A version is taken back when it was found wrong, and not when something around it failed: then the same
    deployment may be tried again.
    """
    from quant_assets.serving.preflight import BundleRefused, run_preflight

    endpoint, version = done.endpoint, plan.version
    before = done.status = endpoint.status()
    if before.phase == "stopped" and "dagster/sensor_name" in context.run.tags:
        raise EndpointError(
            f"endpoint {endpoint.name} was stopped by a person, and a sensor does not bring it back: make endpoints DO=start"
        )
    gate, approved = _gate(registry, version)
    said = f"{version.name} v{version.version}: gate {gate or 'of before there were tags'}" + (
        ", approved by a person" if approved else ""
    )
    if not done.check("gate_passed", gate in ("", "passed") or (approved and gate != "rolled_back"), said):
        return
    release = done.release = Release.of(
        _keep_archive(version, plan.archive),
        version.name,
        version.version,
        capture_share=_given(config.capture_share, settings().endpoint_capture_share),
        workers=_given(config.workers, settings().endpoint_workers),
        tags={
            "approval": "Approved",  # what gets here has passed its gate, or a person let it pass
            "git_commit": str(version.bundle["lineage"].get("git_commit", "")),
            "dagster_run_id": context.run.run_id,
            "mlflow_run_id": version.run_id,
        },
    )
    wanted = endpoint.config_of(release)
    if before.phase == "in_service" and before.config == wanted:
        done.check("preflight", True, f"{endpoint.name} serves this bundle already: nothing was changed")
        done.check("rollout", True, f"{before.config} serves already")
        return
    captured = newest_captured(endpoint, config.replay_requests)
    try:
        found = done.preflight = run_preflight(
            release.bundle,
            plan.description,
            plan.calendar,
            plan.examples,
            captured,
            progress=lambda line: context.log.info("%s: %s", endpoint.name, line),
        )
        fine = done.check("preflight", found.passed, found.summary())
    except BundleRefused as error:
        fine = done.check("preflight", False, str(error))
    if not fine:
        _take_back(context, registry, version, before, done.problem)
        return
    endpoint.deploy(
        release,
        Rollout(
            canary_share=config.canary_share,
            bake_seconds=config.bake_seconds,
            max_errors_5xx=config.max_errors_5xx,
            max_p99_latency_ms=config.max_p99_latency_ms,
            max_invalid=config.max_invalid,
        ),
    )
    status = done.status = endpoint.wait(
        STATUS_SECONDS + config.bake_seconds,
        progress=lambda now: context.log.info("%s: %s", endpoint.name, progress_line(now)),
    )
    done.changed = True
    served = status.phase == "in_service" and status.config == wanted
    if not done.check("rollout", served, f"{status.last_outcome}: {status.message}") and (
        status.phase == "in_service" and status.last_outcome == "rolled_back"
    ):
        _take_back(context, registry, version, status, done.problem)


def _given(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _gate(registry: ModelRegistry, version: ModelVersion) -> tuple[str, bool]:
    tags = registry.client.get_model_version(version.name, str(version.version)).tags
    return tags.get(GATE_TAG, ""), tags.get(APPROVED_TAG) == "true"


def _take_back(
    context: dg.AssetExecutionContext,
    registry: ModelRegistry,
    version: ModelVersion,
    serving: EndpointStatus,
    reason: str,
) -> None:
    """The version that serves is champion again, so that nights which ask the registry, and the sensor that deploys champions, agree
    with the endpoint."""
    champion = registry.find(version.name)
    if (
        champion is None
        or champion.version != version.version
        or serving.model != version.name
        or serving.model_version in (None, version.version)
    ):
        return
    assert serving.model_version is not None
    if not _can_be_fed(registry.version(version.name, serving.model_version)):
        context.log.warning(
            "%s v%d serves features of another definition: version %d stays champion",
            version.name,
            serving.model_version,
            version.version,
        )
        return
    registry.restore(version.name, serving.model_version, version.version, reason)
    context.log.warning(
        "%s: version %d is champion again, version %d was taken back: %s",
        version.name,
        serving.model_version,
        version.version,
        reason,
    )


def _can_be_fed(version: ModelVersion) -> bool:
    """Whether the code still computes what a version reads; nights could not ask it otherwise."""
    if version.name not in SIGNAL_MODELS:
        return True
    try:
        require_same_features(version.name, version.bundle)
    except FeatureSchemaMismatch:
        return False
    return True


def _keep_archive(version: ModelVersion, archive: bytes) -> Path:
    """The archive as a file, whole or not at all."""
    import hashlib

    folder = settings().endpoints_dir / "bundles"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{version.name}-v{version.version}-{hashlib.sha256(archive).hexdigest()[:12]}.tar.gz"
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".bundle-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(archive)
        os.replace(temporary, folder / name)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return folder / name


def newest_captured(endpoint: Endpoint, most: int) -> list[CapturedRequest]:
    """The newest captured requests of the last days, oldest first."""
    from collections import deque

    if not most:
        return []
    now, newest = dt.datetime.now(dt.UTC), []
    for days in (1, REPLAY_DAYS):  # a day holds enough where there is traffic
        newest = list(deque(endpoint.captured(now - dt.timedelta(days=days)), maxlen=most))
        if len(newest) == most:
            break
    return newest


def progress_line(status: EndpointStatus) -> str:
    """A rollout in a line of the log."""
    variants = ", ".join(
        f"{v.config} {v.share:.0%} of traffic, {v.requests} requests, {v.errors_5xx} 5xx, {v.invalid} invalid"
        + (f", p99 {v.p99_ms:.1f} ms" if v.p99_ms is not None else "")
        for v in status.variants
    )
    return f"{status.phase}: {variants or status.message or 'no process'}"


# -- what a person sees ------------------------------------------------------------------------------------------------


def _report(asset: str, all_done: "list[_Deployed]") -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Checks, then the materialization, or a failure that names every endpoint which was not deployed."""
    from quant_assets.serving import plots

    failed = {}
    for name in ("gate_passed", "preflight", "rollout"):
        found = {d.endpoint.name: d.checks[name] for d in all_done if name in d.checks}
        missing = {d.endpoint.name: d.problem for d in all_done if name not in d.checks}
        yield dg.AssetCheckResult(
            asset_key=dg.AssetKey([GROUP, asset]),
            check_name=name,
            passed=not missing and all(fine for fine, _ in found.values()),
            description="; ".join(
                [f"{endpoint}: {said}" for endpoint, (_, said) in found.items()]
                + [f"{endpoint}: not reached, {problem}" for endpoint, problem in missing.items()]
            ),
        )
    rows: list[dict[str, object]] = []
    problems: list[dict[str, object]] = []
    comparison: list[dict[str, object]] = []
    figures = {}
    for done in all_done:
        status = done.status or EndpointStatus(done.endpoint.name, "absent")
        if done.problem:
            failed[status.name] = done.problem
        rows.append(
            {
                "endpoint": status.name,
                "serves": f"{status.model} v{status.model_version}" if status.model else status.phase,
                "outcome": "failed" if done.problem else ("deployed" if done.changed else "unchanged"),
                "asked for": f"{done.model} v{done.plan.version.version}" if done.plan else done.model,
                "config": status.config or "",
                "before": status.previous_config or "",
                "phase": status.phase,
            }
        )
        if done.preflight:
            problems += [{"endpoint": status.name, **p} for p in done.preflight.problems[:SHOWN_PROBLEMS]]
            comparison += [{"endpoint": status.name, **c} for c in done.preflight.comparison]
            if done.preflight.latency_ms:
                figures[f"Latency before traffic, {status.name}"] = plots.latency_figure(
                    done.preflight.latency_ms
                )
    metadata = {
        "endpoints": markdown_table(rows),
        "how to ask": how_to_ask(all_done),
        **({"preflight problems": markdown_table(problems)} if problems else {}),
        **({"compared on captured requests": markdown_table(comparison)} if comparison else {}),
        **{title: figure_markdown(figure, title) for title, figure in figures.items()},
    }
    if failed:
        raise dg.Failure(
            "not deployed: "
            + "; ".join(f"{endpoint}: {problem}" for endpoint, problem in failed.items())
            + ". What served before serves on.",
            metadata=metadata,
            allow_retries=False,
        )
    yield dg.MaterializeResult(
        metadata=metadata,
        data_version=dg.DataVersion(",".join(str(row["config"]) for row in rows)),
    )


def how_to_ask(all_done: "list[_Deployed]") -> dg.MarkdownMetadataValue:
    """A request that a person can paste into a shell."""
    lines = []
    for done in all_done:
        if done.plan is None or done.status is None:
            continue
        status = done.status
        if done.plan.description["kind"] == "execution":
            ticker = min(done.plan.description["markets"])
            body = json.dumps({"ticker": ticker, "shares": 1000, "horizon_minutes": 390})
        else:
            body = '{"rows": [{"symbol": ..., "session": ..., "features": {...}}]}'
        if status.url.startswith("http://127."):
            direct = status.url.removesuffix("/invocations") + "/direct"
            lines.append(f"curl -s {direct} \\\n  -H 'content-type: application/json' \\\n  -d '{body}'")
        elif status.url:  # signed requests only
            name = status.url.removesuffix("/invocations").rsplit("/", 1)[1]
            lines.append(
                f"aws sagemaker-runtime invoke-endpoint --endpoint-name {name} --content-type application/json "
                f"--cli-binary-format raw-in-base64-out --body '{body}' /dev/stdout"
            )
    return dg.MetadataValue.md("```\n" + "\n".join(lines or ["nothing serves"]) + "\n```")


# -- what was asked ----------------------------------------------------------------------------------------------------


@dg.asset(
    key=[GROUP, "captured_requests"],
    metadata=table_metadata(tables.CAPTURED_REQUESTS),
    group_name=GROUP,
    description="Requests that the endpoints answered, with their answers: a sampled share, captured where they were served and brought in by "
    "each night. One row per request; `session` is the exchange session that it was about, `available_at` the instant of the answer "
    "(UTC). Requests about sessions outside the source's span are counted and left out.",
    deps=[dg.AssetKey([GROUP, "execution_endpoint"]), dg.AssetKey([GROUP, "signal_endpoint"])],
    kinds={"iceberg"},
    owners=OWNERS,
    code_version="1",
    # Commands over a range of sessions want a policy of every selected asset.
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def captured_requests(
    context: dg.AssetExecutionContext,
    warehouse: dg.ResourceParam[Warehouse],
    endpoints: dg.ResourceParam[Endpoints],
) -> dg.MaterializeResult:
    """Append what was captured since the last time; what is stored already is not stored twice."""
    import pyarrow.compute as pc

    spec = tables.CAPTURED_REQUESTS
    stored = warehouse.read(spec, columns=["event_id"])
    known = set(stored["event_id"].to_pylist())
    rows, outside, unreadable, unseen = [], 0, 0, {}
    read_until = _read_until()
    for name in (EXECUTION_ENDPOINT, *(endpoint_name(model) for model in SIGNAL_MODELS)):
        newest = read_until.get(name)
        # An hour again: files of several processes are not in order, and SageMaker's come late.
        since = dt.datetime.fromisoformat(newest) - dt.timedelta(hours=1) if newest else None
        try:
            for request in endpoints.endpoint(name).captured(since):
                read_until[name] = max(read_until.get(name, ""), request.at.isoformat())
                if request.event_id in known:
                    continue
                row = captured_row(request)
                if row is None:
                    unreadable += 1
                elif not CALENDAR.is_session(row["session"]):  # type: ignore[arg-type]
                    outside += 1
                else:
                    known.add(request.event_id)
                    rows.append(row)
        except EndpointError as error:
            # The night goes on: what was captured stays where it is, and the next one brings it in.
            unseen[name] = str(error)
            context.log.warning("%s: captured requests cannot be read: %s", name, error)
    if rows:
        new = pa.Table.from_pylist(rows, schema=spec.arrow_schema)
        bounds = pc.min_max(new["session"]).as_py()
        slice_of = (bounds["min"], bounds["max"])
        before = warehouse.read(spec, *slice_of)
        warehouse.write(
            spec, pa.concat_tables([before.cast(new.schema), new]), *slice_of, {"run_id": context.run.run_id}
        )
    _remember_read_until(read_until)
    if unreadable:
        context.log.warning("%d captured requests hold no answer of ours and were left out", unreadable)
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        at = (str(row["endpoint"]), str(row["session"]))
        counts[at] = counts.get(at, 0) + 1
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": stored.num_rows + len(rows),
            "new": len(rows),
            "outside the calendar": outside,
            "unreadable": unreadable,
            **(
                {
                    "endpoints that cannot be read": markdown_table(
                        [{"endpoint": k, "why": v} for k, v in unseen.items()]
                    )
                }
                if unseen
                else {}
            ),
            "new by session": markdown_table(
                [{"endpoint": e, "session": s, "requests": n} for (e, s), n in sorted(counts.items())]
            ),
        }
    )


def _read_until() -> dict[str, str]:
    """Endpoint -> instant of the newest request that was looked at; empty where nobody knows, and all is looked at again."""
    try:
        return dict(json.loads((settings().endpoints_dir / READ_UNTIL_FILE).read_text()))
    except (OSError, ValueError):
        return {}


def _remember_read_until(instants: Mapping[str, str]) -> None:
    folder = settings().endpoints_dir
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".read-")
    with os.fdopen(handle, "w") as file:
        json.dump(dict(instants), file)
    os.replace(temporary, folder / READ_UNTIL_FILE)


def captured_row(request: CapturedRequest) -> dict[str, object] | None:
    """A row of the table; None where the answer is none of ours."""
    try:
        answer = json.loads(request.response)
        return {
            "event_id": request.event_id,
            "session": dt.date.fromisoformat(answer["session"]),
            "available_at": request.at,
            "endpoint": request.endpoint,
            "config": request.config,
            "kind": "execution" if "schedule" in answer else "signal",
            "model": str(answer["model"]),
            "model_version": int(answer["model_version"]),
            "request": request.request,
            "response": request.response,
        }
    except (KeyError, TypeError, ValueError):
        return None
