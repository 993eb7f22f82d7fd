"""kill -9 of the supervisor at every moment: what serves afterwards is what the journal says, and nothing is left over."""

import contextlib
import json
import os
import re
import threading
import time
from collections import Counter
from typing import Any

import psutil
import pytest

from quant_resources.endpoints import EndpointDown, EndpointError, Rollout
from quant_resources.endpoints.journal import Journal, State

QUICK = Rollout(canary_share=0.5, bake_seconds=0.3)
LONG = Rollout(canary_share=0.5, bake_seconds=30)
WAIT = 30.0


def deployed(local: Any, version: int = 1, **faults: Any) -> Any:
    """An endpoint in service."""
    endpoint = local.endpoints.endpoint("execution")
    endpoint.deploy(local.release(version, **faults), QUICK)
    status = endpoint.wait(WAIT)
    assert (status.phase, status.model_version) == ("in_service", version), status.message
    return endpoint


def back(local: Any, endpoint: Any, version: int) -> Any:
    """Start the supervisor again: this version serves, in one process, and the history has every state."""
    local.endpoints.start()
    status = endpoint.wait(WAIT)
    assert (status.phase, status.model_version) == ("in_service", version), status.message
    assert endpoint.invoke(b"{}").served_by == f"fake:{version}:abc"
    local.until(lambda: len(local.processes()) == 1)
    sequences = [line["sequence"] for line in endpoint.history() if line["event"] == "state"]
    assert sequences == list(range(1, len(sequences) + 1))
    return status


def test_a_dead_supervisor_is_seen_at_once_and_started_by_nobody_who_only_looks(local: Any) -> None:
    endpoint = deployed(local)
    pid, [left] = local.pid, local.processes()
    assert psutil.Process(pid).ppid() != os.getpid()  # whoever started it keeps no zombie
    local.kill_supervisor()
    status = endpoint.status()
    assert status.phase == "failed"
    assert f"the supervisor is not running (pid {pid} is gone)" in status.message
    assert (status.config, status.model_version) == (local.release(1).config("execution"), 1)
    assert endpoint.wait(WAIT) == status
    assert not local.endpoints.running
    endpoint.restart("the watch saw it")
    back(local, endpoint, 1)
    assert left.pid not in [process.pid for process in local.processes()]  # it listened to nobody any more
    assert str(left.pid) in (local.folder / "supervisor.log").read_text()


def test_killed_while_the_first_config_is_created(local: Any) -> None:
    endpoint = local.endpoints.endpoint("execution")
    endpoint.deploy(local.release(1, slow_start_seconds=0.5), QUICK)
    local.until(local.processes)
    local.kill_supervisor()
    assert endpoint.status().phase == "failed"
    status = back(local, endpoint, 1)
    assert status.last_outcome == "deployed"
    assert "the supervisor was restarted while" in endpoint.history()[-2]["message"]


def test_killed_while_a_canary_has_traffic(local: Any) -> None:
    endpoint = deployed(local, 1)
    endpoint.deploy(local.release(2), LONG)
    local.until(lambda: len(endpoint.status().variants) == 2 and endpoint.status().variants[1].share == 0.5)
    assert len(local.processes()) == 2
    local.kill_supervisor()
    status = back(local, endpoint, 1)
    assert (status.last_outcome, status.target_config) == ("rolled_back", None)
    assert re.search(
        r"restarted in the middle of updating to execution-\w+; execution-\w+ serves on", status.message
    )
    assert endpoint.history()[-1]["last_outcome"] == "rolled_back"
    deployed(local, 2)  # it can be tried again


def test_killed_right_after_the_switch_while_the_old_config_still_answers(local: Any) -> None:
    endpoint = deployed(local, 1, slow_seconds=1.0)
    asking = threading.Thread(target=endpoint.invoke, args=(b"{}",))
    asking.start()
    time.sleep(0.1)
    endpoint.deploy(local.release(2), Rollout(bake_seconds=0))
    local.until(lambda: endpoint.status().model_version == 2)
    assert len(local.processes()) == 2
    local.kill_supervisor()
    status = back(local, endpoint, 2)
    assert (status.last_outcome, status.previous_config) == (
        "deployed",
        local.release(1, slow_seconds=1.0).config("execution"),
    )
    asking.join()


def test_killed_in_the_middle_of_a_manual_rollback(local: Any) -> None:
    endpoint = deployed(local, 1, slow_start_seconds=0.4)
    deployed(local, 2)
    endpoint.rollback("slippage")
    assert endpoint.status().phase == "rolling_back"
    local.kill_supervisor()
    status = back(local, endpoint, 2)
    assert status.last_outcome == "failed"
    assert "in the middle of rolling back" in status.message
    endpoint.rollback("slippage, again")
    assert endpoint.wait(WAIT).model_version == 1


def test_killed_in_the_middle_of_a_deletion(local: Any) -> None:
    endpoint = deployed(local, 1, slow_seconds=1.0)

    def ask() -> None:
        with contextlib.suppress(EndpointDown):  # rightly: there is nobody left to ask
            endpoint.invoke(b"{}")

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.1)
    local.endpoints.control("DELETE", "/control/endpoints/execution")
    assert endpoint.status().phase == "deleting"
    local.kill_supervisor()
    local.endpoints.start()
    local.until(lambda: endpoint.status().phase == "absent")
    assert not local.processes()
    with pytest.raises(EndpointDown):
        endpoint.invoke(b"{}")
    asking.join()


def test_killed_at_any_moment_of_rollouts_the_journal_names_what_serves(local: Any) -> None:
    endpoint = deployed(local, 1)
    served = []
    for number, seconds in enumerate((0.0, 0.03, 0.08, 0.12, 0.2, 0.3, 0.4)):
        endpoint.deploy(local.release(2 + number), Rollout(canary_share=0.5, bake_seconds=0.15))
        time.sleep(seconds)
        local.kill_supervisor()
        state = json.loads((endpoint.folder / "state.json").read_bytes())
        version = state["releases"][state["config"]]["model_version"]
        status = back(local, endpoint, version)
        assert status.config == state["config"]
        assert status.last_outcome == ("rolled_back" if state["phase"] == "updating" else "deployed")
        served.append(version)
    # The kills came before some switches and after others.
    assert len(set(served)) > 1


def test_no_request_through_the_endpoint_fails_while_its_supervisor_is_killed_and_started_again(
    local: Any,
) -> None:
    endpoint = deployed(local, 1)
    seen: Counter[str] = Counter()
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.005):
            try:
                seen[endpoint.invoke(b"{}").served_by] += 1
            except EndpointError as error:
                seen[repr(error)] += 1

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for both in (False, True):
            if both:
                local.processes()[0].kill()
            local.kill_supervisor()
            local.endpoints.start()
            goal = seen.total() + 30
            local.until(lambda goal=goal: seen.total() > goal)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(seen) == {"fake:1:abc"}


def test_a_pid_that_belongs_to_somebody_else_by_now_is_left_alone(local: Any) -> None:
    endpoint = deployed(local)
    local.kill_supervisor()
    known = json.loads((local.folder / "supervisor.json").read_bytes())
    (local.folder / "supervisor.json").write_text(json.dumps({**known, "pid": os.getpid()}))
    assert endpoint.status().phase == "failed"
    local.endpoints.stop()  # ends what was left over, and not this test
    assert not local.processes()
    back(local, endpoint, 1)


def test_a_kill_between_the_journal_and_the_history_leaves_no_gap(local: Any) -> None:
    endpoint = deployed(local, 1)
    local.endpoints.stop()
    lines = (endpoint.folder / "history.jsonl").read_text().splitlines()
    (endpoint.folder / "history.jsonl").write_text(lines[0] + "\n" + lines[1][:20])  # torn, too
    back(local, endpoint, 1)
    assert json.loads(lines[1]) in endpoint.history()


def test_a_state_is_on_the_disk_as_a_whole_or_not_at_all(tmp_path: Any) -> None:
    journal = Journal(tmp_path)
    assert journal.read() is None
    first = State("execution").next(phase="creating", target_config="a", releases={"a": {"model": "m"}})
    journal.write(first)
    (tmp_path / "state.json.new").write_text("half of a st")  # a kill in the middle of the next one
    assert journal.read() == first
    second = first.next(phase="in_service", config="a")
    journal.write(second)
    assert journal.read() == second
    (tmp_path / "state.json").write_text('{"format": 99}')
    with pytest.raises(EndpointError, match="it has format 99, this version reads 1"):
        journal.read()
