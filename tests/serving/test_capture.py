"""Captured requests: the format, the share, files by hour, faults of the disk, and reading it all back."""

import datetime as dt
import errno
import json
import logging
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_assets.serving import capture as capture_module
from quant_assets.serving.capture import Capture, capture_line, is_sampled
from quant_resources.endpoints import CapturedRequest
from quant_resources.endpoints.captured import CaptureLineError, parse_captured, read_captured

AT = dt.datetime(2013, 3, 1, 14, 59, 59, 123456, dt.UTC)


def _line(event_id="e1", at=AT, config="sell-0123", request=b"{}", response=b"{}") -> bytes:
    return capture_line(event_id, at, "sell", config, request, response)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.jsonl"))


def test_a_line_has_the_format_of_sagemaker():
    line = _line(request=b'{"shares": 1}', response=b'{"schedule": []}')
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "captureData": {
            "endpointInput": {
                "observedContentType": "application/json",
                "mode": "INPUT",
                "data": '{"shares": 1}',
                "encoding": "JSON",
            },
            "endpointOutput": {
                "observedContentType": "application/json",
                "mode": "OUTPUT",
                "data": '{"schedule": []}',
                "encoding": "JSON",
            },
        },
        "eventMetadata": {
            "eventId": "e1",
            "inferenceTime": "2013-03-01T14:59:59.123456Z",
            "endpoint": "sell",
            "config": "sell-0123",
        },
        "eventVersion": "0",
    }


@given(
    request=st.text(),
    response=st.text(),
    at=st.datetimes(timezones=st.sampled_from([dt.UTC, dt.timezone(dt.timedelta(hours=-5))])),
)
def test_a_line_is_read_back_as_it_was_written(request, response, at):
    line = _line(at=at, request=request.encode(), response=response.encode())
    assert parse_captured(line) == CapturedRequest("e1", "sell", "sell-0123", at, request, response)


def test_lines_of_sagemaker_itself_are_read():
    # From the documentation of data capture; whole seconds, base64 for unknown content types, no endpoint.
    line = {
        "captureData": {
            "endpointInput": {
                "observedContentType": "application/x-custom",
                "mode": "INPUT",
                "data": "eyJzaGFyZXMiOiAxfQ==",
                "encoding": "BASE64",
            },
            "endpointOutput": {"mode": "OUTPUT", "data": "{}", "encoding": "JSON"},
        },
        "eventMetadata": {"eventId": "b", "inferenceTime": "2026-03-01T14:30:00Z"},
        "eventVersion": "0",
    }
    captured = parse_captured(json.dumps(line).encode(), "sell", "sell-9")
    at = dt.datetime(2026, 3, 1, 14, 30, tzinfo=dt.UTC)
    assert captured == CapturedRequest("b", "sell", "sell-9", at, '{"shares": 1}', "{}")


@given(st.binary(max_size=200))
def test_whatever_is_no_captured_request_is_told_so(line):
    with pytest.raises(CaptureLineError):
        parse_captured(line)


@given(cut=st.integers(0, len(_line()) - 2))
def test_a_torn_line_is_told_so(cut):
    with pytest.raises(CaptureLineError):
        parse_captured(_line()[:cut])


# -- the share ---------------------------------------------------------------------------------------------------------


@given(event_id=st.text(), low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_larger_share_captures_what_a_smaller_one_does(event_id, low, high):
    low, high = min(low, high), max(low, high)
    assert is_sampled(event_id, low) <= is_sampled(event_id, high)
    assert not is_sampled(event_id, 0.0)
    assert is_sampled(event_id, 1.0)


def test_the_share_is_one_of_the_requests():
    taken = sum(is_sampled(f"event-{i}", 0.1) for i in range(20_000))
    # Known ids, so a known number: four standard deviations are 170.
    assert abs(taken - 2000) < 170


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_no_part_is_refused(tmp_path, share):
    with pytest.raises(ValueError, match="share"):
        Capture(tmp_path, share, "sell", "sell-0123")


# -- files -------------------------------------------------------------------------------------------------------------


def test_requests_lie_by_config_and_hour_and_are_written_without_being_asked(tmp_path):
    capture = Capture(tmp_path, 1.0, "sell", "sell-0123")
    before = dt.datetime.now(dt.UTC)
    capture.append(b"1", b"2")
    deadline = time.monotonic() + 30
    while not _files(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    (path,) = _files(tmp_path)
    config, *hour, name = path.relative_to(tmp_path).parts
    assert config == "sell-0123"
    at = dt.datetime(*map(int, hour), tzinfo=dt.UTC)
    assert before - dt.timedelta(hours=1) < at <= dt.datetime.now(dt.UTC)
    assert name.endswith(f"-{os.getpid()}.jsonl")
    capture.close()
    assert len(list(read_captured(tmp_path))) == 1


def test_an_hour_has_its_own_file(tmp_path, monkeypatch):
    instants = iter([AT, AT + dt.timedelta(seconds=1), AT + dt.timedelta(seconds=2)])

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz=None):
            return next(instants, AT)

    capture = Capture(tmp_path, 1.0, "sell", "sell-0123")
    monkeypatch.setattr(capture_module.dt, "datetime", Clock)
    for i in range(3):
        capture.append(b"%d" % i, b"")
    capture.close()
    monkeypatch.undo()
    assert [(p.parent.name, len(p.read_bytes().splitlines())) for p in _files(tmp_path)] == [
        ("14", 1),
        ("15", 2),
    ]
    assert [c.request for c in read_captured(tmp_path)] == ["0", "1", "2"]


def test_two_processes_keep_files_of_their_own(tmp_path):
    one, other = (Capture(tmp_path, 1.0, "sell", "sell-0123") for _ in range(2))
    for i in range(10):
        (one, other)[i % 2].append(b"%d" % i, b"")
    one.close()
    other.close()
    assert len(_files(tmp_path)) == 2
    assert [c.request for c in read_captured(tmp_path)] == [str(i) for i in range(10)]


def test_nothing_is_captured_after_the_end(tmp_path):
    capture = Capture(tmp_path, 1.0, "sell", "sell-0123")
    capture.append(b"1", b"2")
    capture.close()
    capture.append(b"3", b"4")
    capture.close()
    assert [c.request for c in read_captured(tmp_path)] == ["1"]
    assert capture.lost == 1


# -- faults ------------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_costs_one_line_in_the_log(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    capture = Capture(tmp_path / "file", 1.0, "sell", "sell-0123")
    for _ in range(5):
        capture.append(b"1", b"2")
        capture.flush()
    capture.close()
    assert capture.lost == 5
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert str(tmp_path / "file") in record.getMessage()


def test_a_full_disk_costs_what_is_asked_meanwhile_and_nothing_else(tmp_path, monkeypatch, caplog):
    """Writes succeed, then the disk takes half a line and is full, then it has room again."""
    capture = Capture(tmp_path, 1.0, "sell", "sell-0123")
    monkeypatch.setattr(capture_module, "RETRY_SECONDS", 0.0)
    really = os.write

    def half(file, data):
        return really(file, data[: len(data) // 2])

    def full(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    def step(request):
        capture.append(request, b"")
        capture.flush()

    for write, requests in (
        (really, [b"before"]),
        (half, [b"torn"]),
        (full, [b"full", b"still full"]),
        (really, [b"after", b"and on"]),
    ):
        monkeypatch.setattr(capture_module.os, "write", write)
        for request in requests:
            step(request)
    capture.close()
    skipped = []
    assert [c.request for c in read_captured(tmp_path, skipped=skipped)] == ["before", "after", "and on"]
    assert len(skipped) == 1
    assert capture.lost == 3
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1


def test_dev_full_is_a_full_disk(tmp_path, caplog):
    capture = Capture(tmp_path, 1.0, "sell", "sell-0123")
    hour = tmp_path / "sell-0123" / f"{dt.datetime.now(dt.UTC):%Y/%m/%d/%H}"
    hour.mkdir(parents=True)
    (hour / f"{capture._started}-{os.getpid()}.jsonl").symlink_to("/dev/full")
    capture.append(b"1", b"2")
    capture.close()
    assert capture.lost == 1
    assert "No space left" in caplog.records[0].getMessage()


def test_a_failed_disk_is_left_alone_for_a_while(tmp_path, monkeypatch):
    tried = []

    def write(file, data):
        tried.append(data)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(capture_module.os, "write", write)
    capture = Capture(tmp_path, 1.0, "sell", "sell-0123")
    for _ in range(100):
        capture.append(b"1", b"2")
        capture.flush()
    assert len(tried) == 1
    assert capture.lost == 100


def test_what_waits_for_a_slow_disk_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(capture_module, "MAX_WAITING_BYTES", 1000)
    monkeypatch.setattr(capture_module, "FLUSH_SECONDS", 3600)
    capture = Capture(tmp_path, 1.0, "sell", "sell-0123")
    with capture._writing:  # the disk hangs
        for _ in range(10):
            capture.append(b"x" * 200, b"")
        assert capture._waiting_bytes <= 1000
    capture.close()
    assert len(list(read_captured(tmp_path))) + capture.lost == 10
    assert capture.lost >= 5


# -- reading -----------------------------------------------------------------------------------------------------------


def _write(folder: Path, config: str, at: dt.datetime, *events: str, name: str = "a.jsonl") -> Path:
    path = folder / config / f"{at:%Y/%m/%d/%H}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [_line(event, at + dt.timedelta(seconds=i), config) for i, event in enumerate(events)]
    path.write_bytes(b"".join(lines))
    return path


def test_files_of_all_configs_are_read_in_the_order_of_time(tmp_path):
    hour = dt.datetime(2013, 3, 1, 14, tzinfo=dt.UTC)
    _write(tmp_path, "sell-b", hour, "1", "3", "5")
    _write(tmp_path, "sell-a", hour + dt.timedelta(seconds=0.5), "2", "4", name="b.jsonl")
    _write(tmp_path, "sell-a", hour + dt.timedelta(hours=10), "7")
    _write(tmp_path, "sell-a", hour + dt.timedelta(hours=9), "6")
    assert [c.event_id for c in read_captured(tmp_path)] == list("1234567")
    assert [c.config for c in read_captured(tmp_path)][:2] == ["sell-b", "sell-a"]

    def since(instant):
        return [c.event_id for c in read_captured(tmp_path, instant)]

    assert since(hour + dt.timedelta(seconds=1)) == list("34567")
    assert since(hour + dt.timedelta(hours=9)) == list("67")
    assert since(hour + dt.timedelta(days=9)) == []


def test_a_folder_that_is_not_there_holds_nothing(tmp_path):
    assert list(read_captured(tmp_path / "nothing")) == []


def test_an_instant_without_a_time_zone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="time zone"):
        next(read_captured(tmp_path, dt.datetime(2013, 3, 1)))


def test_torn_and_foreign_lines_are_left_out_and_counted(tmp_path, caplog):
    path = _write(tmp_path, "sell-a", AT, "1", "2", "3")
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"some": "thing"}\n\n' + lines[1] + lines[2][:40])
    (path.parent / "notes.txt").write_text("no capture file")
    (tmp_path / "elsewhere.jsonl").write_text("no hour")
    skipped = []
    assert [c.event_id for c in read_captured(tmp_path, skipped=skipped)] == ["1", "2"]
    assert [line.split(":")[1] for line in skipped] == ["2", "5"]
    (record,) = caplog.records
    assert "2 captured lines" in record.getMessage()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_file_cut_anywhere_gives_all_its_whole_lines(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    path = _write(folder, "sell-a", AT, *"12345")
    whole = path.read_bytes()
    kept = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:kept])
    # The end of a line is not part of what makes it whole.
    expected = sum(1 for at, byte in enumerate(whole) if byte == ord("\n") and at <= kept)
    assert len(list(read_captured(folder))) == expected


def test_old_captured_requests_are_removed_and_newer_ones_stay(tmp_path: Path) -> None:
    from quant_resources.endpoints.captured import remove_captured

    old, new = (
        tmp_path / "execution" / "capture" / "c" / part for part in ("2026/01/05/14", "2026/01/05/15")
    )
    for hour in (old, new):
        hour.mkdir(parents=True)
        (hour / "x-1.jsonl").write_text("{}\n")
    assert remove_captured(tmp_path, dt.datetime(2026, 1, 5, 15, 30, tzinfo=dt.UTC)) == 1
    assert [path.parent for path in tmp_path.rglob("*.jsonl")] == [new]
