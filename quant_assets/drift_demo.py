"""From model to endpoint and back: `python -m quant_assets.drift_demo`, or `make drift-demo`.

Belongs here: a world whose volatility changes, traffic that never stops, the steps of the story, and what is told of it. Does not belong
here: any work: runs are those that a person, the schedule or the sensors would launch, sensors are evaluated as the daemon does.

The world is the sample with its price moves made smaller until a day and larger from then on. Traffic is plain HTTP on this machine, from
the first deployment until the supervisor itself is killed, and any answer but a 200 counts as failed.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pyarrow as pa

if TYPE_CHECKING:
    import dagster as dg

    from quant_resources.endpoints import Endpoint, EndpointStatus
    from quant_resources.registry import ModelVersion
    from quant_resources.sources import MarketSource

SYMBOLS = "AAPL,GOOG,IBM,MSFT"
FIRST, SHIFT = dt.date(2010, 6, 1), dt.date(2012, 4, 2)
IN_SAMPLE_LAST = dt.date(2011, 6, 30)
# Of the sample's moves, before and after: brackets of 2 % are hardly reached in five calm sessions, and nearly always in wild ones.
CALM, WILD = 0.4, 1.6
NIGHTS_A_RUN = 15
MOST_SESSIONS_AFTER = 120
REQUESTS_A_SECOND = 20.0
MOST_REQUESTS = 60_000
POSTERIOR_SYMBOL = "IBM"
MARK = ".drift-demo"  # in a folder that the next demo may empty
MODEL, ENDPOINT = "mlp_technical", "signal-mlp-technical"
ENDPOINT_OP = "serving__signal_endpoint"
BAKE_SECONDS = 4.0
# An input that is possible and that no session here has: twice the price within sixteen sessions, percent.
TRAP_INPUT, TRAP_VALUE = "roc_16_pct", 100.0
SMALL_AGENT = {
    "seeds": 1,
    "parameters": {
        "hidden_units": [16, 16],
        "batch_size": 64,
        "evaluations": 3,
        "steps": 2600,
        "episodes": 4,
    },
}


# -- the world ---------------------------------------------------------------------------------------------------------


class RegimeShift:
    """A source whose volatility changes.

    Args:
        inner: source of the bars.
        since: first session of the new regime.
        before, after: log prices are this many times as far from the last close before `since`.
    """

    def __init__(self, inner: MarketSource, since: dt.date, before: float, after: float) -> None:
        self.inner, self.since, self.before, self.after = inner, since, before, after
        self.name = f"{inner.name}, moves x {before:g}, from {since} on x {after:g}"
        self.news_is_simulated, self.has_minute_bars = inner.news_is_simulated, inner.has_minute_bars
        self.overlap_sessions, self.is_live = inner.overlap_sessions, inner.is_live

    def bars(self, first: dt.date, last: dt.date) -> pa.Table:
        """See `MarketSource.bars`; opens, highs and lows move with the closes, so a bar stays a bar."""
        import numpy as np

        rows = self.inner.bars(first, last)
        near = self.inner.bars(self.since - dt.timedelta(days=14), self.since - dt.timedelta(days=1))
        anchor = dict(zip(near["symbol"].to_pylist(), near["close"].to_pylist(), strict=True))
        late = np.array([day >= self.since for day in rows["session"].to_pylist()], bool)
        base = np.array([anchor.get(symbol, np.nan) for symbol in rows["symbol"].to_pylist()])
        for name in ("open", "high", "low", "close"):
            price = rows[name].to_numpy()
            moved = base * (price / base) ** np.where(late, self.after, self.before)
            at = rows.column_names.index(name)
            rows = rows.set_column(at, rows.schema.field(name), pa.array(moved))
        return rows

    def span(self) -> tuple[dt.date, dt.date | None]:
        """See `MarketSource.span`."""
        return self.inner.span()

    def news(self, first: dt.date, last: dt.date) -> pa.Table:
        """Unchanged."""
        return self.inner.news(first, last)

    def minute_bars(self, first: dt.date, last: dt.date) -> pa.Table:
        """Unchanged."""
        return self.inner.minute_bars(first, last)

    def securities(self) -> pa.Table:
        """Unchanged."""
        return self.inner.securities()


# -- traffic -----------------------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """One request of the traffic.

    Attributes:
        second: since the traffic began.
        endpoint: who was asked.
        status: of the answer; 0 where there was none.
        served_by: model, version and bundle that answered.
        latency_ms: as the client saw it.
        said: the start of an answer that was not a 200.
    """

    second: float
    endpoint: str
    status: int
    served_by: str
    latency_ms: float
    said: str = ""


class Traffic:
    """Requests to both kinds of endpoint from a thread of its own, at a bounded rate and up to a bounded number."""

    def __init__(self, url: str) -> None:
        self.url, self.asked = url, list[Asked]()
        self.rows: list[dict[str, Any]] = []
        self.start_at = dt.datetime(2012, 1, 3, 14, 30, tzinfo=dt.UTC)
        self.trap = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self.began = 0.0

    def begin(self) -> None:
        """Start asking."""
        self.began = time.monotonic()
        self._thread.start()

    def end(self) -> None:
        """Stop and wait for the answer that is out."""
        self._stop.set()
        self._thread.join(60)

    @property
    def failed(self) -> list[Asked]:
        """What was not answered with a 200."""
        return [a for a in self.asked if a.status != 200]

    def _run(self) -> None:
        import httpx

        with httpx.Client(timeout=30.0) as client:
            for number in range(MOST_REQUESTS):
                if self._stop.wait(1 / REQUESTS_A_SECOND):
                    return
                endpoint, body = self._request(number)
                begun = time.monotonic()
                try:
                    answer = client.post(
                        f"{self.url}/endpoints/{endpoint}/invocations",
                        content=json.dumps(body).encode(),
                        headers={"content-type": "application/json"},
                    )
                    status, said = answer.status_code, answer.text[:300] if answer.status_code != 200 else ""
                    served = answer.headers.get("x-quant-served-by", "")
                except httpx.TransportError as error:
                    status, said, served = 0, f"{type(error).__name__}: {error}", ""
                now = time.monotonic()
                self.asked.append(
                    Asked(begun - self.began, endpoint, status, served, 1e3 * (now - begun), said)
                )

    def _request(self, number: int) -> tuple[str, dict[str, Any]]:
        if number % 3 == 0 or not self.rows:
            minutes = 1 + number * 37 % 390
            order = {"ticker": POSTERIOR_SYMBOL, "shares": 10 + number % 500, "horizon_minutes": minutes}
            return "execution", {**order, "start": self.start_at.isoformat()}
        row = self.rows[number % len(self.rows)]
        if self.trap:
            row = {**row, "features": {**row["features"], TRAP_INPUT: TRAP_VALUE}}
        return ENDPOINT, {"rows": [row]}


# -- the story ---------------------------------------------------------------------------------------------------------


@dataclass
class Story:
    """What happened; the last line of the output and what tests look at."""

    shift: str = ""
    event: str = ""
    sessions_until_seen: int | None = None
    sessions_until_redeployed: int | None = None
    redeployments: dict[str, int] = field(default_factory=dict)
    false_events_before_shift: int = 0
    served: list[str] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)
    requests: int = 0
    failed: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    kills: dict[str, str] = field(default_factory=dict)
    signals_served_by: dict[str, str] = field(default_factory=dict)
    step_seconds: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def broken_promises(self) -> list[str]:
        """What should have come out otherwise."""
        kept = {
            f"{self.failed} of {self.requests} requests failed": self.failed == 0 < self.requests,
            f"drift was seen after {self.sessions_until_seen} sessions": self.sessions_until_seen is not None,
            f"redeployments: {self.redeployments}": self.redeployments.get(self.event) == 1,
            f"redeployment: {self.outcomes.get('redeployment')}": self.outcomes.get("redeployment")
            == "deployed",
            f"bad challenger: {self.outcomes.get('bad challenger')}": self.outcomes.get("bad challenger")
            == "stopped by the gate",
            f"breaking challenger: {self.outcomes.get('breaking challenger')}": str(
                self.outcomes.get("breaking challenger")
            ).startswith("rolled_back"),
            **{f"kill of the {who}: {said}": "in_service" in said for who, said in self.kills.items()},
        }
        return [what for what, fine in kept.items() if not fine]


class DriftDemo:
    """The steps, in order. Each prints what it does and writes what came of it into the story."""

    def __init__(self, home: Path, instance: dg.DagsterInstance) -> None:
        from quant_assets.definitions import build_defs
        from quant_assets.partitions import CALENDAR, settings
        from quant_resources.endpoints.local import LocalEndpoints
        from quant_resources.iceberg import Warehouse
        from quant_resources.registry import ModelRegistry
        from quant_resources.sources import open_source

        self.home, self.instance, self.calendar = home, instance, CALENDAR
        self.endpoints = LocalEndpoints(settings().endpoints_dir, settings().endpoint_port)
        self.defs = build_defs(
            {
                "source": RegimeShift(open_source(settings()), SHIFT, CALM, WILD),
                "endpoints": self.endpoints,
            }
        )
        self.warehouse, self.registry = Warehouse(home), ModelRegistry(home)
        self.cursors: dict[str, str | None] = {}
        self.story = Story(shift=str(SHIFT))
        self.fed = 0  # sessions of the new regime that were brought in
        self.traffic: Traffic | None = None

    @property
    def endpoint(self) -> Endpoint:
        """The classifier's, which the story is about."""
        return self.endpoints.endpoint(ENDPOINT)

    # Runs, as a person, the schedule and the daemon launch them.

    def run(self, job: str, **options: Any) -> bool:
        """A job with progress; says whether it succeeded."""
        from quant_assets.launch import run_job

        return run_job(self.defs, self.instance, job, **{"tags": {}, **options})

    def must(self, job: str, **options: Any) -> None:
        """A job that has to succeed for the story to go on."""
        if not self.run(job, **options):
            raise SystemExit(f"{job} failed; see above")

    def sessions(self, first: dt.date, last: dt.date) -> None:
        """Nights over a range of sessions, in one run."""
        from quant_assets.launch import RANGE_TAGS

        tags = dict(zip(RANGE_TAGS, (first.isoformat(), last.isoformat()), strict=True))
        self.must("daily_signals_job", tags=tags)
        self.ask_about(last)

    def tick(self, name: str) -> list[dg.RunRequest]:
        """Evaluate a sensor as the daemon does; its cursor is kept, its reason for doing nothing is printed."""
        import dagster as dg

        sensor = self.defs.resolve_sensor_def(name)
        resources = {key: self.defs.resources[key] for key in sorted(sensor.required_resource_keys)}  # type: ignore[index]
        begun = time.monotonic()
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursors.get(name),
            resources=resources,
            definitions=self.defs,
        ) as context:
            found = sensor.evaluate_tick(context)
        took = time.monotonic() - begun
        self.cursors[name] = found.cursor
        requests = [
            r
            for r in found.run_requests or []
            if not self.instance.get_run_records(_with_key(r.run_key), limit=1)
        ]
        said = (
            ", ".join(f"{r.job_name or sensor.job_name} {r.run_key}" for r in requests) or found.skip_message
        )
        print(f"  {name} ({1e3 * took:.0f} ms): {said}", flush=True)
        return requests

    def launch(self, request: dg.RunRequest, sensor: str) -> bool:
        """Run what a sensor asked for, with a shorter canary than a night would have."""
        job = request.job_name or self.defs.resolve_sensor_def(sensor).job_name
        run_config = json.loads(json.dumps(request.run_config))
        if ENDPOINT_OP in run_config.get("ops", {}):
            run_config["ops"][ENDPOINT_OP]["config"]["bake_seconds"] = BAKE_SECONDS
        return self.run(
            job,
            tags={**request.tags, "dagster/run_key": str(request.run_key), "dagster/sensor_name": sensor},
            run_config=run_config,
            only=[key.to_user_string() for key in request.asset_selection or ()],
        )

    # The steps.

    def prepare(self) -> None:
        """Champions on what was before: three classifiers, and an agent on the days of one symbol."""
        from quant_assets.launch import RANGE_TAGS

        until = self.calendar.shift(SHIFT, -11)
        say(f"The chain, {FIRST} to {until}; models learn until {IN_SAMPLE_LAST}")
        learned = {"in_sample_last": IN_SAMPLE_LAST.isoformat()}
        tags = dict(zip(RANGE_TAGS, (FIRST.isoformat(), until.isoformat()), strict=True))
        classifiers = ("mlp_technical", "mlp_sentiment", "mlp_enhanced")
        self.must("chain_job", tags=tags, ops={f"models__{name}": learned for name in classifiers})
        say(f"A posterior and an agent for {POSTERIOR_SYMBOL}")
        small = {
            "posterior__heston": {"in_sample_fraction": 0.7, "draws": 500, "max_r_hat": 1.02},
            "simulation__intraday_paths": {"draws": 200},
        }
        self.must("posterior_job", ops=small, partition_key=POSTERIOR_SYMBOL)
        self.must(
            "train_agents_job", ops={"models__sac_execution": SMALL_AGENT}, only=["models/sac_execution"]
        )

    def deploy(self) -> None:
        """Both kinds of endpoint, and traffic from here on."""
        say("Deploy the champions; deploy them again: nothing changes")
        self.must("deploy_job")
        before = self.endpoint.status()
        self.must("deploy_job")
        assert self.endpoint.status().config == before.config
        self.told("first deployment")
        base = before.url.split("/endpoints/")[0]
        self.traffic = Traffic(base)
        self.ask_about(self.calendar.shift(SHIFT, -11))
        self.traffic.begin()
        print(
            f"  traffic: {REQUESTS_A_SECOND:g} requests a second to {base}, until the supervisor is killed",
            flush=True,
        )

    def quiet_nights(self) -> None:
        """Ten sessions before the shift: the drift table is silent, signals come from the endpoint."""
        say("Ten sessions of the old regime")
        self.sessions(self.calendar.shift(SHIFT, -10), self.calendar.shift(SHIFT, -1))
        self.story.false_events_before_shift = len(self.events(self.calendar.shift(SHIFT, -1)))
        self.tick("model_drift_sensor")
        self.night_of_signals("endpoint up")

    def until_seen(self) -> None:
        """Sessions of the new regime until the table names a drift event."""
        say(f"From {SHIFT} on volatility is {WILD / CALM:g} times what it was")
        for first, last in self.chunks(0, MOST_SESSIONS_AFTER):
            self.sessions(first, last)
            if requests := self.tick("model_drift_sensor"):
                raise SystemExit(f"redeployment too early: {requests}")
            if events := self.events(last):
                seen = min(events.values())
                self.story.event = next(e for e, s in events.items() if s == seen)
                self.story.sessions_until_seen = self.after(seen)
                print(
                    f"  drift of {self.story.event} in the table after {self.after(seen)} sessions",
                    flush=True,
                )
                self.fed = self.after(last)
                return
        raise SystemExit("the drift was not seen")

    def until_judged(self) -> None:
        """Sessions enough for a gate to judge by."""
        say("More sessions: enough for a gate to judge by")
        for first, last in self.chunks(self.fed, 45, nights=31):
            self.sessions(first, last)
            self.fed = self.after(last)
        self.tick("model_drift_sensor")

    def bad_challenger(self) -> None:
        """A network that learned nothing; the gate keeps the champion."""
        say("A challenger that learned nothing: the gate stops it")
        champion = self.registry.champion(MODEL).version
        learned = {"in_sample_last": IN_SAMPLE_LAST.isoformat()}
        bad = {"models__mlp_technical": {**learned, "max_epochs": 1, "learning_rate": 1e-9}}
        self.must("train_job", ops=bad, only=[f"models/{MODEL}"])
        kept = self.registry.champion(MODEL).version == champion
        self.story.outcomes["bad challenger"] = "stopped by the gate" if kept else "promoted"
        for request in self.tick("new_champion_sensor"):
            self.launch(request, "new_champion_sensor")
        self.told("bad challenger")

    def breaking_challenger(self) -> None:
        """Better on every session that the gate knows, and broken by an input that only traffic has: the canary brings it down."""
        say("A challenger that passes the gate and breaks under canary: rolled back by itself")
        champion = self.registry.champion(MODEL)
        version, verdict = self.register_trap(champion)
        print(f"  {MODEL} v{version.version}: {verdict}", flush=True)
        assert self.registry.champion(MODEL).version == version.version, verdict
        requests = self.tick("new_champion_sensor")
        watcher = threading.Thread(target=self._set_trap_under_canary, daemon=True)
        watcher.start()
        deployed = [self.launch(request, "new_champion_sensor") for request in requests]
        watcher.join(60)
        assert self.traffic is not None
        self.traffic.trap = False
        status = self.endpoint.status()
        self.story.outcomes["breaking challenger"] = (
            f"{status.last_outcome}: {status.message}" if deployed == [False] else f"deployed: {deployed}"
        )
        self.story.outcomes["champion after rollback"] = f"v{self.registry.champion(MODEL).version}"
        self.tick("new_champion_sensor")
        self.told("breaking challenger")

    def _set_trap_under_canary(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if any(0 < v.share < 1 for v in self.endpoint.status().variants):
                assert self.traffic is not None
                self.traffic.trap = True
                return
            time.sleep(0.05)

    def redeploy(self) -> None:
        """Sessions until the drift sensor launches its one run; the new version takes the traffic."""
        say("The drift sensor launches one redeployment, when there is enough to learn from")
        launched: dict[str, bool] = {}
        for first, last in self.chunks(self.fed, MOST_SESSIONS_AFTER):
            self.sessions(first, last)
            self.fed = self.after(last)
            for request in self.redeployments():
                launched[str(request.run_key)] = self.launch(request, "model_drift_sensor")
            if self.story.event in launched:
                break
        done = launched.get(self.story.event)
        self.story.sessions_until_redeployed = self.fed if done else None
        self.story.outcomes["redeployment"] = (
            self.endpoint.status().last_outcome if done else f"runs {launched}"
        )
        self.tick("new_champion_sensor")
        self.told("redeployment")
        for first, last in self.chunks(self.fed, self.fed + 5):
            self.sessions(first, last)
            self.fed = self.after(last)
        for request in self.redeployments():
            self.launch(request, "model_drift_sensor")

    def redeployments(self) -> list[dg.RunRequest]:
        """What the drift sensor asks for in a tick, counted by event."""
        requests = self.tick("model_drift_sensor")
        for request in requests:
            known = self.story.redeployments.get(str(request.run_key), 0)
            self.story.redeployments[str(request.run_key)] = known + 1
        return requests

    def kill_worker(self) -> None:
        """A worker killed under traffic: answers wait for the next one."""
        say("kill -9 of the worker, under traffic")
        assert self.traffic is not None
        before, failed = len(self.traffic.asked), len(self.traffic.failed)
        killed = _kill_workers(self.home, self.endpoint.status())
        self.endpoint.wait(60)
        time.sleep(3)
        answered = len(self.traffic.asked) - before
        self.story.kills["worker"] = (
            f"killed {killed}, {answered} requests since, {len(self.traffic.failed) - failed} failed; "
            f"{_serves(self.endpoint.status())}"
        )
        print(f"  {self.story.kills['worker']}", flush=True)

    def end_traffic(self) -> None:
        """Count."""
        import numpy as np

        assert self.traffic is not None
        self.traffic.end()
        asked = self.traffic.asked
        latency = [a.latency_ms for a in asked if a.status == 200]
        self.story.requests, self.story.failed = len(asked), len(self.traffic.failed)
        self.story.failures = [asdict(a) for a in self.traffic.failed[:5]]
        self.story.p50_ms, self.story.p99_ms = (float(np.quantile(latency, q)) for q in (0.5, 0.99))
        say(
            f"Traffic: {len(asked)} requests, {self.story.failed} failed, p50 {self.story.p50_ms:.1f} ms, "
            f"p99 {self.story.p99_ms:.1f} ms"
        )

    def kill_run(self) -> None:
        """The run that asked for a rollout is killed in the middle of it: the rollout ends all the same."""
        say("kill -9 of the run in the middle of a rollout")
        process = self.rollout_elsewhere(capture_share=0.5)
        self.wait_for_canary(process)
        process.kill()
        process.wait()
        status = self.endpoint.wait(120)
        self.story.kills["run"] = f"{status.last_outcome}; {_serves(status)}"
        print(f"  {self.story.kills['run']}", flush=True)

    def kill_supervisor(self) -> None:
        """The supervisor is killed in the middle of a rollout: the health sensor has it started again, with the version of before."""
        say("kill -9 of the supervisor in the middle of a rollout")
        process = self.rollout_elsewhere(capture_share=0.25)
        self.wait_for_canary(process)
        os.kill(self.endpoints.supervisor["pid"], signal.SIGKILL)
        process.wait(120)
        requests = self.tick("endpoint_health_sensor")
        for request in requests:
            self.launch(request, "endpoint_health_sensor")
        status = self.endpoint.wait(120)
        answer = self.endpoint.invoke(json.dumps({"rows": self.current_rows()}).encode())
        self.story.kills["supervisor"] = (
            f"{len(requests)} runs of the health sensor; {_serves(status)}; answers {answer.status}; {status.message}"
        )
        print(f"  {self.story.kills['supervisor']}", flush=True)

    def endpoint_down(self) -> None:
        """The endpoint is away: the night asks the registry, and says so. What a person stopped no sensor brings back."""
        say("Endpoints stopped: the night falls back to the registry")
        self.endpoints.stop()
        if requests := self.tick("endpoint_health_sensor"):
            raise SystemExit(f"the health sensor wants back what was stopped: {requests}")
        self.night_of_signals("endpoint down")

    def tear_down(self) -> None:
        """Everything away."""
        say("Teardown")
        for name in ("execution", "signal-mlp-technical", "signal-mlp-sentiment", "signal-mlp-enhanced"):
            self.must("teardown_job", ops={"delete_endpoint": {"endpoint": name}})
        self.story.outcomes["teardown"] = self.endpoint.status().phase
        self.endpoints.stop()

    # What the steps need.

    def chunks(self, after: int, until: int, nights: int = NIGHTS_A_RUN) -> list[tuple[dt.date, dt.date]]:
        """Ranges of sessions, `after` ... `until` sessions after the shift, so many nights in a run."""
        days = [self.calendar.shift(SHIFT, i) for i in range(after, until)]
        return [(days[i], days[min(i + nights, len(days)) - 1]) for i in range(0, len(days), nights)]

    def after(self, session: dt.date) -> int:
        """How many sessions of the new regime there are up to a session, that included."""
        return self.calendar.ordinal(session) - self.calendar.ordinal(SHIFT) + 1

    def events(self, until: dt.date) -> dict[str, dt.date]:
        """Drift events of the model, with the session that each was seen in first."""
        from quant_assets.monitoring.tables import DRIFT

        found: dict[str, dt.date] = {}
        for row in self.warehouse.read(
            DRIFT, FIRST, until, columns=["model", "event_id", "session"]
        ).to_pylist():
            if row["model"] == MODEL and row["event_id"]:
                known = found.get(row["event_id"], row["session"])
                found[row["event_id"]] = min(known, row["session"])
        return found

    def register_trap(self, champion: ModelVersion) -> tuple[ModelVersion, str]:
        """A challenger that knows the answers of the gate's sessions and gives NaN for the trap's input; judged by the gate."""
        import numpy as np

        from quant_assets.features import tables
        from quant_assets.models import gate
        from quant_assets.models.dataset import make_dataset
        from quant_assets.models.feature_sets import FEATURE_SETS
        from quant_assets.models.mlp import OnnxMlp

        features = FEATURE_SETS[MODEL]
        data = make_dataset(
            [self.warehouse.read(t) for t in features.tables],
            self.warehouse.read(tables.LABELS),
            features.inputs,
        )
        unseen = data.take(data.session >= np.datetime64(SHIFT))
        onnx = trap_network(len(features.inputs), features.inputs.index(TRAP_INPUT), unseen.y.mean(axis=0))
        theirs = OnnxMlp(champion.onnx, champion.bundle["symbols"]).predict(unseen.x, unseen.symbol)
        ours = OnnxMlp(onnx, champion.bundle["symbols"]).predict(unseen.x, unseen.symbol)
        verdict = gate.judge(unseen.y, ours, theirs, unseen.session)
        windows = {**champion.bundle["windows"], "in_sample_last": str(self.calendar.shift(SHIFT, -1))}
        version = self.registry.register(
            MODEL, onnx, {**champion.bundle, "windows": windows}, {}, {"made": "to break under canary"}, {}
        )
        self.registry.decide(version, verdict.promote, verdict.reason, "auto")
        return version, verdict.reason

    def ask_about(self, session: dt.date) -> None:
        """Traffic is about the newest session."""
        if self.traffic is not None:
            self.traffic.rows = self.current_rows(session)
            self.traffic.start_at = self.calendar.opens(session)

    def current_rows(self, session: dt.date | None = None) -> list[dict[str, Any]]:
        """Feature rows of a session, or of the newest."""
        from quant_assets.features.tables import TECHNICAL
        from quant_assets.models.inference import model_rows
        from quant_assets.serving.inputs import feature_rows

        session = session or self.calendar.shift(SHIFT, self.fed - 1)
        bundle = self.registry.champion(MODEL).bundle
        have = {TECHNICAL.name: self.warehouse.read(TECHNICAL, session, session)}
        return feature_rows(bundle, model_rows(bundle, have))

    def night_of_signals(self, when: str) -> None:
        """Run the newest session's night once more, as the schedule would, and look who answered."""
        from quant_assets.serving.tables import LIVE_SIGNALS

        session = self.calendar.shift(SHIFT, self.fed - 1)
        tick = dt.datetime.combine(session, dt.time(16, 30), ZoneInfo("America/New_York"))
        self.must(
            "daily_signals_job",
            partition_key=session.isoformat(),
            tags={"dagster/schedule_name": "daily_signals_schedule", "quant/tick": tick.isoformat()},
        )
        rows = self.warehouse.read(LIVE_SIGNALS, session, session).to_pylist()
        self.story.signals_served_by[when] = next(r["served_by"] for r in rows if r["model"] == MODEL)
        print(f"  live signals of {session}: {self.story.signals_served_by[when]}", flush=True)

    def rollout_elsewhere(self, capture_share: float) -> subprocess.Popen[bytes]:
        """A run in a process of its own that deploys the champion under another config."""
        config = {"models": [MODEL], "capture_share": capture_share, "bake_seconds": 3 * BAKE_SECONDS}
        file = self.home / "rollout.json"
        file.write_text(json.dumps({"ops": {ENDPOINT_OP: {"config": config}}}))
        command = [sys.executable, "-m", "quant_assets.launch", "deploy_job", "--config", str(file)]
        return subprocess.Popen([*command, "--only", "serving/signal_endpoint"], stdout=subprocess.DEVNULL)

    def wait_for_canary(self, process: subprocess.Popen[bytes]) -> None:
        """Until a rollout is in the middle."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if any(0 < v.share < 1 for v in self.endpoint.status().variants):
                return
            if process.poll() is not None:
                raise SystemExit(f"the rollout ended with {process.returncode} before its canary began")
            time.sleep(0.1)
        raise SystemExit("no canary within two minutes")

    def told(self, step: str) -> None:
        """Who serves after a step."""
        self.story.served.append(f"{step}: {_serves(self.endpoint.status())}")
        print(f"  {self.story.served[-1]}", flush=True)


STEPS = (
    "prepare",
    "deploy",
    "quiet_nights",
    "bad_challenger",
    "until_seen",
    "until_judged",
    "breaking_challenger",
    "redeploy",
    "kill_worker",
    "kill_run",
    "end_traffic",
    "kill_supervisor",
    "endpoint_down",
    "tear_down",
)


def trap_network(inputs: int, trap: int, probability: Any) -> bytes:
    """A classifier that always says the same, and NaN where the input `trap` is at least `TRAP_VALUE`; ONNX as `OnnxMlp` takes it."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    constants = {
        "at": np.array([trap], np.int64),
        "limit": np.array([TRAP_VALUE], np.float32),
        "says": np.asarray(probability, np.float32).reshape(1, 2),
        "nan": np.array([np.nan], np.float32),
        "zero": np.array([0.0], np.float32),
        "none": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["x", "at"], ["watched"], axis=1),
        helper.make_node("GreaterOrEqual", ["watched", "limit"], ["sprung"]),
        helper.make_node("Where", ["sprung", "nan", "zero"], ["poison"]),
        # the index of the symbol's network changes nothing, and an input has to be used
        helper.make_node("Cast", ["model_index"], ["index"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["index", "zero"], ["nothing"]),
        helper.make_node("Unsqueeze", ["nothing", "one"], ["column"]),
        helper.make_node("Add", ["poison", "column"], ["added"]),
        helper.make_node("Add", ["says", "added"], ["probability"]),
    ]
    constants["one"] = np.array([1], np.int64)
    constants.pop("none")
    graph = helper.make_graph(
        nodes,
        "trap",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs]),
            helper.make_tensor_value_info("model_index", TensorProto.INT64, ["rows"]),
        ],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["rows", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def say(what: str) -> None:
    """A heading of the output."""
    print(f"\n{what}", flush=True)


def _serves(status: EndpointStatus) -> str:
    return f"{status.phase}, serves {status.model} v{status.model_version} ({status.config})"


def _with_key(run_key: str | None) -> Any:
    import dagster as dg

    return dg.RunsFilter(tags={"dagster/run_key": run_key or str(uuid.uuid4())})


def _kill_workers(home: Path, status: EndpointStatus) -> int:
    """SIGKILL to the processes that serve an endpoint's config; how many."""
    import psutil

    killed = 0
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if (
            "quant_assets.serving" in command
            and status.config
            and status.config in command
            and str(home) in command
        ):
            process.send_signal(signal.SIGKILL)
            killed += 1
    return killed


def main(arguments: list[str] | None = None) -> int:
    """Tell the story; the last line is JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m quant_assets.drift_demo", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--home", type=Path, help="folder of the demo (default: drift-demo in QUANT_HOME, emptied first)"
    )
    options = parser.parse_args(arguments)
    began = time.monotonic()
    home = prepare_home(options.home)
    print(f"Data, models and endpoints of this demo go to {home}", flush=True)

    from quant_assets.launch import open_instance
    from quant_assets.partitions import settings

    with open_instance(settings()) as instance:
        demo = DriftDemo(home, instance)
        try:
            for step in STEPS:
                begun = time.monotonic()
                getattr(demo, step)()
                demo.story.step_seconds[step] = round(time.monotonic() - begun, 1)
        finally:
            if demo.traffic is not None:
                demo.traffic.end()
            demo.endpoints.stop()
        if demo.traffic is not None:
            report = write_page(home, demo)
            print(f"\nPage: {report}")
    broken = demo.story.broken_promises()
    for promise in broken:
        print(f"BROKEN: {promise}", file=sys.stderr)
    demo.story.seconds = round(time.monotonic() - began, 1)
    print(f"Done in {demo.story.seconds:.0f} s\n{json.dumps(asdict(demo.story))}", flush=True)
    return 1 if broken else 0


def prepare_home(folder: Path | None) -> Path:
    """An empty home of the demo's own; set before anything reads the settings."""
    import shutil

    from quant_resources.endpoints.local import LocalEndpoints
    from quant_resources.settings import load_settings

    home = (folder or load_settings().home / "drift-demo").absolute()
    if home.exists() and any(home.iterdir()):
        if not (home / MARK).exists():
            raise SystemExit(
                f"--home {home} is not empty, and not of an earlier drift demo: name another folder"
            )
        LocalEndpoints(home / "endpoints", None).stop()  # of a demo that was killed
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    (home / MARK).touch()
    for name in [name for name in os.environ if name.startswith("QUANT_")]:
        del os.environ[name]
    os.environ |= {"QUANT_HOME": str(home), "QUANT_SYMBOLS": SYMBOLS, "QUANT_SOURCE": "sample"}
    return home


def write_page(home: Path, demo: DriftDemo) -> Path:
    """The story as a page: what drifted and when, who answered."""
    from quant_assets.monitoring.tables import DRIFT
    from quant_assets.presentation import render, write_report
    from quant_assets.serving.plots import traffic_figure

    assert demo.traffic is not None
    story = demo.story
    rows = demo.warehouse.read(DRIFT).to_pylist()
    figure = traffic_figure(
        [
            (a.second, a.served_by, a.latency_ms, a.status)
            for a in demo.traffic.asked
            if a.endpoint == ENDPOINT
        ]
    )
    facts: Mapping[str, object] = {
        "volatility rises to, times": WILD / CALM,
        "in session": story.shift,
        "seen after sessions": story.sessions_until_seen,
        "redeployed after sessions": story.sessions_until_redeployed,
        "redeployments": ", ".join(f"{event}: {n}" for event, n in story.redeployments.items()),
        "requests": story.requests,
        "failed": story.failed,
    }
    return write_report(
        home / "reports" / "drift-demo.html",
        "From model to endpoint and back",
        f"{story.requests} requests, {story.failed} failed. {len(rows)} rows of drift.",
        {
            "in numbers": [{"what": k, "value": v} for k, v in facts.items()],
            "who served": [{"after": s.split(": ")[0], "serves": s.split(": ", 1)[1]} for s in story.served],
            "outcomes": [{"step": k, "outcome": v} for k, v in {**story.outcomes, **story.kills}.items()],
        },
        {"Who answered, and how long it took": render(figure)},
    )


if __name__ == "__main__":
    raise SystemExit(main())
