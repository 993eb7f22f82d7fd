"""The graph as a reviewer sees it: what is there, described, owned, and loadable by Dagster's own commands."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import dagster as dg
import pytest
import yaml

from quant_assets.definitions import build_defs, defs, table_specs
from quant_assets.partitions import CALENDAR, FIRST_SESSION, LAST_SESSION, SESSIONS

ROOT = Path(__file__).resolve().parents[1]
SNAPSHOT = Path(__file__).with_name("asset_graph.json")


def _graph() -> dict[str, dict[str, object]]:
    graph = defs.resolve_asset_graph()
    described = {}
    for key in sorted(graph.get_all_asset_keys()):
        node = graph.get(key)
        described[key.to_user_string()] = {
            "group": node.group_name,
            "owners": sorted(node.owners),
            "kinds": sorted(node.kinds),
            "partitions": type(node.partitions_def).__name__ if node.partitions_def else None,
            "upstream": sorted(parent.to_user_string() for parent in node.parent_keys),
            "checks": sorted(check.name for check in graph.get_check_keys_for_assets({key})),
            "single_run_backfill": node.backfill_policy == dg.BackfillPolicy.single_run(),
        }
    return described


def test_the_graph_is_the_one_that_was_reviewed() -> None:
    """A change of keys, groups, owners, kinds, partitions, edges or checks is seen in review: update the file with it."""
    assert _graph() == json.loads(SNAPSHOT.read_text())


def test_every_asset_says_what_it_is() -> None:
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert len(node.description) > 60, f"{key}: a description has units and timing"
        assert node.owners, key
        assert node.kinds, key
        assert node.group_name == key.path[0] or key.path[0] == "vendor"


def test_every_table_column_is_described_and_rows_are_dated() -> None:
    for spec in table_specs().values():
        assert all(column.description for column in spec.columns), spec.name
        names = {column.name for column in spec.columns}
        # The security master is the one table without history.
        assert (
            spec.name in ("market.securities", "market.peers", "market.coverage")
            or {"session", "available_at"} <= names
        ), spec.name


def test_every_stored_table_has_its_blocking_check() -> None:
    graph = defs.resolve_asset_graph()
    for key in table_specs():
        if graph.has(key):
            check = dg.AssetCheckKey(key, "stored_table")
            assert graph.get(check).blocking, key


def test_features_have_a_blocking_proof_against_look_ahead() -> None:
    graph = defs.resolve_asset_graph()
    for name in ("technical", "sentiment", "peers", "labels"):
        assert graph.get(dg.AssetCheckKey(dg.AssetKey(["features", name]), "no_look_ahead")).blocking


def test_partitions_are_the_exchange_sessions() -> None:
    assert LAST_SESSION is not None
    expected = [session.isoformat() for session in CALENDAR.sessions(FIRST_SESSION, LAST_SESSION)]
    assert SESSIONS.get_partition_keys() == expected
    assert len(expected) == 3270


def test_look_backs_count_sessions_over_holidays() -> None:
    """2013-01-02 needs 30 sessions: Christmas, New Year, Thanksgiving and the storm of October 2012 do not count."""
    graph = defs.resolve_asset_graph()
    mapping = graph.get_partition_mapping(
        dg.AssetKey(["features", "technical"]), dg.AssetKey(["market", "bars"])
    )
    result = mapping.get_upstream_mapped_partitions_result_for_partitions(
        SESSIONS.subset_with_partition_keys(["2013-01-02"]), SESSIONS, SESSIONS
    )
    keys = sorted(result.partitions_subset.get_partition_keys())
    assert len(keys) == 31
    assert (
        keys[0]
        == CALENDAR.shift(
            CALENDAR.sessions(LAST_SESSION.replace(month=1, day=2), LAST_SESSION)[0], -30
        ).isoformat()
    )  # type: ignore[union-attr]


def test_minute_bars_are_there_only_when_the_source_has_them() -> None:
    class WithMinutes:
        has_minute_bars = True
        news_is_simulated = False
        name = "minutes"

    key = dg.AssetKey(["market", "minute_bars"])
    assert not defs.resolve_asset_graph().has(key)
    assert build_defs({"source": WithMinutes()}).resolve_asset_graph().has(key)


def test_dagster_dev_and_workspace_load_the_same_module() -> None:
    """`dagster dev` prefers the table in pyproject.toml and then ignores workspace.yaml."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["dagster"]
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text())
    modules = [entry["python_module"]["module_name"] for entry in workspace["load_from"]]
    assert modules == [table["module_name"]] == ["quant_assets.definitions"]


def test_importing_the_definitions_imports_nothing_heavy() -> None:
    code = (
        "import sys, quant_assets.definitions\n"
        "heavy = {'torch', 'jax', 'sklearn', 'mlflow', 'sagemaker', 'onnxruntime', 'matplotlib', 'pyiceberg', 'duckdb'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("target", [["-w", "workspace.yaml"], []], ids=["workspace.yaml", "pyproject.toml"])
def test_dagster_validates_the_code_location(target: list[str]) -> None:
    """Dagster's own loader, in the processes that `dagster dev` uses."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("dagster")), "definitions", "validate", *target],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_wrong_setting_stops_the_load_with_its_name() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import quant_assets.definitions"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "QUANT_SOURCE": "bloomberg"},
    )
    assert done.returncode != 0
    assert "QUANT_SOURCE='bloomberg'" in done.stderr
    assert "'sample', 'files'" in done.stderr


def test_tests_of_the_filled_home_share_one_worker(request: pytest.FixtureRequest) -> None:
    """xdist marks the group in the node id; where that fails, the home is filled twice and tests of one story interleave."""
    if getattr(request.config.option, "loadgroup", False):  # set in workers
        assert request.node.nodeid.endswith("@test_definitions.py")
