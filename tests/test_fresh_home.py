"""Processes that start together on an empty `QUANT_HOME`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from quant_resources import settings as settings_module
from quant_resources.settings import SettingsError, creating

OPEN_EVERYTHING = """
import sys, time
from pathlib import Path
from quant_assets.launch import open_instance
from quant_resources.iceberg import Warehouse
from quant_resources.registry import ModelRegistry
from quant_resources.settings import load_settings

settings = load_settings()
print("ready", flush=True)
sys.stdin.readline()
with open_instance(settings) as instance:
    instance.get_runs(limit=1)
    Warehouse(settings.home).catalog.list_namespaces()
    assert ModelRegistry(settings.home).find("nobody") is None
"""


@pytest.mark.slow
def test_four_processes_create_the_databases_of_one_home_at_the_same_moment(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_EVERYTHING],
            env={**os.environ, "QUANT_HOME": str(tmp_path / "home")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors


def test_a_lock_that_is_never_given_back_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings_module, "CREATING_TIMEOUT_SECONDS", 0.1)
    with (
        FileLock(tmp_path / ".creating.lock"),
        pytest.raises(SettingsError, match=r"another process .*\.creating\.lock"),
        creating(tmp_path),
    ):
        pass
