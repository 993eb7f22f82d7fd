"""The model registry on real MLflow and SQLite: versions, aliases, artifacts, and what a person is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from quant_resources.registry import (
    APPROVED_TAG,
    CHALLENGER,
    CHAMPION,
    ModelRegistry,
    RegistryError,
    git_commit,
)

# Not text, and with the line ends that a text mode would change.
ONNX = bytes(range(256)) + b"\r\n\x00\n"
BUNDLE = {"inputs": ["rsi_14", "Größe"], "windows": {"sma": 20}, "threshold": 0.1 + 0.2, "none": None}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    """One store for the module, as creating its schema takes seconds; each test takes a model name of its own."""
    # A folder with a space, as people have.
    return ModelRegistry(tmp_path_factory.mktemp("registry") / "my home")


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return request.node.name.replace("[", "-").replace("]", "").replace(" ", "_")


def register(registry: ModelRegistry, name: str, onnx: bytes = ONNX, **arguments: object):  # type: ignore[no-untyped-def]
    return registry.register(
        name,
        onnx,
        **{"bundle": BUNDLE, "metrics": {}, "parameters": {}, "tags": {}, **arguments},  # type: ignore[arg-type]
    )


def bundle_folder(registry: ModelRegistry, run_id: str) -> Path:
    return registry.home / "mlartifacts" / run_id / "artifacts" / "bundle"


def test_a_registered_model_is_version_1_and_challenger(registry: ModelRegistry, name: str) -> None:
    version = register(registry, name)
    assert (version.name, version.version, version.onnx, version.bundle) == (name, 1, ONNX, BUNDLE)
    assert registry.find(name, CHALLENGER) == version
    assert registry.find(name, CHAMPION) is None


def test_the_next_version_takes_the_challengers_place(registry: ModelRegistry, name: str) -> None:
    register(registry, name)
    second = register(registry, name, b"second")
    assert second.version == 2
    assert registry.find(name, CHALLENGER) == second
    assert registry.find(name, CHALLENGER).onnx == b"second"


def test_promotion_makes_the_challenger_champion_and_no_longer_challenger(
    registry: ModelRegistry, name: str
) -> None:
    version = register(registry, name)
    registry.promote(version, "better by 3 points")
    assert registry.champion(name) == version
    assert registry.find(name, CHALLENGER) is None
    tags = registry.client.get_model_version(name, "1").tags
    assert tags["promotion_reason"] == "better by 3 points"


def test_the_champion_stays_while_a_challenger_waits_and_moves_with_its_promotion(
    registry: ModelRegistry, name: str
) -> None:
    first = register(registry, name, b"first")
    registry.promote(first, "the first")
    second = register(registry, name, b"second")
    assert registry.champion(name).onnx == b"first"
    assert registry.find(name, CHALLENGER) == second
    registry.promote(second, "better")
    assert registry.champion(name) == second
    assert registry.find(name, CHALLENGER) is None


def test_promoting_an_older_version_leaves_the_challenger_in_its_place(
    registry: ModelRegistry, name: str
) -> None:
    # A rollback must not throw away the candidate that is being judged.
    first = register(registry, name, b"first")
    second = register(registry, name, b"second")
    registry.promote(first, "rollback")
    assert registry.champion(name) == first
    assert registry.find(name, CHALLENGER) == second


def test_another_object_on_the_same_home_reads_the_exact_bytes_and_bundle(
    registry: ModelRegistry, name: str
) -> None:
    version = register(registry, name)
    registry.promote(version, "")
    other = ModelRegistry(registry.home)
    assert other.champion(name) == version
    assert other.champion(name).onnx == ONNX
    assert other.champion(name).bundle == BUNDLE


def test_everything_lies_under_home(registry: ModelRegistry, name: str) -> None:
    version = register(registry, name)
    assert (registry.home / "mlflow.db").is_file()
    assert (bundle_folder(registry, version.run_id) / "model.onnx").read_bytes() == ONNX
    assert [path.name for path in registry.home.parent.iterdir()] == [registry.home.name]


def test_metrics_parameters_tags_and_curves_are_in_the_store(registry: ModelRegistry, name: str) -> None:
    curve = [1.0 / epoch for epoch in range(1, 1201)]  # longer than one call to the store may be
    version = register(
        registry,
        name,
        metrics={"auc": 0.53, "brier": 0.25},
        parameters={"learning_rate": 1e-3, "layers": (64, 32), "early": True},
        tags={"git_commit": "abc", "seed": "7", "snapshot.market.bars": "123"},
        curves={"loss": curve, "validation_loss": [0.7, 0.6]},
    )
    # Read with a client of its own: nothing hangs on the registry's object.
    client = MlflowClient(registry.tracking_uri, registry.tracking_uri)
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["auc"] == 0.53
    assert run.data.metrics["brier"] == 0.25
    assert run.data.params == {"learning_rate": "0.001", "layers": "(64, 32)", "early": "True"}
    lineage = {"git_commit": "abc", "seed": "7", "snapshot.market.bars": "123"}
    assert lineage.items() <= run.data.tags.items()
    assert lineage.items() <= client.get_model_version(name, "1").tags.items()
    loss = sorted(client.get_metric_history(version.run_id, "loss"), key=lambda metric: metric.step)
    assert [metric.step for metric in loss] == list(range(1, 1201))
    assert [metric.value for metric in loss] == curve
    history = client.get_metric_history(version.run_id, "validation_loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.7), (2, 0.6)]


@pytest.mark.parametrize("registered", [False, True], ids=["unknown", "never promoted"])
def test_a_model_without_champion_is_named_with_what_to_do(
    registry: ModelRegistry, name: str, registered: bool
) -> None:
    if registered:
        register(registry, name)
    assert registry.find(name) is None
    with pytest.raises(RegistryError) as caught:
        registry.champion(name)
    assert f"model {name} has no champion" in str(caught.value)
    assert f"materialize models/{name}" in str(caught.value)


@pytest.mark.parametrize("damage", ["no model", "no bundle", "half a bundle", "no folder"])
def test_a_damaged_or_deleted_artifact_is_named_with_what_to_do(
    registry: ModelRegistry, name: str, damage: str
) -> None:
    version = register(registry, name)
    registry.promote(version, "")
    folder = bundle_folder(registry, version.run_id)
    if damage == "no model":
        (folder / "model.onnx").unlink()
    elif damage == "no bundle":
        (folder / "bundle.json").unlink()
    elif damage == "half a bundle":
        text = (folder / "bundle.json").read_text()
        (folder / "bundle.json").write_text(text[: len(text) // 2])
    else:
        shutil.rmtree(folder)
    with pytest.raises(RegistryError) as caught:
        registry.champion(name)
    message = str(caught.value)
    assert f"{name} version 1 (champion)" in message
    assert version.run_id in message  # where it was looked for
    assert "Train it again" in message


def test_a_registration_that_fails_leaves_no_version_and_a_failed_run(
    registry: ModelRegistry, name: str
) -> None:
    first = register(registry, name)
    with pytest.raises(TypeError):
        register(registry, name, onnx="text is no model")
    assert registry.find(name, CHALLENGER) == first
    assert len(registry.client.search_model_versions(f"name = '{name}'")) == 1
    runs = registry.client.search_runs(
        [registry.client.get_experiment_by_name("quant-assets").experiment_id],
        f"attributes.run_name = '{name}'",
    )
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]


@pytest.mark.skipif(
    not (Path(__file__).resolve().parents[2] / ".git").exists(), reason="this is no git checkout"
)
def test_git_commit_is_the_commit_of_this_checkout() -> None:
    commit = git_commit()
    assert len(commit.removesuffix("-dirty")) == 40
    assert set(commit.removesuffix("-dirty")) <= set("0123456789abcdef")


def test_the_standing_of_versions_is_read_without_mlflow_and_says_what_mlflow_says(
    registry: ModelRegistry, name: str, tmp_path: Path
) -> None:
    assert ModelRegistry(tmp_path).standing() == []

    def standing() -> dict[str, tuple[int, str, bool]]:
        return {s.alias: (s.version, s.gate, s.approved) for s in registry.standing() if s.name == name}

    first, second = register(registry, name), register(registry, name)
    assert registry.decide(first, True, "the first", "approval")  # somebody has to serve
    assert not registry.decide(second, True, "better", "approval")
    assert standing() == {CHAMPION: (1, "passed", False), CHALLENGER: (2, "passed", False)}
    registry.tag(second, APPROVED_TAG, "true")
    assert standing()[CHALLENGER] == (2, "passed", True)
    assert registry.decide(second, True, "better", "auto")
    assert standing() == {CHAMPION: (2, "passed", True)}
    assert not registry.decide(register(registry, name), False, "not better", "auto")
    assert standing()[CHALLENGER] == (3, "failed", False)


def test_a_champion_that_did_not_stand_up_to_traffic_gives_its_place_back(
    registry: ModelRegistry, name: str
) -> None:
    first, second = register(registry, name), register(registry, name, b"second")
    registry.promote(first, "the first")
    registry.promote(second, "better")
    registry.restore(name, first.version, second.version, "5 answers of 500 under canary")
    assert registry.champion(name).version == 1
    assert {s.alias for s in registry.standing() if s.name == name} == {CHAMPION}
    tags = registry.client.get_model_version(name, "2").tags
    assert (tags["gate"], tags["rolled_back"]) == ("rolled_back", "5 answers of 500 under canary")
    assert registry.version(name, 2).onnx == b"second"
    with pytest.raises(RegistryError, match="has no version 7"):
        registry.version(name, 7)
