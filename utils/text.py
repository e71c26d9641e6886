"""Tables as Markdown, CSV and LaTeX text, aligned in the source too. Pure."""
from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from paper.claims import LONG, Table, claim_text, delta, long_form, verdict, wide_form


def numeric(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns are set flush right: those whose every filled cell starts like a number."""
    columns = [[row[at].lstrip("+-") for row in rows if row[at]] for at in range(len(header))]
    return [bool(cells) and all(cell[:1].isdigit() for cell in cells) for cells in columns]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned in the source too."""
    cells = [[str(c).replace("|", r"\|") for c in row] for row in (header, *rows)]
    right = numeric(header, cells[1:])
    wide = [max(3, *(len(row[at]) for row in cells)) for at in range(len(header))]
    lines = [_line(row, wide, right, " | ", "| ", " |") for row in cells]
    rule = "|".join("-" * (w + 1) + ":" if r else "-" * (w + 2) for w, r in zip(wide, right))
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]]) + "\n"


def latex(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    r"""A LaTeX table that needs no package: tabular with \hline, its columns aligned in the source too."""
    special = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$",
               "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}

    def escaped(text: str) -> str:
        return "".join(special.get(c, c) for c in str(text))
    cells = [[escaped(c) for c in row] for row in (header, *rows)]
    right = numeric(header, rows)
    wide = [max(len(row[at]) for row in cells) for at in range(len(header))]
    lines = [_line(row, wide, right, " & ", "  ", r" \\") for row in cells]
    kinds = "".join("r" if r else "l" for r in right)
    return "\n".join([r"\begin{table}", rf"\caption{{{escaped(caption)}}}", rf"\begin{{tabular}}{{{kinds}}}",
                      r"  \hline", lines[0], r"  \hline", *lines[1:], r"  \hline", r"\end{tabular}",
                      r"\end{table}"]) + "\n"


def _line(row: Sequence[str], wide: Sequence[int], right: Sequence[bool], between: str, before: str,
          after: str) -> str:
    return before + between.join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, wide, right)) + after


def csv_text(table: Table) -> str:
    """CSV, a line a cell, with figures as numbers in the column's unit and the source of each claim."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("row", "figure", "unit", "claimed", "claimed_unit", "measured", "measured_on", "delta",
                     "verdict", "source"))
    for label, cells in table.rows:
        for column, cell in zip(table.columns, cells):
            if cell.measured is None and cell.claim is None:
                continue
            claim = cell.claim
            writer.writerow((label, column.title, column.unit, claim and claim.value, claim and claim.unit,
                             cell.measured, cell.on, delta(cell, column.unit), verdict(cell, column.unit),
                             claim and claim.source))
    return out.getvalue()


def page(table: Table, picture: str = "") -> str:
    """The Markdown page of a table: as the paper prints it, then cell by cell with verdicts and sources."""
    parts = [f"# {table.title}\n"]
    if picture:
        parts.append(f"![{table.title}]({picture})\n")
    parts.append(markdown(*wide_form(table)))
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
