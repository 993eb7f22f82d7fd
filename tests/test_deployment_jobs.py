"""One script of steps through the jobs, on both kinds of endpoint: champions in, a better one, a broken one, back, away.

The home is the filled one; registry, endpoints and Dagster instance are this file's own, so that nothing here moves another test's
champions.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from quant_assets.definitions import build_defs
from quant_assets.drift_demo import TRAP_INPUT, TRAP_VALUE, trap_network
from quant_assets.features.tables import TECHNICAL
from quant_assets.launch import QUIET
from quant_assets.models.inference import model_rows
from quant_assets.serving.inputs import feature_rows
from quant_resources.alerts import LogAlerts
from quant_resources.endpoints import Endpoint, Endpoints
from quant_resources.endpoints.local import LocalEndpoints
from quant_resources.registry import APPROVED_TAG, CHAMPION, ModelRegistry, ModelVersion
from sensors.endpoints import SERVED, endpoint_health_sensor, new_champion_sensor

sys.path.append(str(Path(__file__).parent / "resources"))

NAME, MODEL = "signal-mlp-technical", "mlp_technical"
QUICK = {"bake_seconds": 3.0, "canary_share": 0.5, "replay_requests": 20}
MOST_REQUESTS = 3000


class World:
    """The graph with endpoints of one kind."""

    def __init__(self, chain: Any, endpoints: Endpoints, folder: Path) -> None:
        self.chain, self.endpoints = chain, endpoints
        self.registry = ModelRegistry(folder / "registry")
        self.alerts = LogAlerts(alerts_file=str(folder / "alerts.jsonl"))
        resources = {"endpoints": endpoints, "registry": self.registry, "alerts": self.alerts}
        self.defs = build_defs({**resources, "warehouse": chain.warehouse})
        self.instance = dg.DagsterInstance.ephemeral()
        known = ModelRegistry(chain.warehouse.home)
        for model, _ in SERVED.values():
            self.register(known.champion(model), known.champion(model).onnx)
        have = {TECHNICAL.name: chain.warehouse.read(TECHNICAL, chain.nights[-1], chain.nights[-1])}
        self.rows = feature_rows(known.champion(MODEL).bundle, model_rows(known.champion(MODEL).bundle, have))

    def register(self, like: ModelVersion, onnx: bytes, passed: bool = True) -> ModelVersion:
        """A version that has gone through its gate."""
        version = self.registry.register(like.name, onnx, like.bundle, {}, {}, {})
        self.registry.decide(version, passed, "the gate said so", "auto")
        return version

    @property
    def endpoint(self) -> Endpoint:
        return self.endpoints.endpoint(NAME)

    def run(self, job: str, only: tuple[str, ...] = (), **ops: dict[str, Any]) -> dg.ExecuteInProcessResult:
        """A job with the config of its ops."""
        definition = self.defs.resolve_job_def(job)
        if only:
            keys = {dg.AssetKey(key.split("/")) for key in only}
            definition = definition.get_subset(asset_selection=keys)
        return definition.execute_in_process(
            instance=self.instance,
            raise_on_error=False,
            run_config={**QUIET, "ops": {name: {"config": config} for name, config in ops.items()}},
        )

    def deploy(self) -> dg.ExecuteInProcessResult:
        """All champions, with a short canary."""
        quick = {"serving__execution_endpoint": QUICK, "serving__signal_endpoint": QUICK}
        return self.run("deploy_job", **quick)

    def launch(self, request: dg.RunRequest, bake_seconds: float = 3.0) -> dg.ExecuteInProcessResult:
        """What a sensor asked for."""
        ops = {name: dict(value["config"]) for name, value in request.run_config["ops"].items()}
        for config in ops.values():
            if request.job_name == "deploy_job":
                config |= {**QUICK, "bake_seconds": bake_seconds}
        only = tuple(key.to_user_string() for key in request.asset_selection or ())
        return self.run(str(request.job_name), only, **ops)

    def tick(self, sensor: Callable[[Any], Any], **resources: Any) -> Any:
        return sensor(dg.build_sensor_context(resources={"endpoints": self.endpoints, **resources}))

    def champions(self) -> dg.SensorResult:
        """What the sensor of new champions asks for; no attempt is remembered."""
        return self.tick(new_champion_sensor, registry=self.registry, alerts=self.alerts)

    def answer(self, trap: bool = False) -> dict[str, Any]:
        """The classifier's answer about the last night; the trap's input is possible, and no stored row has it."""
        body = self.body(trap)
        answer = self.endpoint.invoke(body)
        assert answer.status == 200, answer
        return json.loads(answer.body)

    def body(self, trap: bool) -> bytes:
        row = self.rows[0]
        if trap:
            row = {**row, "features": {**row["features"], TRAP_INPUT: TRAP_VALUE}}
        return json.dumps({"rows": [row]}).encode()


@pytest.fixture
def local(chain: Any, tmp_path: Path) -> Iterator[World]:
    endpoints = LocalEndpoints(tmp_path / "endpoints", None)
    try:
        yield World(chain, endpoints, tmp_path)
    finally:
        endpoints.stop()


@pytest.fixture
def sagemaker(chain: Any, tmp_path: Path) -> Iterator[World]:
    from moto.s3.models import s3_backends
    from sagemaker_shim import ACCOUNT, BUCKET, IMAGE, ROLE, fake_aws
    from starlette.testclient import TestClient

    from quant_assets.serving.app import make_app
    from quant_assets.serving.bundle import unpack
    from quant_resources.endpoints.sagemaker import SageMakerEndpoints

    with fake_aws() as aws:
        apps: dict[str, TestClient] = {}

        def serve(config: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
            """The app on the archive that lies in S3, as a container would start it."""
            if config not in apps:
                variant = aws.sagemaker.endpoint_configs[config].production_variants[0]
                model = aws.sagemaker._models[variant["ModelName"]]
                container = model.primary_container or model.containers[0]
                key = container["ModelDataUrl"].removeprefix(f"s3://{BUCKET}/")
                archive = s3_backends[ACCOUNT]["aws"].get_object(BUCKET, key)
                assert archive is not None
                apps[config] = TestClient(make_app(unpack(archive.value)), raise_server_exceptions=False)
                apps[config].__enter__()
            told = apps[config].post(
                "/invocations", content=body, headers={"content-type": "application/json"}
            )
            return told.status_code, dict(told.headers), told.content

        aws.serve = serve
        aws.looks = 40
        endpoints = SageMakerEndpoints(ROLE, IMAGE, BUCKET, poll_seconds=0.05, figures_seconds=0.0)
        yield World(chain, endpoints, tmp_path)
        for app in apps.values():
            app.__exit__(None, None, None)


@pytest.fixture(params=["local", pytest.param("sagemaker", marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest, chain: Any) -> World:
    # Named here too, so that it is seen that these tests need the filled home: it is filled once.
    return request.getfixturevalue(request.param)


def checks(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {
        f"{e.asset_key.path[-1]} {e.check_name}": bool(e.passed) for e in result.get_asset_check_evaluations()
    }


def test_from_champion_to_endpoint_and_back(world: World) -> None:
    # A champion is deployed, and again: nothing changes.
    first = world.deploy()
    assert first.success, [e.event_specific_data for e in first.all_events if e.is_step_failure]
    assert all(checks(first).values())
    assert {world.endpoints.endpoint(name).status().phase for name in SERVED} == {"in_service"}
    config = world.endpoint.status().config
    assert world.answer()["model_version"] == 1
    again = world.deploy()
    assert again.success
    assert world.endpoint.status().config == config
    assert "nothing was changed" in str([e.description for e in again.get_asset_check_evaluations()])
    order = {"ticker": world.chain.posterior_symbol, "shares": 1000, "start": "2012-04-03T13:30:00Z"}
    plan = world.endpoints.endpoint("execution").invoke(json.dumps(order).encode())
    assert sum(s["shares"] for s in json.loads(plan.body)["schedule"]) == 1000

    # A version that did not pass its gate is not deployed, whoever asks.
    champion = world.registry.champion(MODEL)
    refused = world.register(champion, champion.onnx, passed=False)
    deploying = {"serving__signal_endpoint": {**QUICK, "models": [MODEL], "version": refused.version}}
    result = world.run("deploy_job", ("serving/signal_endpoint",), **deploying)
    assert not result.success
    assert not checks(result)["signal_endpoint gate_passed"]
    assert world.endpoint.status().model_version == 1

    # A better one becomes champion: the sensor deploys it, by canary.
    better = world.register(champion, champion.onnx)
    (request,) = world.champions().run_requests
    assert world.launch(request).success
    status = world.endpoint.status()
    assert (status.model_version, status.previous_config, status.last_outcome) == (
        better.version,
        config,
        "deployed",
    )
    assert not world.champions().run_requests

    # One that is right on all that is known and wrong under traffic: the canary brings it down, the registry is told.
    trap = list(champion.bundle["inputs"]).index(TRAP_INPUT)
    broken = world.register(champion, trap_network(len(champion.bundle["inputs"]), trap, [0.4, 0.4]))
    (request,) = world.champions().run_requests
    stop = threading.Event()
    asked: list[int] = []

    def traffic() -> None:
        # What was captured before is replayed before: only what comes under canary is new to it.
        while world.endpoint.status().phase != "updating":
            if stop.wait(0.1):
                return
        for number in range(MOST_REQUESTS):  # in threes, as every second one goes to the canary
            asked.append(world.endpoint.invoke(world.body(trap=number % 3 > 0)).status)
            if stop.wait(0.02):
                return

    asking = threading.Thread(target=traffic)
    asking.start()
    result = world.launch(request, bake_seconds=30.0)  # an alarm ends it long before
    stop.set()
    asking.join(30)
    said = [e.description for e in result.get_asset_check_evaluations()]
    assert not result.success, (len(asked), said)
    assert checks(result) == {
        "signal_endpoint gate_passed": True,
        "signal_endpoint preflight": True,
        "signal_endpoint rollout": False,
    }, said
    status = world.endpoint.status()
    assert (status.phase, status.model_version, status.last_outcome) == (
        "in_service",
        better.version,
        "rolled_back",
    )
    assert world.registry.champion(MODEL).version == better.version
    tags = world.registry.client.get_model_version(MODEL, str(broken.version)).tags
    assert tags["gate"] == "rolled_back"
    assert world.answer(trap=True)["model_version"] == better.version
    assert not world.champions().run_requests
    healthy = world.tick(endpoint_health_sensor, alerts=world.alerts)
    assert not healthy.run_requests

    # By hand: back to the version before, which is champion again.
    back = world.run("rollback_job", roll_back_endpoint={"endpoint": NAME, "reason": "a person wants it"})
    assert back.success
    assert world.endpoint.status().model_version == 1
    assert world.registry.champion(MODEL).version == 1
    assert world.answer()["model_version"] == 1
    assert (
        json.loads(Path(world.alerts.alerts_file).read_text().splitlines()[-1])["title"]
        == f"{NAME} rolled back"
    )

    # A person approves the better one after all; that it was rolled back has to be overruled by name.
    approval = {"model": MODEL, "version": better.version, "approved_by": "Ada"}
    assert not world.run("approve_job", approve_version=approval).success
    assert world.registry.champion(MODEL).version == 1
    assert world.run("approve_job", approve_version={**approval, "although_it_failed": True}).success
    standing = [s for s in world.registry.standing() if s.name == MODEL and s.alias == CHAMPION]
    assert [(s.version, s.approved) for s in standing] == [(better.version, True)]
    tags = world.registry.client.get_model_version(MODEL, str(better.version)).tags
    assert (tags[APPROVED_TAG], tags["approved_by"]) == ("true", "Ada")

    # Away.
    for name in SERVED:
        assert world.run("teardown_job", delete_endpoint={"endpoint": name}).success
    assert {world.endpoints.endpoint(name).status().phase for name in SERVED} == {"absent"}


def test_what_was_asked_is_stored_once_under_the_session_that_it_was_about(local: World, chain: Any) -> None:
    from quant_assets.serving.tables import CAPTURED_REQUESTS
    from quant_resources.iceberg import Warehouse

    assert local.run("deploy_job", ("serving/signal_endpoint",), serving__signal_endpoint=QUICK).success
    for _ in range(3):
        local.answer()
    deadline = time.monotonic() + 20  # written within a second
    while len(list(local.endpoint.captured())) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    warehouse = Warehouse(Path(local.alerts.alerts_file).parent / "warehouse")
    defs = build_defs({"warehouse": warehouse, "endpoints": local.endpoints})
    job = defs.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection={dg.AssetKey(["serving", "captured_requests"])}
    )
    for _ in range(2):  # again: nothing is stored twice
        assert job.execute_in_process(instance=local.instance, run_config=QUIET).success
        rows = warehouse.read(CAPTURED_REQUESTS).to_pylist()
        assert len(rows) == 3
    assert {row["session"] for row in rows} == {chain.nights[-1]}
    assert {(row["kind"], row["model"], row["model_version"]) for row in rows} == {("signal", MODEL, 1)}
    assert json.loads(rows[0]["request"])["rows"][0]["symbol"] == local.rows[0]["symbol"]
