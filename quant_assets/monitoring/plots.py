"""Figures of the layer `monitoring`. Pure matplotlib; what to show, not where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from quant_assets.presentation import COLORS, date_axis, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

HEAT_SESSIONS = 60
LINE_SESSIONS = 250
MOST_LINES = 4
SMOOTHED_SESSIONS = 20
SMALLEST_SHOWN = 6  # powers of ten below 1 that the heat map tells apart
SCOPES = ("feature", "prediction", "endpoint_input", "performance")
WORSE, BETTER = COLORS[1], COLORS[2]


@dataclass(frozen=True, eq=False)
class Compared:
    """A column's values in the window and in the reference.

    Attributes:
        title: model and column.
        reference, window: values, any number.
        note: distances and p-value in words.
    """

    title: str
    reference: np.ndarray
    window: np.ndarray
    note: str


def worst_columns(rows: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """Rows of one session, those with the smallest p-values first; rows that nothing was tested on are left out."""
    tested = [row for row in rows if row["p_value"] is not None]
    return sorted(tested, key=lambda row: (row["p_adjusted"], row["p_value"]))[:most]


def heat_figure(rows: pa.Table, alpha: float) -> Figure:
    """Adjusted p-values by column and session, one panel per model; what drifted is framed, events are drawn above."""
    import matplotlib as mpl

    frame = _newest(rows, HEAT_SESSIONS)
    models = sorted(frame["model"].unique())
    columns = {m: _columns_of(frame[frame["model"] == m]) for m in models}
    tallest = max(len(c) for c in columns.values())
    figure = new_figure(6.2 * max(len(models), 1.4), 1.6 + 0.135 * tallest)
    axes = np.atleast_1d(figure.subplots(1, len(models), squeeze=False)[0])
    colors = mpl.colormaps["magma_r"].with_extremes(bad="#dddddd")
    image = None
    for ax, model in zip(axes, models, strict=True):
        part = frame[frame["model"] == model]
        sessions = np.sort(part["session"].unique())
        place = {name: i for i, name in enumerate(columns[model])}
        at = np.searchsorted(sessions, part["session"])
        row = np.array([place[key] for key in zip(part["scope"], part["column"], strict=True)])
        shown = np.full((len(place), len(sessions)), np.nan)
        p = part["p_adjusted"].to_numpy(dtype=float)
        # What ADWIN decides has no p-value: a drifted session is drawn as the darkest.
        p = np.where(np.isnan(p) & (part["scope"] == "performance"), np.where(part["drifted"], 0.0, 1.0), p)
        shown[row, at] = -np.log10(np.maximum(p, 10.0**-SMALLEST_SHOWN))
        image = ax.imshow(
            shown, aspect="auto", cmap=colors, vmin=0, vmax=SMALLEST_SHOWN, interpolation="nearest"
        )
        drifted = part["drifted"].to_numpy(bool)
        ax.plot(at[drifted], row[drifted], ls="", marker="s", ms=2.2, mfc="none", mec="#00e5ff", mew=0.7)
        going_on = part.groupby("session")["event_id"].first().notna().to_numpy()
        above = ax.get_xaxis_transform()
        for i in np.flatnonzero(going_on):
            ax.plot([i - 0.5, i + 0.5], [1.008, 1.008], color=WORSE, lw=3, transform=above, clip_on=False)
        ax.set_ylim(len(place) - 0.5, -0.5)
        ax.set_yticks(range(len(place)), [name for _, name in place], fontsize=6)
        borders = np.flatnonzero(np.diff([SCOPES.index(scope) for scope, _ in place]))
        for border in borders:
            ax.axhline(border + 0.5, color="white", lw=1.5)
        step = max(len(sessions) // 5, 1)
        ticks = range(0, len(sessions), step)
        ax.set_xticks(ticks, [str(np.datetime_as_string(sessions[i], "D")) for i in ticks], fontsize=7)
        version = part["model_version"].iloc[-1]
        state = "an event goes on (bar)" if going_on.any() and going_on[-1] else "no event"
        ax.set_title(f"{model} v{version}: {state}", fontsize=10, loc="left", pad=12)
        ax.tick_params(length=2)
    if image is not None:
        bar = figure.colorbar(image, ax=list(axes), shrink=0.5, pad=0.01)
        ticks = range(0, SMALLEST_SHOWN + 1, 2)
        bar.set_ticks(list(ticks), labels=[f"{10.0**-t:g}" for t in ticks])
        bar.ax.axhline(-np.log10(alpha), color="#00e5ff", lw=1.5)
        bar.set_label("adjusted p (line: alpha; blue frame: drifted)", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return figure


def psi_figure(rows: pa.Table) -> Figure:
    """PSI of each model's columns that drifted most often, else of those with the smallest p-values; events shaded."""
    frame = _newest(rows, LINE_SESSIONS)
    frame = frame[frame["psi"].notna()]
    models = sorted(frame["model"].unique())
    figure = new_figure(10, 0.4 + 2.0 * max(len(models), 1))
    axes = figure.subplots(max(len(models), 1), 1, squeeze=False, sharex=True)[:, 0]
    for ax, model in zip(axes, models, strict=False):
        part = frame[frame["model"] == model]
        order = part.groupby(["scope", "column"]).agg(drifted=("drifted", "sum"), p=("p_value", "min"))
        chosen: list[tuple[str, str]] = []
        drawn: list[np.ndarray] = []
        for scope, column in order.sort_values(["drifted", "p"], ascending=[False, True]).index:
            psi = part.loc[(part["scope"] == scope) & (part["column"] == column), "psi"].to_numpy()
            # The size of a return and its logarithm have the same quantile bins.
            if not any(np.array_equal(psi, other) for other in drawn):
                chosen.append((scope, column))
                drawn.append(psi)
            if len(chosen) == MOST_LINES:
                break
        for color, (scope, column), psi in zip(COLORS, chosen, drawn, strict=False):
            one = part[(part["scope"] == scope) & (part["column"] == column)]
            label = column if scope != "endpoint_input" else f"{column} (endpoint)"
            ax.plot(one["session"], psi, color=color, lw=1.1, marker="." if len(psi) < 2 else "", label=label)
        _shade_events(ax, part)
        ax.set_title(model, fontsize=10, loc="left")
        ax.set_ylabel("PSI, nats", fontsize=9)
        ax.set_ylim(0, 1.25 * max(ax.get_ylim()[1], 0.1))
        ax.legend(fontsize=7, frameon=False, ncols=MOST_LINES, loc="upper left")
        ax.margins(x=0.01)
        date_axis(ax)
    return figure


def distributions_figure(compared: Sequence[Compared]) -> Figure:
    """Window against reference, column by column."""
    columns = 3
    lines = max(-(-len(compared) // columns), 1)
    figure = new_figure(10, 2.5 * lines)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax, one in zip(axes, compared, strict=False):
        both = np.concatenate([one.reference, one.window])
        low, high = np.quantile(both, [0.002, 0.998])
        low, high = (low - 0.5, high + 0.5) if high <= low else (low, high)
        # The window holds few rows: half as many bins.
        for values, bins in ((one.reference, 30), (one.window, 15)):
            edges = np.linspace(low, high, bins + 1)
            part = 100 * np.histogram(np.clip(values, low, high), edges)[0] / len(values) * bins / 30
            if bins == 30:
                ax.stairs(part, edges, color="#bbbbbb", fill=True, label="reference")
            else:
                ax.stairs(part, edges, color=WORSE, lw=1.6, label="window")
        ax.set_title(one.title, fontsize=9, loc="left")
        ax.set_xlabel(one.note, fontsize=7)
        ax.tick_params(labelsize=7)
    for ax in axes[::columns][: len(compared)]:
        ax.set_ylabel("% of rows", fontsize=7)
    for ax in axes[len(compared) :]:
        ax.axis("off")
    if len(compared):
        figure.legend(
            *axes[0].get_legend_handles_labels(),
            fontsize=8,
            frameon=False,
            ncols=2,
            loc="outside upper right",
        )
    return figure


def performance_figure(rows: pa.Table) -> Figure:
    """Each measure over time: mean of 20 sessions (thin), mean of ADWIN's window (thick), its changes for better or worse."""
    frame = _newest(rows, None)
    measures = sorted(frame["measure"].unique())
    models = sorted(frame["model"].unique())
    figure = new_figure(10, 0.4 + 1.7 * max(len(measures), 1))
    axes = figure.subplots(max(len(measures), 1), 1, squeeze=False, sharex=True)[:, 0]
    for ax, measure in zip(axes, measures, strict=True):
        for color, model in zip((COLORS[0], COLORS[3], COLORS[6]), models, strict=False):
            one = frame[(frame["measure"] == measure) & (frame["model"] == model)]
            if not len(one):
                continue
            smooth = one["value"].rolling(SMOOTHED_SESSIONS, 1).mean()
            ax.plot(one["session"], smooth, color=color, lw=0.8, alpha=0.6)
            ax.plot(one["session"], one["adwin_mean"], color=color, lw=2.0, label=model)
            if measure == "hit_rate":
                expected = one["yardstick"].expanding().mean()
                ax.plot(one["session"], expected, color=color, lw=0.8, ls=":")
            for _, change in one[one["changed"]].iterrows():
                mark = WORSE if change["drifted"] else BETTER
                ax.axvline(change["session"], color=mark, lw=1.2, ls="--")
                word = "worse" if change["drifted"] else "better"
                ax.text(
                    change["session"],
                    0.97,
                    f" {word}",
                    transform=ax.get_xaxis_transform(),
                    fontsize=7,
                    va="top",
                    color=mark,
                )
        if measure != "hit_rate":
            ax.axhline(0, color="black", lw=0.6)
        ax.set_title(measure.replace("_", " "), fontsize=10, loc="left")
        ax.margins(x=0.01)
        date_axis(ax)
    if len(axes) and len(measures):
        handles = {
            label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(), handles.keys(), fontsize=8, frameon=False, ncols=3, loc="outside upper right"
        )
    return figure


def _newest(rows: pa.Table, most: int | None) -> DataFrame:
    """As a frame with sessions as datetime64, in order; the newest sessions only."""
    frame = rows.to_pandas()
    frame["session"] = frame["session"].to_numpy(dtype="datetime64[D]")
    if most is not None:
        kept = np.sort(frame["session"].unique())[-most:]
        frame = frame[frame["session"] >= kept[0]]
    return frame.sort_values("session", kind="stable")


def _columns_of(frame: DataFrame) -> list[tuple[str, str]]:
    """Columns by scope, in the order in which models read them."""
    pairs = set(zip(frame["scope"], frame["column"], strict=True))
    return sorted(pairs, key=lambda pair: (SCOPES.index(pair[0]), _natural(pair[1])))


def _natural(name: str) -> tuple[object, ...]:
    """`roc_2_pct` before `roc_10_pct`."""
    return tuple(f"{int(part):06d}" if part.isdigit() else part for part in name.split("_"))


def _shade_events(ax: Axes, frame: DataFrame) -> None:
    by_session = frame.groupby("session")["event_id"].first()
    on = by_session.notna().to_numpy()
    sessions = by_session.index.to_numpy()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], on.astype(int), [0]])))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        ax.axvspan(sessions[start], sessions[stop - 1], color=WORSE, alpha=0.12, lw=0)
