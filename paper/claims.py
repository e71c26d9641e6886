"""Tables of claimed (printed somewhere) and measured figures, verdicts on their cells, as text and PNG."""
from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from evaluation import plots
from evaluation.plots import INK
from utils.errors import DataError
from utils.text import latex, markdown, numeric

TOLERANCE, WITHIN = 0.01, "within 1 %"
GOOD, BAD, SILENT = "#047857", "#b45309", "#7b8794"
LETTER, HEIGHT = 0.078, 0.18       # inches of a letter at 9 pt, and of a row
DETAIL = 64                        # letters of a cell before it is cut
# A claim's unit -> how many of the column's own unit it is. One multiply-add is two operations.
SCALE = {"M": 1e6, "GMACs": 1e9, "BFLOPs": 0.5e9, "MFLOPs": 0.5e6, "B operations": 0.5e9}
LONG = ("row", "figure", "claimed", "measured", "delta", "verdict")    # header of the long form
Form = tuple[Sequence[str], Sequence[Sequence[str]]]                    # header and rows, as text


class Claim(NamedTuple):
    """A figure as printed: `value` keeps its digits, `on` names the data set it was measured on."""

    table: str
    row: str
    column: str
    value: Decimal | str
    unit: str
    source: str
    mark: str
    on: str = ""


class Column(NamedTuple):
    """A figure of every row."""

    key: str
    title: str
    unit: str                      # parameters, MACs, %, points, x, MB, FPS, channels, sixteenths or text
    plain: bool = False            # describes its row, is judged by nobody and not in the long form


class Cell(NamedTuple):
    """What was measured (None: nothing yet), the claim beside it, the data set measured on (counts: "")."""

    measured: float | int | str | None = None
    claim: Claim | None = None
    on: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the paper: rows of (label, one cell a column), with the notes below it."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    notes: tuple[str, ...] = ()


def read_claims(root: Path) -> tuple[Claim, ...]:
    """Return results/paper.json's claims. Raises DataError for one that lacks a field or has another mark."""
    text = (root / "results" / "paper.json").read_text(encoding="utf-8")
    content = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    for entry in content["claims"]:
        if missing := [name for name in Claim._fields[:-1] if entry.get(name) in (None, "")]:
            raise DataError(f"results/paper.json: the claim {entry} lacks {', '.join(missing)}")
        if entry["mark"] not in content["marks"]:
            raise DataError(f"results/paper.json: the claim {entry} is marked {entry['mark']!r}; only what a "
                            f"source states is a claim: {', '.join(content['marks'])}")
    return tuple(Claim(**entry) for entry in content["claims"])


def claimed(claims: Iterable[Claim], table: str, row: str, column: str) -> Claim | None:
    """Return the claim on one cell, or None."""
    return next((c for c in claims if (c.table, c.row, c.column) == (table, row, column)), None)


def figure_text(value: float | int | str | None, unit: str) -> str:
    """Return a measured figure as text; empty for None."""
    if value is None or isinstance(value, str):
        return value or ""
    if unit == "MACs":
        return f"{value / 1e9:.3f} G"
    styles = {"%": "{:.1f}", "points": "{:+.1f}", "MB": "{:.1f}", "x": "{:.2f}", "sixteenths": "{:g}/16",
              "FPS": "{:.0f}" if value >= 10 else "{:.1f}"}
    return styles.get(unit, "{:,}").format(value)


def claim_text(claim: Claim | None) -> str:
    """Return a claim with the digits and the unit it was printed in; empty for None."""
    if claim is None:
        return ""
    return {"sixteenths": f"{claim.value}/16", "text": str(claim.value)}.get(
        claim.unit, f"{claim.value} {claim.unit}")


def judge(cell: Cell, unit: str) -> tuple[str, str]:
    """Return measured minus claimed ("" if incomparable) and the verdict; none is passed on speeds."""
    claim, measured = cell.claim, cell.measured
    if claim is None or unit == "FPS":
        return "", "no claim" if claim is None else "no verdict"
    if claim.on and claim.on != cell.on:
        return "", f"needs {claim.on}"
    if measured is None:
        return "", "not run"
    if unit == "text":
        return "", "the same" if measured == claim.value else "differs"
    expected = float(claim.value) * SCALE.get(claim.unit, 1)
    off = measured - expected
    if unit == "sixteenths":
        return f"{off:+g}/16", f"off by {abs(off):g}/16" if off else WITHIN
    if unit == "points":
        return f"{off:+.1f} points", f"off by {abs(off):.1f} points" if round(off, 1) else WITHIN
    share = 100 * abs(off / expected)
    word = WITHIN if share <= 100 * TOLERANCE else f"off by {share:.{0 if share >= 10 else 1}f} %"
    return f"{off:+.1f} points" if unit == "%" else f"{100 * (measured / expected - 1):+.1f} %", word


def _filled(table: Table) -> Iterator[tuple[str, Column, Cell]]:
    """Yield row, column and cell of those that have a figure or a claim."""
    for label, cells in table.rows:
        for column, cell in zip(table.columns, cells):
            if cell.measured is not None or cell.claim is not None:
                yield label, column, cell


def long_form(table: Table) -> list[tuple[str, ...]]:
    """Return a line per judged cell, by LONG. The row's name is on its first line alone."""
    lines, last = [], None
    for label, column, cell in _filled(table):
        if not column.plain:
            lines.append(("" if label == last else label, column.title, claim_text(cell.claim),
                          figure_text(cell.measured, column.unit), *judge(cell, column.unit)))
            last = label
    return lines


def wide_form(table: Table) -> Form:
    """Return header and rows as the paper prints them, a column of claims before a figure that has any."""
    claims = [any(cells[at].claim for _, cells in table.rows) for at in range(len(table.columns))]
    header, rows = [""], []
    for column, has in zip(table.columns, claims):
        header += [f"{column.title}, claimed"] * has + [column.title]
    for label, cells in table.rows:
        rows.append([label])
        for column, cell, has in zip(table.columns, cells, claims):
            rows[-1] += [claim_text(cell.claim)] * has + [figure_text(cell.measured, column.unit)]
    return header, rows


def csv_text(table: Table) -> str:
    """Return CSV, a line per cell: figures as numbers in the column's unit, and the source of each claim."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("row", "figure", "unit", "claimed", "claimed_unit", "measured", "measured_on", "delta",
                     "verdict", "source"))
    for label, column, cell in _filled(table):
        said = cell.claim._asdict() if cell.claim else {}
        writer.writerow((label, column.title, column.unit, said.get("value"), said.get("unit"), cell.measured,
                         cell.on, *judge(cell, column.unit), said.get("source")))
    return out.getvalue()


def page(table: Table, image: str = "") -> str:
    """Return the Markdown page of a table: as the paper prints it, then per cell with verdict and source."""
    parts = [f"# {table.title}\n", *[f"![{table.title}]({image})\n"] * bool(image),
             markdown(*wide_form(table))]
    lines = long_form(table)
    if any(line[2] for line in lines):
        parts += ["## Claimed beside measured\n", markdown(LONG, lines)]
    else:
        parts.append("Every cell: no claim (the paper's values are not known).\n")
    sources = dict.fromkeys(f"{claim_text(c.claim)}: {c.claim.source} [{c.claim.mark}]"
                            for _, cells in table.rows for c in cells if c.claim)
    parts += ["".join(f"- {note}\n" for note in table.notes)] * bool(table.notes)
    parts += ["Sources of the claims:\n", "".join(f"- {s}\n" for s in sources)] * bool(sources)
    return "\n".join(parts)


def write_forms(table: Table, image: Path) -> None:
    """Write the table as Markdown, CSV and LaTeX beside its image, and print the files and the verdicts."""
    for suffix, text in ((".md", page(table, image.name)), (".csv", csv_text(table)),
                         (".tex", latex(LONG, long_form(table), table.title))):
        image.with_suffix(suffix).write_text(text, encoding="utf-8")
    found = Counter(line[-1] for line in long_form(table)).most_common()
    verdicts = ", ".join(f"{number} {word}" for word, number in found) or "nothing measured yet"
    print(f"{image.with_suffix('.md')} .csv .tex .png: {verdicts}")


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
        verdict, colour = rows[line - 1][at] if line else "", INK
        if line and at == len(LONG) - 1:
            colour = GOOD if verdict in (WITHIN, "the same") else BAD if verdict.startswith(
                ("off", "differs")) else SILENT
        cell.set_text_props(ha="right" if right[at] else "left", color=colour,
                            weight="normal" if at and line else "bold")
    return plots.save(fig, path)
