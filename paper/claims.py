"""Tables of claimed and measured figures, and the verdict on each cell.

A claim is a figure that somebody printed, with its source; a cell without one stays blank there.
"""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from utils.errors import DataError

TOLERANCE = 0.01                   # of the claim: what "within 1 %" means
# A claim's unit -> how many of the column's own unit it stands for. One multiply-add is two operations.
SCALE = {"M": 1e6, "GMACs": 1e9, "BFLOPs": 0.5e9, "MFLOPs": 0.5e6, "B operations": 0.5e9}
FIELDS = ("table", "row", "column", "value", "unit", "source", "mark")
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
    """A figure of every row; `unit` is parameters, MACs, %, points, x, MB, FPS, channels, sixteenths or text.

    A plain column describes its row and is judged by nobody: the long form leaves it out.
    """

    key: str
    title: str
    unit: str
    plain: bool = False


class Cell(NamedTuple):
    """What was measured (None: nothing yet), the claim beside it, the data set measured on (counts: "")."""

    measured: float | int | str | None = None
    claim: Claim | None = None
    on: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the paper: rows of (label, one cell a column), with notes that stand below it."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    notes: tuple[str, ...] = ()


def read_claims(text: str) -> tuple[Claim, ...]:
    """The claims of paper.json. Raises DataError naming a claim without its source, mark or another field."""
    content = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    claims = []
    for entry in content["claims"]:
        if missing := [name for name in FIELDS if entry.get(name) in (None, "")]:
            raise DataError(f"results/paper.json: the claim {entry} lacks {', '.join(missing)}")
        if entry["mark"] not in content["marks"]:
            raise DataError(f"results/paper.json: the claim {entry} is marked {entry['mark']!r}; only what a "
                            f"source states is a claim: {', '.join(content['marks'])}")
        claims.append(Claim(**entry))
    return tuple(claims)


def claimed(claims: Iterable[Claim], table: str, row: str, column: str) -> Claim | None:
    """The claim on one cell, or None."""
    return next((c for c in claims if (c.table, c.row, c.column) == (table, row, column)), None)


def shown(value: float | int | str | None, unit: str) -> str:
    """A measured figure as text; empty for None."""
    if value is None or isinstance(value, str):
        return value or ""
    if unit == "FPS":
        return f"{value:.0f}" if value >= 10 else f"{value:.1f}"
    if unit == "sixteenths":
        return f"{value:g}/16"
    styles = {"MACs": ("{:.3f} G", 1e9), "%": ("{:.1f}", 1), "points": ("{:+.1f}", 1), "x": ("{:.2f}", 1),
              "MB": ("{:.1f}", 1)}
    style, scale = styles.get(unit, ("{:,}", 1))
    return style.format(value / scale if scale != 1 else value)


def claim_text(claim: Claim | None) -> str:
    """A claim with the digits and the unit it was printed in; empty for None."""
    if claim is None:
        return ""
    return {"sixteenths": f"{claim.value}/16", "text": str(claim.value)}.get(
        claim.unit, f"{claim.value} {claim.unit}")


def _expected(claim: Claim) -> float:
    """The claim in its column's unit."""
    return float(claim.value) * SCALE.get(claim.unit, 1)


def _comparable(cell: Cell, unit: str) -> bool:
    """Whether the two figures of a cell speak of the same thing."""
    return (cell.claim is not None and cell.measured is not None and unit != "FPS"
            and (not cell.claim.on or cell.claim.on == cell.on))


def delta(cell: Cell, unit: str) -> str:
    """Measured minus claimed where the two can be compared: in points for accuracy, else in per cent."""
    if not _comparable(cell, unit) or unit == "text":
        return ""
    expected = _expected(cell.claim)
    if unit in ("%", "points"):
        return f"{cell.measured - expected:+.1f} points"
    if unit == "sixteenths":
        return f"{cell.measured - expected:+g}/16"
    return f"{100 * (cell.measured / expected - 1):+.1f} %"


def verdict(cell: Cell, unit: str) -> str:
    """One of: within 1 %, off by x %, no claim, needs COCO (or another data set), not run, no verdict.

    No verdict is passed on frames a second, for the claims name no machine that is here. Points and
    sixteenths are compared as printed.
    """
    if cell.claim is None:
        return "no claim"
    if unit == "FPS":
        return "no verdict"
    if not _comparable(cell, unit):
        return f"needs {cell.claim.on}" if cell.claim.on and cell.claim.on != cell.on else "not run"
    if unit == "text":
        return "the same" if cell.measured == cell.claim.value else "differs"
    expected = _expected(cell.claim)
    off = abs(cell.measured - expected)
    if unit == "sixteenths":
        return f"off by {off:g}/16" if off else "within 1 %"
    if unit == "points":
        return f"off by {off:.1f} points" if round(off, 1) else "within 1 %"
    share = off / abs(expected)
    if share <= TOLERANCE:
        return "within 1 %"
    return f"off by {100 * share:.0f} %" if share >= 0.1 else f"off by {100 * share:.1f} %"


def long_form(table: Table) -> list[tuple[str, ...]]:
    """A line a judged cell: row, figure, claimed, measured, delta, verdict.

    Cells with neither figure are left out. The row's name stands on its first line.
    """
    lines = []
    for label, cells in table.rows:
        first = label
        for column, cell in zip(table.columns, cells):
            if column.plain or (cell.measured is None and cell.claim is None):
                continue
            lines.append((first, column.title, claim_text(cell.claim), shown(cell.measured, column.unit),
                          delta(cell, column.unit), verdict(cell, column.unit)))
            first = ""
    return lines


def wide_form(table: Table) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows as the paper prints them; before a figure that anybody claims, a column of claims."""
    claims = [any(cells[at].claim for _, cells in table.rows) for at in range(len(table.columns))]
    header = [""]
    for column, has in zip(table.columns, claims):
        header += [f"{column.title}, claimed"] * has + [column.title]
    rows = []
    for label, cells in table.rows:
        row = [label]
        for column, cell, has in zip(table.columns, cells, claims):
            row += [claim_text(cell.claim)] * has + [shown(cell.measured, column.unit)]
        rows.append(tuple(row))
    return tuple(header), rows


def verdicts(table: Table) -> str:
    """How many cells got which verdict, in words."""
    found = Counter(line[-1] for line in long_form(table))
    return ", ".join(f"{number} {word}" for word, number in found.most_common()) or "nothing measured yet"
