"""What a backtest reads: bars and windows, and what a registered model says about sessions that it has not seen.

Belongs here: reading tables and the registry into the arrays that the pure modules take. Does not belong here: Dagster, and
anything that simulates.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence

import numpy as np

from quant_assets.backtests.engine import BacktestError
from quant_assets.backtests.portfolio import Window, split_windows
from quant_assets.market import tables as market_tables
from quant_assets.market.series import BarSeries, bar_series
from quant_assets.models.feature_sets import FEATURE_SETS
from quant_resources.iceberg import Warehouse
from quant_resources.registry import ModelRegistry


class Market:
    """Bars of the wanted symbols and sessions, and the windows that they are split into.

    Args:
        warehouse: holds `market.bars`.
        symbols: only these; all when empty.
        first, last: sessions; None for the first or last that is stored.
        in_sample_fraction, in_sample_last, purge_sessions: see `split_windows`.

    Attributes:
        series: bars by symbol.
        sessions: every session on which any symbol has a bar, in order.
        in_sample, out_of_sample: windows.
        purge_sessions: left out in between.
        snapshot: Iceberg snapshot of `market.bars`.

    Raises:
        BacktestError: no bars, or a window would be empty.
        SeriesError: unknown symbol, impossible prices.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        symbols: Sequence[str] = (),
        first: dt.date | None = None,
        last: dt.date | None = None,
        in_sample_fraction: float = 0.4,
        in_sample_last: dt.date | None = None,
        purge_sessions: int = 5,
    ) -> None:
        self.snapshot = warehouse.snapshot_id(market_tables.BARS)
        bars = warehouse.read(market_tables.BARS, first, last, snapshot_id=self.snapshot)
        if not bars.num_rows:
            raise BacktestError(
                f"market/bars holds no bar between {first or 'the beginning'} and {last or 'today'}; run ingest_job for "
                "these sessions first"
            )
        self.series = bar_series(bars, list(symbols) or None)
        self.sessions: list[dt.date] = sorted(
            {day for bars in self.series.values() for day in bars.sessions.astype(object)}
        )
        self.purge_sessions = purge_sessions
        self.in_sample, self.out_of_sample = split_windows(
            self.sessions, in_sample_fraction, in_sample_last, purge_sessions
        )

    def window_after(self, last: dt.date) -> Window:
        """From the purge after `last` to the end.

        Raises:
            BacktestError: nothing is left.
        """
        later = [day for day in self.sessions if day > last]
        if len(later) <= self.purge_sessions:
            raise BacktestError(
                f"no session is left {self.purge_sessions} sessions after {last}; there are bars until "
                f"{self.sessions[-1]}"
            )
        return Window(later[self.purge_sessions], later[-1])


class Champion:
    """The registered model of a strategy and its probabilities.

    Args:
        model: registered name.
        warehouse: holds the feature tables.
        registry: holds the champion.

    Attributes:
        version: of the champion.
        seen_until: last session that it was trained or validated on.
        news_source: source of the news behind its features, 'none' without news.

    Raises:
        RegistryError: no champion.
        FeatureSchemaMismatch: it was trained on features of another definition.
    """

    def __init__(self, model: str, warehouse: Warehouse, registry: ModelRegistry) -> None:
        from quant_assets.models.inference import inputs_of, model_rows, require_same_features
        from quant_assets.models.mlp import OnnxMlp

        champion = registry.champion(model)
        require_same_features(model, champion.bundle)
        self.model, self.version = model, champion.version
        self.seen_until = dt.date.fromisoformat(champion.bundle["windows"]["in_sample_last"])
        rows = model_rows(
            champion.bundle, {spec.name: warehouse.read(spec) for spec in FEATURE_SETS[model].tables}
        )
        if not rows.num_rows:
            raise BacktestError(f"there are no features for {model}; materialize features/* first")
        x, symbols = inputs_of(champion.bundle, rows)
        self._probability = OnnxMlp(champion.onnx, champion.bundle["symbols"]).predict(x, symbols)
        self._sessions = rows["session"].to_numpy().astype("datetime64[D]")
        self._symbols = np.asarray(symbols, dtype=object)
        self.news_source = ", ".join(sorted(set(rows["news_source"].to_pylist())))

    def on(self, series: Mapping[str, BarSeries]) -> dict[str, np.ndarray]:
        """Probabilities per bar, shape (bars, 2): long, short.

        NaN where there are no features, and on every session that the model has seen: what it says about those is no
        forecast, so no strategy can trade it.
        """
        unseen = self._sessions > np.datetime64(self.seen_until)
        out = {}
        for symbol, bars in series.items():
            values = np.full((len(bars), 2), np.nan)
            mine = unseen & (self._symbols == symbol)
            sessions, probability = self._sessions[mine], self._probability[mine]
            at = np.searchsorted(bars.sessions, sessions)
            known = at < len(bars)
            known[known] = bars.sessions[at[known]] == sessions[known]
            values[at[known]] = probability[known]
            out[symbol] = values
        return out
