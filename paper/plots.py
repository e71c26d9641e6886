"""The picture of a table of the paper, with its verdicts."""
from __future__ import annotations

from pathlib import Path

from evaluation import plots
from evaluation.plots import INK
from paper.claims import LONG, WITHIN, Table, long_form
from utils.text import numeric

GOOD, BAD, SILENT = "#047857", "#b45309", "#7b8794"
LETTER, HEIGHT = 0.078, 0.18       # inches of a letter at 9 pt, and of a row
DETAIL = 64                        # letters of a cell before it is cut


def table_png(table: Table, path: Path) -> Path:
    """Draw a table, a line per cell, verdicts coloured; notes are left to the page. Return the path."""
    rows = [[cell if len(cell) <= DETAIL else f"{cell[:DETAIL - 1]}…" for cell in row]
            for row in long_form(table)] or [["nothing measured yet", *[""] * (len(LONG) - 1)]]
    wide = [max(map(len, column)) + 3 for column in zip(LONG, *rows)]
    fig = plots.figure(LETTER * max(sum(wide), 1.4 * len(table.title)), HEIGHT * (len(rows) + 3))
    ax = fig.subplots()
    ax.axis("off")
    plots.head(ax, table.title)
    grid = ax.table(rows, colLabels=LONG, colWidths=[w / sum(wide) for w in wide], bbox=(0, 0, 1, 1))
    grid.auto_set_font_size(False)
    grid.set_fontsize(9)
    right = numeric(LONG, rows)
    for (line, at), cell in grid.get_celld().items():
        ends = line == 0 or (line < len(rows) and rows[line][0])       # another row's lines begin below
        cell.visible_edges = "B" if ends else ""
        cell.PAD = 1 / wide[at]                            # a letter, whatever the column's width
        cell.set_edgecolor("#d5dbe3" if line else INK)
        colour = _colour(rows[line - 1][at]) if line and at == len(LONG) - 1 else INK
        cell.set_text_props(ha="right" if right[at] else "left", color=colour,
                            weight="normal" if at and line else "bold")
    return plots.save(fig, path)


def _colour(verdict: str) -> str:
    """Green for what agrees, orange for what does not, grey for what says nothing."""
    if verdict in (WITHIN, "the same"):
        return GOOD
    return BAD if verdict.startswith(("off", "differs")) else SILENT
