"""Figures of a comparison: a measure against epochs, every network over the others; AP against ms."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.compare.record import mean_curves
from bench.compare.words import WORDS
from compress.search.plots import label_points
from evaluation.plots import COLOURS, GREY, cjk_fonts, dress, figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARES = ("f1", "map50", "map50_95", "precision", "recall")                # keys of a record, and of words
MEASURES = (*SHARES, "box", "cls", "obj", "dfl")                           # the others are losses
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))    # with the colours: 40 networks
BANDS = 6                                                  # more networks than this: their bands are fainter


def figure_words(lang: str) -> Mapping[str, str]:
    """Return the words of figures: English where no font that is installed has Chinese ones."""
    return WORDS[lang if lang == "en" or cjk_fonts() else "en"]


def measure_png(runs: Sequence[Mapping], key: str, budget: str, path: Path | str,
                words: Mapping[str, str]) -> Path | None:
    """Draw a measure over epochs, a line a network, its band over seeds; None where no run has it.

    The legend stands in the order in which the lines end, so that each is found where it lies.
    """
    curves = mean_curves(runs, key)
    if not curves:
        return None
    style = {net: (COLOURS[at % len(COLOURS)], DASHES[at // len(COLOURS) % len(DASHES)])
             for at, net in enumerate(dict.fromkeys(run["net"] for run in runs))}
    fig = figure(11.5, 6.2)
    ax = fig.subplots()
    order = sorted(curves, key=lambda net: -curves[net][-1][1])
    for net in order:
        at, mean, low, high = zip(*curves[net])
        colour, dash = style[net]
        ax.fill_between(at, low, high, color=colour, alpha=.14 if len(curves) <= BANDS else .07, lw=0)
        ax.plot(at, mean, color=colour, ls=dash, lw=1.9, marker="." if len(at) < 15 else "",
                label=f"{mean[-1]:.3f}  {net}")
    dress(ax, words["against"].format(measure=words[key], title=budget) + words["over-seeds"],
          words["epoch"], "")
    ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if key in SHARES:
        # From the least value on where all are high: twelve lines in a tenth of the height tell nothing.
        values = [value for net in curves for _, _, *ends in curves[net] for value in ends]
        ax.set_ylim(max(0, min(values) - .02), min(1.02, max(values) + .03))
    elif min(value for net in curves for _, _, *ends in curves[net] for value in ends) > 0:
        _logarithmic(ax)
    ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, .5), title=words["at-end"],
              title_fontsize=9, alignment="left", handlelength=3.2)
    return save(fig, path)


def _logarithmic(ax: Axes) -> None:
    """Make the height logarithmic, its ticks plain numbers."""
    from matplotlib.ticker import LogLocator, ScalarFormatter
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_locator(LogLocator(subs=()))


def front_png(rows: Sequence[Mapping], front: Sequence[str], budget: str, path: Path | str,
              words: Mapping[str, str]) -> Path | None:
    """Draw AP against ms, every network named, the front as steps, a bar of one deviation over seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    rows = [row for row in rows if row.get("ms") is not None]
    if not rows:
        return None
    fig = figure(11, 6.4)
    FigureCanvasAgg(fig)
    ax = fig.subplots()
    points = {row["net"]: (row["ms"], row["map50_95"]) for row in rows}
    ax.plot(*zip(*(points[net] for net in front)), color=COLOURS[2], lw=1.5, drawstyle="steps-post", zorder=1,
            label=words["front-label"])
    for row in rows:
        on = row["net"] in front
        ax.errorbar(*points[row["net"]], yerr=row.get("map50_95_sd") or 0, fmt="o", ms=6, capsize=2, lw=1,
                    color=COLOURS[2] if on else COLOURS[0], ecolor=GREY, zorder=3)
    dress(ax, f"{words['front']}, {budget}", words["batch-1"], words["map50_95"])
    ax.margins(.1, .14)
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(0, -.09))
    label_points(ax, [(points[net], net, False) for net in points], list(points.values()))
    return save(fig, path)
