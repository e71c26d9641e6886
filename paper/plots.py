"""The picture of a table of the paper, with its verdicts."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evaluation import plots
from evaluation.plots import INK
from paper.claims import LONG, WITHIN, Table, long_form
from utils.text import numeric

if TYPE_CHECKING:
    from matplotlib.backends.backend_agg import RendererAgg

SIZE, HEIGHT, GAP, MARGIN = 9, 20, 22, 14                  # letters in pt; row height, gaps and margin in px
GOOD, BAD, SILENT = "#047857", "#b45309", "#7b8794"
DETAIL = 64                                                # letters of a cell before it is cut


def table_png(table: Table, path: Path) -> Path:
    """Draw a table, a line per cell, verdicts coloured; notes are left to the page. Return the path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    rows = [[cell if len(cell) <= DETAIL else f"{cell[:DETAIL - 1]}…" for cell in row]
            for row in long_form(table)] or [["nothing measured yet", *[""] * (len(LONG) - 1)]]
    fig = plots.figure(1, 1)
    fig.set_layout_engine("none")
    right, renderer = numeric(LONG, rows), FigureCanvasAgg(fig).get_renderer()
    wide = [max(_width(renderer, row[at], at == 0 or row is LONG) for row in (LONG, *rows))
            for at in range(len(LONG))]
    title = _width(renderer, table.title, True) * 11 / SIZE
    width = 2 * MARGIN + max(sum(wide) + GAP * (len(wide) - 1), title)
    height = 2 * MARGIN + HEIGHT * (len(rows) + 2) + 12
    fig.set_size_inches(width / fig.dpi, height / fig.dpi)
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
    return plots.save(fig, path)


def _colour(verdict: str) -> str:
    """Green for what agrees, orange for what does not, grey for what says nothing."""
    if verdict in (WITHIN, "the same"):
        return GOOD
    return BAD if verdict.startswith(("off", "differs")) else SILENT


def _width(renderer: RendererAgg, text: str, bold: bool) -> float:
    """Width of a text in px at the table's size."""
    from matplotlib.font_manager import FontProperties
    prop = FontProperties(size=SIZE, weight="bold" if bold else "normal")
    return renderer.get_text_width_height_descent(text, prop, False)[0] if text else 0.0
