"""Pictures of tables.py: a table with its verdicts, a pruning step by step."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.plots import BEST, COLOURS, GREY, INK
from paper.claims import LONG, Table, long_form
from utils.text import numeric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure

DPI, SIZE, HEIGHT, GAP, MARGIN = 110, 9, 20, 22, 14        # letters in pt; row height, gaps and margin in px
GOOD, BAD = "#047857", "#b45309"
DETAIL = 64                                                # letters of a cell before it is cut


def table_png(table: Table, path: Path) -> Path:
    """The written picture of a table, a line a cell, verdicts coloured; notes are left to the page."""
    rows = [tuple(_short(cell) for cell in row) for row in long_form(table)] or [("nothing measured yet",
                                                                                 *[""] * (len(LONG) - 1))]
    fig = _figure(1, 1)
    right, renderer = numeric(LONG, rows), fig.canvas.get_renderer()
    wide = [max(_width(renderer, row[at], at == 0 or row is LONG) for row in (LONG, *rows))
            for at in range(len(LONG))]
    title = _width(renderer, table.title, True) * 11 / SIZE
    width = 2 * MARGIN + max(sum(wide) + GAP * (len(wide) - 1), title)
    height = 2 * MARGIN + HEIGHT * (len(rows) + 2) + 12
    fig.set_size_inches(width / DPI, height / DPI)
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.axis("off")
    ax.text(MARGIN, MARGIN + HEIGHT / 2, table.title, fontsize=11, weight="bold", color=INK, va="center")
    lefts = [MARGIN + sum(wide[:at]) + GAP * at for at in range(len(wide))]
    for line, row in enumerate((LONG, *rows)):
        y = MARGIN + HEIGHT * (line + 1.5) + 8
        if row[0] and line:
            colour = INK if line == 1 else "#d5dbe3"
            ax.plot((MARGIN, width - MARGIN), (y - HEIGHT / 2,) * 2, color=colour, lw=0.8)
        for at, text in enumerate(row):
            ax.text(lefts[at] + (wide[at] if right[at] else 0), y, text, fontsize=SIZE, va="center",
                    ha="right" if right[at] else "left", weight="bold" if at == 0 or not line else "normal",
                    color=_colour(text) if line and at == len(row) - 1 else INK)
    return _save(fig, path)


def pruning_png(record: Mapping, path: Path) -> Path:
    """The written pruning figure: what is left of every layer's channels, and mAP@0.5 step by step."""
    fig = _figure(12, 5)
    left, right = fig.subplots(1, 2, width_ratios=(1, 1.35))
    _dress(left, "Channels left, sixteenths of the original", "", "")
    rows = record.get("layers", ())
    for at, row in enumerate(rows):
        left.barh(at, 16, color="#e5e9ef", height=0.7)
        left.barh(at, 16 * row["width"] / row["original"], color=COLOURS[0], height=0.7)
        left.text(16.3, at, f"{row['width']} of {row['original']}", va="center", fontsize=SIZE, color=INK)
    left.set_yticks(range(len(rows)), [row["layer"] for row in rows])
    left.set(xlim=(0, 20.5), xticks=range(0, 17, 4))
    left.set_ylim(max(len(rows), 6) - 0.4, -0.6)
    left.grid(visible=False, axis="y")
    _dress(right, "Accuracy step by step", "step", "mAP@0.5, %")
    steps = record.get("steps", ())
    if not steps:
        right.text(0.5, 0.5, "no step yet", transform=right.transAxes, ha="center", color=GREY)
        return _save(fig, path)
    start = 100 * record["parent"]["map50"]
    right.axhline(start, color=INK, lw=1, ls="--", label=f"unpruned, {start:.1f} %")
    kept = [s for s in steps if s["accepted"]]
    reached = [start, *(100 * s["map50"] for s in kept)]
    right.plot([0, *(s["step"] for s in kept)], reached, color=COLOURS[0], lw=1.5)
    for good, colour, mark, label in ((True, COLOURS[0], "o", "stands"), (False, BEST, "x", "refused")):
        some = [s for s in steps if s["accepted"] is good]
        if some:
            right.plot([s["step"] for s in some], [100 * s["map50"] for s in some], mark, color=colour,
                       label=label)
    _name_stretches(right, steps)
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(frameon=False, fontsize=9, loc="best")
    return _save(fig, path)


def _name_stretches(ax: Axes, steps: Sequence[Mapping]) -> None:
    """Layer names over the steps that cut them, with a line where the layer changes."""
    ax.margins(0.04, 0.2)
    first = 0
    for at in range(1, len(steps) + 1):
        if at < len(steps) and steps[at]["layer"] == steps[first]["layer"]:
            continue
        middle = (steps[first]["step"] + steps[at - 1]["step"]) / 2
        ax.text(middle, 0.985, steps[first]["layer"], transform=ax.get_xaxis_transform(), fontsize=8,
                color=INK, rotation=90, ha="center", va="top")
        if at < len(steps):
            ax.axvline(steps[at]["step"] - 0.5, color="#e5e9ef", lw=1, zorder=0)
        first = at


def _short(text: str) -> str:
    return text if len(text) <= DETAIL else text[:DETAIL - 1] + "…"


def _colour(verdict: str) -> str:
    """Green for what agrees, orange for what does not, grey for what says nothing."""
    if verdict in ("within 1 %", "the same"):
        return GOOD
    return BAD if verdict.startswith(("off", "differs")) else "#7b8794"


def _width(renderer: RendererAgg, text: str, bold: bool) -> float:
    """Width of a text in px at the table's size."""
    from matplotlib.font_manager import FontProperties
    prop = FontProperties(size=SIZE, weight="bold" if bold else "normal")
    return renderer.get_text_width_height_descent(text, prop, False)[0] if text else 0.0


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    fig = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(fig)
    if width > 1:
        fig.set_layout_engine("constrained")
    return fig


def _save(fig: Figure, path: Path) -> Path:
    fig.savefig(path, format="png", dpi=DPI)
    return path


def _dress(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title, fontsize=11, color=INK, loc="left")
    ax.set(xlabel=x, ylabel=y)
    ax.grid(color="#e5e9ef", lw=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
