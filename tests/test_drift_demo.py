"""The whole loop in a process of its own, as `make drift-demo` runs it: real runs, real processes, real kills, traffic all the time."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# What docs/monitoring.md states for a change of volatility.
SEEN_WITHIN_SESSIONS = 15
pytestmark = [pytest.mark.slow, pytest.mark.timeout(580)]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any]]:
    """Home, output, and the story of its last line."""
    home = tmp_path_factory.mktemp("drift") / "home"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("QUANT_", "DAGSTER_"))}
    done = subprocess.run(
        [sys.executable, "-m", "quant_assets.drift_demo", "--home", str(home)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env=environment | {"MLFLOW_DISABLE_TELEMETRY": "true"},
        timeout=570,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return home, done.stdout, json.loads(done.stdout.strip().splitlines()[-1])


def test_no_request_fails_from_the_first_deployment_to_the_end(
    told: tuple[Path, str, dict[str, Any]],
) -> None:
    _, _, story = told
    assert story["requests"] > 500
    assert (story["failed"], story["failures"]) == (0, [])


def test_the_shift_is_seen_within_the_stated_sessions_and_nothing_before_it(
    told: tuple[Path, str, dict[str, Any]],
) -> None:
    _, _, story = told
    assert story["false_events_before_shift"] == 0
    assert 1 <= story["sessions_until_seen"] <= SEEN_WITHIN_SESSIONS


def test_one_redeployment_is_launched_and_its_model_takes_the_traffic(
    told: tuple[Path, str, dict[str, Any]],
) -> None:
    _, output, story = told
    assert story["redeployments"][story["event"]] == 1
    assert set(story["redeployments"].values()) == {1}  # of other models, likewise
    assert story["outcomes"]["redeployment"] == "deployed"
    assert re.search(r"redeployment: in_service, serves mlp_technical v4 ", "\n".join(story["served"]))
    assert "better than the champion: Brier score improves by +" in output


def test_a_bad_challenger_is_stopped_by_the_gate(told: tuple[Path, str, dict[str, Any]]) -> None:
    _, _, story = told
    assert story["outcomes"]["bad challenger"] == "stopped by the gate"
    assert "bad challenger: in_service, serves mlp_technical v1 " in "\n".join(story["served"])


def test_a_challenger_that_breaks_under_canary_is_rolled_back_by_itself(
    told: tuple[Path, str, dict[str, Any]],
) -> None:
    _, output, story = told
    assert story["outcomes"]["breaking challenger"].startswith("rolled_back: ")
    assert "invalid" in story["outcomes"]["breaking challenger"]
    assert story["outcomes"]["champion after rollback"] == "v1"
    assert "breaking challenger: in_service, serves mlp_technical v1 " in "\n".join(story["served"])
    assert output.count("deploy_job deploy:mlp_technical:3:1:") == 1  # asked for once


def test_every_kill_ends_in_a_serving_endpoint_with_a_known_version(
    told: tuple[Path, str, dict[str, Any]],
) -> None:
    _, _, story = told
    kills = story["kills"]
    assert "killed 1, " in kills["worker"]
    assert ", 0 failed; in_service, serves mlp_technical v4 " in kills["worker"]
    assert kills["run"].startswith("deployed; in_service, serves mlp_technical v4 ")
    assert "in_service, serves mlp_technical v4 " in kills["supervisor"]
    assert "answers 200" in kills["supervisor"]


def test_signals_come_from_the_endpoint_and_from_the_registry_when_it_is_down(
    told: tuple[Path, str, dict[str, Any]],
) -> None:
    _, _, story = told
    served = story["signals_served_by"]
    assert served["endpoint up"].startswith("endpoint signal-mlp-technical, mlp_technical:1:")
    assert served["endpoint down"].startswith("registry: endpoint signal-mlp-technical is down")


def test_nothing_of_it_is_left_running_and_the_page_tells_it(told: tuple[Path, str, dict[str, Any]]) -> None:
    import psutil

    home, _, story = told
    assert story["outcomes"]["teardown"] == "absent"
    running = [
        p.info["cmdline"]
        for p in psutil.process_iter(["cmdline"])
        if str(home) in " ".join(p.info["cmdline"] or ())
    ]
    assert running == []
    page = (home / "reports" / "drift-demo.html").read_text()
    assert f"{story['requests']} requests, 0 failed" in page


def test_no_secret_is_in_anything_that_was_written(told: tuple[Path, str, dict[str, Any]]) -> None:
    """The token of the control side is the one secret here: it is in its own file, and in nothing else."""
    home, output, _ = told
    secrets = [path.read_bytes().strip() for path in home.rglob("*token*") if path.is_file()]
    for secret in secrets:
        assert len(secret) > 15
        assert secret.decode() not in output
        for path in home.rglob("*"):
            if (
                path.is_file()
                and "token" not in path.name
                and path.suffix in (".json", ".jsonl", ".log", ".html", ".db")
            ):
                assert secret not in path.read_bytes(), path
