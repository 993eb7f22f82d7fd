"""The model registry: MLflow on SQLite under `QUANT_HOME`.

Belongs here: runs, versions, aliases, artifacts. Does not belong here: what a model is or who becomes champion; a
bundle is bytes and a dictionary to this module.

Every version carries its metrics, parameters, git commit, seed, feature-schema hash and the Iceberg snapshots that it
was trained on, and two artifacts: `bundle/model.onnx` and `bundle/bundle.json`; what else belongs to it and serves nothing (the
other seeds' policies, learning curves) lies under `files/`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quant_resources.settings import creating

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"
# On a version: what its gate said (passed, failed, rolled_back), and whether a person lets it serve (true).
GATE_TAG, APPROVED_TAG = "gate", "approved"
EXPERIMENT = "quant-assets"


class RegistryError(RuntimeError):
    """A model is missing or cannot be read. The message names it and the way out."""


@dataclass(frozen=True)
class ModelVersion:
    """One registered version.

    Attributes:
        name: registered model, for example `mlp_technical`.
        version: 1, 2, ...
        onnx: the model.
        bundle: inputs, outputs, windows, lineage (see `quant_assets/models/assets.py`).
        run_id: MLflow run.
    """

    name: str
    version: int
    onnx: bytes
    bundle: dict[str, Any]
    run_id: str


@dataclass(frozen=True)
class Standing:
    """Where a version stands.

    Attributes:
        name, version: of the registered model.
        alias: champion or challenger.
        gate: what its gate said, '' before it said anything.
        approved: whether a person lets it serve.
    """

    name: str
    alias: str
    version: int
    gate: str
    approved: bool


@dataclass(frozen=True)
class TrainingRun:
    """An MLflow run that goes on.

    Attributes:
        client: of the store.
        run_id: MLflow run.
    """

    client: MlflowClient
    run_id: str

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Values of now."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, [Metric(key, float(v), now, step) for key, v in metrics.items()])


@functools.cache
def git_commit() -> str:
    """The commit of the code that runs, with `-dirty` when files differ from it; `unknown` outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return described.stdout.strip() or "unknown"


class ModelRegistry:
    """Versions of models with the aliases `champion` and `challenger`.

    Args:
        home: `QUANT_HOME`; the store is `mlflow.db`, artifacts lie under `mlartifacts/`.
    """

    def __init__(self, home: Path) -> None:
        self.home = Path(home).absolute()

    @property
    def tracking_uri(self) -> str:
        """What `mlflow ui --backend-store-uri` takes."""
        return f"sqlite:///{self.home / 'mlflow.db'}"

    @functools.cached_property
    def client(self) -> MlflowClient:
        """The MLflow client; the first use creates the store."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for name in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow import MlflowClient

        with creating(self.home):
            client = MlflowClient(self.tracking_uri, self.tracking_uri)
            client.search_experiments(max_results=1)  # makes the tracking store, which is lazy
            return client

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            try:
                return self.client.create_experiment(EXPERIMENT, (self.home / "mlartifacts").as_uri())
            except MlflowException:  # another run was faster
                experiment = self.client.get_experiment_by_name(EXPERIMENT)
                assert experiment is not None
        return experiment.experiment_id

    def register(
        self,
        name: str,
        onnx: bytes,
        bundle: Mapping[str, Any],
        metrics: Mapping[str, float],
        parameters: Mapping[str, object],
        tags: Mapping[str, str],
        curves: Mapping[str, Sequence[float]] | None = None,
        files: Mapping[str, bytes] | None = None,
        run: TrainingRun | None = None,
    ) -> ModelVersion:
        """Log a run, register its model and give it the alias `challenger`.

        Args:
            name: registered model.
            onnx: serialized model.
            bundle: JSON-serializable description that serving needs.
            metrics: final values.
            parameters: hyperparameters.
            tags: lineage: git commit, seed, feature-schema hash, snapshot ids.
            curves: metric name -> one value per epoch.
            files: name -> what else belongs to the version; see `files`.
            run: the training that was followed while it ran; a run of its own when None.
        """
        import time

        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException

        run_id = (run or self._begin(name, tags)).run_id
        try:
            now = int(time.time() * 1000)
            values = [Metric(key, float(value), now, 0) for key, value in metrics.items()]
            values += [
                Metric(key, float(value), now, step)
                for key, series in (curves or {}).items()
                for step, value in enumerate(series, start=1)
            ]
            for start in range(0, len(values), 900):  # the store takes 1,000 a call
                self.client.log_batch(run_id, metrics=values[start : start + 900])
            self.client.log_batch(
                run_id,
                params=[Param(key, str(value)) for key, value in parameters.items()],
                tags=[RunTag(key, value) for key, value in tags.items()],
            )
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "model.onnx").write_bytes(onnx)
                Path(folder, "bundle.json").write_text(json.dumps(dict(bundle), indent=2, default=str))
                self.client.log_artifacts(run_id, folder, artifact_path="bundle")
            if files:
                with tempfile.TemporaryDirectory() as folder:
                    for file, content in files.items():
                        Path(folder, file).write_bytes(content)
                    self.client.log_artifacts(run_id, folder, artifact_path="files")
            self.client.set_terminated(run_id)
        except BaseException:
            self.client.set_terminated(run_id, status="FAILED")
            raise
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self.client.create_model_version(
            name,
            source=f"{self.client.get_run(run_id).info.artifact_uri}/bundle",
            run_id=run_id,
            tags=dict(tags),
        )
        number = int(version.version)
        self.client.set_registered_model_alias(name, CHALLENGER, str(number))
        return ModelVersion(name, number, onnx, dict(bundle), run_id)

    def _begin(self, name: str, tags: Mapping[str, str]) -> TrainingRun:
        run = self.client.create_run(self._experiment_id(), run_name=name, tags=dict(tags))
        return TrainingRun(self.client, run.info.run_id)

    @contextlib.contextmanager
    def training(self, name: str, tags: Mapping[str, str]) -> Iterator[TrainingRun]:
        """A run that shows a long training while it goes on; hand it to `register`. What is not registered ends as failed."""
        run = self._begin(name, tags)
        try:
            yield run
        finally:
            if self.client.get_run(run.run_id).info.status == "RUNNING":
                self.client.set_terminated(run.run_id, status="FAILED")

    def promote(self, version: ModelVersion, reason: str) -> None:
        """Make a version the champion; it is no longer the challenger."""
        self.client.set_registered_model_alias(version.name, CHAMPION, str(version.version))
        self.client.set_model_version_tag(version.name, str(version.version), "promotion_reason", reason)
        if self._alias(version.name, CHALLENGER) == version.version:
            self.client.delete_registered_model_alias(version.name, CHALLENGER)

    def decide(self, version: ModelVersion, passed: bool, reason: str, promotion: str) -> bool:
        """What a gate's verdict leads to, and whether the version is champion now.

        Args:
            version: the challenger.
            passed: the verdict.
            reason: the verdict in a sentence.
            promotion: `auto`: what passes becomes champion. `approval`: it waits for a person, except where there is no champion yet;
                `approve` (approve_job) or the tag `approved` = `true` on the version lets it pass.
        """
        self.tag(version, GATE_TAG, "passed" if passed else "failed")
        self.tag(version, "gate_reason", reason)
        if passed and (promotion == "auto" or self._alias(version.name, CHAMPION) is None):
            self.promote(version, reason)
            return True
        return False

    def tag(self, version: ModelVersion, key: str, value: str) -> None:
        """Write beside a version what became of it; MLflow shows it."""
        self.client.set_model_version_tag(version.name, str(version.version), key, value[:5000])

    def restore(self, name: str, version: int, instead_of: int, reason: str) -> None:
        """Make an earlier version champion again, after its successor did not stand up to traffic.

        The successor keeps no alias, so nothing deploys it again, and carries the reason.
        """
        self.client.set_registered_model_alias(name, CHAMPION, str(version))
        self.client.set_model_version_tag(
            name, str(version), "promotion_reason", f"restored: {reason}"[:5000]
        )
        self.client.set_model_version_tag(name, str(instead_of), GATE_TAG, "rolled_back")
        self.client.set_model_version_tag(name, str(instead_of), APPROVED_TAG, "false")
        self.client.set_model_version_tag(name, str(instead_of), "rolled_back", reason[:5000])

    def version(self, name: str, number: int) -> ModelVersion:
        """One version by its number.

        Raises:
            RegistryError: there is none, or it cannot be read.
        """
        from mlflow.exceptions import MlflowException

        try:
            self.client.get_model_version(name, str(number))
        except MlflowException as error:
            raise RegistryError(f"model {name} has no version {number}: {error}") from error
        return self._read(name, number, f"version {number}")

    def standing(self) -> list[Standing]:
        """Aliases and gates of all models, for sensors: it reads the store's SQLite file, because a tick shall not wait for the import
        of MLflow. An empty list where there is no store yet.
        """
        store = self.home / "mlflow.db"
        if not store.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=5)) as database:
            if not database.execute(
                "SELECT 1 FROM sqlite_master WHERE name = 'registered_model_aliases'"
            ).fetchone():
                return []
            found = database.execute(
                "SELECT alias.name, alias.alias, alias.version, "
                "max(CASE WHEN tag.key = ? THEN tag.value END), max(CASE WHEN tag.key = ? THEN tag.value END) "
                "FROM registered_model_aliases AS alias LEFT JOIN model_version_tags AS tag "
                "ON tag.name = alias.name AND tag.version = alias.version GROUP BY 1, 2, 3 ORDER BY 1, 2",
                (GATE_TAG, APPROVED_TAG),
            ).fetchall()
        return [
            Standing(name, alias, int(version), gate or "", approved == "true")
            for name, alias, version, gate, approved in found
        ]

    def _alias(self, name: str, alias: str) -> int | None:
        from mlflow.exceptions import MlflowException

        try:
            return int(self.client.get_model_version_by_alias(name, alias).version)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def find(self, name: str, alias: str = CHAMPION) -> ModelVersion | None:
        """The version that carries `alias`, or None."""
        version = self._alias(name, alias)
        return None if version is None else self._read(name, version, alias)

    def _read(self, name: str, version: int, alias: str) -> ModelVersion:
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        found = self.client.get_model_version(name, str(version))
        try:
            folder = Path(download_artifacts(artifact_uri=found.source, tracking_uri=self.tracking_uri))
            onnx = (folder / "model.onnx").read_bytes()
            bundle = json.loads((folder / "bundle.json").read_text())
        except (OSError, ValueError, MlflowException) as error:
            raise RegistryError(
                f"{name} version {version} ({alias}) has no readable bundle at {found.source}: {error}. "
                "Train it again (train_job) or move the alias to another version."
            ) from error
        return ModelVersion(name, version, onnx, bundle, found.run_id or "")

    def files(self, version: ModelVersion) -> dict[str, bytes]:
        """What was registered beside the bundle, by name.

        Raises:
            RegistryError: it cannot be read.
        """
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        try:
            if not self.client.list_artifacts(version.run_id, "files"):
                return {}
            folder = Path(
                download_artifacts(
                    run_id=version.run_id, artifact_path="files", tracking_uri=self.tracking_uri
                )
            )
            return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        except (OSError, MlflowException) as error:
            raise RegistryError(
                f"the files of {version.name} version {version.version} cannot be read: {error}. Train it again."
            ) from error

    def champion(self, name: str) -> ModelVersion:
        """The version that serves.

        Raises:
            RegistryError: the model has no champion.
        """
        version = self.find(name, CHAMPION)
        if version is None:
            raise RegistryError(f"model {name} has no champion; materialize models/{name} (train_job) first")
        return version
