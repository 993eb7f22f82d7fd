"""The sensors of endpoints: what they ask for when a champion is not served, when an endpoint is down, when it answers wrongly."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from quant_resources.alerts import LogAlerts
from quant_resources.endpoints import EndpointError, EndpointStatus, VariantStatus
from quant_resources.registry import APPROVED_TAG, ModelRegistry
from sensors.endpoints import (
    AGAIN_AFTER_SECONDS,
    MOST_ATTEMPTS,
    endpoint_health_sensor,
    new_champion_sensor,
)

SIGNAL = "signal-mlp-technical"


@dataclass
class Seen:
    """Endpoints as a sensor sees them: statuses alone."""

    statuses: dict[str, EndpointStatus | EndpointError] = field(default_factory=dict)

    def endpoint(self, name: str) -> Any:
        found = self.statuses.get(name, EndpointStatus(name, "absent"))

        class One:
            def status(self) -> EndpointStatus:
                if isinstance(found, EndpointError):
                    raise found
                return found

        return One()


def serving(
    version: int = 1, previous: str | None = None, phase: Any = "in_service", **counts: int
) -> EndpointStatus:
    config = f"{SIGNAL}-{version:012d}"
    variant = VariantStatus(config, "mlp_technical", version, 1.0, True, **counts)
    return EndpointStatus(
        SIGNAL,
        phase,
        "http://x",
        config,
        "mlp_technical",
        version,
        previous,
        variants=(variant,),
        message="so it is",
    )


class Health:
    def __init__(self, folder: Path) -> None:
        self.alerts = LogAlerts(alerts_file=str(folder / "alerts.jsonl"))
        self.cursor: str | None = None

    def tick(self, seen: Seen) -> dg.SensorResult:
        context = dg.build_sensor_context(
            cursor=self.cursor, resources={"endpoints": seen, "alerts": self.alerts}
        )
        found = endpoint_health_sensor(context)
        assert isinstance(found, dg.SensorResult)
        self.cursor = found.cursor
        return found

    @property
    def told(self) -> list[str]:
        path = Path(self.alerts.alerts_file)
        return [json.loads(line)["title"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def health(tmp_path: Path) -> Health:
    return Health(tmp_path)


def test_what_was_never_deployed_and_what_is_well_is_left_alone(health: Health) -> None:
    found = health.tick(Seen({SIGNAL: serving(requests=1000, errors_5xx=3)}))
    assert not found.run_requests
    assert "execution: absent" in str(found.skip_reason.skip_message)  # type: ignore[union-attr]
    assert health.told == []


def test_an_endpoint_that_is_down_is_restarted_and_again_after_a_while_and_a_person_is_told_once(
    health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1_000_000.0]
    monkeypatch.setattr("sensors.endpoints.time.time", lambda: clock[0])
    down = Seen({SIGNAL: serving(phase="failed")})
    (first,) = health.tick(down).run_requests or []
    assert first.job_name == "restart_endpoint_job"
    assert first.run_config["ops"]["restart_endpoint"]["config"] == {"endpoint": SIGNAL, "reason": "so it is"}
    assert first.tags["dagster/priority"] == "10"
    waiting = health.tick(down)
    assert not waiting.run_requests
    assert "restart 1 was launched, again in 600 s" in str(waiting.skip_reason.skip_message)  # type: ignore[union-attr]
    assert health.told == [f"endpoint {SIGNAL} is down"]
    keys = {first.run_key}
    for _ in range(2, MOST_ATTEMPTS + 1):
        clock[0] += AGAIN_AFTER_SECONDS
        (again,) = health.tick(down).run_requests or []
        keys.add(again.run_key)
    assert len(keys) == MOST_ATTEMPTS
    assert health.told[-1] == f"endpoint {SIGNAL} does not get well"
    clock[0] += AGAIN_AFTER_SECONDS
    assert "3 times restart did not help" in str(health.tick(down).skip_reason.skip_message)  # type: ignore[union-attr]
    assert not health.tick(Seen({SIGNAL: serving()})).run_requests
    (later,) = health.tick(down).run_requests or []
    assert later.run_key not in keys


def test_what_a_person_stopped_and_what_never_served_is_left_alone(health: Health) -> None:
    assert not health.tick(Seen({SIGNAL: serving(phase="stopped")})).run_requests
    never = EndpointStatus(SIGNAL, "failed", message="the bundle does not start")
    assert not health.tick(Seen({SIGNAL: never})).run_requests
    assert health.told == []


def test_answers_that_go_wrong_bring_the_previous_version_back(health: Health) -> None:
    assert not health.tick(Seen({SIGNAL: serving(2, "before", requests=100, errors_5xx=1)})).run_requests
    (request,) = (
        health.tick(Seen({SIGNAL: serving(2, "before", requests=150, invalid=10)})).run_requests or []
    )
    assert request.job_name == "rollback_job"
    assert "9 of 50 answers" in request.run_config["ops"]["roll_back_endpoint"]["config"]["reason"]
    assert health.told == [f"endpoint {SIGNAL} answers wrongly"]


def test_errors_of_long_ago_are_not_held_against_it(health: Health) -> None:
    health.tick(Seen({SIGNAL: serving(2, "before", requests=100, errors_5xx=90)}))
    found = health.tick(Seen({SIGNAL: serving(2, "before", requests=200, errors_5xx=90)}))
    assert not found.run_requests


def test_counters_that_began_again_are_counted_from_0(health: Health) -> None:
    health.tick(Seen({SIGNAL: serving(2, "before", requests=1000, errors_5xx=0)}))
    (request,) = (
        health.tick(Seen({SIGNAL: serving(2, "before", requests=20, errors_5xx=20)})).run_requests or []
    )
    assert "20 of 20 answers" in str(request.run_config)


def test_without_a_previous_version_a_person_is_told_and_nothing_moves(health: Health) -> None:
    found = health.tick(Seen({SIGNAL: serving(requests=20, errors_5xx=20)}))
    assert not found.run_requests
    assert health.told == [f"endpoint {SIGNAL} answers wrongly"]


def test_an_endpoint_that_cannot_be_seen_does_not_hide_the_others(health: Health) -> None:
    seen = Seen(
        {"execution": EndpointError("no permission for DescribeEndpoint"), SIGNAL: serving(phase="failed")}
    )
    found = health.tick(seen)
    assert [r.job_name for r in found.run_requests or []] == ["restart_endpoint_job"]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    """Version 1 is champion, version 2 a challenger that passed its gate and waits for a person."""
    registry = ModelRegistry(tmp_path_factory.mktemp("registry"))
    for number in (1, 2):
        version = registry.register("mlp_technical", b"onnx", {"number": number}, {}, {}, {})
        registry.decide(version, True, "good", "approval")
    return registry


class Champions:
    def __init__(self, folder: Path, registry: ModelRegistry) -> None:
        self.registry, self.cursor = registry, None
        self.alerts = LogAlerts(alerts_file=str(folder / "alerts.jsonl"))

    def tick(self, seen: Seen) -> dg.SensorResult:
        resources = {"registry": self.registry, "endpoints": seen, "alerts": self.alerts}
        found = new_champion_sensor(dg.build_sensor_context(cursor=self.cursor, resources=resources))
        assert isinstance(found, dg.SensorResult)
        self.cursor = found.cursor
        return found


@pytest.fixture
def champions(tmp_path: Path, registry: ModelRegistry) -> Champions:
    return Champions(tmp_path, registry)


def why(found: dg.SensorResult) -> str:
    assert not found.run_requests
    return str(found.skip_reason.skip_message)  # type: ignore[union-attr]


def test_a_champion_that_serves_and_models_without_endpoint_are_left_alone(champions: Champions) -> None:
    said = why(champions.tick(Seen({SIGNAL: serving(1)})))
    assert f"{SIGNAL}: serves the champion, v1" in said
    assert "execution: no champion" in said
    assert f"{SIGNAL}: not deployed" in why(champions.tick(Seen()))
    assert "no permission" in why(champions.tick(Seen({SIGNAL: EndpointError("no permission")})))


def test_a_champion_that_does_not_serve_yet_is_deployed_alone_and_not_into_a_rollout(
    champions: Champions, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1_000_000.0]
    monkeypatch.setattr("sensors.endpoints.time.time", lambda: clock[0])
    other = Seen({SIGNAL: serving(7)})
    (request,) = champions.tick(other).run_requests or []
    assert request.run_key == "deploy:mlp_technical:1:1:1000000"
    assert request.job_name == "deploy_job"
    assert [key.to_user_string() for key in request.asset_selection or ()] == ["serving/signal_endpoint"]
    assert request.run_config["ops"]["serving__signal_endpoint"]["config"] == {"models": ["mlp_technical"]}
    assert f"{SIGNAL}: updating" in why(champions.tick(Seen({SIGNAL: serving(7, phase="updating")})))
    # A run that was killed left nothing: again after a while, three times in all, then a person.
    assert "deployment 1 of v1 was launched, again in 600 s" in why(champions.tick(other))
    for number in (2, 3):
        clock[0] += AGAIN_AFTER_SECONDS
        (again,) = champions.tick(other).run_requests or []
        assert f":{number}:" in str(again.run_key)
    clock[0] += AGAIN_AFTER_SECONDS
    assert "was not deployed in 3 attempts" in why(champions.tick(other))
    (alert,) = Path(champions.alerts.alerts_file).read_text().splitlines()
    assert f"endpoint {SIGNAL} does not take mlp_technical v1" in alert
    # Another version serves now, and a person moved the alias back: that is new.
    (fresh,) = champions.tick(Seen({SIGNAL: serving(8)})).run_requests or []
    assert fresh.run_key != request.run_key


def test_a_tag_that_a_person_sets_lets_the_challenger_pass(
    champions: Champions, registry: ModelRegistry
) -> None:
    challenger = registry.find("mlp_technical", "challenger")
    assert challenger is not None
    registry.tag(challenger, APPROVED_TAG, "true")
    (request,) = champions.tick(Seen({SIGNAL: serving(1)})).run_requests or []
    assert (request.job_name, request.run_key) == ("approve_job", "approve:mlp_technical:2")
    config = request.run_config["ops"]["approve_version"]["config"]
    assert (config["model"], config["version"]) == ("mlp_technical", 2)
