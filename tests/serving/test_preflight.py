"""What a bundle must do before it gets traffic: real processes of the app on good and on broken bundles."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest

from quant_assets.serving.bundle import read_bundle
from quant_assets.serving.preflight import (
    Preflight,
    app_process,
    execution_trials,
    predictions_problem,
    run_preflight,
    schedule_problem,
)
from quant_resources.calendar import TradingCalendar
from quant_resources.endpoints import CapturedRequest, EndpointError
from tests.serving import bundles

CALENDAR = TradingCalendar(bundles.FIRST, bundles.LAST)


def preflight(
    path: Path, captured: list[CapturedRequest] | None = None, examples: list[bytes] | None = None
) -> Preflight:
    return run_preflight(path, read_bundle(path).description, CALENDAR, examples or [], captured or [])


def capture(request: dict[str, Any], response: dict[str, Any]) -> CapturedRequest:
    at = dt.datetime(2026, 1, 5, 15, tzinfo=dt.UTC)
    return CapturedRequest(
        "e-1", "execution", "execution-before", at, json.dumps(request), json.dumps(response)
    )


def test_a_good_execution_bundle_passes_and_says_what_was_tried(tmp_path: Path) -> None:
    said: list[str] = []
    path = bundles.execution_bundle(tmp_path)
    found = run_preflight(path, read_bundle(path).description, CALENDAR, [], [], said.append)
    assert found.problems == []
    # every kind of order of two tickers from five starts, ten refusals of its own and five of every app
    assert found.trials == 2 * 4 * 5 + 10 + 5
    assert len(found.latency_ms) == 2 * 4 * 5
    assert "answered as they must be" in found.summary()
    assert any("contract requests, 0 problems" in line for line in said)


def test_a_good_signal_bundle_passes(tmp_path: Path) -> None:
    request = json.dumps(bundles.signal_request()).encode()
    found = preflight(bundles.signal_bundle(tmp_path), examples=[request])
    assert found.problems == []
    assert found.trials == 6


def test_a_bundle_that_gives_nan_for_large_orders_does_not_pass_when_such_an_order_was_captured(
    tmp_path: Path,
) -> None:
    path = bundles.execution_bundle(tmp_path, bundles.wrong_for_large_orders())
    with app_process(bundles.execution_bundle(tmp_path / "good")) as client:
        good = client.post("/invocations", json=bundles.LARGE_REQUEST).json()
    found = preflight(path, [capture(bundles.LARGE_REQUEST, good)])
    assert not found.passed
    (problem,) = [p for p in found.problems if "captured request e-1" in str(p["tried"])]
    assert "answered 500, execution-before answered it" in str(problem["problem"])


def test_what_serves_now_is_compared_on_captured_requests(tmp_path: Path) -> None:
    with app_process(bundles.execution_bundle(tmp_path / "good")) as client:
        now = client.post("/invocations", json=bundles.EXECUTION_REQUEST).json()
    patient = capture(bundles.EXECUTION_REQUEST, now)
    same = preflight(bundles.execution_bundle(tmp_path / "same"), [patient])
    assert same.passed
    (row,) = same.comparison
    assert (row["answers"], row["mean"]) == (1, 0.0)
    # Selling as fast as it is allowed to costs more than the volume's own pace.
    hasty = preflight(bundles.execution_bundle(tmp_path / "hasty", bundles.constant_pace(1.0)), [patient])
    assert float(str(hasty.comparison[0]["mean"])) > 0


def test_a_bundle_that_does_not_start_is_refused_with_what_the_app_said(tmp_path: Path) -> None:
    path = tmp_path / "model.tar.gz"
    path.write_bytes(b"no archive")
    with pytest.raises(EndpointError, match="does not serve"), app_process(path):
        pass
    broken = bundles.execution_bundle(tmp_path / "broken", bundles.always_wrong())
    with pytest.raises(EndpointError), app_process(broken):
        pass


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """A request with a start in the middle of a half day, and its answer."""
    request = {**bundles.EXECUTION_REQUEST, "start": "2012-07-03T15:00:00Z", "horizon_minutes": 300}
    with app_process(bundles.execution_bundle(tmp_path_factory.mktemp("bundle"))) as client:
        return request, client.post("/invocations", json=request).json()


def test_a_right_schedule_has_no_problem(answered: tuple[dict[str, Any], dict[str, Any]]) -> None:
    request, answer = answered
    assert schedule_problem(request, answer, CALENDAR) is None
    # 13:00 in New York is the close; 300 minutes go on after the fourth of July.
    days = {s["timestamp"][:10] for s in answer["schedule"]}
    assert days == {"2012-07-03", "2012-07-05"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a["schedule"].pop(), "299 slices, the horizon has 300 minutes"),
        (lambda a: a["twap"][3].update(shares=a["twap"][3]["shares"] + 1), "twap sells 1001 shares"),
        (lambda a: a["vwap"][0].update(shares=-1), "vwap sells -1 shares in a slice"),
        (lambda a: a["schedule"][0].update(shares=0.5), "0.5 shares in a slice"),
        (lambda a: a["schedule"].reverse(), "goes back in time"),
        (lambda a: a["schedule"][0].update(timestamp="2012-07-01T15:00:00+00:00"), "2012-07-01 is a Sunday"),
        (lambda a: a["schedule"][119].update(timestamp="2012-07-03T17:00:00+00:00"), "outside the session"),
        (lambda a: a["expected_cost_bps"].update(schedule=float("nan")), "expected costs are"),
    ],
)
def test_every_way_to_be_wrong_is_found(
    answered: tuple[dict[str, Any], dict[str, Any]], change: Any, said: str
) -> None:
    request, answer = answered
    wrong = json.loads(json.dumps(answer))
    change(wrong)
    assert said in str(schedule_problem(request, wrong, CALENDAR))


def test_predictions_must_be_complete_and_probabilities() -> None:
    request = bundles.signal_request()
    good = [
        {"symbol": r["symbol"], "probability_long": 0.4, "probability_short": 1.0, "side": "flat"}
        for r in request["rows"]  # type: ignore[attr-defined]
    ]
    assert predictions_problem(request, {"predictions": good}) is None
    assert "1 predictions for 2 rows" in str(predictions_problem(request, {"predictions": good[:1]}))
    wrong = [{**good[0], "probability_long": 1.5}, good[1]]
    assert "no probability" in str(predictions_problem(request, {"predictions": wrong}))


def test_orders_are_tried_from_every_kind_of_start(tmp_path: Path) -> None:
    description = read_bundle(bundles.execution_bundle(tmp_path)).description
    whats = " ".join(trial.what for trial in execution_trials(description, CALENDAR))
    for kind in ("the open", "midday", "after the close", "a half day", "a holiday"):
        assert kind in whats
