"""Settings: what counts when nothing is set, and what somebody who sets a wrong value is told."""

from __future__ import annotations

import datetime as dt
import os
import re
from pathlib import Path

import pytest

from quant_resources.settings import Settings, SettingsError, ensure_home, load_settings


@pytest.fixture(autouse=True)
def empty_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No QUANT_ variable and no .env file: what the test sets is all there is."""
    for name in [name for name in os.environ if name.startswith("QUANT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_without_any_variable_the_sample_runs_locally_and_bad_rows_fail(tmp_path: Path) -> None:
    settings = load_settings()
    assert settings.model_dump() == {
        "home": tmp_path / ".quant",
        "deployment": "local",
        "source": "sample",
        "files_dir": None,
        "symbols": None,
        "first_session": None,
        "last_session": None,
        "bad_rows": "fail",
        "missing_sessions": "fail",
        "seed": 20000301,
        "compute_backend": "loky",
        "compute_jobs": -1,
        "endpoint_backend": "local",
        "endpoint_port": None,
        "endpoint_workers": 1,
        "endpoint_capture_share": 1.0,
        "promotion": "auto",
        "sagemaker_role_arn": None,
        "sagemaker_image_uri": None,
        "sagemaker_bucket": None,
        "sagemaker_instance_type": "ml.m5.large",
        "sagemaker_prefix": "quant",
        "duckdb_threads": 2,
        "duckdb_memory_gib": 4.0,
        "news_symbols": None,
        "minute_bars": False,
        "overlap_sessions": 5,
        "archive_only": False,
        "night_delay_minutes": 30,
        "alpha_vantage_key": None,
        "alpha_vantage_plan": "free",
        "alpha_vantage_requests_per_minute": 5.0,
        "alpha_vantage_requests_per_day": 25,
        "alpha_vantage_url": "https://www.alphavantage.co",
        "alpaca_key_id": None,
        "alpaca_secret_key": None,
        "alpaca_feed": "iex",
        "alpaca_requests_per_minute": 200.0,
        "alpaca_quote_minutes": 30,
        "alpaca_url": "https://data.alpaca.markets",
        "news_scorer": "lexicon",
        "peer_finder": "table",
        "peers_file": None,
        "bedrock_model_id": "amazon.nova-lite-v1:0",
    }


def test_every_folder_of_the_project_lies_under_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANT_HOME", str(tmp_path / "elsewhere"))
    settings = load_settings()
    for folder in (
        settings.warehouse_dir,
        settings.signals_dir,
        settings.reports_dir,
        settings.endpoints_dir,
    ):
        assert folder.parent == tmp_path / "elsewhere"


def test_a_relative_home_is_made_absolute_so_that_a_later_chdir_does_not_move_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANT_HOME", "here")
    settings = load_settings()
    monkeypatch.chdir("/")
    assert settings.home == tmp_path / "here"


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("QUANT_SOURCE", "yahoo", "'sample', 'files'"),
        ("QUANT_DEPLOYMENT", "moon", "'local'"),
        ("QUANT_BAD_ROWS", "drop", "'fail' or 'quarantine'"),
        ("QUANT_MISSING_SESSIONS", "ignore", "'fail' or 'warn'"),
        ("QUANT_SEED", "-1", "greater than or equal to 0"),
        ("QUANT_SEED", str(2**32), "less than 4294967296"),
        ("QUANT_SEED", "lucky", "integer"),
        ("QUANT_SYMBOLS", "AAPL,B$D", "ticker (letters, digits, '.' or '-', at most 10)"),
        ("QUANT_SYMBOLS", "AAPL MSFT", "ticker (letters, digits, '.' or '-', at most 10)"),
        ("QUANT_SYMBOLS", "TOOLONGTICKER", "ticker (letters, digits, '.' or '-', at most 10)"),
        ("QUANT_FIRST_SESSION", "yesterday", "date"),
        ("QUANT_LAST_SESSION", "2012-02-30", "date"),
        ("QUANT_COMPUTE_BACKEND", "ray", "'loky', 'threading' or 'sequential'"),
        ("QUANT_COMPUTE_JOBS", "0", "-1 (one per core) or at least 1"),
        ("QUANT_COMPUTE_JOBS", "-2", "greater than or equal to -1"),
        ("QUANT_DUCKDB_THREADS", "0", "greater than or equal to 1"),
        ("QUANT_DUCKDB_THREADS", "257", "less than or equal to 256"),
        ("QUANT_DUCKDB_THREADS", "many", "integer"),
        ("QUANT_DUCKDB_MEMORY_GIB", "0", "greater than 0"),
        ("QUANT_DUCKDB_MEMORY_GIB", "nan", "finite number"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    message = str(caught.value)
    assert f"{variable}={value!r}" in message
    assert allowed in message


def test_all_wrong_values_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANT_SOURCE", "yahoo")
    monkeypatch.setenv("QUANT_SEED", "-1")
    with pytest.raises(SettingsError, match=r"QUANT_SOURCE='yahoo'(.|\n)*QUANT_SEED='-1'"):
        load_settings()


def test_source_files_without_a_folder_names_the_variable_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QUANT_SOURCE", "files")
    with pytest.raises(SettingsError, match=r"QUANT_SOURCE=files needs QUANT_FILES_DIR.*bars/"):
        load_settings()


@pytest.mark.parametrize("kind", ["absent", "regular file"])
def test_a_files_dir_that_is_no_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "mine"
    if kind == "regular file":
        path.write_text("symbol,session\n")
    monkeypatch.setenv("QUANT_SOURCE", "files")
    monkeypatch.setenv("QUANT_FILES_DIR", str(path))
    with pytest.raises(SettingsError, match=f"QUANT_FILES_DIR={path} is not a folder"):
        load_settings()


def test_a_last_session_before_the_first_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANT_FIRST_SESSION", "2012-06-01")
    monkeypatch.setenv("QUANT_LAST_SESSION", "2012-05-31")
    with pytest.raises(
        SettingsError, match="QUANT_FIRST_SESSION=2012-06-01 lies after QUANT_LAST_SESSION=2012-05-31"
    ):
        load_settings()


def test_one_session_alone_is_a_valid_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANT_FIRST_SESSION", "2012-06-01")
    monkeypatch.setenv("QUANT_LAST_SESSION", "2012-06-01")
    settings = load_settings()
    assert settings.first_session == settings.last_session == dt.date(2012, 6, 1)


@pytest.mark.parametrize(
    ("value", "symbols"),
    [
        ("AAPL", ("AAPL",)),
        (" aapl , BRK.B,BF-B,", ("AAPL", "BRK.B", "BF-B")),
        ("", None),
        (" , ", None),
    ],
)
def test_symbols_are_a_comma_separated_list(
    monkeypatch: pytest.MonkeyPatch, value: str, symbols: tuple[str, ...] | None
) -> None:
    monkeypatch.setenv("QUANT_SYMBOLS", value)
    assert load_settings().symbols == symbols


def test_an_empty_home_does_not_scatter_files_over_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `QUANT_HOME=` is what an unset variable of a compose file or a shell script looks like.
    monkeypatch.setenv("QUANT_HOME", "")
    try:
        home = load_settings().home
    except SettingsError as error:
        assert "QUANT_HOME" in str(error)  # noqa: PT017  # refusing is as good as the default
    else:
        assert home == tmp_path / ".quant"


def test_a_dotenv_file_is_read_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("QUANT_SEED=7\nQUANT_BAD_ROWS=quarantine\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("QUANT_SEED", "8")
    settings = load_settings()
    assert (settings.seed, settings.bad_rows) == (8, "quarantine")


def test_a_wrong_value_in_the_dotenv_file_is_named_like_one_in_the_environment(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("QUANT_BAD_ROWS=drop\n")
    with pytest.raises(SettingsError, match=r"QUANT_BAD_ROWS='drop'.*'fail' or 'quarantine'"):
        load_settings()


def test_an_override_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANT_SEED", "8")
    assert load_settings(seed=9).seed == 9


def test_ensure_home_creates_the_folder_and_leaves_nothing_else_in_it(tmp_path: Path) -> None:
    home = ensure_home(load_settings(home=tmp_path / "deep" / "home"))
    assert home == tmp_path / "deep" / "home"
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("below", ["", "home"])
def test_a_home_at_or_under_a_regular_file_is_named_with_the_reason(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("I was here first")
    with pytest.raises(SettingsError, match=r"QUANT_HOME=.*cannot be written: (Not a directory|File exists)"):
        ensure_home(load_settings(home=file / below))
    assert file.read_text() == "I was here first"


@pytest.mark.parametrize("home", ["/proc/quant", "/proc/self"])
def test_a_home_on_a_file_system_that_takes_no_files_is_named(home: str) -> None:
    # The tests may run as root, whom no permission stops: /proc refuses even root, on mkdir and on the probe.
    with pytest.raises(SettingsError, match=f"QUANT_HOME={home} cannot be written: .*point QUANT_HOME at"):
        ensure_home(load_settings(home=home))


def test_sagemaker_needs_a_role_an_image_and_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANT_ENDPOINT_BACKEND", "sagemaker")
    with pytest.raises(SettingsError, match="needs QUANT_SAGEMAKER_ROLE_ARN"):
        load_settings()


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"source": "alpha_vantage", "symbols": "IBM"}, "QUANT_ALPHA_VANTAGE_KEY"),
        ({"source": "alpha_vantage", "alpha_vantage_key": "k"}, "QUANT_SYMBOLS"),
        ({"source": "alpaca", "symbols": "IBM"}, "QUANT_ALPACA_KEY_ID"),
        ({"source": "alpaca", "symbols": "IBM", "alpaca_key_id": "k"}, "QUANT_ALPACA_SECRET_KEY"),
        ({"peers_file": "/nowhere/peers.csv"}, "QUANT_PEERS_FILE=/nowhere/peers.csv is no file"),
        ({"alpha_vantage_url": "https://host/?apikey=SECRET1"}, "QUANT_ALPHA_VANTAGE_URL"),
    ],
)
def test_a_vendor_without_what_it_needs_is_refused_by_name(settings: dict[str, str], needed: str) -> None:
    with pytest.raises(SettingsError, match=needed.replace("/", ".")):
        load_settings(**settings)


def test_a_key_is_never_shown_by_settings_or_their_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANT_ALPHA_VANTAGE_KEY", "SECRET1")
    monkeypatch.setenv("QUANT_ALPACA_SECRET_KEY", "SECRET2")
    shown = repr(load_settings()) + str(load_settings().model_dump())
    with pytest.raises(SettingsError) as refused:
        load_settings(overlap_sessions=1000, alpaca_url="no address")
    assert "SECRET" not in shown + str(refused.value)


def test_no_daily_limit_is_a_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANT_ALPHA_VANTAGE_REQUESTS_PER_DAY", "0")
    assert load_settings().alpha_vantage_requests_per_day is None


def test_the_example_of_settings_names_only_settings_that_exist() -> None:
    example = (Path(__file__).resolve().parents[2] / ".env.example").read_text()
    named = {
        line.lstrip("# ").split("=")[0] for line in example.splitlines() if re.match(r"#? ?QUANT_", line)
    }
    known = {f"QUANT_{name.upper()}" for name in Settings.model_fields}
    assert named
    assert named <= known
