"""Tables as text: for a terminal, Markdown and LaTeX, columns aligned in the source too."""
from __future__ import annotations

from collections.abc import Sequence
from unicodedata import east_asian_width

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
         **{c: "\\" + c for c in "&%_#${}"}}


def shown(value: object) -> str:
    """Return a value as reports show it: "n/a" for None and NaN, three decimals for a fraction."""
    if value is None or value != value:                    # NaN is the one value unequal to itself
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def numeric(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Return which columns are set right: those whose filled cells start like numbers ("12 ms", "-0.3 %")."""
    columns = [[row[at] for row in rows if row[at] not in ("", "n/a")] for at in range(len(header))]
    return [bool(cells) and all(cell.lstrip("+-.~")[:1].isdigit() for cell in cells) for cells in columns]


def aligned(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return the table for a terminal: the first column left, the others right, values as `shown`."""
    cells = [list(columns), *([shown(value) for value in row] for row in rows)]
    return "\n".join(map("  ".join, _padded(cells, [at > 0 for at in range(len(columns))])))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the table in Markdown, columns of numbers set right."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (header, *rows)]
    right = numeric(header, cells[1:])
    *cells, blank = _padded([*cells, ["   "] * len(header)], right)
    head, *lines = (f"| {' | '.join(row)} |" for row in cells)
    rule = "|".join("-" * (len(gap) + 2 - r) + ":" * r for gap, r in zip(blank, right))
    return "\n".join([head, f"|{rule}|", *lines]) + "\n"


def latex(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    r"""Return the table in LaTeX, which needs no package: tabular with \hline."""
    def escaped(text: str) -> str:
        return "".join(LATEX.get(c, c) for c in text)
    right = numeric(header, rows)
    cells = [[escaped(cell) for cell in row] for row in (header, *rows)]
    head, *lines = (f"  {' & '.join(row)} \\\\" for row in _padded(cells, right))
    kinds = "".join("r" if r else "l" for r in right)
    return "\n".join([r"\begin{table}", rf"\caption{{{escaped(caption)}}}", rf"\begin{{tabular}}{{{kinds}}}",
                      r"  \hline", head, r"  \hline", *lines, r"  \hline", r"\end{tabular}",
                      r"\end{table}"]) + "\n"


def _padded(cells: Sequence[Sequence[str]], right: Sequence[bool]) -> list[list[str]]:
    """Fill cells up to the widths their columns have on a terminal, where Chinese takes two places."""
    def width(text: str) -> int:
        return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    return [[" " * (w - width(c)) * r + c + " " * (w - width(c)) * (not r)
             for c, w, r in zip(row, widths, right)] for row in cells]
