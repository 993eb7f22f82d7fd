"""A person's first hour with a key: `quant check`, then the chain, in processes of their own, on stand-ins for the vendors."""

import datetime as dt
import gzip
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quant_assets.features.tables import PEERS as PEER_FEATURES
from quant_assets.features.tables import SENTIMENT
from quant_assets.market.tables import BARS, COVERAGE, MINUTE_BARS, NEWS, SECURITIES
from quant_assets.serving.tables import LIVE_SIGNALS
from quant_resources.calendar import TradingCalendar
from quant_resources.iceberg import Warehouse
from tests.vendors import alpaca, alpha_vantage

FIRST, LAST = dt.date(2023, 1, 3), dt.date(2024, 3, 28)
SYMBOLS = ("AAPL", "MSFT", "GOOGL")


@pytest.fixture(scope="module")
def vantage() -> Iterator[alpha_vantage.AlphaVantageStub]:
    market = alpha_vantage.Market(SYMBOLS, FIRST, LAST)
    with alpha_vantage.AlphaVantageStub(market) as stub:
        yield stub


def _environment(home: Path, **settings: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("QUANT_")}
    return {
        **plain,
        "QUANT_HOME": str(home),
        "QUANT_FIRST_SESSION": FIRST.isoformat(),
        "QUANT_LAST_SESSION": LAST.isoformat(),
        **settings,
    }


def _of_vantage(home: Path, stub: alpha_vantage.AlphaVantageStub, **settings: str) -> dict[str, str]:
    return _environment(
        home,
        **{
            "QUANT_SOURCE": "alpha_vantage",
            "QUANT_ALPHA_VANTAGE_KEY": alpha_vantage.KEY,
            "QUANT_ALPHA_VANTAGE_PLAN": "premium",
            "QUANT_ALPHA_VANTAGE_URL": stub.url,
            "QUANT_ALPHA_VANTAGE_REQUESTS_PER_MINUTE": "12000",
            "QUANT_ALPHA_VANTAGE_REQUESTS_PER_DAY": "0",
            "QUANT_SYMBOLS": "AAPL,MSFT",
            "QUANT_NEWS_SYMBOLS": "GOOGL",
            **settings,
        },
    )


def _run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    # Away from the checkout: a .env of the person who runs the tests must not matter.
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env=environment,
        cwd=environment["QUANT_HOME"],
        capture_output=True,
        text=True,
        timeout=300,
    )


def check(environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and output of `quant check`."""
    done = _run(environment, "quant_resources.check", "check")
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def home(vantage: alpha_vantage.AlphaVantageStub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a person has after `make check` and `make chain` with a premium key."""
    home = tmp_path_factory.mktemp("home")
    status, text = check(_of_vantage(home, vantage))
    assert status == 0, text
    assert "Alpha Vantage answers: AAPL stood at" in text
    assert "no daily limit" in text
    assert "2: AAPL, MSFT; news of GOOGL as well" in text
    assert "309 closed sessions" in text or "closed sessions of the New York Stock Exchange" in text
    done = _run(_of_vantage(home, vantage), "quant_assets.launch", "chain_job")
    assert done.returncode == 0, done.stdout + done.stderr
    return home


def test_a_key_carries_the_whole_chain_to_signals(home: Path) -> None:
    warehouse = Warehouse(home)
    sessions = TradingCalendar(FIRST, LAST).sessions(FIRST, LAST)
    bars = warehouse.read(BARS)
    assert bars.num_rows == 2 * len(sessions)
    assert set(bars["source"].to_pylist()) == {"alpha_vantage"}
    assert max(bars["split_factor"].to_pylist()) == 4.0
    assert max(bars["dividend"].to_pylist()) == 0.24
    news = warehouse.read(NEWS)
    assert set(news["symbol"].to_pylist()) == {"AAPL", "MSFT", "GOOGL"}
    assert set(warehouse.read(SENTIMENT)["source"].to_pylist()) == {"alpha_vantage"}
    # A competitor that is not traded counts for those that are.
    peers = warehouse.read(PEER_FEATURES)
    assert set(peers["symbol"].to_pylist()) == {"AAPL", "MSFT"}
    assert sum(peers["competitor_article_count"].to_pylist()) > 0
    assert all(row["sector"] for row in warehouse.read(SECURITIES).to_pylist())
    signals = warehouse.read(LIVE_SIGNALS, LAST, LAST).to_pylist()
    assert {row["strategy"] for row in signals} == {
        "mlp_long_short",
        "mlp_sentiment_long_short",
        "mlp_enhanced_long_short",
    }
    assert {row["news_source"] for row in signals} == {"alpha_vantage", "none"}
    assert {row["status"] for row in warehouse.read(COVERAGE).to_pylist()} == {"complete"}


def test_the_same_range_again_asks_for_nothing(home: Path, vantage: alpha_vantage.AlphaVantageStub) -> None:
    before = vantage.count()
    again = _run(_of_vantage(home, vantage), "quant_assets.launch", "ingest_job")
    assert again.returncode == 0, again.stdout + again.stderr
    assert vantage.count() == before


def test_the_tables_are_rebuilt_from_the_archive_without_a_vendor_or_a_key(
    home: Path, vantage: alpha_vantage.AlphaVantageStub, tmp_path: Path
) -> None:
    shutil.copytree(home / "archive", tmp_path / "archive")
    before = vantage.count()
    offline = _of_vantage(tmp_path, vantage, QUANT_ARCHIVE_ONLY="true", QUANT_ALPHA_VANTAGE_KEY="")
    done = _run(offline, "quant_assets.launch", "ingest_job")
    assert done.returncode == 0, done.stdout + done.stderr
    for spec in (BARS, NEWS, SECURITIES):
        assert Warehouse(tmp_path).read(spec).equals(Warehouse(home).read(spec)), spec.name
    assert vantage.count() == before


def test_the_key_is_nowhere_in_what_is_written(home: Path) -> None:
    """Tables, archive, Dagster's event log with every metadata, MLflow, reports."""
    looked = 0
    for path in home.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.suffix == ".gz":
                content = gzip.decompress(content)
            assert alpha_vantage.KEY.encode() not in content, path
            looked += 1
    assert looked > 100


@pytest.mark.parametrize(
    ("settings", "expected", "status"),
    [
        ({"QUANT_ALPHA_VANTAGE_KEY": ""}, "QUANT_SOURCE=alpha_vantage needs QUANT_ALPHA_VANTAGE_KEY", 2),
        ({"QUANT_SYMBOLS": ""}, "QUANT_SOURCE=alpha_vantage needs QUANT_SYMBOLS", 2),
        ({"QUANT_ALPHA_VANTAGE_KEY": "NOTAKEY"}, "QUANT_ALPHA_VANTAGE_KEY", 1),
        ({"QUANT_SYMBOLS": "NOSUCH"}, "NOSUCH", 1),
        ({"QUANT_ALPHA_VANTAGE_URL": "http://127.0.0.1:9"}, "did not come after 6 attempt(s)", 1),
        ({"QUANT_HOME": "/proc/nowhere"}, "cannot be written", 1),
        ({"QUANT_FIRST_SESSION": "2999-01-04", "QUANT_LAST_SESSION": ""}, "no session has closed", 1),
    ],
)
def test_check_says_in_a_sentence_what_is_wrong(
    vantage: alpha_vantage.AlphaVantageStub,
    tmp_path: Path,
    settings: dict[str, str],
    expected: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import quant_resources.check as command
    from quant_resources.sources import vendor

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vendor, "FIRST_DELAY_SECONDS", 0.001)
    for name, value in {**_of_vantage(tmp_path, vantage), **settings}.items():
        if name.startswith("QUANT_"):
            monkeypatch.setenv(name, value)
    assert command.main(["check"]) == status
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert expected in text
    assert "Traceback" not in text
    assert alpha_vantage.KEY not in text
    assert "NOTAKEY" not in text


def test_check_says_when_the_requests_of_the_day_are_used_up(
    vantage: alpha_vantage.AlphaVantageStub, tmp_path: Path
) -> None:
    environment = _of_vantage(
        tmp_path, vantage, QUANT_ALPHA_VANTAGE_PLAN="free", QUANT_ALPHA_VANTAGE_REQUESTS_PER_DAY="1"
    )
    status, text = check(environment)
    assert status == 0
    assert "0 of 1 requests of today are used, 1 are left" in text
    assert "newest 100 sessions" in text
    status, text = check(environment)
    assert status == 0, "a used-up day is no mistake"
    assert "1 of 1 requests of today are used, 0 are left" in text
    assert "again after" in text


def test_alpaca_brings_bars_minutes_quotes_and_scored_news(tmp_path: Path) -> None:
    first, last = dt.date(2024, 3, 25), dt.date(2024, 3, 28)
    with alpaca.AlpacaStub(("AAPL", "MSFT")) as stub:
        stub.actions = [
            {
                "kind": "cash_dividend",
                "id": "1",
                "symbol": "AAPL",
                "rate": 0.24,
                "ex_date": "2024-03-27",
                "process_date": "2024-04-10",
            }
        ]
        stub.articles = [
            alpaca.article(
                1,
                "2024-03-26T15:00:00Z",
                ["AAPL"],
                "Apple beats estimates and raises outlook",
            ),
        ]
        environment = _environment(
            tmp_path,
            QUANT_SOURCE="alpaca",
            QUANT_ALPACA_KEY_ID=alpaca.KEY_ID,
            QUANT_ALPACA_SECRET_KEY=alpaca.SECRET_KEY,
            QUANT_ALPACA_URL=stub.url,
            QUANT_ALPACA_REQUESTS_PER_MINUTE="12000",
            QUANT_SYMBOLS="AAPL,MSFT",
            QUANT_MINUTE_BARS="true",
            QUANT_FIRST_SESSION=str(first),
            QUANT_LAST_SESSION=str(last),
        )
        status, text = check(environment)
        assert status == 0, text
        assert "Alpaca answers: AAPL at" in text
        done = _run(environment, "quant_assets.launch", "ingest_job")
        assert done.returncode == 0, done.stdout + done.stderr
    warehouse = Warehouse(tmp_path)
    bars = {(row["symbol"], row["session"]): row for row in warehouse.read(BARS).to_pylist()}
    assert len(bars) == 8
    assert bars["AAPL", dt.date(2024, 3, 27)]["dividend"] == 0.24
    minutes = warehouse.read(MINUTE_BARS)
    assert 0.95 * 8 * 390 < minutes.num_rows <= 8 * 390, "minutes without a trade have no bar"
    quoted = [row for row in minutes.to_pylist() if row["bid"] is not None]
    assert 0.8 * 8 * 13 < len(quoted) <= 8 * 13
    assert all(row["bid"] < row["ask"] for row in quoted)
    (article,) = warehouse.read(NEWS).to_pylist()
    assert article["sentiment_score"] > 0
    assert article["scorer"].startswith("lexicon")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
            assert alpaca.SECRET_KEY.encode() not in content, path
            assert alpaca.KEY_ID.encode() not in content, path
