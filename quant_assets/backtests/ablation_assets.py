"""The asset that measures what alternative data add: `backtests/sentiment_ablation`.

Belongs here: the Dagster face: tables in, checks, rows and a figure out. Does not belong here: training and intervals
(`ablation.py`), the champions (`quant_assets/models`), the section of the page (`pages/ablation_section.py`).

Nothing is chosen and nothing is registered here. The networks are trained anew on each rung, because champions differ in when they
were trained, and one training says little: five seeds of one rung differ as much as two rungs do. The strategy's bracket is that of the
labels, as live signals take it: the break-even probability is one of the bracket that the network was trained on.
"""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa

from quant_assets.backtests import tables
from quant_assets.backtests.assets import ABLATION, GROUP, OWNERS, Money
from quant_assets.features import tables as feature_tables
from quant_assets.market import tables as market_tables
from quant_assets.models.assets import SUSPICIOUS_AUC_GAIN, SUSPICIOUS_GAIN_CHECK, TrainingConfig
from quant_assets.models.feature_sets import FEATURE_SETS, NEWS_TABLES
from quant_assets.partitions import CALENDAR
from quant_assets.presentation import figure_markdown, markdown_table
from quant_resources.iceberg import Warehouse
from quant_resources.io_manager import table_metadata

if TYPE_CHECKING:
    from quant_assets.models.dataset import Windows

# Reads everything; the ladder ends with its inputs.
ENHANCED = "mlp_enhanced"
STRATEGY = "mlp_enhanced_long_short"
READ = (*FEATURE_SETS[ENHANCED].tables, feature_tables.LABELS, market_tables.BARS)


class AblationConfig(TrainingConfig, Money):
    """Windows and hyperparameters as of the models, money and costs as of the backtests; the same for every rung.

    Attributes:
        seeds: trainings of each rung; the first has the seed `seed`, the next the one after it.
        resamples: of blocks of sessions, which all intervals come from.
    """

    seeds: int = 5
    resamples: int = 400


@dg.asset(
    key=[GROUP, ABLATION],
    group_name=GROUP,
    description="What alternative data add: the classifier on technical inputs, with the symbol's own sentiment, with that of its "
    "competitors, with that of its industry. Same rows, windows, hyperparameters and seeds; out-of-sample AUC, Brier score against the "
    "base rate's, Sharpe ratio (annual), total return (fraction) and number of trades of the strategy net of costs, with paired 95 % "
    "intervals and the sentence that they allow. Known at the close of the last labelled session.",
    metadata=table_metadata(tables.SENTIMENT_ABLATION),
    deps=[dg.AssetKey(spec.name.split(".")) for spec in READ],
    kinds={"torch", "numba", "iceberg"},
    owners=OWNERS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version="2",
    pool="training",
    check_specs=[
        dg.AssetCheckSpec(
            SUSPICIOUS_GAIN_CHECK,
            asset=dg.AssetKey([GROUP, ABLATION]),
            blocking=True,
            description=f"No rung lifts the out-of-sample AUC of technical inputs by more than {SUSPICIOUS_AUC_GAIN} beyond doubt (lower end "
            "of the joint 95 % interval): such a gain means that a join leaks, and nothing is stored. With fewer than 80 "
            "out-of-sample sessions a larger gain is a warning.",
        )
    ],
)
def sentiment_ablation(
    context: dg.AssetExecutionContext, config: AblationConfig, warehouse: dg.ResourceParam[Warehouse]
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Train every rung with every seed, judge and trade what it says."""
    import numpy as np

    from quant_assets.backtests import ablation, plots
    from quant_assets.backtests.inputs import Market
    from quant_assets.models import evaluation
    from quant_assets.models.dataset import make_dataset
    from quant_assets.models.inference import inputs_of, model_rows
    from quant_assets.strategies import make_strategy

    if config.seeds < 1 or config.resamples < 2:
        raise dg.Failure(
            f"seeds = {config.seeds}, resamples = {config.resamples}: at least 1 seed and 2 resamples.",
            allow_retries=False,
        )
    costs, account = config.money()
    features = FEATURE_SETS[ENHANCED]
    snapshots = {spec.name: warehouse.snapshot_id(spec) for spec in READ}
    read = {spec.name: warehouse.read(spec, snapshot_id=snapshots[spec.name]) for spec in READ[:-1]}
    dataset = make_dataset(
        [read[spec.name] for spec in features.tables], read[feature_tables.LABELS.name], features.inputs
    )
    windows = config.windows_of(dataset)
    market = Market(warehouse, in_sample_last=windows.in_sample_last, purge_sessions=config.embargo_sessions)
    about = {"tables": [spec.name for spec in features.tables], "inputs": features.inputs}
    rows = model_rows(about, read)
    x, symbols = inputs_of(about, rows)
    sessions = rows["session"].to_numpy().astype("datetime64[D]")
    # What a model says of sessions that it was trained on is no forecast.
    later = sessions > np.datetime64(windows.in_sample_last)
    traded, symbol = x[later].astype(np.float32), np.asarray(symbols, dtype=str)[later]
    seeds = [config.first_seed + i for i in range(config.seeds)]
    said = ablation.train_rungs(
        dataset, windows, config.hyperparameters(), seeds, (traded, symbol), context.log.info
    )
    masks = dataset.masks(windows)
    unseen, base_rate = dataset.take(masks["out_of_sample"]), dataset.y[masks["train"]].mean(axis=0)
    weights = evaluation.session_resamples(unseen.session, config.first_seed, config.resamples)
    unseen_sessions = len(np.unique(unseen.session))
    bracket = _bracket(read[feature_tables.LABELS.name])
    estimates = [
        *ablation.classifier_estimates(
            {rung: one.judged for rung, one in said.items()}, unseen.y, base_rate, weights
        ),
        *ablation.strategy_estimates(
            {rung: one.traded for rung, one in said.items()},
            symbol,
            sessions[later],
            make_strategy(STRATEGY, **bracket),
            market.series,
            market.out_of_sample,
            costs,
            account,
            config.first_seed,
            config.resamples,
        ),
    ]
    found = ablation.ladder_rows(estimates, unseen_sessions, config.seeds)

    suspicious = ablation.suspicious_rows(found, SUSPICIOUS_AUC_GAIN)
    doubtful = ablation.doubtful_rows(found, SUSPICIOUS_AUC_GAIN)
    levels, differences = _level_rows(found), _difference_rows(found)
    yield dg.AssetCheckResult(
        check_name=SUSPICIOUS_GAIN_CHECK,
        passed=not (suspicious or doubtful),
        severity=dg.AssetCheckSeverity.ERROR if suspicious else dg.AssetCheckSeverity.WARN,
        description="; ".join(
            [
                f"{row['rung']} lifts the AUC of {row['side']} by {row['gain']:+.4f} "
                f"[{row['gain_joint_low']:+.4f}, {row['gain_joint_high']:+.4f}], more than news can: look for a leak in the join"
                for row in suspicious
            ]
            + [
                f"{row['rung']} lifts the AUC of {row['side']} by {row['gain']:+.4f}; {unseen_sessions} out-of-sample sessions are too few "
                f"to tell a leak from luck ({ablation.FEWEST_SESSIONS} are needed)"
                for row in doubtful
            ]
        )
        or None,
        metadata={"differences": markdown_table(differences), "limit": SUSPICIOUS_AUC_GAIN},
    )
    if suspicious:
        raise dg.Failure(
            f"{SUSPICIOUS_GAIN_CHECK} failed, see above. Nothing was stored; an earlier ablation is as it was.",
            allow_retries=False,
        )

    news_source = ", ".join(
        sorted({source for spec in NEWS_TABLES for source in read[spec.name]["source"].to_pylist()})
    )
    shared = {
        "session": market.out_of_sample.last,
        "available_at": CALENDAR.close(market.out_of_sample.last),
        "first_session": windows.out_of_sample_first,
        "rows": len(unseen.y),
        "news_source": news_source,
        "hindsight_share": _hindsight_share(read[feature_tables.PEERS.name], windows),
    }
    data = pa.Table.from_pylist(
        [{**row, **shared} for row in found], schema=tables.SENTIMENT_ABLATION.arrow_schema
    )
    done = warehouse.write(tables.SENTIMENT_ABLATION, data, properties={"quant.run_id": context.run.run_id})
    conclusion = ablation.conclusion(found)
    context.log.info("%s", conclusion)
    yield dg.MaterializeResult(
        metadata={
            "dagster/row_count": data.num_rows,
            "conclusion": conclusion,
            "news": news_source,
            "seeds": ", ".join(map(str, seeds)),
            "bracket of labels and strategy": markdown_table([bracket]),
            "levels": markdown_table(levels),
            "differences": markdown_table(differences),
            "differences of the AUC": figure_markdown(
                plots.ablation_figure(found),
                f"AUC out of sample and what each rung adds, 95 % intervals, mean of {config.seeds} seeds (news: {news_source})",
            ),
            "windows": markdown_table(_window_rows(windows, market.out_of_sample.last)),
            "snapshot_id": str(done.snapshot_id),
            **{f"snapshot {name}": str(snapshot) for name, snapshot in snapshots.items()},
        }
    )


def _bracket(labels: pa.Table) -> dict[str, object]:
    """Profit target and stop, percent, that the labels were made with; `make_dataset` has refused labels of two rules."""
    return {name: labels[name][0].as_py() for name in ("profit_target_pct", "stop_loss_pct")}


def _hindsight_share(peers: pa.Table, windows: "Windows") -> float:
    """Share of the rows from training to the end whose list of competitors is younger than the session."""
    import pyarrow.compute as pc

    first, last = windows.train_first, windows.out_of_sample_last
    rows = peers.filter(
        pc.and_(pc.greater_equal(peers["session"], first), pc.less_equal(peers["session"], last))
    )
    younger = pc.greater(rows["peers_as_of"], rows["session"]).fill_null(False)
    return float(pc.mean(younger).as_py())


def _level_rows(found: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    columns = ("rung", "inputs", "measure", "side", "value", "low", "high", "seed_sd", "ensemble")
    return [{name: _shown(row[name]) for name in columns} for row in found]


def _difference_rows(found: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    columns = (
        "rung", "measure", "side", "step", "step_low", "step_high", "step_joint_low", "step_joint_high", "gain", "gain_low", "gain_high",
        "gain_joint_low", "gain_joint_high",
    )  # fmt: skip
    return [{name: _shown(row[name]) for name in columns} for row in found if row["position"]]


def _shown(value: object) -> object:
    return "undefined" if value is None else value


def _window_rows(windows: "Windows", last: dt.date) -> list[dict[str, object]]:
    bounds = {**asdict(windows), "traded_last": last}
    return [{"bound": name, "session": str(session)} for name, session in bounds.items()]
