"""Figures of the layer `posterior`: do the chains agree, what was learned, does the model make such data.

Belongs here: what to show. Does not belong here: where (`quant_assets/presentation.py`), and the numbers
(`diagnostics.py`, `predictive.py`). Pure matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quant_assets.posterior.predictive import STATISTICS, PredictiveCheck, Sensitivity
from quant_assets.posterior.priors import DT_YEARS, PARAMETERS, QUANTITIES, HestonPriors
from quant_assets.presentation import COLORS, date_axis, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quant_assets.posterior.heston import HestonPosterior

SYMBOLS = {
    "mu": r"$\mu$",
    "kappa": r"$\kappa$",
    "theta": r"$\theta$",
    "sigma": r"$\sigma$",
    "rho": r"$\rho$",
    "v0": "$v_0$",
    "v_T": "$v_T$",
}
RANK_BINS = 20
INK = "#222222"
TRACE_POINTS = 500  # a panel is 300 pixels wide; thinned to less than twice that


def _chain_colors(chains: int) -> list[str]:
    return [COLORS[k % len(COLORS)] for k in range(chains)]


def _label(name: str) -> str:
    return f"{SYMBOLS[name]}  {name}"


def _few_ticks(ax: Axes, most: int, size: float = 7.5) -> None:
    """About so many tick labels along x."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(most))
    ax.tick_params(labelsize=size)


def _bare(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)


def _central(values: np.ndarray, mass: float = 0.99) -> tuple[float, float]:
    """Limits that hold the central mass, and a little room."""
    low, high = np.quantile(values, [(1 - mass) / 2, (1 + mass) / 2])
    room = 0.06 * (high - low) or 1e-9
    return float(low - room), float(high + room)


# ---- chains --------------------------------------------------------------------------------------------------------


def trace_figure(posterior: HestonPosterior) -> Figure:
    """Trace and rank histogram of the seven quantities, one row each.

    Left: every chain's draws in order (thinned to at most 1000). Right: the histogram of the ranks of each chain's draws
    among all draws, 20 bins, as the excess over a flat one, one baseline per chain (Vehtari, Gelman, Simpson, Carpenter &
    Bürkner 2021, *Rank-normalization, folding, and localization*). Chains that agree have 95 % of their bars inside the
    grey band (which is wider where draws are correlated: by the root of draws / bulk ESS); a slope or an arch outside it
    is a chain that sits elsewhere or is too wide.
    """
    from scipy.stats import rankdata

    figure = new_figure(9, 11.5)
    rows = figure.subplots(len(QUANTITIES), 2, width_ratios=[1.35, 1])
    chains, count = posterior.draws[QUANTITIES[0]].shape
    colors = _chain_colors(chains)
    step = max(1, count // TRACE_POINTS)
    for name, (left, right) in zip(QUANTITIES, rows, strict=True):
        draws = posterior.draws[name]
        for chain, color in zip(draws, colors, strict=True):
            left.plot(np.arange(0, count, step), chain[::step], color=color, lw=0.5, alpha=0.75)
        left.set_ylabel(_label(name), fontsize=9)
        left.set_xlim(0, count - 1)
        ess, r_hat = posterior.diagnostics.ess_bulk[name], posterior.diagnostics.r_hat[name]
        # Re-sampled draws repeat; a repeated draw has the mean of its ranks.
        ranks = rankdata(draws, method="average").reshape(draws.shape)
        edges = np.linspace(0.5, draws.size + 0.5, RANK_BINS + 1)
        expected = count / RANK_BINS
        correlation = max(1.0, draws.size / max(ess, 1.0))
        sd = np.sqrt(count / RANK_BINS * (1 - 1 / RANK_BINS) * (1 - 1 / chains) * correlation)
        excess = np.array([np.histogram(chain, edges)[0] for chain in ranks]) / expected - 1
        band = 1.96 * sd / expected
        lane = 1.15 * max(1.3 * band, np.abs(excess).max(), 0.05)  # half of a chain's height
        for k, color in enumerate(colors):
            base = 2 * lane * (chains - 1 - k)
            right.axhspan(base - band, base + band, color="black", alpha=0.1, lw=0)
            right.bar(edges[:-1], excess[k], np.diff(edges), base, align="edge", color=color, alpha=0.8)
            right.axhline(base, color=INK, lw=0.5)
        right.set_xlim(edges[0], edges[-1])
        right.set_ylim(-lane, (2 * chains - 1) * lane)
        right.set_yticks(2 * lane * np.arange(chains)[::-1], [f"{k + 1}" for k in range(chains)])
        right.tick_params(axis="y", length=0)
        right.set_title(f"R-hat {r_hat:.3f}, bulk ESS {ess:.0f}", fontsize=8, loc="right", pad=2)
        for ax in (left, right):
            _bare(ax)
            _few_ticks(ax, 5)
            if name != QUANTITIES[-1]:
                ax.tick_params(labelbottom=False)
    rows[0, 0].set_title("draws of each chain", fontsize=9, loc="left")
    rows[0, 1].set_title("ranks by chain", fontsize=9, loc="left")
    rows[-1, 0].set_xlabel("draw", fontsize=9)
    rows[-1, 1].set_xlabel("rank among all draws", fontsize=9)
    return figure


def running_mean_figure(posterior: HestonPosterior, quantity: str = "theta") -> Figure:
    """Running mean of one quantity in each chain and over all chains, against the number of draws.

    The band is the mean over all chains so far ± 2 Monte Carlo standard errors, sd / sqrt(ESS), where the ESS of the
    first n draws is their share of the ESS (for the mean) of all draws: at the end it says how well the mean is known.
    """
    import arviz

    draws = posterior.draws[quantity]
    chains, count = draws.shape
    number = np.arange(1, count + 1)
    by_chain = np.cumsum(draws, axis=1) / number
    pooled = by_chain.mean(axis=0)
    ess = float(arviz.ess(np.asarray(draws, float), method="mean"))
    error = draws.std() / np.sqrt(ess * number / count)
    figure = new_figure(9, 4)
    ax = figure.subplots()
    for k, (chain, color) in enumerate(zip(by_chain, _chain_colors(chains), strict=True)):
        ax.plot(number, chain, color=color, lw=0.9, alpha=0.8, label=f"chain {k + 1}")
    ax.fill_between(
        number, pooled - 2 * error, pooled + 2 * error, color="black", alpha=0.15, lw=0,
        label="± 2 Monte Carlo standard errors",
    )  # fmt: skip
    ax.plot(number, pooled, color="black", lw=2, label="mean over chains")
    ax.axhline(pooled[-1], color="black", lw=0.6, ls=":")
    # The first draws leap; what matters starts when a twentieth is in.
    settled = number > count // 20
    low = min(by_chain[:, settled].min(), (pooled - 2 * error)[settled].min())
    high = max(by_chain[:, settled].max(), (pooled + 2 * error)[settled].max())
    room = 0.05 * (high - low)
    ax.set_ylim(low - room, high + room)
    ax.set_xlim(1, count)
    ax.set_title(
        f"{_label(quantity)}: {pooled[-1]:.4g} ± {2 * error[-1]:.2g} after {chains} × {count} draws "  # noqa: RUF001
        f"(posterior sd {draws.std():.2g})",
        fontsize=10,
        loc="left",
    )
    ax.set_xlabel("draws per chain", fontsize=9)
    ax.set_ylabel(f"running mean of {quantity}{_unit(quantity)}", fontsize=9)
    ax.legend(fontsize=8, frameon=False, ncols=3)
    _bare(ax)
    ax.tick_params(labelsize=8)
    return figure


def _unit(name: str) -> str:
    return "" if name == "rho" else ", per year"


# ---- what was learned ----------------------------------------------------------------------------------------------


def pair_figure(posterior: HestonPosterior) -> Figure:
    """The seven quantities against each other: densities below, histograms on, rank correlations above the diagonal.

    Divergent transitions are marked where they belong to the draws (sampler `latent`).
    """
    from scipy.stats import rankdata

    names = QUANTITIES
    flat = np.stack([posterior.draws[name].ravel() for name in names], axis=1)
    limits = [_central(column) for column in flat.T]
    # chains that stand still have no correlation
    with np.errstate(invalid="ignore"):
        correlation = np.nan_to_num(np.corrcoef(rankdata(flat, axis=0), rowvar=False))
    divergent = posterior.divergent.ravel() & (posterior.sampler == "latent")
    figure = new_figure(9, 9)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    grid = figure.subplots(len(names), len(names))
    for i, row in enumerate(names):
        for j, column in enumerate(names):
            ax = grid[i, j]
            if i == j:
                ax.hist(flat[:, i], bins=40, range=limits[i], color=COLORS[0], alpha=0.8)
                ax.set_yticks([])
                ax.set_xlim(limits[i])
            elif i > j:
                ax.hexbin(
                    flat[:, j], flat[:, i], gridsize=22, extent=(*limits[j], *limits[i]), cmap="Blues", mincnt=1,
                    linewidths=0.1,
                )  # fmt: skip
                ax.plot(flat[divergent, j], flat[divergent, i], ".", color=COLORS[1], ms=3)
                ax.set_xlim(limits[j])
                ax.set_ylim(limits[i])
            else:
                value = correlation[i, j]
                ax.text(
                    0.5, 0.5, f"{value:+.2f}", ha="center", va="center", fontsize=8 + 7 * abs(value),
                    color=INK if abs(value) >= 0.1 else "#888888", transform=ax.transAxes,
                )  # fmt: skip
                ax.set_facecolor((*_rgb(COLORS[0] if value > 0 else COLORS[1]), 0.35 * abs(value)))
                ax.set_xticks([])
                ax.set_yticks([])
            if i >= j:
                ax.set_xticks(_inner_ticks(limits[j]))
                ax.tick_params(labelsize=7)
                ax.tick_params(labelbottom=i == len(names) - 1, labelleft=j == 0 and i > 0, length=2)
                if i > j:
                    ax.set_yticks(_inner_ticks(limits[i]))
            if i == len(names) - 1:
                ax.set_xlabel(_label(column), fontsize=9)
            if j == 0:
                ax.set_ylabel(_label(row), fontsize=9)
    return figure


def _inner_ticks(limits: tuple[float, float]) -> list[float]:
    """Two or three ticks whose labels do not meet those of the next panel."""
    from matplotlib.ticker import MaxNLocator

    low, high = limits
    room = 0.14 * (high - low)
    return [t for t in MaxNLocator(3).tick_values(low, high) if low + room <= t <= high - room]


def _rgb(color: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(color)


def prior_density(priors: HestonPriors, name: str, at: np.ndarray) -> np.ndarray:
    """Density of one parameter under its prior."""
    from scipy.stats import lognorm, norm, uniform

    if name == "mu":
        return norm.pdf(at, priors.mu_mean, priors.mu_sd)
    if name == "rho":
        return uniform.pdf(at, -1, 2)
    return lognorm.pdf(at, getattr(priors, f"{name}_log_sd"), scale=getattr(priors, f"{name}_median"))


def _prior_limits(priors: HestonPriors, name: str) -> tuple[float, float]:
    """The central 90 % of the prior, from 0 on for what is positive."""
    if name == "mu":
        return priors.mu_mean - 1.645 * priors.mu_sd, priors.mu_mean + 1.645 * priors.mu_sd
    if name == "rho":
        return -1.0, 1.0
    return 0.0, getattr(priors, f"{name}_median") * float(np.exp(1.645 * getattr(priors, f"{name}_log_sd")))


def prior_posterior_figure(posterior: HestonPosterior) -> Figure:
    """Posterior histogram over prior density of the five parameters: where both agree, the data said little."""
    figure = new_figure(9, 4.8)
    panels = figure.subplots(2, 3).ravel()
    for name, ax in zip(PARAMETERS, panels, strict=False):
        values = posterior.draws[name].ravel()
        ours, prior = _central(values, 0.998), _prior_limits(posterior.priors, name)
        low, high = min(ours[0], prior[0]), max(ours[1], prior[1])
        if name in ("kappa", "theta", "sigma"):
            low = 0.0
        at = np.linspace(low, high, 400)
        ax.hist(
            values,
            bins=40,
            range=_central(values, 0.998),
            density=True,
            color=COLORS[0],
            alpha=0.6,
            label="posterior",
        )
        ax.plot(at, prior_density(posterior.priors, name, at), color=COLORS[1], lw=1.6, label="prior")
        q05, q95 = np.quantile(values, [0.05, 0.95])
        ax.set_title(f"{_label(name)}: {values.mean():.3g}  [{q05:.3g}, {q95:.3g}]", fontsize=9, loc="left")
        ax.set_xlim(low, high)
        ax.set_yticks([])
        ax.spines[["top", "right", "left"]].set_visible(False)
        _few_ticks(ax, 6, size=8)
    handles, labels = panels[0].get_legend_handles_labels()
    panels[-1].axis("off")
    panels[-1].legend(handles, labels, fontsize=9, frameon=False, loc="upper left")
    panels[-1].text(
        0.04, 0.35, "Titles: posterior mean\nand 90 % interval.\nPer year, but for rho.", fontsize=9, va="center",
        transform=panels[-1].transAxes,
    )  # fmt: skip
    return figure


# ---- does the model make such data ---------------------------------------------------------------------------------


def predictive_figure(checks: Sequence[PredictiveCheck]) -> Figure:
    """Histogram of each simulated statistic with its 95 % band, and the data as a line; red where they are outside."""
    columns = 3
    rows = -(-len(checks) // columns)
    figure = new_figure(9, 2.1 * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for check, ax in zip(checks, panels, strict=False):
        low, high = central = _central(check.simulated, 0.98)
        span = max(high, check.observed) - min(low, check.observed)
        low, high = min(low, check.observed - 0.04 * span), max(high, check.observed + 0.04 * span)
        ax.axvspan(check.low, check.high, color="#eeeeee", lw=0, label="95 % of simulated")
        ax.hist(check.simulated, bins=30, range=central, color=COLORS[5], label="simulated")
        ax.axvline(
            check.observed,
            color=COLORS[0] if check.inside else COLORS[1],
            lw=2,
            label="observed",
        )
        verdict = "" if check.inside else ", OUTSIDE"
        ax.set_title(
            f"{STATISTICS[check.statistic]}\n{check.observed:.3g}  (p = {check.p_value:.2g}{verdict})",
            fontsize=8.5,
            loc="left",
            color=INK if check.inside else COLORS[1],
        )
        ax.set_xlim(low, high)
        ax.set_yticks([])
        ax.spines[["top", "right", "left"]].set_visible(False)
        _few_ticks(ax, 5, size=8)
    for ax in panels[len(checks) :]:
        ax.axis("off")
    _legend_below(figure, panels[0], inside=all(check.inside for check in checks))
    return figure


def _legend_below(figure: Figure, ax: Axes, inside: bool) -> None:
    from matplotlib.lines import Line2D

    handles, labels = ax.get_legend_handles_labels()
    keep = [(h, label) for h, label in zip(handles, labels, strict=True) if not label.startswith("observed")]
    keep.append((Line2D([], [], color=COLORS[0], lw=2), "the data"))
    if not inside:
        keep.append((Line2D([], [], color=COLORS[1], lw=2), "the data, outside the band"))
    figure.legend(*zip(*keep, strict=True), loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def sensitivity_figure(results: Sequence[Sensitivity]) -> Figure:
    """Mean and 90 % interval of each quantity by alternative prior, the fit as a band; the last panel the weights.

    Alternatives whose weights cannot be believed have no interval: a hollow row and their Pareto k.
    """
    figure = new_figure(9, 2 * (0.24 * len(results) + 0.75))
    grid = figure.subplots(2, 4, sharey=True)
    panels = grid.ravel()
    height = np.arange(len(results))[::-1]
    base = results[0]
    for name, ax in zip(QUANTITIES, panels, strict=False):
        if name in base.intervals:
            at = base.intervals[name]
            ax.axvspan(at.low, at.high, color=COLORS[5], alpha=0.2, lw=0)
            ax.axvline(at.mean, color=COLORS[5], lw=0.8)
        for y, result in zip(height, results, strict=True):
            if result.reliable:
                at = result.intervals[name]
                color = INK if result is base else COLORS[0]
                ax.plot([at.low, at.high], [y, y], color=color, lw=1.6, solid_capstyle="butt")
                ax.plot(at.mean, y, "o", color=color, ms=4)
            else:
                ax.text(
                    0.5, y, "fit anew", color=COLORS[1], fontsize=7.5, ha="center", va="center",
                    transform=ax.get_yaxis_transform(),
                )  # fmt: skip
        ax.margins(x=0.08)
        ax.set_title(_label(name), fontsize=9, loc="left")
        _few_ticks(ax, 4)
        _bare(ax)
    weights = panels[-1]
    for y, result in zip(height, results, strict=True):
        color = COLORS[7] if result.reliable else COLORS[1]
        weights.barh(y, result.efficiency, color=color, height=0.7, alpha=0.6)
        k = f"k {result.pareto_k:.2f}" if np.isfinite(result.pareto_k) else "equal"
        weights.text(0.03, y, k, fontsize=7, va="center", color=INK if result.reliable else COLORS[1])
    weights.set_xlim(0, 1)
    weights.set_title("effective part, Pareto k", fontsize=9, loc="left")
    _few_ticks(weights, 3)
    _bare(weights)
    for ax in grid[:, 0]:
        ax.set_yticks(height, [result.alternative for result in results], fontsize=8)
    panels[0].set_ylim(-0.6, len(results) - 0.4)
    return figure


def volatility_figure(
    returns: np.ndarray, volatility: np.ndarray, sessions: Sequence[Any] | np.ndarray
) -> Figure:
    """Smoothed volatility sqrt(v_t), median and 90 % band, over absolute returns on the same annual scale.

    Args:
        returns: (T,) daily log returns.
        volatility: (3, T + 1) from `predictive.smoothed_volatility`; the last column is the next session's and is not
            drawn.
        sessions: (T,) dates of the returns.
    """
    days = np.asarray(sessions, "datetime64[D]")
    low, median, high = volatility[:, : len(returns)]
    figure = new_figure(9, 4)
    ax = figure.subplots()
    absolute = np.abs(returns) / np.sqrt(DT_YEARS)
    thickness = min(0.6, max(0.35, 600 / len(days)))
    ax.vlines(days, 0, absolute, color="#aaaaaa", lw=thickness, label="|return| × √252")  # noqa: RUF001
    ax.fill_between(days, low, high, color=COLORS[0], alpha=0.3, lw=0, label="90 % band of √v")
    ax.plot(days, median, color=COLORS[0], lw=1.4, label="median of √v")
    # A crash would press the path to the ground: the largest returns leave the picture, and the axis says so.
    top = 1.05 * max(high.max(), float(np.quantile(absolute, 0.995)))
    beyond = int((absolute > top).sum())
    ax.set_ylim(0, top)
    ax.set_xlim(days[0], days[-1])
    ax.set_ylabel("volatility per year, fraction", fontsize=9)
    ax.set_title(
        "smoothed volatility, given all returns" + (f" ({beyond} returns beyond the axis)" if beyond else ""),
        fontsize=10,
        loc="left",
    )
    figure.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=3)
    _bare(ax)
    date_axis(ax)
    ax.tick_params(labelsize=8)
    return figure
