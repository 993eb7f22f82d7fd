"""What vendors answered, kept as it came: whole or not at all, found again, never with a key in it."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from quant_resources.sources import SourceError
from quant_resources.sources.archive import Archive

NOON = dt.datetime(2024, 6, 28, 12, 0, tzinfo=dt.UTC)
REQUEST = {"function": "DAILY", "symbol": "IBM"}


def hours(count: float) -> dt.datetime:
    return NOON + dt.timedelta(hours=count)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path, "vendor", secrets=("SECRETKEY",))


@given(body=st.binary(max_size=300), symbol=st.from_regex(r"[A-Z][A-Z0-9.\-]{0,9}", fullmatch=True))
@effort(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_answer_is_read_as_it_was_stored(tmp_path: Path, body: bytes, symbol: str) -> None:
    archive = Archive(tmp_path, "vendor")
    archive.store("daily", symbol, {"symbol": symbol}, body, NOON)
    found = archive.newest("daily", symbol, {"symbol": symbol})
    assert found is not None
    assert (found.body, found.fetched_at, found.label, found.dataset) == (body, NOON, symbol, "daily")
    assert dict(found.request) == {"symbol": symbol}


def test_the_first_line_of_a_file_says_who_was_asked_for_what_and_when(archive: Archive) -> None:
    document = archive.store("daily", "IBM", REQUEST, b'{"a": 1}\n', NOON)
    line, body = gzip.decompress(document.path.read_bytes()).split(b"\n", 1)
    header = json.loads(line)
    assert header["request"] == REQUEST
    assert (header["vendor"], header["dataset"], header["label"]) == ("vendor", "daily", "IBM")
    assert dt.datetime.fromisoformat(header["fetched_at"]) == NOON
    assert body == b'{"a": 1}\n'


def test_an_origin_leads_to_the_file(archive: Archive) -> None:
    document = archive.store("daily", "IBM", REQUEST, b"{}", NOON)
    vendor, dataset, label, name = document.origin.split("/")
    assert (archive.folder.parent / vendor / dataset / label / f"{name}.json.gz") == document.path


def test_a_key_in_an_answer_is_blotted_out_before_it_is_written(archive: Archive) -> None:
    document = archive.store("daily", "IBM", REQUEST, b'{"note": "your key SECRETKEY"}', NOON)
    assert document.body == b'{"note": "your key (key)"}'
    assert b"SECRETKEY" not in gzip.decompress(document.path.read_bytes())


def test_the_newest_answer_to_exactly_this_request_is_found(archive: Archive) -> None:
    for hour in (1, 3, 2):
        archive.store("daily", "IBM", REQUEST, b"%d" % hour, hours(hour))
    archive.store("daily", "IBM", {**REQUEST, "size": "full"}, b"other", hours(9))
    found = archive.newest("daily", "IBM", REQUEST)
    assert found is not None
    assert found.body == b"3"
    assert archive.fetched_at("daily", "IBM", REQUEST) == hours(3)
    assert archive.newest("daily", "MSFT", REQUEST) is None
    assert archive.fetched_at("news", "IBM", REQUEST) is None


def test_the_order_of_parameters_does_not_make_another_request(archive: Archive) -> None:
    archive.store("daily", "IBM", {"a": "1", "b": "2"}, b"x", NOON)
    assert archive.newest("daily", "IBM", {"b": "2", "a": "1"}) is not None


def test_all_answers_come_in_the_order_in_which_they_were_given(archive: Archive) -> None:
    archive.store("daily", "MSFT", REQUEST, b"b", hours(1))
    archive.store("daily", "IBM", REQUEST, b"c", hours(2))
    archive.store("daily", "IBM", {"other": "request"}, b"a", hours(0))
    assert [document.body for document in archive.documents("daily")] == [b"a", b"b", b"c"]
    assert [document.body for document in archive.documents("daily", "IBM")] == [b"a", b"c"]
    assert [document.body for document in archive.documents("daily", since=hours(1))] == [b"b", b"c"]
    assert list(archive.documents("news")) == []


def test_an_instant_in_another_zone_is_the_same_instant(archive: Archive) -> None:
    there = hours(1).astimezone(dt.timezone(dt.timedelta(hours=-4)))
    archive.store("daily", "IBM", REQUEST, b"x", there)
    assert archive.fetched_at("daily", "IBM", REQUEST) == hours(1)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "no header"])
def test_a_damaged_file_is_named_and_an_older_answer_stands_in(
    archive: Archive, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    archive.store("daily", "IBM", REQUEST, b"older", hours(0))
    path = archive.store("daily", "IBM", REQUEST, b"newer" * 50, hours(1)).path
    content = path.read_bytes()
    flipped = gzip.compress(gzip.decompress(content).replace(b"newer", b"nEwer"))
    path.write_bytes(
        {"cut": content[:-20], "flipped": flipped, "empty": b"", "no header": gzip.compress(b"{}\n")}[damage]
    )
    with caplog.at_level(logging.WARNING):
        found = archive.newest("daily", "IBM", REQUEST)
    assert found is not None
    assert found.body == b"older"
    assert str(path) in caplog.text
    with pytest.raises(SourceError, match="is damaged") as error:
        list(archive.documents("daily"))
    assert str(path) in str(error.value)
    assert "delete it" in str(error.value)


def test_what_a_killed_writer_left_is_no_answer(archive: Archive) -> None:
    path = archive.store("daily", "IBM", REQUEST, b"whole", NOON).path
    path.with_name("20240629T120000000000-0123456789ab.json.4711.partial").write_bytes(b"\x1f\x8b torn")
    assert [document.body for document in archive.documents("daily")] == [b"whole"]


@pytest.mark.parametrize("label", ["../IBM", "", "a/b", ".hidden", "A B"])
def test_a_label_cannot_lead_out_of_the_archive(archive: Archive, label: str) -> None:
    with pytest.raises(SourceError, match="cannot name a folder"):
        archive.store("daily", label, REQUEST, b"x", NOON)


def test_an_archive_that_cannot_be_written_says_where_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "vendor").write_text("a file where the folder should be")
    with pytest.raises(SourceError, match="cannot be archived") as error:
        Archive(tmp_path, "vendor").store("daily", "IBM", REQUEST, b"x", NOON)
    assert str(tmp_path / "vendor" / "daily" / "IBM") in str(error.value)
    assert "QUANT_HOME" in str(error.value)
