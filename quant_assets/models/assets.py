"""Assets of the layer `models`: train, measure, register, gate.

Belongs here: the Dagster face and the lineage that goes into the registry. Does not belong here: the network
(`mlp.py`), windows (`dataset.py`), metrics (`evaluation.py`), the promotion rule (`gate.py`).
"""

import datetime as dt
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import dagster as dg

from quant_assets.features import tables
from quant_assets.features.labels import LabelParameters
from quant_assets.models.feature_sets import FEATURE_SETS, NEWS_TABLES
from quant_assets.partitions import settings
from quant_assets.presentation import image_markdown, markdown_table, render, write_report
from quant_resources.iceberg import Warehouse
from quant_resources.registry import ModelRegistry, ModelVersion, git_commit

if TYPE_CHECKING:
    import numpy as np

    from quant_assets.models.dataset import Dataset, Windows
    from quant_assets.models.gate import Verdict
    from quant_assets.models.mlp import MlpParameters, TrainedMlp

GROUP = "models"
OWNERS = ["team:research"]
SIDES = ("long", "short")
# How far sentiment may lift the out-of-sample AUC before it is taken for a leak: real news hardly know tomorrow.
SUSPICIOUS_AUC_GAIN = 0.03
SUSPICIOUS_GAIN_CHECK = "no_suspicious_sentiment_gain"


class TrainingConfig(dg.Config):
    """Windows and hyperparameters of an MLP; see `MlpParameters` and `make_windows`.

    `in_sample_sessions` keeps the newest sessions of the in-sample window alone: after a change of regime, what came long before
    it teaches the wrong thing.
    """

    in_sample_fraction: float = 0.4
    in_sample_last: str | None = None
    in_sample_sessions: int | None = None
    validation_fraction: float = 0.2
    embargo_sessions: int = 5
    hidden_units: list[int] = [15]  # noqa: RUF012  # a pydantic field, copied per instance
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    batch_size: int = 256
    max_epochs: int = 60
    patience_epochs: int = 8
    balance_classes: bool = True
    per_symbol: bool = False
    seed: int | None = None

    @property
    def first_seed(self) -> int:
        """The configured seed, or the project's."""
        return settings().seed if self.seed is None else self.seed

    def windows_of(self, dataset: "Dataset") -> "Windows":
        """The sessions of a data set, cut into windows."""
        from quant_assets.models.dataset import make_windows

        return make_windows(
            sorted(set(dataset.session.astype(object))),
            self.in_sample_fraction,
            dt.date.fromisoformat(self.in_sample_last) if self.in_sample_last else None,
            self.validation_fraction,
            self.embargo_sessions,
            self.in_sample_sessions,
        )

    def hyperparameters(self) -> "MlpParameters":
        """What `mlp.train` takes."""
        from quant_assets.models.mlp import MlpParameters

        return MlpParameters(
            hidden_units=tuple(self.hidden_units),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            max_epochs=self.max_epochs,
            patience_epochs=self.patience_epochs,
            balance_classes=self.balance_classes,
            per_symbol=self.per_symbol,
            seed=self.first_seed,
        )


class MlpConfig(TrainingConfig):
    """How an MLP is trained, and how sure the gate has to be of it."""

    gate_confidence: float = 0.95


def _checks(name: str, reads_news: bool) -> list[dg.AssetCheckSpec]:
    asset = dg.AssetKey([GROUP, name])
    specs = [
        dg.AssetCheckSpec(
            "onnx_agrees",
            asset=asset,
            blocking=True,
            description="torch and ONNX give the same probabilities (1e-6).",
        ),
        dg.AssetCheckSpec(
            "gate",
            asset=asset,
            description="The challenger is better than the champion out of sample (lower end of the interval "
            "of the Brier score's improvement above 0); otherwise it stays challenger.",
        ),
    ]
    if reads_news:
        specs.append(
            dg.AssetCheckSpec(
                SUSPICIOUS_GAIN_CHECK,
                asset=asset,
                blocking=True,
                description="Against the same network on technical inputs alone (same windows, same seed), the out-of-sample "
                f"AUC does not gain more than {SUSPICIOUS_AUC_GAIN} beyond doubt (lower end of the interval that holds for both outputs at "
                "once in 95 %): such a gain means that the join leaks, and the version is not promoted. With fewer than 80 "
                "out-of-sample sessions a larger gain is a warning.",
            )
        )
    return specs


def _mlp_asset(name: str, description: str) -> dg.AssetsDefinition:
    features = FEATURE_SETS[name]
    reads_news = any(table in features.tables for table in NEWS_TABLES)

    @dg.asset(
        key=[GROUP, name],
        group_name=GROUP,
        description=description,
        deps=[dg.AssetKey(t.name.split(".")) for t in (*features.tables, tables.LABELS)],
        kinds={"torch", "mlflow", "onnx"},
        owners=OWNERS,
        # Commands over a range of sessions want a policy of every selected asset.
        backfill_policy=dg.BackfillPolicy.single_run(),
        code_version="1",
        pool="training",
        check_specs=_checks(name, reads_news),
    )
    def mlp(
        context: dg.AssetExecutionContext,
        config: MlpConfig,
        warehouse: dg.ResourceParam[Warehouse],
        registry: dg.ResourceParam[ModelRegistry],
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
        yield from _train(context, name, config, warehouse, registry)

    return mlp


mlp_technical = _mlp_asset(
    "mlp_technical",
    "Two sigmoid outputs (long, short) from the 31 technical inputs; trained on the in-sample window only, purged and "
    "embargoed, judged on sessions that it never saw. Registered in MLflow, exported to ONNX.",
)
mlp_sentiment = _mlp_asset(
    "mlp_sentiment",
    "Like mlp_technical with entity sentiment (means over 1..16 sessions) as 16 more inputs. Where the news are "
    "simulated they contain no alpha, so no honest gain is to be expected.",
)
mlp_enhanced = _mlp_asset(
    "mlp_enhanced",
    "Like mlp_sentiment with the sentiment of the symbol's competitors and of its industry (means over 1..16 sessions) as "
    "32 more inputs, 79 in all. What each of these adds is measured by backtests/sentiment_ablation.",
)


def _train(
    context: dg.AssetExecutionContext,
    name: str,
    config: MlpConfig,
    warehouse: Warehouse,
    registry: ModelRegistry,
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    import numpy as np

    from quant_assets.models import evaluation, plots
    from quant_assets.models.dataset import make_dataset
    from quant_assets.models.gate import Verdict
    from quant_assets.models.mlp import OnnxMlp, train

    features = FEATURE_SETS[name]
    seed = config.first_seed
    # Read by snapshot, so that the lineage names exactly the rows that were used.
    specs = (*features.tables, tables.LABELS)
    snapshots = {spec.name: warehouse.snapshot_id(spec) for spec in specs}
    read = {spec.name: warehouse.read(spec, snapshot_id=snapshots[spec.name]) for spec in specs}
    labels = read[tables.LABELS.name]
    dataset = make_dataset([read[t.name] for t in features.tables], labels, features.inputs)
    windows = config.windows_of(dataset)
    parts = {window: dataset.take(mask) for window, mask in dataset.masks(windows).items()}
    context.log.info(
        "%s: %s", name, ", ".join(f"{window} {len(part.y)} rows" for window, part in parts.items())
    )
    parameters = config.hyperparameters()
    training, validation, unseen = parts["train"], parts["validation"], parts["out_of_sample"]
    model = train(
        dataset.inputs,
        (training.x, training.y, training.symbol),
        (validation.x, validation.y, validation.symbol),
        parameters,
        progress=context.log.info,
    )
    onnx = model.to_onnx()
    probability = {window: model.predict(part.x, part.symbol) for window, part in parts.items()}
    exported = OnnxMlp(onnx, model.symbols)
    onnx_error = float(np.abs(exported.predict(unseen.x, unseen.symbol) - probability["out_of_sample"]).max())
    yield dg.AssetCheckResult(
        check_name="onnx_agrees", passed=onnx_error <= 1e-6, metadata={"largest difference": onnx_error}
    )

    base_rate = training.y.mean(axis=0)
    logistic = evaluation.predict_logistic(evaluation.fit_logistic(training.x, training.y), unseen.x)
    weights = evaluation.session_resamples(unseen.session, seed)
    metrics, table, auc_text = _measure(parts, probability, logistic, base_rate, weights)

    schema_hash = features.schema_hash
    gain = None
    if SUSPICIOUS_GAIN_CHECK in {spec.name for spec in context.assets_def.check_specs}:
        gain = sentiment_gain(dataset, windows, parameters, probability["out_of_sample"], weights)
    verdict = _judge(registry.find(name), unseen, probability["out_of_sample"], schema_hash, config)
    if gain and gain.leaks:
        # A leak beats every honest champion, so the gate would let it through.
        verdict = Verdict(False, f"{gain.text}: the challenger stays challenger")
    news_sources = sorted(
        {
            source
            for spec in NEWS_TABLES
            if spec.name in read
            for source in read[spec.name]["source"].to_pylist()
        }
    )
    first_label = labels.slice(0, 1).to_pylist()[0]
    label_rule = {k: first_label[k] for k in LabelParameters.__dataclass_fields__}
    lineage = {
        "git_commit": git_commit(),
        "seed": str(seed),
        "feature_schema_hash": schema_hash,
        "news_source": ", ".join(news_sources) or "none",
        **{f"snapshot.{table}": str(snapshot) for table, snapshot in snapshots.items()},
    }
    version = registry.register(
        name,
        onnx,
        bundle={
            "kind": "signal",
            "name": name,
            "inputs": features.inputs,
            "symbols": model.symbols,
            "outputs": SIDES,
            "tables": [t.name for t in features.tables],
            "windows": {k: str(v) for k, v in asdict(windows).items()},
            "label": label_rule,
            "base_rate": [float(r) for r in base_rate],
            "lineage": lineage,
        },
        metrics=metrics,
        parameters={**asdict(parameters), **{f"label_{k}": v for k, v in label_rule.items()}},
        tags=lineage,
        curves=_curves(model),
    )
    promoted = registry.decide(version, verdict.promote, verdict.reason, settings().promotion)
    context.log.info("%s version %d: %s", name, version.version, verdict.reason)
    yield dg.AssetCheckResult(
        check_name="gate",
        passed=verdict.promote,
        severity=dg.AssetCheckSeverity.WARN,
        description=verdict.reason,
        metadata={"version": version.version, "promoted": promoted},
    )
    if gain:
        yield gain.check()
    figures = {
        "ROC out of sample": plots.roc_figure(
            unseen.y, {"model": probability["out_of_sample"], "logistic regression": logistic}, auc_text
        ),
        "Calibration out of sample": plots.calibration_figure(
            unseen.y, probability["out_of_sample"], base_rate
        ),
        "Log loss per epoch": plots.training_figure(model.history),
        "AUC by year": plots.yearly_auc_figure(
            dataset.session,
            dataset.y,
            model.predict(dataset.x, dataset.symbol),
            np.datetime64(windows.out_of_sample_first),
        ),
    }
    # Drawn once, shown twice: in the UI and in the report.
    images = {title: render(figure) for title, figure in figures.items()}
    shown_tables = {
        "metrics": table,
        "windows": [{"bound": k, "session": str(v)} for k, v in asdict(windows).items()],
        "lineage": [{"what": k, "value": v} for k, v in lineage.items()],
    }
    alias = "champion" if promoted else "challenger"
    report = write_report(
        settings().reports_dir / "models" / f"{name}-v{version.version}.html",
        f"{name} version {version.version} ({alias})",
        f"{verdict.reason}. News: {lineage['news_source']}.",
        shown_tables,
        images,
    )
    yield dg.MaterializeResult(
        metadata={
            "version": version.version,
            "alias": alias,
            "verdict": verdict.reason,
            "mlflow_run_id": version.run_id,
            "report": dg.MetadataValue.path(str(report)),
            **{title: markdown_table(rows) for title, rows in shown_tables.items()},
            **{title: image_markdown(image, title) for title, image in images.items()},
        },
    )


def _measure(
    parts: "dict[str, Dataset]",
    probability: "dict[str, np.ndarray]",
    logistic: "np.ndarray",
    base_rate: "np.ndarray",
    weights: "np.ndarray",
) -> tuple[dict[str, float], list[dict[str, object]], dict[str, str]]:
    """Metrics for the registry, the same as a table for people, and the AUC intervals as text."""
    import numpy as np

    from quant_assets.models import evaluation

    metrics: dict[str, float] = {}
    table: list[dict[str, object]] = []
    auc_text: dict[str, str] = {}
    for i, side in enumerate(SIDES):
        for window, part in parts.items():
            scores = evaluation.score(part.y[:, i], probability[window][:, i])
            metrics |= {f"{window}.{side}.{k}": v for k, v in scores.items()}
            table.append({"output": side, "window": window, "model": "mlp", **scores})
        y = parts["out_of_sample"].y[:, i]
        p = probability["out_of_sample"][:, i]
        constant = np.full(len(y), base_rate[i])
        for model, other in (("base rate", constant), ("logistic regression", logistic[:, i])):
            scores = evaluation.score(y, other)
            metrics |= {f"out_of_sample.{side}.{model.replace(' ', '_')}.{k}": v for k, v in scores.items()}
            table.append({"output": side, "window": "out_of_sample", "model": model, **scores})
        interval = evaluation.auc_interval(y, p, weights)
        auc_text[side] = f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
        gain = evaluation.mean_interval(evaluation.brier(y, constant) - evaluation.brier(y, p), weights)
        metrics |= {
            f"out_of_sample.{side}.auc_low": interval.low,
            f"out_of_sample.{side}.auc_high": interval.high,
            f"out_of_sample.{side}.brier_gain_over_base_rate": gain.value,
            f"out_of_sample.{side}.brier_gain_over_base_rate_low": gain.low,
            f"out_of_sample.{side}.brier_gain_over_base_rate_high": gain.high,
        }
    return metrics, table, auc_text


def _curves(model: "TrainedMlp") -> dict[str, list[float]]:
    curves: dict[str, list[float]] = {}
    for row in model.history:
        suffix = "" if row["symbol"] == "*" else f".{row['symbol']}"
        for key in ("train_loss", "validation_loss"):
            curves.setdefault(f"epoch.{key}{suffix}", []).append(float(row[key]))
    return curves


def _judge(
    champion: ModelVersion | None,
    unseen: "Dataset",
    challenger: "np.ndarray",
    schema_hash: str,
    config: MlpConfig,
) -> "Verdict":
    import numpy as np

    from quant_assets.models import gate
    from quant_assets.models.mlp import OnnxMlp

    if champion is None:
        return gate.first_champion()
    if champion.bundle["lineage"]["feature_schema_hash"] != schema_hash:
        return gate.incomparable(f"version {champion.version} was trained on other feature definitions")
    # Rows that the champion has not seen either, should it have been trained on a later window.
    kept = unseen.session > np.datetime64(champion.bundle["windows"]["in_sample_last"])
    both = unseen.take(kept)
    other = (
        OnnxMlp(champion.onnx, champion.bundle["symbols"]).predict(both.x, both.symbol)
        if len(both.y)
        else challenger[:0]
    )
    return gate.judge(both.y, challenger[kept], other, both.session, config.gate_confidence)


@dataclass(frozen=True)
class SentimentGain:
    """What news add to the AUC of technical inputs.

    Attributes:
        rows: a row per output, for people.
        leaks: whether it is more than news can add, beyond doubt.
        text: why the check fails, in a sentence; None where it passes.
    """

    rows: list[dict[str, object]]
    leaks: bool
    text: str | None

    def check(self) -> dg.AssetCheckResult:
        """The result of the check: what too few sessions leave open is a warning."""
        return dg.AssetCheckResult(
            check_name=SUSPICIOUS_GAIN_CHECK,
            passed=self.text is None,
            severity=dg.AssetCheckSeverity.ERROR if self.leaks else dg.AssetCheckSeverity.WARN,
            description=self.text,
            metadata={"gain": markdown_table(self.rows), "limit": SUSPICIOUS_AUC_GAIN},
        )


def sentiment_gain(
    dataset: "Dataset",
    windows: "Windows",
    parameters: "MlpParameters",
    with_sentiment: "np.ndarray",
    weights: "np.ndarray",
) -> SentimentGain:
    """Train the same network on the technical inputs alone and compare the AUC on the same resamples.

    One training of each is all there is, so the bounds allow for other sessions and not for other seeds.

    Args:
        dataset: with all inputs of the model.
        windows, parameters: as the model was trained.
        with_sentiment: what the model says of the out-of-sample rows, shape (rows, 2).
        weights: of `evaluation.session_resamples` of these rows, shape (resamples, rows).
    """
    import numpy as np

    from quant_assets.models import evaluation
    from quant_assets.models.gate import FEWEST_BLOCKS
    from quant_assets.models.mlp import train

    plain = dataset.with_inputs(tables.TECHNICAL_INPUTS)
    parts = {window: plain.take(mask) for window, mask in plain.masks(windows).items()}
    without = train(
        plain.inputs,
        (parts["train"].x, parts["train"].y, parts["train"].symbol),
        (parts["validation"].x, parts["validation"].y, parts["validation"].symbol),
        parameters,
    ).predict(parts["out_of_sample"].x, parts["out_of_sample"].symbol)
    y = parts["out_of_sample"].y
    sessions = len(np.unique(parts["out_of_sample"].session))
    blocks = sessions // evaluation.BLOCK_SESSIONS
    confidence = 1 - 0.05 / len(SIDES)
    rows: list[dict[str, object]] = []
    leaks, large = [], []
    for i, side in enumerate(SIDES):
        draws = evaluation.auc_draws(y[:, i], with_sentiment[:, i], weights) - evaluation.auc_draws(
            y[:, i], without[:, i], weights
        )
        gain = evaluation.auc(y[:, i], with_sentiment[:, i]) - evaluation.auc(y[:, i], without[:, i])
        if blocks < FEWEST_BLOCKS:
            rows.append({"output": side, "AUC gain": gain, "low": "unknown", "high": "unknown"})
            if gain > SUSPICIOUS_AUC_GAIN:
                large.append(f"{side} by {gain:+.4f}")
            continue
        reach = evaluation.student_reach(draws, blocks, confidence)
        rows.append({"output": side, "AUC gain": gain, "low": gain - reach, "high": gain + reach})
        if gain - reach > SUSPICIOUS_AUC_GAIN:
            leaks.append(f"{side} by {gain:+.4f} [{gain - reach:+.4f}, {gain + reach:+.4f}]")
    text = None
    if leaks:
        text = f"news lift the AUC of {', '.join(leaks)}, more than they can: look for a leak in the join"
    elif large:
        needed = FEWEST_BLOCKS * evaluation.BLOCK_SESSIONS
        text = (
            f"news lift the AUC of {', '.join(large)}; {sessions} out-of-sample sessions are too few to tell a leak from luck "
            f"({needed} are needed)"
        )
    return SentimentGain(rows, bool(leaks), text)
