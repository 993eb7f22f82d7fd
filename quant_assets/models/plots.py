"""Figures of the layer `models`. Pure matplotlib; what to show, not where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quant_assets.models.evaluation import auc, calibration_curve, roc_curve
from quant_assets.presentation import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDES = ("long", "short")


def roc_figure(y: np.ndarray, curves: dict[str, np.ndarray], intervals: dict[str, str]) -> Figure:
    """Out-of-sample ROC of each output.

    Args:
        y: shape (rows, 2).
        curves: model name -> probabilities (rows, 2).
        intervals: side -> text of the AUC's interval.
    """
    figure = new_figure(9, 4.2)
    for ax, i, side in zip(figure.subplots(1, 2), range(2), SIDES, strict=True):
        for color, (name, p) in zip(COLORS, curves.items(), strict=False):
            ax.plot(
                *roc_curve(y[:, i], p[:, i]),
                color=color,
                lw=1.2,
                label=f"{name}: {auc(y[:, i], p[:, i]):.3f}",
            )
        ax.plot([0, 1], [0, 1], color="black", lw=0.5, ls="--")
        ax.set_title(f"{side}: AUC {intervals[side]}", fontsize=10, loc="left")
        ax.set_xlabel("false positive rate", fontsize=9)
        ax.set_ylabel("true positive rate", fontsize=9)
        ax.set_aspect("equal")
        ax.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def calibration_figure(y: np.ndarray, p: np.ndarray, base_rate: np.ndarray) -> Figure:
    """Observed frequency against predicted probability out of sample, with the in-sample base rate."""
    figure = new_figure(9, 4.0)
    for ax, i, side in zip(figure.subplots(1, 2), range(2), SIDES, strict=True):
        points = calibration_curve(y[:, i], p[:, i])
        predicted = np.array([b["predicted"] for b in points])
        observed = np.array([b["observed"] for b in points])
        rows = np.array([b["rows"] for b in points])
        error = 1.96 * np.sqrt(observed * (1 - observed) / rows)
        ax.errorbar(
            predicted, observed, error, color=COLORS[0], marker="o", ms=4, lw=1, label="model, deciles (95 %)"
        )
        limits = [min(predicted.min(), observed.min()) - 0.05, max(predicted.max(), observed.max()) + 0.05]
        ax.plot(limits, limits, color="black", lw=0.5, ls="--")
        ax.axhline(base_rate[i], color=COLORS[1], lw=0.8, label=f"in-sample base rate {base_rate[i]:.3f}")
        ax.set_title(side, fontsize=10, loc="left")
        ax.set_xlabel("predicted probability", fontsize=9)
        ax.set_ylabel("observed frequency", fontsize=9)
        ax.legend(fontsize=8, frameon=False)
    return figure


def training_figure(history: list[dict[str, float | str]]) -> Figure:
    """Training and validation log loss per epoch."""
    figure = new_figure(7, 3.2)
    ax = figure.subplots()
    for color, symbol in zip(COLORS, sorted({str(h["symbol"]) for h in history}), strict=False):
        mine = [h for h in history if h["symbol"] == symbol]
        epochs = [h["epoch"] for h in mine]
        name = "" if symbol == "*" else f"{symbol} "
        ax.plot(epochs, [h["train_loss"] for h in mine], color=color, lw=1, ls="--", label=f"{name}training")
        validation = [float(h["validation_loss"]) for h in mine]
        ax.plot(epochs, validation, color=color, lw=1.4, label=f"{name}validation")
        best = int(np.argmin(validation))
        ax.plot(epochs[best], validation[best], "o", color=color, ms=5)
    ax.set_xlabel("epoch", fontsize=9)
    ax.set_ylabel("log loss, nats", fontsize=9)
    ax.legend(fontsize=8, frameon=False)
    return figure


def yearly_auc_figure(
    session: np.ndarray, y: np.ndarray, p: np.ndarray, first_unseen: np.datetime64
) -> Figure:
    """AUC by calendar year, in sample shaded: whether an edge was ever there and whether it lasted."""
    years = session.astype("datetime64[Y]").astype(int) + 1970
    figure = new_figure(9, 3.2)
    ax = figure.subplots()
    unique = np.unique(years)
    for color, i, side in zip(COLORS, range(2), SIDES, strict=False):
        values = [auc(y[years == year, i], p[years == year, i]) for year in unique]
        ax.plot(unique, values, color=color, marker="o", ms=4, lw=1, label=side)
    unseen = first_unseen.astype("datetime64[D]")
    boundary = unseen.astype("datetime64[Y]")
    ax.axvspan(unique[0] - 0.5, int(boundary.astype(int)) + 1970 - 0.5 + (unseen - boundary.astype("datetime64[D]")).astype(int) / 365,
               color="#eeeeee", zorder=0, label="in sample")  # fmt: skip
    ax.axhline(0.5, color="black", lw=0.5)
    ax.set_ylabel("AUC", fontsize=9)
    ax.legend(fontsize=8, frameon=False, ncols=3)
    return figure
