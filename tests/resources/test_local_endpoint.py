"""The local endpoint: rollouts, alarms, supervision, both dialects of its answers; with real processes and sockets."""

import datetime as dt
import http.client
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant_resources.endpoints import EndpointDown, EndpointError, EndpointStatus, Rollout, VariantStatus
from quant_resources.endpoints.__main__ import table
from quant_resources.endpoints.journal import State
from quant_resources.endpoints.local import LocalEndpoints
from quant_resources.endpoints.served import Served, alarm
from quant_resources.endpoints.variant import Limits, Tally, cut_log

QUICK = Rollout(canary_share=0.5, bake_seconds=0.3, ready_seconds=20)
LONG = Rollout(canary_share=0.5, bake_seconds=20, ready_seconds=20)
WAIT = 30.0


def deployed(local: Any, name: str = "execution", version: int = 1, **release: Any) -> Any:
    """An endpoint in service."""
    endpoint = local.endpoints.endpoint(name)
    endpoint.deploy(local.release(version, **release), QUICK)
    status = endpoint.wait(WAIT)
    assert (status.phase, status.last_outcome) == ("in_service", "deployed"), status.message
    return endpoint


def post(local: Any, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    """A plain HTTP client."""
    connection = http.client.HTTPConnection("127.0.0.1", local.endpoints.supervisor["port"], timeout=WAIT)
    connection.request("POST", path, body, {key.replace("_", "-"): value for key, value in headers.items()})
    response = connection.getresponse()
    content = json.loads(response.read())
    connection.close()
    return response.status, {key.lower(): value for key, value in response.getheaders()}, content


# --- before anything is deployed


def test_an_endpoint_that_was_never_deployed_is_absent_and_asking_starts_nothing(local: Any) -> None:
    endpoint = local.endpoints.endpoint("execution")
    assert endpoint.status() == EndpointStatus("execution", "absent")
    endpoint.delete()
    with pytest.raises(EndpointDown, match="execution does not exist"):
        endpoint.invoke(b"{}")
    for action in (endpoint.rollback, endpoint.restart):
        with pytest.raises(EndpointError, match="execution does not exist"):
            action("because")
    assert list(endpoint.captured()) == []
    assert not local.endpoints.running
    assert not local.folder.exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", "-a", "a_b", "a" * 51])
def test_a_name_that_sagemaker_would_refuse_is_refused(local: Any, name: str) -> None:
    with pytest.raises(EndpointError, match="letters, digits and hyphens"):
        local.endpoints.endpoint(name)


def test_a_bundle_that_is_not_what_the_release_says_changes_nothing(local: Any) -> None:
    endpoint = local.endpoints.endpoint("execution")
    release = local.release(1)
    release.bundle.write_text("something else")
    with pytest.raises(EndpointError, match=f"the release says {release.digest}"):
        endpoint.deploy(release, QUICK)
    release.bundle.unlink()
    with pytest.raises(EndpointError, match="is no file"):
        endpoint.deploy(release, QUICK)
    assert endpoint.status().phase == "absent"


# --- deploying


def test_the_first_release_serves_without_a_canary(local: Any) -> None:
    endpoint = deployed(local, version=1, capture_share=1.0)
    status = endpoint.status()
    assert status.config == local.release(1, capture_share=1.0).config("execution")
    assert (status.model, status.model_version, status.previous_config) == ("fake", 1, None)
    assert [(variant.share, variant.ready) for variant in status.variants] == [(1.0, True)]
    before = dt.datetime.now(dt.UTC)
    answer = endpoint.invoke(b'{"shares": 100}')
    assert (answer.status, answer.served_by) == (200, "fake:1:abc")
    [captured] = endpoint.captured(since=before)
    assert (captured.request, captured.config) == ('{"shares": 100}', status.config)
    assert list(endpoint.captured(since=dt.datetime.now(dt.UTC))) == []
    assert [line["phase"] for line in endpoint.history()] == ["creating", "in_service"]
    assert local.endpoints.statuses()[0].name == "execution"


def test_the_same_release_changes_nothing_whether_it_serves_or_is_being_rolled_out(local: Any) -> None:
    endpoint = deployed(local)
    told, [process] = len(endpoint.history()), local.processes()
    assert endpoint.deploy(local.release(1), QUICK).phase == "in_service"
    assert len(endpoint.history()) == told
    assert [process.pid for process in local.processes()] == [process.pid]
    target = endpoint.deploy(local.release(2), LONG).target_config
    assert endpoint.deploy(local.release(2), LONG).target_config == target
    # A third one would leave nobody knowing what the canary is compared with.
    with pytest.raises(EndpointError, match=f"-> {target}.*rollback"):
        endpoint.deploy(local.release(3), LONG)
    with pytest.raises(EndpointError, match="is updating"):
        endpoint.deploy(local.release(1), LONG)


def test_a_canary_takes_its_share_then_everything_and_no_request_fails(local: Any, load: Any) -> None:
    endpoint = deployed(local, version=1)
    seen_shares = set()
    with load(local, "execution") as seen:
        endpoint.deploy(local.release(2), Rollout(canary_share=0.25, bake_seconds=0.5))
        status = endpoint.wait(WAIT, lambda s: seen_shares.add(tuple(v.share for v in s.variants)))
        assert (status.phase, status.last_outcome, status.model_version) == ("in_service", "deployed", 2)
        old = seen.of_version(1)
        seen.more(100)
        assert seen.of_version(1) <= old + 4  # what was in flight
    assert not seen.failed
    assert seen.of_version(2) > 0
    assert (0.75, 0.25) in seen_shares
    assert status.previous_config == local.release(1).config("execution")
    assert "0 errors" in status.message
    local.until(lambda: len(local.processes()) == 1)  # the old one ends


def test_what_the_old_config_is_still_answering_is_finished_before_it_ends(local: Any) -> None:
    endpoint = deployed(local, version=1, slow_seconds=0.8)
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(endpoint.invoke(b"{}")))
    asking.start()
    local.until(lambda: endpoint.status().variants[0].ready)
    endpoint.deploy(local.release(2), Rollout(bake_seconds=0.1))
    assert endpoint.wait(WAIT).model_version == 2
    asking.join()
    assert (answers[0].status, answers[0].served_by) == (200, "fake:1:abc")


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"fail_after": 5}, r"\d of \d+ answers were errors \(allowed: 0\).*status 500.*broken on purpose"),
        ({"invalid_after": 5}, r"invalid \(allowed: 0\).*does not add up"),
        ({"refuse": True}, r"invalid \(allowed: 0\).*status 400.*it is poison.*answers"),
        ({"slow_seconds": 0.12}, r"p99 of \d+ answers is 1\d\d\.\d ms \(allowed: 100 ms\)"),
        ({"hang_after": 5}, "no answer within 0.5 s"),
        ({"crash_after": 5}, "exit status 7|closed before the answer"),
    ],
)
def test_a_canary_that_breaks_is_rolled_back_and_no_client_notices(
    local: Any, load: Any, faults: dict[str, Any], reason: str
) -> None:
    endpoint = deployed(local, version=1)
    rollout = Rollout(canary_share=0.5, bake_seconds=20, max_p99_latency_ms=100, least_requests=20)
    with load(local, "execution") as seen:
        endpoint.deploy(local.release(2, **faults), rollout)
        status = endpoint.wait(WAIT)
        after = seen.of_version(2)
        seen.more(100)
        assert seen.of_version(2) <= after + 4
    assert not seen.failed
    assert (status.phase, status.last_outcome, status.model_version) == ("in_service", "rolled_back", 1)
    assert re.search(reason, status.message, re.DOTALL), status.message
    assert status.target_config is None
    local.until(lambda: len(local.processes()) == 1)
    assert endpoint.history()[-1]["last_outcome"] == "rolled_back"


def test_a_canary_that_has_not_answered_yet_when_the_bake_is_over_is_waited_for(
    local: Any, load: Any
) -> None:
    endpoint = deployed(local, version=1)
    rollout = Rollout(canary_share=0.5, bake_seconds=0.2, max_p99_latency_ms=300)  # it may take 0.9 s
    with load(local, "execution") as seen:
        endpoint.deploy(local.release(2, hang_after=0), rollout)
        status = endpoint.wait(WAIT)
    assert not seen.failed
    assert (status.last_outcome, status.model_version) == ("rolled_back", 1)
    assert "no answer within 0.9 s" in status.message


def test_errors_that_are_suffered_do_not_stop_a_rollout(local: Any, load: Any) -> None:
    endpoint = deployed(local, version=1)
    with load(local, "execution") as seen:
        rollout = Rollout(canary_share=0.1, bake_seconds=1.0, max_errors_5xx=10_000)
        endpoint.deploy(local.release(2, fail_after=3), rollout)
        local.until(lambda: [v for v in endpoint.status().variants if v.errors_5xx > 5])
        failed = dict(seen.failed)
        assert endpoint.status().phase == "updating"
        assert endpoint.wait(WAIT).last_outcome == "deployed"
        local.until(lambda: seen.failed)
    assert not failed  # the current config answered instead
    assert seen.failed.keys() == {(500, None)}  # now it is the current one: its own errors are its answers


@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"never_ready": True}, r"did not answer /ping within 0.5 s"),
        ({"exit_at_start": True}, r"exit status 3; end of .*\.log: .*this bundle cannot be loaded"),
    ],
)
def test_a_config_that_does_not_come_up_gets_no_traffic(
    local: Any, load: Any, faults: dict[str, Any], reason: str
) -> None:
    endpoint = deployed(local, version=1)
    with load(local, "execution") as seen:
        endpoint.deploy(local.release(2, **faults), Rollout(ready_seconds=0.5))
        status = endpoint.wait(WAIT)
    assert not seen.failed
    assert (status.phase, status.last_outcome, status.model_version) == ("in_service", "failed", 1)
    assert re.search(reason, status.message, re.DOTALL), status.message


def test_a_first_release_that_does_not_come_up_leaves_nothing_and_the_next_one_can_come(local: Any) -> None:
    endpoint = local.endpoints.endpoint("execution")
    endpoint.deploy(local.release(1, exit_at_start=True), QUICK)
    status = endpoint.wait(WAIT)
    assert (status.phase, status.config, status.last_outcome) == ("failed", None, "failed")
    with pytest.raises(EndpointDown, match="serves nothing"):
        endpoint.invoke(b"{}")
    with pytest.raises(EndpointError, match="never served"):
        endpoint.restart("try")
    local.until(lambda: not local.processes())
    endpoint.deploy(local.release(2), QUICK)
    assert endpoint.wait(WAIT).model_version == 2


def test_several_processes_share_the_requests_of_a_config(local: Any) -> None:
    endpoint = deployed(local, workers=2, slow_seconds=0.05)
    pids: set[int] = set()

    def ask() -> None:
        for _ in range(5):
            pids.add(json.loads(endpoint.invoke(b"{}").body)["pid"])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pids == {process.pid for process in local.processes()}
    assert len(pids) == 2


# --- going back


def test_a_rollout_is_given_up_by_hand(local: Any, load: Any) -> None:
    endpoint = deployed(local, version=1)
    with load(local, "execution") as seen:
        endpoint.deploy(local.release(2), LONG)
        local.until(lambda: seen.of_version(2) > 10)
        endpoint.rollback("the desk does not like it")
        status = endpoint.wait(WAIT)
    assert not seen.failed
    assert (status.phase, status.last_outcome, status.model_version) == ("in_service", "rolled_back", 1)
    assert "the desk does not like it" in status.message


def test_the_previous_config_comes_back_by_hand_once(local: Any, load: Any) -> None:
    endpoint = deployed(local, version=1)
    endpoint.deploy(local.release(2), QUICK)
    assert endpoint.wait(WAIT).model_version == 2
    with load(local, "execution") as seen:
        assert endpoint.rollback("slippage").phase == "rolling_back"
        status = endpoint.wait(WAIT)
    assert not seen.failed
    assert (status.model_version, status.last_outcome, status.previous_config) == (1, "rolled_back", None)
    with pytest.raises(EndpointError, match="no previous config"):
        endpoint.rollback("again")


def test_a_previous_config_that_does_not_come_up_changes_nothing(local: Any) -> None:
    endpoint = deployed(local, version=1)
    before = endpoint.status().config
    endpoint.deploy(local.release(2), QUICK)
    endpoint.wait(WAIT)
    (local.folder / "execution" / "configs" / before / "model.tar.gz").unlink()
    endpoint.rollback("slippage")
    status = endpoint.wait(WAIT)
    assert (status.phase, status.last_outcome, status.model_version) == ("in_service", "failed", 2)
    assert f"going back to {before} failed" in status.message
    assert endpoint.invoke(b"{}").status == 200


# --- supervision


@pytest.mark.parametrize("workers", [1, 2])
def test_no_request_fails_while_a_process_is_killed(local: Any, load: Any, workers: int) -> None:
    endpoint = deployed(local, workers=workers)
    with load(local, "execution") as seen:
        for _ in range(3):
            victim = local.processes()[0]
            victim.kill()
            local.until(
                lambda victim=victim: victim not in local.processes() and len(local.processes()) == workers
            )
            seen.more(60)
    assert not seen.failed
    assert endpoint.status().phase == "in_service"
    assert "SIGKILL" in [line for line in endpoint.history() if line["event"] == "process"][-1]["message"]


def test_a_request_that_kills_its_process_is_given_up_and_the_endpoint_serves_on(make_local: Any) -> None:
    local = make_local(back_off_seconds=[0.0, 0.05])
    endpoint = deployed(local, crash_on="poisoned")
    answer = endpoint.invoke(b"poisoned")
    assert (answer.status, json.loads(answer.body)["error"]) == (502, "broken_off")
    assert endpoint.invoke(b"{}").status == 200


def test_a_process_that_hangs_is_killed_and_started_again(make_local: Any) -> None:
    local = make_local(hung_seconds=0.8, end_seconds=1.0)
    endpoint = deployed(local)
    [hung] = local.processes()
    hung.suspend()
    local.until(lambda: not hung.is_running() or hung.status() == psutil.STATUS_ZOMBIE)
    assert endpoint.invoke(b"{}").status == 200
    assert "answered nothing for 0.8 s" in endpoint.history()[-1]["message"]


def test_a_crash_loop_is_a_failed_endpoint_that_a_restart_or_a_release_brings_back(make_local: Any) -> None:
    local = make_local(end_seconds=1.0, back_off_seconds=[0.0, 0.05, 60.0])
    endpoint = deployed(local, version=1)
    archive = local.folder / "execution" / "configs" / endpoint.status().config / "model.tar.gz"
    good = archive.read_bytes()
    archive.write_text(json.dumps({"model": "fake", "version": 1, "exit_at_start": True}))
    local.processes()[0].kill()
    local.until(lambda: endpoint.status().phase == "failed")
    assert "this bundle cannot be loaded" in endpoint.status().message
    with pytest.raises(EndpointDown, match="does not answer"):
        endpoint.invoke(b"{}")
    archive.write_bytes(good)
    endpoint.restart("the bundle was mended")
    assert endpoint.wait(WAIT).phase == "in_service"
    assert endpoint.invoke(b"{}").status == 200
    # And once more: a release does it as well, and answers everything from its first moment as a canary.
    archive.write_text(json.dumps({"model": "fake", "version": 1, "exit_at_start": True}))
    local.processes()[0].kill()
    local.until(lambda: endpoint.status().phase == "failed")
    endpoint.deploy(local.release(2), Rollout(canary_share=0.01, bake_seconds=1.0))
    local.until(lambda: len(endpoint.status().variants) == 2 and endpoint.status().variants[1].share > 0)
    answers = [endpoint.invoke(b"{}").served_by for _ in range(20)]
    assert endpoint.status().phase == "updating"
    assert answers == ["fake:2:abc"] * 20
    status = endpoint.wait(WAIT)
    assert (status.phase, status.model_version) == ("in_service", 2)


def test_a_restart_of_an_endpoint_that_serves_costs_no_request(local: Any, load: Any) -> None:
    endpoint = deployed(local)
    [before] = local.processes()
    with load(local, "execution") as seen:
        endpoint.restart("memory")
        assert endpoint.wait(WAIT).phase == "in_service"
        local.until(lambda: not before.is_running())
    assert not seen.failed


def test_output_of_the_processes_is_kept_and_bounded(local: Any, tmp_path: Path) -> None:
    endpoint = deployed(local)
    log = local.folder / "execution" / "logs" / f"{endpoint.status().config}.log"
    assert f"started as {local.processes()[0].pid}" in log.read_text()
    long = tmp_path / "long.log"
    with long.open("ab") as writing:
        writing.write(b"a" * 600 + b"b" * 600)
        writing.flush()
        cut_log(long, 500)
        writing.write(b"c")  # whoever appends goes on at the beginning
    assert long.read_bytes() == b"c"
    assert (tmp_path / "long.log.1").read_bytes() == b"b" * 500


# --- both dialects


@pytest.fixture
def runtime(local: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """boto3's client of SageMaker's runtime, pointed here by nothing but the environment."""

    def make() -> Any:
        import boto3

        url = f"http://127.0.0.1:{local.endpoints.supervisor['port']}"
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        keys = {"aws_access_key_id": "nobody", "aws_secret_access_key": "nothing"}
        return boto3.client("sagemaker-runtime", region_name="us-east-1", **keys)

    return make


def test_boto3_invokes_it_as_it_invokes_sagemaker(local: Any, runtime: Any) -> None:
    from botocore.exceptions import ClientError

    endpoint = deployed(local, fail_after=3)
    config = endpoint.status().config
    client = runtime()
    answer = client.invoke_endpoint(
        EndpointName="execution",
        Body=b'{"shares": 100}',
        ContentType="application/json",
        CustomAttributes="trace-7",
    )
    body = json.loads(answer["Body"].read())
    assert (body["version"], body["bytes"]) == (1, 15)
    assert not body["authorized"]  # the client's signature is nothing to the model
    assert answer["InvokedProductionVariant"] == config
    assert answer["ContentType"] == "application/json"
    assert answer["CustomAttributes"] == "trace-7"
    assert answer["ResponseMetadata"]["HTTPHeaders"]["x-quant-served-by"] == "fake:1:abc"

    targeted = client.invoke_endpoint(EndpointName="execution", Body=b"{}", TargetVariant=config)
    assert targeted["InvokedProductionVariant"] == config
    with pytest.raises(ClientError) as wrong:
        client.invoke_endpoint(EndpointName="execution", Body=b"{}", TargetVariant="other")
    assert wrong.value.response["Error"]["Code"] == "ValidationError"
    with pytest.raises(ClientError) as unknown:
        client.invoke_endpoint(EndpointName="nowhere", Body=b"{}")
    assert unknown.value.response["Error"] == {
        "Code": "ValidationError",
        "Message": "Endpoint nowhere not found.",
    }
    assert unknown.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400

    with pytest.raises(client.exceptions.ModelError) as refused:
        client.invoke_endpoint(EndpointName="execution", Body=b"poison")
    response = refused.value.response
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert response["OriginalStatusCode"] == 400
    assert json.loads(response["OriginalMessage"])["field"] == "shares"
    with pytest.raises(client.exceptions.ModelError) as failed:
        client.invoke_endpoint(EndpointName="execution", Body=b"{}")
    assert failed.value.response["OriginalStatusCode"] == 500


def test_a_plain_client_gets_the_models_own_answer(local: Any) -> None:
    endpoint = deployed(local)
    answer = endpoint.invoke(b"poison")
    assert (answer.status, json.loads(answer.body)["field"]) == (400, "shares")
    status, headers, content = post(local, "/endpoints/execution/direct", b"poison")
    assert (status, content["reason"]) == (400, "it is poison")
    assert "x-amzn-errortype" not in headers
    assert headers["x-amzn-invoked-production-variant"] == endpoint.status().config
    assert post(local, "/endpoints/nowhere/direct", b"{}")[0] == 404
    assert post(local, "/endpoints/execution/elsewhere", b"{}")[0] == 404


def test_a_body_above_sagemakers_limit_is_refused_however_it_comes(local: Any) -> None:
    endpoint = deployed(local)
    large = b" " * (6 << 20)
    assert json.loads(endpoint.invoke(large).body)["bytes"] == 6 << 20
    assert endpoint.invoke(large + b" ").status == 413
    connection = http.client.HTTPConnection("127.0.0.1", local.endpoints.supervisor["port"], timeout=WAIT)
    connection.request(
        "POST",
        "/endpoints/execution/invocations",
        iter([large, b"12"]),
        {"transfer-encoding": "chunked"},
        encode_chunked=True,
    )
    assert connection.getresponse().status == 413
    connection.close()
    assert endpoint.invoke(b"{}").status == 200


def test_only_who_can_read_the_token_commands_and_nothing_listens_beyond_this_machine(local: Any) -> None:
    endpoint = deployed(local)
    token_file = local.folder / "token"
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    token = token_file.read_text()
    for headers in ({}, {"x_quant_token": "guessed"}):
        status, _, content = post(
            local, "/control/endpoints/execution/rollback", b'{"reason": "x"}', **headers
        )
        assert status == 403
        assert token not in json.dumps(content)
    restart = "/control/endpoints/execution/restart"
    assert post(local, restart, b'{"reason": "x"}', x_quant_token=token)[0] == 200
    endpoint.wait(WAIT)
    status, _, content = post(local, "/control/endpoints/a_b/deploy", b"{}", x_quant_token=token)
    assert (status, content["error"]) == (500, "KeyError: 'release'")
    for process in (psutil.Process(local.pid), *local.processes()):
        listening = [c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert set(listening) == {"127.0.0.1"}
        assert token not in " ".join(process.cmdline()) + str(process.environ())
    written = [path for path in local.folder.rglob("*") if path.is_file() and path != token_file]
    assert not [path for path in written if token.encode() in path.read_bytes()]


# --- the supervisor as a process


def test_it_outlives_who_started_it_and_a_rollout_ends_without_who_asked_for_it(
    local: Any, load: Any
) -> None:
    endpoint = deployed(local, version=1)
    release = local.release(2)
    caller = f"""
import os, signal
from quant_resources.endpoints import Release, Rollout
from quant_resources.endpoints.local import LocalEndpoints
endpoint = LocalEndpoints({str(local.folder)!r}).endpoint("execution")
endpoint.deploy(Release.of({str(release.bundle)!r}, "fake", 2, capture_share=0.0), Rollout(bake_seconds=0.5))
os.kill(os.getpid(), signal.SIGKILL)
"""
    with load(local, "execution") as seen:
        killed = subprocess.run([sys.executable, "-c", caller], cwd=Path(__file__).parents[2], timeout=WAIT)
        assert killed.returncode == -signal.SIGKILL
        local.until(lambda: endpoint.status().model_version == 2)
    assert not seen.failed
    assert endpoint.status().config == release.config("execution")


def test_two_that_start_at_once_start_one(local: Any) -> None:
    deployed(local)
    local.endpoints.stop()
    starter = f"""
from quant_resources.endpoints.local import LocalEndpoints
endpoints = LocalEndpoints({str(local.folder)!r}, None, {list(local.endpoints.worker_command)!r})
endpoints.start()
print(endpoints.supervisor["pid"])
"""
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen([sys.executable, "-c", starter], cwd=root, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    pids = {process.communicate(timeout=WAIT)[0].strip() for process in started}
    assert pids == {str(local.pid)}
    local.endpoints.endpoint("execution").wait(WAIT)
    assert len(local.processes()) == 1


def test_the_port_is_kept_and_a_wanted_one_is_taken_or_named(make_local: Any, tmp_path: Path) -> None:
    import socket

    local = make_local(end_seconds=1.0)
    local.endpoints.start()
    port = local.endpoints.supervisor["port"]
    local.endpoints.stop()
    assert not local.endpoints.running
    local.endpoints.start()
    assert local.endpoints.supervisor["port"] == port
    other = LocalEndpoints(local.folder, port + 1, local.endpoints.worker_command)
    with pytest.raises(EndpointError, match=f"listens at port {port}, not at {port + 1}"):
        other.start()
    local.endpoints.stop()
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", port))
        squatter.listen()
        with pytest.raises(EndpointError, match=f"port {port} cannot be taken.*QUANT_ENDPOINT_PORT"):
            local.endpoints.start()


def test_stopping_finishes_what_is_being_answered_and_leaves_nothing(local: Any) -> None:
    endpoint = deployed(local, slow_seconds=0.8)
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(endpoint.invoke(b"{}")))
    asking.start()
    time.sleep(0.2)
    local.endpoints.stop()
    asking.join()
    assert answers[0].status == 200
    assert not local.processes()
    status = endpoint.status()
    assert (status.phase, status.settled) == ("stopped", True)
    assert "the supervisor is not running (stopped" in status.message
    with pytest.raises(EndpointDown, match="not running"):
        endpoint.invoke(b"{}")
    endpoint.restart("morning")
    assert endpoint.wait(WAIT).phase == "in_service"
    assert endpoint.invoke(b"{}").status == 200


def test_a_deleted_endpoint_leaves_its_captured_requests_and_its_history(local: Any) -> None:
    endpoint = deployed(local, capture_share=1.0)
    deployed(local, name="signal", version=7)
    endpoint.invoke(b"{}")
    endpoint.deploy(local.release(2), LONG)  # in the middle of a rollout, too
    endpoint.delete()
    assert endpoint.status() == EndpointStatus("execution", "absent", message="the endpoint was deleted") or (
        endpoint.status().phase == "absent"
    )
    assert len(local.processes()) == 1
    assert len(list(endpoint.captured())) == 1
    assert sorted(path.name for path in endpoint.folder.iterdir()) == ["capture", "history.jsonl"]
    assert endpoint.history()[-1]["phase"] == "absent"
    with pytest.raises(EndpointDown):
        endpoint.invoke(b"{}")
    assert post(local, "/endpoints/execution/direct", b"{}")[0] == 404
    endpoint.delete()
    assert [status.name for status in local.endpoints.statuses()] == ["signal"]
    assert local.endpoints.endpoint("signal").invoke(b"{}").status == 200
    endpoint.deploy(local.release(3), QUICK)
    assert endpoint.wait(WAIT).model_version == 3


def test_a_supervisor_whose_folder_was_removed_ends(local: Any) -> None:
    import shutil

    deployed(local)
    pid, processes = local.pid, local.processes()
    shutil.rmtree(local.folder)
    local.until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert not [process for process in processes if process.is_running()]


# --- a disk that takes no more


def test_a_full_disk_stops_a_rollout_not_the_endpoint(local: Any, load: Any) -> None:
    endpoint = deployed(local, version=1)
    full = endpoint.folder / "state.json.new"  # where the journal is written before it takes its place
    with load(local, "execution") as seen:
        endpoint.deploy(local.release(2), Rollout(canary_share=0.5, bake_seconds=0.5))
        local.until(lambda: seen.of_version(2) > 0)
        full.symlink_to("/dev/full")
        status = endpoint.wait(WAIT)
        assert (status.phase, status.last_outcome, status.model_version) == ("in_service", "failed", 1)
        assert "No space left on device" in status.message
        with pytest.raises(
            EndpointError, match=r"cannot be written down.*No space left.*Nothing was changed"
        ):
            endpoint.deploy(local.release(3), QUICK)
    assert not seen.failed
    full.unlink()
    local.until(lambda: json.loads((endpoint.folder / "state.json").read_bytes())["last_outcome"] == "failed")
    endpoint.deploy(local.release(3), QUICK)
    assert endpoint.wait(WAIT).model_version == 3


def test_a_log_on_a_full_disk_does_not_keep_a_process_from_being_started_again(local: Any) -> None:
    endpoint = deployed(local)
    log = endpoint.folder / "logs" / f"{endpoint.status().config}.log"
    log.unlink()
    log.symlink_to("/dev/full")
    [process] = local.processes()
    process.kill()
    assert endpoint.invoke(b"{}").status == 200
    assert json.loads(endpoint.invoke(b"{}").body)["pid"] != process.pid


def test_a_journal_that_cannot_be_read_fails_its_endpoint_and_no_other(local: Any) -> None:
    endpoint, other = deployed(local), deployed(local, name="signal", version=7)
    local.endpoints.stop()
    (endpoint.folder / "state.json").write_text('{"format": 1, "name"')
    assert "state.json cannot be read" in endpoint.status().message
    local.endpoints.start()
    assert other.wait(WAIT).phase == "in_service"
    status = endpoint.status()
    assert status.phase == "failed"
    assert "state.json cannot be read" in status.message
    with pytest.raises(EndpointError, match="or delete the endpoint"):
        endpoint.deploy(local.release(2), QUICK)
    endpoint.delete()
    endpoint.deploy(local.release(2), QUICK)
    assert endpoint.wait(WAIT).phase == "in_service"


# --- the command line


def test_the_command_line_shows_and_steers(local: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = deployed(local, version=1)
    endpoint.deploy(local.release(2), QUICK)
    endpoint.wait(WAIT)
    environment = {**os.environ, "QUANT_HOME": str(local.folder.parent)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "quant_resources.endpoints", *arguments]
        root = Path(__file__).parents[2]
        return subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=WAIT
        )

    shown = run("status")
    assert shown.returncode == 0, shown.stderr
    assert "fake:2" in shown.stdout
    assert str(local.pid) in shown.stdout
    assert "fake:1" in run("rollback", "execution").stdout
    assert "no previous config" in run("rollback", "execution").stderr
    assert "not running" in run("stop").stdout
    assert run("status").returncode == 1


def test_the_table_has_a_line_for_each_config_that_has_processes() -> None:
    variants = (
        VariantStatus("execution-a", "sac", 3, 0.9, True, 1200, 0, 0, 1.25, 4.5),
        VariantStatus("execution-b", "sac", 4, 0.1, True, 130, 2, 1, None, None),
    )
    status = EndpointStatus(
        "execution", "updating", variants=variants, message="execution-b gets 10% of the traffic"
    )
    lines = table(
        [status, EndpointStatus("signal", "failed", config="signal-c", model="mlp", model_version=1)]
    ).splitlines()
    assert lines[1].split() == [
        "execution",
        "updating",
        "execution-a",
        "sac:3",
        "90%",
        "1200",
        "0",
        "0",
        "1.2",
        "4.5",
    ]
    assert lines[2].split() == ["execution-b", "sac:4", "10%", "130", "2", "1", "-", "-"]
    assert lines[3].strip() == "execution-b gets 10% of the traffic"
    assert lines[4].split() == ["signal", "failed", "signal-c", "mlp:1", "-", "-", "-", "-", "-", "-"]


# --- pure parts


@given(st.integers(1, 500), st.floats(0.01, 0.5))
def test_the_canary_gets_exactly_its_share_and_the_first_request(requests: int, share: float) -> None:
    served = Served("execution", Path("nowhere"), [], Limits(), "")

    class Ready:
        ready, tally = True, Tally()

    served.canary, served._share, served._owed = Ready(), share, 1 - share  # type: ignore[assignment]
    turns = [served.canary_turn() is not None for _ in range(requests)]
    assert turns[0]
    assert abs(sum(turns) - requests * share) < 1
    Ready.tally.errors_5xx = 1  # the alarm, before anybody has looked at it
    assert not any(served.canary_turn() for _ in range(10))


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=300), st.sampled_from([50, 90, 99]))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(
    values: list[float], percent: int
) -> None:
    tally = Tally()
    tally.latencies_ms.extend(values)
    assert tally.percentile_ms(percent) == np.percentile(values, percent, method="inverted_cdf")


def test_alarms_go_off_above_their_limit_not_at_it() -> None:
    rollout = Rollout(max_errors_5xx=2, max_invalid=1, max_p99_latency_ms=10, least_requests=5)
    tally = Tally(requests=100, errors_5xx=2, invalid=1)
    tally.latencies_ms.extend([10.0] * 5)
    assert alarm(tally, rollout) is None
    tally.latencies_ms.extend([10.1])
    assert "p99 of 100 answers is 10.1 ms (allowed: 10 ms)" in str(alarm(tally, rollout))
    tally.invalid = 2
    assert "2 of 100 answers were invalid (allowed: 1)" in str(alarm(tally, rollout))
    tally.errors_5xx = 3
    assert "3 of 100 answers were errors (allowed: 2)" in str(alarm(tally, rollout))
    few = Tally(requests=4)
    few.latencies_ms.extend([9999.0] * 4)
    assert alarm(few, rollout) is None  # too few to say anything


def test_each_state_follows_the_one_before() -> None:
    first = State("execution").next(phase="creating", target_config="a")
    second = first.next(phase="in_service", config="a", target_config=None)
    assert (first.sequence, second.sequence) == (1, 2)
    assert (second.name, second.config, second.target_config) == ("execution", "a", None)
    assert second.at >= first.at
