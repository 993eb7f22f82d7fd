"""Your own files through the whole chain, in processes of their own, as a person with a terminal runs them."""

import datetime as dt
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from quant_assets.features.tables import SENTIMENT, TECHNICAL
from quant_assets.market.tables import BARS, MINUTE_BARS, NEWS, quarantine_of
from quant_assets.serving.tables import LIVE_SIGNALS
from quant_resources.calendar import TradingCalendar
from quant_resources.iceberg import Warehouse

SHARED_FILES = Path(__file__).resolve().parents[2] / "shared" / "data" / "files"
FIRST, LAST = dt.date(2023, 1, 3), dt.date(2024, 3, 28)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two invented tickers: bars as CSV and Parquet, zoned news, one day of minute bars."""
    folder = tmp_path_factory.mktemp("files")
    calendar = TradingCalendar(FIRST, LAST)
    sessions = calendar.sessions(FIRST, LAST)
    rng = np.random.default_rng(1)
    (folder / "bars").mkdir()
    for symbol in ("ACME", "ZETA"):
        close = 50 * np.exp(np.cumsum(rng.normal(0, 0.02, len(sessions))))
        open_ = close * np.exp(rng.normal(0, 0.005, len(sessions)))
        frame = pd.DataFrame(
            {
                "symbol": symbol,
                "session": [s.isoformat() for s in sessions],
                "open": open_,
                "high": np.maximum(open_, close) * 1.005,
                "low": np.minimum(open_, close) * 0.995,
                "close": close,
                "volume": rng.integers(1e5, 1e6, len(sessions)),
            }
        ).round({"open": 4, "high": 4, "low": 4, "close": 4})
        if symbol == "ACME":
            frame.to_csv(folder / "bars" / "acme.csv", index=False)
        else:
            frame.to_parquet(folder / "bars" / "zeta.parquet", index=False)
    (folder / "news").mkdir()
    rows = ["symbol,published_at,sentiment_score,relevance_score,title,url"]
    for i, session in enumerate(sessions):
        zone = "-05:00" if i % 2 else "Z"  # zones may be mixed as long as each row says its own
        rows.append(
            f"ACME,{session}T15:30:00{zone},{rng.uniform(-0.5, 0.5):.3f},0.8,News {i},https://news.example/{i}"
        )
    (folder / "news" / "acme.csv").write_text("\n".join(rows) + "\n")
    (folder / "minute_bars").mkdir()
    opens = calendar.opens(LAST)
    minutes = [opens + dt.timedelta(minutes=i) for i in range(390)]
    pd.DataFrame(
        {
            "symbol": "ACME",
            "ts": minutes,
            "open": 50.0,
            "high": 50.1,
            "low": 49.9,
            "close": 50.0,
            "volume": 100,
            "bid": 49.99,
            "ask": 50.01,
            "bid_size": 3,
            "ask_size": 4,
        }
    ).to_parquet(folder / "minute_bars" / "acme.parquet", index=False)
    return folder


def _launch(home: Path, folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "QUANT_HOME": str(home),
        "QUANT_SOURCE": "files",
        "QUANT_FILES_DIR": str(folder),
        "QUANT_FIRST_SESSION": FIRST.isoformat(),
        "QUANT_LAST_SESSION": LAST.isoformat(),
        **settings,
    }
    command = [sys.executable, "-m", "quant_assets.launch", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def home(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    done = _launch(home, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return home


def test_files_go_all_the_way_to_signals(home: Path) -> None:
    warehouse = Warehouse(home)
    sessions = TradingCalendar(FIRST, LAST).sessions(FIRST, LAST)
    assert warehouse.read(BARS).num_rows == 2 * len(sessions)
    assert set(warehouse.read(BARS)["source"].to_pylist()) == {"files"}
    assert warehouse.read(MINUTE_BARS).num_rows == 390
    assert warehouse.read(TECHNICAL).num_rows == 2 * (len(sessions) - 20)
    assert set(warehouse.read(SENTIMENT)["source"].to_pylist()) == {"files"}
    signals = warehouse.read(LIVE_SIGNALS, LAST, LAST).to_pylist()
    assert {row["symbol"] for row in signals} == {"ACME", "ZETA"}
    assert {row["news_source"] for row in signals} == {"files", "none"}


def test_news_after_the_close_count_for_the_next_session(home: Path) -> None:
    """15:30 with a fixed offset of -5 hours is before the close in winter and, under summer time, half an hour after."""
    calendar = TradingCalendar(FIRST, LAST)
    rows = Warehouse(home).read(NEWS).to_pylist()
    late = [row for row in rows if row["available_at"] > calendar.close(row["available_at"].date())]
    assert late
    for row in rows:
        published = row["available_at"].date()
        assert row["session"] == (calendar.shift(published, 1) if row in late else published)


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("news/acme.csv", "T15:30:00Z", "T15:30:00", ("news/acme.csv:2: published_at", "has no time zone")),
        (
            "bars/acme.csv",
            ",2023-01-05,",
            ",2023-01-07,",
            ("acme.csv:4: rule calendar: 2023-01-07 is a Saturday",),
        ),
        (
            "bars/acme.csv",
            "symbol,session",
            "ticker,session",
            ("bars/acme.csv: wrong columns: symbol missing",),
        ),
    ],
    ids=["naive time", "weekend", "wrong columns"],
)
def test_bad_files_are_named_with_row_and_rule(
    folder: Path, tmp_path: Path, file: str, old: str, new: str, expected: tuple[str, ...]
) -> None:
    import shutil

    broken = tmp_path / "files"
    shutil.copytree(folder, broken)
    text = (broken / file).read_text()
    assert old in text
    (broken / file).write_text(text.replace(old, new, 1))
    done = _launch(tmp_path / "home", broken, "ingest_job")
    assert done.returncode == 1
    for part in expected:
        assert part in done.stdout, done.stdout + done.stderr
    assert not Warehouse(tmp_path / "home").exists(BARS if file.startswith("bars") else NEWS)


def test_crossed_quotes_fail_or_are_set_aside(folder: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "files"
    shutil.copytree(folder, broken)
    path = broken / "minute_bars" / "acme.parquet"
    frame = pd.read_parquet(path)
    frame.loc[7, "bid"] = 51.0
    frame.to_parquet(path, index=False)
    day = LAST.isoformat()
    failed = _launch(tmp_path / "strict", broken, "ingest_job", "--first", day, "--last", day)
    assert failed.returncode == 1
    assert "acme.parquet:8: rule quotes: bid 51.0" in failed.stdout
    home = tmp_path / "lenient"
    done = _launch(home, broken, "ingest_job", "--first", day, "--last", day, QUANT_BAD_ROWS="quarantine")
    assert done.returncode == 0, done.stdout
    assert Warehouse(home).read(MINUTE_BARS).num_rows == 389
    (row,) = Warehouse(home).read(quarantine_of(MINUTE_BARS)).to_pylist()
    assert (row["origin"], row["rule"]) == ("acme.parquet:8", "quotes")


def test_an_unknown_symbol_and_an_empty_folder_are_explained(folder: Path, tmp_path: Path) -> None:
    unknown = _launch(tmp_path / "a", folder, "ingest_job", QUANT_SYMBOLS="ACME,NOPE")
    assert unknown.returncode == 1
    assert "unknown symbol(s) NOPE" in unknown.stdout
    (tmp_path / "empty" / "bars").mkdir(parents=True)
    empty = _launch(tmp_path / "b", tmp_path / "empty", "ingest_job")
    assert empty.returncode != 0
    assert "no CSV or Parquet file" in empty.stdout + empty.stderr


@pytest.mark.skipif(not SHARED_FILES.is_dir(), reason="the real files are not part of the project")
@pytest.mark.slow
def test_real_bars_with_gaps_need_consent(tmp_path: Path) -> None:
    """INTC 2022-2024 lacks eleven sessions."""
    span = {"QUANT_FIRST_SESSION": "2022-03-03", "QUANT_LAST_SESSION": "2024-12-31"}
    refused = _launch(tmp_path, SHARED_FILES, "ingest_job", **span)
    assert refused.returncode == 1
    assert "11 bar(s) are missing" in refused.stdout
    assert "INTC 2022-04-01" in refused.stdout
    accepted = _launch(tmp_path, SHARED_FILES, "chain_job", **span, QUANT_MISSING_SESSIONS="warn")
    assert accepted.returncode == 0, accepted.stdout
    assert Warehouse(tmp_path).read(BARS).num_rows == 701


@pytest.mark.skipif(not SHARED_FILES.is_dir(), reason="the real files are not part of the project")
def test_real_minute_bars_and_quotes_pass_every_rule(tmp_path: Path) -> None:
    span = {"QUANT_FIRST_SESSION": "2014-06-05", "QUANT_LAST_SESSION": "2014-06-09"}
    done = _launch(tmp_path, SHARED_FILES, "ingest_job", **span)
    assert "market/minute_bars" in done.stdout
    assert Warehouse(tmp_path).read(MINUTE_BARS).num_rows == 1170
