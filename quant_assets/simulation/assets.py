"""Assets of the layer `simulation`: days of one-minute bars drawn from the posterior.

Belongs here: the Dagster face. Does not belong here: paths (`paths.py`), what makes a day of them (`intraday.py`), the files
(`transitions.py`), drawing (`plots.py`).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from quant_assets.market.tables import BARS, MINUTE_BARS
from quant_assets.partitions import CALENDAR, SYMBOLS, settings
from quant_assets.posterior.tables import HESTON
from quant_assets.presentation import figure_markdown, markdown_table
from quant_resources.iceberg import Warehouse

if TYPE_CHECKING:
    import datetime as dt

    import pyarrow as pa
    from dagster import DagsterLogManager

    from quant_assets.simulation.intraday import IntradayDays, IntradayModel, RealDays

GROUP = "simulation"
OWNERS = ["team:research"]
KEY = dg.AssetKey([GROUP, "intraday_paths"])
# Mean volume and the volatility that goes with it come from so many sessions.
LIQUIDITY_SESSIONS = 63
# Of a z-score over all draws; the mean of the days' variance is the average of that many independent numbers.
LARGEST_Z = 5.0


class IntradayConfig(dg.Config):
    """How many days, and what a day looks like; see `intraday.IntradayModel`.

    Attributes:
        draws: posterior draws that get days, evenly spaced over the chains; 0 for all.
        days_per_draw: independent days of each.
        spread_bps: median quoted spread; None: from minute bars where the source has them, else the model's default.
        seed: of the paths; the project's when none is given.
    """

    draws: int = 1500
    days_per_draw: int = 1
    spread_bps: float | None = None
    seed: int | None = None


@dg.asset(
    key=KEY,
    group_name=GROUP,
    description="Simulated sessions of 390 minutes for one symbol, each under its own draw from posterior/heston and from "
    "that draw's v_T on: mid (dollars), quoted spread (dollars), traded and expected volume (shares), variance (per year). "
    "What comes after the posterior's last session, as it could be known at that close. A path buffer (Parquet, one row per "
    "day) in QUANT_HOME/simulation/intraday_paths/; agents train on it.",
    deps=[
        dg.AssetKey(["posterior", "heston"]),
        dg.AssetDep(["market", "bars"], partition_mapping=dg.AllPartitionMapping()),
    ],
    partitions_def=SYMBOLS,
    kinds={"jax", "parquet"},
    owners=OWNERS,
    code_version="1",
    check_specs=[
        dg.AssetCheckSpec(
            "days_follow_the_posterior",
            asset=KEY,
            blocking=True,
            description="Every day has its own draw, no variance is negative, no spread is below a tick, and the days' mean "
            "variance and squared return are those that the draws imply (within 5 standard errors).",
        )
    ],
)
def intraday_paths(
    context: dg.AssetExecutionContext, config: IntradayConfig, warehouse: dg.ResourceParam[Warehouse]
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Simulate, write in chunks, read back, judge, draw."""
    import numpy as np

    from quant_assets.posterior.priors import HestonParameters
    from quant_assets.simulation import plots
    from quant_assets.simulation.intraday import iterate_days
    from quant_assets.simulation.transitions import PathInfo, read_paths, write_paths

    symbol = context.partition_key
    seed = settings().seed if config.seed is None else config.seed
    snapshot = warehouse.snapshot_id(HESTON)
    draws = warehouse.read(HESTON, only=symbol, snapshot_id=snapshot)
    if not draws.num_rows:
        raise dg.Failure(
            f"posterior/heston holds no draws of {symbol}: materialize it first; a fit that was refused stores none",
            allow_retries=False,
        )
    if config.draws < 0 or config.days_per_draw < 1:
        raise dg.Failure(
            f"draws = {config.draws} and days_per_draw = {config.days_per_draw}: at least 0 (all) and 1",
            allow_retries=False,
        )
    count = min(config.draws or draws.num_rows, draws.num_rows)
    ids = np.arange(count) * draws.num_rows // count
    chosen = draws.take(ids)
    last = chosen["session"][0].as_py()
    # The days come after `last`, so v_T is where they start.
    columns = (*HestonParameters._fields[:-1], "v_T")
    parameters = HestonParameters(*(chosen[name].to_numpy() for name in columns))
    real = _minute_bars(warehouse, symbol, last)
    model, mid0 = _model(warehouse, symbol, last, real, config.spread_bps, context.log)
    path = warehouse.home / GROUP / "intraday_paths" / f"{symbol}.parquet"
    info = PathInfo(
        model=model,
        posterior={"table": HESTON.name, "snapshot": str(snapshot), "symbol": symbol, "session": str(last)},
        seed=seed,
    )
    days = iterate_days(
        parameters, days_per_draw=config.days_per_draw, seed=seed, mid0=mid0, model=model, draw_ids=ids
    )
    # Judged while the file is written under another name; an exception leaves the earlier file as it was.
    judged = _Judged(model, count * config.days_per_draw)
    try:
        written = write_paths(path, judged.through(days), info)
    except _NotThePosterior as error:
        yield judged.result()
        raise dg.Failure(
            f"{symbol}: {error}. Nothing was written; an earlier file is as it was.", allow_retries=False
        ) from error
    yield judged.result()
    context.log.info("%s: %d days of %d minutes from %s on", symbol, written, model.minutes, last)
    stored = read_paths(path).days
    shown = _real_days(real, model.minutes)
    yield dg.MaterializeResult(
        metadata={
            "dagster/partition_row_count": written,
            "mid": figure_markdown(plots.fan_figure(stored), "Mid since the open over all days"),
            "a day": figure_markdown(
                plots.day_figure(stored, 0, shown),
                "One simulated day" + (", and a real one" if shown else ""),
            ),
            "profiles": figure_markdown(
                plots.profile_figure(stored, shown), "Volume and spread over the session"
            ),
            "volatility": figure_markdown(
                plots.volatility_figure(stored), "Volatility within and of the days"
            ),
            "file": dg.MetadataValue.path(str(path)),
            "bytes": path.stat().st_size,
            "model": model.as_dict(),
            "mid at the open": mid0,
            "after session": str(last),
            "available_at": CALENDAR.close(last).isoformat(),
            "posterior snapshot": str(snapshot),
            "seed": seed,
        }
    )


class _NotThePosterior(ValueError):
    """Simulated days that do not follow the draws."""


class _Judged:
    """The check on days that pass by in chunks."""

    def __init__(self, model: "IntradayModel", wanted: int) -> None:
        self.model, self.wanted = model, wanted
        self.rows: list[dict[str, object]] = []
        self.problems: list[str] = []

    def through(self, chunks: "Iterator[IntradayDays]") -> "Iterator[IntradayDays]":
        """The chunks, unchanged, and at their end the verdict.

        Raises:
            _NotThePosterior: with every problem.
        """
        import numpy as np

        from quant_assets.posterior.priors import DT_YEARS
        from quant_assets.simulation.intraday import expected_variance

        seen, expected = 0, []
        simulated: dict[str, list[np.ndarray]] = {"mean variance": [], "squared return": []}
        for days in chunks:
            p = days.parameters
            implied = expected_variance(self.model, p)
            change = np.log(days.mid[:, -1] / days.mid[:, 0]) - (p.mu - implied / 2) * DT_YEARS
            expected.append(implied)
            simulated["mean variance"].append(days.variance.mean(axis=1))
            simulated["squared return"].append(change**2 / DT_YEARS)
            seen += days.days
            if days.variance.min() < 0:
                self.problems.append(f"a variance of {days.variance.min():.3g} is negative")
            if days.spread.min() < self.model.tick_dollars * (1 - 1e-9):
                self.problems.append(f"a spread of {days.spread.min():.3g} dollars is below a tick")
            yield days
        if seen != self.wanted:
            self.problems.append(f"{seen} days were simulated, {self.wanted} asked for")
        for name, values in simulated.items():
            difference = np.concatenate(values) - np.concatenate(expected)
            error = difference.std() / np.sqrt(len(difference))
            z = float(difference.mean() / error) if error > 0 else 0.0
            self.rows.append(
                {
                    "per year": name,
                    "simulated": float(np.concatenate(values).mean()),
                    "implied by the draws": float(np.concatenate(expected).mean()),
                    "standard errors apart": z,
                }
            )
            if not abs(z) <= LARGEST_Z:
                self.problems.append(f"the {name} is {z:.1f} standard errors from what the draws imply")
        if self.problems:
            raise _NotThePosterior("; ".join(dict.fromkeys(self.problems)))

    def result(self) -> dg.AssetCheckResult:
        """For Dagster."""
        return dg.AssetCheckResult(
            check_name="days_follow_the_posterior",
            passed=not self.problems,
            description="; ".join(dict.fromkeys(self.problems)) or None,
            metadata={"figures": markdown_table(self.rows)},
        )


def _real_days(bars: "pa.Table | None", minutes: int) -> "RealDays | None":
    """Real days to draw beside the simulated ones; None where no whole session is stored."""
    from quant_assets.simulation.intraday import real_days

    try:
        return real_days(bars, minutes) if bars is not None else None
    except ValueError:  # half days alone; what is wrong with bars, their own checks say
        return None


def _minute_bars(warehouse: Warehouse, symbol: str, last: "dt.date") -> "pa.Table | None":
    """The symbol's minute bars of the newest sessions up to `last`; None where there are none."""
    import pyarrow.compute as pc

    bars = warehouse.read(MINUTE_BARS, CALENDAR.shift(last, -LIQUIDITY_SESSIONS), last)
    bars = bars.filter(pc.equal(bars["symbol"], symbol))
    return bars if bars.num_rows else None


def _model(
    warehouse: Warehouse,
    symbol: str,
    last: "dt.date",
    real: "pa.Table | None",
    spread_bps: float | None,
    log: "DagsterLogManager",
) -> "tuple[IntradayModel, float]":
    """The symbol's day and its last close, from what was known at the close of `last`."""
    from dataclasses import replace

    import numpy as np
    import pyarrow.compute as pc

    from quant_assets.market.series import bar_series
    from quant_assets.simulation.intraday import IntradayModel, calibrate

    bars = warehouse.read(BARS, CALENDAR.shift(last, -LIQUIDITY_SESSIONS), last)
    bars = bars.filter(pc.equal(bars["symbol"], symbol))
    if bars.num_rows < 2:
        raise dg.Failure(
            f"market/bars holds {bars.num_rows} bars of {symbol} in the {LIQUIDITY_SESSIONS} sessions to {last}: ingest them "
            "first (ingest_job)",
            allow_retries=False,
        )
    series = bar_series(bars, [symbol])[symbol]
    volatility = float(np.std(np.diff(np.log(series.adj_close))) * np.sqrt(252))
    # shares of today's kind: a split within the window changes what a share is
    volume = float(np.mean(series.volume * np.cumprod(series.split_factor[::-1])[::-1] / series.split_factor))
    model = replace(IntradayModel(), mean_volume_shares=volume, reference_volatility=max(volatility, 0.02))
    if real is not None:
        try:
            shapes = calibrate(real, model)
        except ValueError as error:  # bars without quotes, half days alone: the default shapes say more
            log.warning("%s: the day's shapes stay the default's, minute bars cannot tell: %s", symbol, error)
        else:
            # Level from the daily bars: minute bars have no auctions, and other shares before a split.
            model = replace(
                shapes,
                mean_volume_shares=model.mean_volume_shares,
                reference_volatility=model.reference_volatility,
            )
    if spread_bps is not None:
        model = replace(model, spread_bps=spread_bps)
    return model, float(series.close[-1])
