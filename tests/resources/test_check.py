"""What `quant check` says of limits, symbols and peer finders, and what it does when nobody reads on."""

import datetime as dt
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from quant_assets.market import tables
from quant_resources.check import BAD, GOOD, NOTE, READER_GONE, Finding, _allowance, _stored_peers, report
from quant_resources.iceberg import Warehouse
from quant_resources.settings import load_settings


def allowance(home: Path, **settings: Any) -> list[str]:
    given = {
        "home": home,
        "source": "alpha_vantage",
        "alpha_vantage_key": "SOMEKEY",
        "symbols": "AAPL,MSFT",
        "news_symbols": "GOOGL,IBM",
        **settings,
    }
    found = list(_allowance(load_settings(**given)))
    assert all((finding.state, finding.about) == (NOTE, "quota") for finding in found)
    return [finding.text for finding in found]


def test_a_night_that_the_days_requests_cannot_carry_is_said(tmp_path: Path) -> None:
    assert allowance(tmp_path, alpha_vantage_requests_per_day=6) == []
    (text,) = allowance(tmp_path, alpha_vantage_requests_per_day=5)
    assert text.startswith("a night takes 6 requests (2 for bars, 4 for news) and 5 a day are allowed")
    # A symbol that is traded is read about as well, named once or twice.
    assert allowance(tmp_path, news_symbols="AAPL", alpha_vantage_requests_per_day=4) == []
    assert allowance(tmp_path, alpha_vantage_requests_per_day=1, archive_only=True) == []


@pytest.mark.parametrize(
    ("per_day", "per_minute", "notes"), [(25, 5, 1), (25, 75, 1), (0, 5, 1), (0, 75, 0), (500, 30, 0)]
)
def test_a_premium_plan_with_the_limits_of_a_free_key_is_said(
    tmp_path: Path, per_day: int, per_minute: float, notes: int
) -> None:
    limits = {
        "alpha_vantage_requests_per_day": per_day,
        "alpha_vantage_requests_per_minute": per_minute,
    }
    texts = allowance(tmp_path, alpha_vantage_plan="premium", **limits)
    assert len(texts) == notes
    assert all("QUANT_ALPHA_VANTAGE_PLAN=premium" in text for text in texts)
    assert allowance(tmp_path, **limits) == []


def test_a_finder_without_answers_beside_one_that_has_them_is_said(tmp_path: Path) -> None:
    table = load_settings(home=tmp_path)
    assert _stored_peers(table).state == GOOD
    row = {
        "symbol": "AAPL",
        "as_of": dt.date(2024, 1, 2),
        "available_at": dt.datetime(2024, 1, 2, tzinfo=dt.UTC),
        "finder": "table",
        "peers": "MSFT",
        "rejected": "",
    }
    Warehouse(tmp_path).write(tables.PEERS, pa.Table.from_pylist([row], schema=tables.PEERS.arrow_schema))
    assert _stored_peers(table) == Finding(
        GOOD, "competitors", "lists of 1 symbol(s) are stored in market.peers"
    )
    found = _stored_peers(load_settings(home=tmp_path, peer_finder="bedrock", bedrock_model_id="some.model"))
    assert found.state == NOTE
    assert "has lists of table and none of QUANT_PEER_FINDER=bedrock" in found.text


def test_the_exit_status_says_whether_something_is_bad(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(iter([Finding(GOOD, "a", "fine"), Finding(NOTE, "b", "so")])) == 0
    assert report(iter([Finding(BAD, "a", "not"), Finding(GOOD, "b", "fine")])) == 1
    assert "1 of these must be mended first" in capsys.readouterr().out


def test_a_reader_that_goes_away_leaves_no_traceback(tmp_path: Path) -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("QUANT_")}
    read, write = os.pipe()
    os.close(read)  # gone before the first line: the first write already fails
    try:
        done = subprocess.run(
            [sys.executable, "-m", "quant_resources.check", "check"],
            env={**plain, "QUANT_HOME": str(tmp_path)},
            cwd=tmp_path,
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (READER_GONE, "")
