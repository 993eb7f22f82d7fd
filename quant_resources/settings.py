"""Settings: every knob that is read from the environment, in one place.

Belongs here: values that differ between machines or deployments. Does not belong here: model parameters (those are
typed `dg.Config` on their asset) and anything that must be the same for everybody (constants beside their code).
"""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

ENV_PREFIX = "QUANT_"
CREATING_TIMEOUT_SECONDS = 120.0


class SettingsError(ValueError):
    """A setting is wrong. The message names the variable, its value and what is allowed."""


class Settings(BaseSettings):
    """What this deployment is, where it keeps its files and where its data come from.

    Read from `QUANT_*` environment variables and from a `.env` file in the working directory; the environment wins.
    Use `load_settings()`, which turns a validation failure into one readable `SettingsError`.
    """

    # An empty variable counts as unset: QUANT_HOME= would otherwise mean the working directory.
    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    home: Path = Field(
        Path(".quant"), description="Folder that everything written by the project lies under."
    )
    deployment: Literal["local"] = Field(
        "local", description="Which resources stand behind the assets; `local` needs no key and no network."
    )
    source: Literal["sample", "files", "alpha_vantage", "alpaca"] = Field(
        "sample",
        description="Where market data come from: the bundled sample, a folder of yours, or a vendor with a key of yours.",
    )
    files_dir: Path | None = Field(
        None, description="Folder with bars/, minute_bars/ and news/ (source `files`)."
    )
    # NoDecode: people write a comma-separated list in a shell, not JSON.
    symbols: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None, description="Comma-separated tickers to keep; all that the source has when unset."
    )
    news_symbols: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None,
        description="Comma-separated tickers whose news are brought in as well, such as competitors that are not traded (vendors).",
    )
    first_session: dt.date | None = Field(
        None, description="First session of the partitions (files and vendors; the sample knows its own)."
    )
    last_session: dt.date | None = Field(
        None, description="Last session of the partitions; open-ended when unset (files and vendors)."
    )
    minute_bars: bool = Field(
        False, description="Whether a vendor is asked for minute bars as well; files have them or not."
    )
    overlap_sessions: int = Field(
        5,
        ge=0,
        le=90,
        description="Sessions before the wanted ones that a vendor is asked for again, for corrected bars.",
    )
    archive_only: bool = Field(
        False, description="Whether tables are rebuilt from archived responses, without asking the vendor."
    )
    night_delay_minutes: int = Field(
        30,
        ge=5,
        le=420,
        description="Minutes from the exchange's close to the nightly run: as long as the vendor takes to publish.",
    )
    alpha_vantage_key: SecretStr | None = Field(None, description="Your key of Alpha Vantage.")
    alpha_vantage_plan: Literal["free", "premium"] = Field(
        "free",
        description="free: the last 100 sessions, without dividends and splits; premium: whole history, adjusted, minutes.",
    )
    alpha_vantage_requests_per_minute: float = Field(
        5.0, gt=0, le=12_000, description="Requests a minute that your plan allows."
    )
    alpha_vantage_requests_per_day: int | None = Field(
        25, ge=1, description="Requests a day that your plan allows; 25 for a free key, 0 for no limit."
    )
    alpha_vantage_url: str = Field("https://www.alphavantage.co", description="Address of the service.")
    alpaca_key_id: SecretStr | None = Field(None, description="Key ID of your Alpaca account.")
    alpaca_secret_key: SecretStr | None = Field(None, description="Secret key of your Alpaca account.")
    alpaca_feed: Literal["iex", "sip", "delayed_sip", "otc", "boats", "overnight"] = Field(
        "iex", description="Exchanges behind bars and quotes: iex is free, sip (all) needs a subscription."
    )
    alpaca_requests_per_minute: float = Field(
        200.0, gt=0, le=12_000, description="Requests a minute that your plan allows."
    )
    alpaca_quote_minutes: int = Field(
        30, ge=1, le=390, description="Every how many minutes the quote is asked for that gives the spread."
    )
    alpaca_url: str = Field("https://data.alpaca.markets", description="Address of the service.")
    news_scorer: Literal["lexicon", "bedrock"] = Field(
        "lexicon",
        description="Who scores news that come without sentiment: a word list on this machine, or a model on Bedrock.",
    )
    peer_finder: Literal["table", "bedrock"] = Field(
        "table", description="Who names a symbol's competitors: curated tables, or a model on Bedrock."
    )
    peers_file: Path | None = Field(
        None, description="CSV with symbol and peers of yours, before the bundled list (peer finder `table`)."
    )
    bedrock_model_id: str = Field(
        "amazon.nova-lite-v1:0", description="Model that Bedrock is asked with (news scorer, peer finder)."
    )
    bad_rows: Literal["fail", "quarantine"] = Field(
        "fail", description="A bar, article or quote that breaks a rule fails the run, or is set aside."
    )
    missing_sessions: Literal["fail", "warn"] = Field(
        "fail", description="A session without a bar of a listed symbol fails the run, or only warns."
    )
    seed: int = Field(
        20000301, ge=0, lt=2**32, description="Seed of the simulated news and of model training."
    )
    compute_backend: Literal["loky", "threading", "sequential"] = Field(
        "loky", description="Where parameter sets are simulated: processes, threads, or one after another."
    )
    compute_jobs: int = Field(-1, ge=-1, le=1024, description="Workers of that pool; -1 is one per core.")
    endpoint_backend: Literal["local", "sagemaker"] = Field(
        "local", description="Where endpoints run: supervised processes on this machine, or Amazon SageMaker."
    )
    endpoint_port: int | None = Field(
        None,
        ge=1024,
        le=65535,
        description="Port of the local endpoints on the loopback interface; unset: one that is free is chosen once and kept.",
    )
    endpoint_workers: int = Field(
        1, ge=1, le=64, description="Processes (instances on SageMaker) that answer for an endpoint."
    )
    endpoint_capture_share: float = Field(
        1.0, ge=0, le=1, description="Part of the requests whose input and output are captured."
    )
    promotion: Literal["auto", "approval"] = Field(
        "auto",
        description="Whether a challenger that passes its gate becomes champion by itself, or waits for a person (approve_job).",
    )
    sagemaker_role_arn: str | None = Field(
        None, description="Role that SageMaker assumes to read the model and write captured requests."
    )
    sagemaker_image_uri: str | None = Field(
        None, description="Image of the inference app in ECR (deploy/serving/Dockerfile)."
    )
    sagemaker_bucket: str | None = Field(
        None, description="S3 bucket for models and captured requests, without s3://."
    )
    sagemaker_instance_type: str = Field("ml.m5.large", description="Instance type of the endpoints.")
    sagemaker_prefix: str = Field(
        "quant",
        pattern=r"^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,19}$",
        description="Begins the names of everything that is created in the AWS account.",
    )
    duckdb_threads: int = Field(2, ge=1, le=256, description="Threads of a DuckDB connection.")
    duckdb_memory_gib: float = Field(
        4.0, gt=0, allow_inf_nan=False, description="Memory limit of a DuckDB connection, GiB."
    )

    @field_validator("compute_jobs")
    @classmethod
    def _some_workers(cls, value: int) -> int:
        if value == 0:
            raise ValueError("must be -1 (one per core) or at least 1")
        return value

    @field_validator("alpha_vantage_requests_per_day", mode="before")
    @classmethod
    def _zero_is_no_limit(cls, value: object) -> object:
        return None if str(value).strip() == "0" else value

    @field_validator("alpha_vantage_url", "alpaca_url")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if not re.fullmatch(r"https?://[^\s?#@]+", value):
            raise ValueError("is no address: https://host, without key, question mark or spaces")
        return value.rstrip("/")

    @field_validator("symbols", "news_symbols", mode="before")
    @classmethod
    def _split_symbols(cls, value: object) -> object:
        if isinstance(value, str):
            value = tuple(part.strip().upper() for part in value.split(",") if part.strip())
        if isinstance(value, (tuple, list)):
            for symbol in value:
                if not re.fullmatch(r"[A-Z][A-Z0-9.\-]{0,9}", str(symbol)):
                    raise ValueError(f"{symbol!r} is not a ticker (letters, digits, '.' or '-', at most 10)")
        return value or None

    @field_validator("home", "files_dir", "peers_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> Settings:
        if self.source == "files":
            if self.files_dir is None:
                raise ValueError("QUANT_SOURCE=files needs QUANT_FILES_DIR, the folder that holds bars/")
            if not self.files_dir.is_dir():
                raise ValueError(f"QUANT_FILES_DIR={self.files_dir} is not a folder")
        needed = {
            "alpha_vantage": ("alpha_vantage_key", "symbols"),
            "alpaca": ("alpaca_key_id", "alpaca_secret_key", "symbols"),
        }
        for name in needed.get(self.source, ()):
            # A key is not needed to read what was archived.
            if not getattr(self, name) and not (self.archive_only and "key" in name):
                raise ValueError(
                    f"QUANT_SOURCE={self.source} needs {ENV_PREFIX}{name.upper()}. {type(self).model_fields[name].description}"
                )
        if self.peers_file is not None and not self.peers_file.is_file():
            raise ValueError(f"QUANT_PEERS_FILE={self.peers_file} is no file")
        if self.endpoint_backend == "sagemaker":
            for name in ("sagemaker_role_arn", "sagemaker_image_uri", "sagemaker_bucket"):
                if getattr(self, name) is None:
                    raise ValueError(
                        f"QUANT_ENDPOINT_BACKEND=sagemaker needs {ENV_PREFIX}{name.upper()}. "
                        f"{type(self).model_fields[name].description}"
                    )
        if self.first_session and self.last_session and self.first_session > self.last_session:
            raise ValueError(
                f"QUANT_FIRST_SESSION={self.first_session} lies after QUANT_LAST_SESSION={self.last_session}"
            )
        return self

    @property
    def archive_dir(self) -> Path:
        """Folder of what vendors answered, one compressed file per request."""
        return self.home / "archive"

    @property
    def warehouse_dir(self) -> Path:
        """Folder of the Iceberg data and metadata files."""
        return self.home / "warehouse"

    @property
    def signals_dir(self) -> Path:
        """Folder of the per-strategy signal CSVs."""
        return self.home / "signals"

    @property
    def endpoints_dir(self) -> Path:
        """Folder of the local endpoints: bundles, state, captured requests, logs."""
        return self.home / "endpoints"

    @property
    def reports_dir(self) -> Path:
        """Folder of the reports that a person opens."""
        return self.home / "reports"


def load_settings(**overrides: object) -> Settings:
    """Read and validate the settings.

    Args:
        overrides: values that win over the environment (tests, notebooks).

    Raises:
        SettingsError: naming each wrong variable, its value and what is allowed.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = []
        for item in error.errors():
            field = str(item["loc"][0]) if item["loc"] else ""
            if not field:
                lines.append(item["msg"].removeprefix("Value error, "))
                continue
            variable = ENV_PREFIX + field.upper()
            allowed = item["msg"].removeprefix("Value error, ")
            shown = repr(item["input"])
            if field.endswith(("_key", "_key_id")):
                shown = "(secret)"
            elif field.endswith("_url"):  # people paste whole addresses, with their key
                shown = repr(str(item["input"]).split("?")[0].split("@")[-1])
            lines.append(f"{variable}={shown}: {allowed}. {Settings.model_fields[field].description}")
        raise SettingsError("Wrong settings:\n  " + "\n  ".join(lines)) from None


def ensure_home(settings: Settings) -> Path:
    """Create `QUANT_HOME` and prove that it can be written.

    Raises:
        SettingsError: when the folder cannot be created or written, with the reason and the way out.
    """
    probe = settings.home / f".write-probe-{os.getpid()}"
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"ok")
        probe.unlink()
    except OSError as error:
        raise SettingsError(
            f"QUANT_HOME={settings.home} cannot be written: {error.strerror} (errno {error.errno}). "
            "Free space or permissions there, or point QUANT_HOME at a folder that this user may write."
        ) from error
    return settings.home


@contextmanager
def creating(home: Path) -> Iterator[None]:
    """One process at a time opens a database under `home` for the first time.

    Dagster, MLflow and pyiceberg each look whether their tables exist and then create them; two processes that start
    together on a fresh folder both see nothing, and the slower one fails. The lock goes with the process that holds
    it, so a kill leaves nothing behind.

    Raises:
        SettingsError: another process held the lock for `CREATING_TIMEOUT_SECONDS`.
    """
    from filelock import FileLock, Timeout

    home.mkdir(parents=True, exist_ok=True)
    lock = home / ".creating.lock"
    try:
        with FileLock(lock, timeout=CREATING_TIMEOUT_SECONDS):
            yield
    except Timeout as error:
        raise SettingsError(
            f"QUANT_HOME={home}: another process has been creating its databases for {CREATING_TIMEOUT_SECONDS:g} s ({lock}). "
            "End it, or point QUANT_HOME elsewhere."
        ) from error
