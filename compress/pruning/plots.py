"""Plots of a pruning: widths before and after, accuracy step by step, what each layer would lose."""
from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation import plots
from evaluation.plots import BEST, COLOURS, GREY, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS = {"map50": "mAP@0.5", "map50_95": "mAP@0.5:0.95"}
BLUE = COLOURS[0]
BAND, EMPTY = "#f3f5f8", "#d5dae1"         # behind every other layer; a cell that was not measured
LONGEST = 18                               # characters of a layer's name
SCALE = (0, 0.5, 1, 2, 5, 10, 20, 30, 50, 75, 100)         # points marked on a scan's colour bar


def widths_png(layers: Sequence[dict], path: Path | str) -> Path:
    """Write the plot of each layer's width before and after, and of the sixteenths it lost, top down."""
    fig = plots.figure(10, max(2.2, 1.2 + 0.34 * len(layers)))
    wide, lost = fig.subplots(1, 2, sharey=True, width_ratios=(5, 3))
    at, before, after = np.arange(len(layers)), *([row[k] for row in layers] for k in ("original", "width"))
    wide.barh(at, before, 0.72, color=GREY, label="before")
    wide.barh(at, after, 0.72, color=BLUE, label="after")
    for y, row in enumerate(layers):
        changed = row["width"] != row["original"]
        text = f"{row['original']} → {row['width']}" if changed else f"{row['original']}"
        for ax, words, x in ((wide, text, row["original"]),
                             (lost, f"{row['sixteenths']:g}/16", row["sixteenths"])):
            ax.annotate(words, (x, y), (5, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
    lost.barh(at, [row["sixteenths"] for row in layers], 0.72, color=COLOURS[1])
    plots.dress(wide, "Channels before and after", "channels", "")
    plots.dress(lost, "Taken away", "sixteenths of the original width", "")
    wide.set_xlim(0, 1.2 * max(before, default=1))         # room for the numbers behind the bars
    lost.set_xlim(0, 1.25 * max([row["sixteenths"] for row in layers] + [4]))
    wide.set_yticks(at, _short([row["layer"] for row in layers]), fontsize=9)
    wide.set_ylim(max(len(layers), 1) - 0.4, -0.6)
    for ax in (wide, lost):
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        ax.xaxis.get_major_locator().set_params(integer=True)
    _key(fig, wide, layers, "outside lower left", "no layer can be cut")
    return plots.save(fig, path)


def steps_png(steps: Sequence[dict], tolerance: float, path: Path | str, metric: str = "map50") -> Path:
    """Write the plot of the metric and the parameters after every step of a record, rejected ones marked."""
    fig = plots.figure(min(22.0, max(7.0, 2.5 + 0.26 * len(steps))), 6.6)
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    upright = _bands((top, bottom), steps)
    x, score = [row["step"] for row in steps], [100 * row[metric] for row in steps]
    least = [s + row["drop"] - tolerance for s, row in zip(score, steps, strict=True)]
    top.plot(x, least, "_", color=INK, ms=9, mew=1.6, label=f"reference less {tolerance:g} points")
    for row, s in zip(steps, score, strict=True):
        if row["interval"] is not None:
            reference, (low, high) = s + row["drop"], row["interval"]
            top.plot([row["step"]] * 2, [reference - high, reference - low], color=GREY, lw=3, zorder=1.5,
                     solid_capstyle="butt")
    millions = [row["parameters"] / 1e6 for row in steps]
    _verdicts(top, steps, score)
    _verdicts(bottom, steps, millions)
    interval = ", with the 95 % interval of its drop" * any(row["interval"] is not None for row in steps)
    plots.dress(top, f"Accuracy after every step{interval}", "", f"{LABELS[metric]}, %")
    plots.dress(bottom, "Size of every candidate", "step", "parameters, M")
    bottom.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if steps:
        low, high = top.get_ylim()
        room = 0.3 if upright else 0.1                     # for the names
        top.set_ylim(low, high + room * (high - low))
        top.set_xlim(min(x) - 0.7, max(x) + 0.7)
    _key(fig, top, steps, "outside lower center", "no step was made")
    return plots.save(fig, path)


def scan_png(units: Sequence[str], sixteenths: Sequence[int], drops: Sequence[Sequence[float]],
             path: Path | str) -> Path:
    """Write the heat map of the drops [units][sixteenths] in points; cells of NaN, not measured, are grey."""
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm
    values = np.asarray(drops, dtype=float).reshape(len(units), len(sixteenths))
    fig = plots.figure(2.6 + 0.8 * max(len(sixteenths), 4), 1.7 + 0.36 * max(len(units), 2))
    ax = fig.subplots()
    worst = max(1.0, np.nanmax(values, initial=1.0, where=np.isfinite(values)))
    colours = colormaps["OrRd"].with_extremes(bad=EMPTY)
    norm = PowerNorm(0.5, 0, worst, clip=True)             # a root: half a point must show beside fifty
    if values.size:
        shown = ax.imshow(np.ma.masked_invalid(values), cmap=colours, norm=norm, aspect="auto")
        fig.colorbar(shown, ax=ax, fraction=0.04, pad=0.02, ticks=[n for n in SCALE if n <= worst],
                     format="%g")
    else:
        ax.text(0.5, 0.5, "nothing was scanned", transform=ax.transAxes, ha="center", color=GREY)
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            ax.text(j, i, f"{value:.1f}".replace("-0.0", "0.0"), ha="center", va="center", fontsize=9,
                    color="white" if norm(value) > 0.6 else INK)
    ax.set_xticks(range(len(sixteenths)), [f"{n:g}/16" for n in sixteenths], fontsize=9)
    ax.set_yticks(range(len(units)), _short(units), fontsize=9)
    ax.set_xticks(np.arange(-0.5, len(sixteenths)), minor=True)
    ax.set_yticks(np.arange(-0.5, len(units)), minor=True)
    ax.grid(which="minor", color="white", lw=1)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="share of the layer's channels taken away")
    plots.head(ax, "Points lost without training (grey: not measured)")
    return plots.save(fig, path)


def _key(fig: Figure, ax: Axes, rows: Sequence[dict], place: str, nothing: str) -> None:
    """Write the figure's legend, or what there is to say without rows."""
    if rows:
        fig.legend(*ax.get_legend_handles_labels(), loc=place, ncols=3, frameon=False, fontsize=9)
    else:
        ax.text(0.5, 0.5, nothing, transform=ax.transAxes, ha="center", color=GREY)


def _short(names: Sequence[str]) -> list[str]:
    return [name if len(name) <= LONGEST else name[:LONGEST - 1] + "…" for name in names]


def _bands(axes: Sequence[Axes], steps: Sequence[dict]) -> bool:
    """Draw a band behind the steps of every other layer, names on top; return whether these are upright."""
    found = [list(rows) for _, rows in groupby(steps, key=lambda row: row["layer"])]
    names = _short([rows[0]["layer"] for rows in found])
    upright = any(len(name) > 3.2 * len(rows) for name, rows in zip(names, found))
    for at, (name, rows) in enumerate(zip(names, found)):
        left, right = rows[0]["step"] - 0.5, rows[-1]["step"] + 0.5
        for ax in axes if at % 2 == 0 else ():
            ax.axvspan(left, right, color=BAND, lw=0, zorder=0)
        axes[0].annotate(name, ((left + right) / 2, 1), (0, -4), xycoords=("data", "axes fraction"),
                         textcoords="offset points", ha="center", va="top", fontsize=8, color=INK,
                         rotation=90 if upright else 0)
    return upright


def _verdicts(ax: Axes, steps: Sequence[dict], values: Sequence[float]) -> None:
    """Draw a line through the accepted steps, dots on them, crosses on the rejected ones."""
    for wanted, marker, colour, label in ((True, "o-", BLUE, "accepted"), (False, "X", BEST, "rejected")):
        points = [(row["step"], v) for row, v in zip(steps, values, strict=True)
                  if bool(row["accepted"]) is wanted]
        if points:
            ax.plot(*zip(*points, strict=True), marker, color=colour, ms=6 if wanted else 8, lw=1.4,
                    label=label, zorder=3)
