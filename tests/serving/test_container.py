"""The container of the inference app: its requirements are what the app imports, at the versions that are tested."""

import json
import re
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "deploy/serving/Dockerfile").read_text()
# Loaded when they happen to be installed; nothing of ours needs them.
NOT_NEEDED = {"watchfiles", "cloudpickle"}


def _pins(file: str) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    return {
        canonicalize_name(name): version
        for name, version in (line.split("==") for line in lines if "==" in line)
    }


PINS = _pins("deploy/serving/requirements.txt")


def test_versions_are_those_of_the_lock():
    lock = _pins("requirements.lock")
    assert {name: lock.get(name) for name in PINS} == PINS


def test_all_that_a_requirement_needs_is_there():
    for name in PINS:
        for needed in map(Requirement, distribution(name).requires or ()):
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in PINS, f"{name} needs {needed}"
                assert needed.specifier.contains(PINS[canonicalize_name(needed.name)])


def test_all_that_is_imported_is_required():
    """At import; what requests load as well is in test_app_process.py."""
    modules = [
        "quant_assets.features.peers",
        "quant_assets.features.sentiment",
        "quant_assets.models.inference",
        "quant_assets.serving.__main__",
        "quant_assets.serving.app",
        "quant_assets.serving.execution_plan",
        "quant_assets.serving.signal_answer",
        "duckdb",
        "onnxruntime",
        "uvicorn.protocols.http.httptools_impl",
        "uvloop",
    ]
    # What the environment itself loads at the start of any Python is not counted.
    code = f"import json, sys; at_start = set(sys.modules); import {', '.join(modules)}; "
    code += "print(json.dumps(sorted({m.split('.')[0] for m in set(sys.modules) - at_start})))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    provided = packages_distributions()
    loaded = {
        canonicalize_name(name)
        for m in json.loads(ended.stdout)
        if m not in sys.stdlib_module_names
        for name in provided.get(m, ())
    }
    assert {"uvicorn", "onnxruntime", "pydantic-settings"} <= loaded
    assert loaded - {"quant-assets"} - NOT_NEEDED <= set(PINS)


def test_the_image_is_slim_unprivileged_and_starts_the_app():
    assert re.search(r"^FROM python:3\.11-slim$", DOCKERFILE, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["python", "-m", "quant_assets.serving"\]$', DOCKERFILE, re.MULTILINE)
    instructions = [line.split()[0] for line in DOCKERFILE.splitlines() if re.match(r"[A-Z]+ ", line)]
    assert instructions.index("USER") > instructions.index("RUN")
    assert "USER root" not in DOCKERFILE
