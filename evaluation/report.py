"""The page of a run, one HTML file with its tables and pictures inside, and the same tables as text."""
from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import east_asian_width

if TYPE_CHECKING:
    from evaluation.metrics import Metrics

KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
STYLE = """
:root { --page: #f6f7f9; --card: #ffffff; --ink: #1c2430; --soft: #5b6675; --line: #dde2e9; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12161c; --card: #1b212a; --ink: #e6eaf0; --soft: #9aa6b5; --line: #313a47; }
}
* { box-sizing: border-box; }
body { margin: 0; padding: 1.2rem; background: var(--page); color: var(--ink);
       font: 16px/1.5 system-ui, "Segoe UI", "Noto Sans", "PingFang SC", "Microsoft YaHei", sans-serif; }
main { max-width: 68rem; margin: 0 auto; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .4rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: .6rem; margin: 0; }
dl div, .wide { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; }
dl div { padding: .5rem .75rem; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
dl div.long { grid-column: 1 / -1; }
dl div.long dd { font: 400 .82rem/1.45 ui-monospace, Menlo, Consolas, monospace; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .75rem; text-align: left; white-space: nowrap; }
tr > * { border-bottom: 1px solid var(--line); }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 12rem; }
th { color: var(--soft); font-weight: 600; }
tr:last-child td { border-bottom: 0; }
.n { text-align: right; }
figure { margin: 0 0 1.2rem; }
figcaption { color: var(--soft); font-size: .9rem; margin-bottom: .35rem; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; border-radius: .5rem; background: #fff;
      border: 1px solid var(--line); }
"""
CLASS_COLUMNS = ("class", "images", "truths", "P", "R", "F1", "AP50", "AP50-95")
LONG = 44                          # characters from which a value gets the whole width


def write_report(folder: Path | str, title: str, summary: Mapping[str, object],
                 tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[object]]]] = (),
                 images: Sequence[tuple[str, Path | str]] = ()) -> Path:
    """The path of the written report.html in `folder`: self-contained, without scripts, light or dark.

    summary: label -> value; a table is (caption, column names, rows); an image is (caption, path of a PNG
    or JPEG). Floats are shown with three decimals and None as "n/a"; every text is escaped. A picture that
    is not there is named instead of shown. Raises ValueError for another kind of picture.
    """
    parts = [f"<h1>{escape(title)}</h1>", _summary(summary), *(_table(*table) for table in tables)]
    if images:
        parts += ["<h2>Pictures</h2>", *(_figure(caption, Path(path)) for caption, path in images)]
    page = ("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
            "<meta name=\"color-scheme\" content=\"light dark\">\n"
            "<meta http-equiv=\"Content-Security-Policy\" "
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
            + "\n".join(parts) + "\n</main>\n</body>\n</html>\n")
    path = Path(folder) / "report.html"
    part = path.with_name(path.name + ".part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, path)
    return path


def shown(value: object) -> str:
    """A value as the page shows it, not yet escaped: "n/a" for None, three decimals for a fraction."""
    if value is None or value != value:                    # NaN is the one value unequal to itself
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _summary(summary: Mapping[str, object]) -> str:
    """A grid of labelled values; long ones (a command, a path) take a whole line."""
    cells = []
    for label, value in summary.items():
        text = shown(value)
        kind = ' class="long"' if len(text) > LONG else ""
        cells.append(f"<div{kind}><dt>{escape(str(label))}</dt><dd>{escape(text)}</dd></div>")
    return f"<dl>{''.join(cells)}</dl>"


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that scrolls sideways on a narrow screen; columns of numbers are set right."""
    right = [any(map(_is_number, column)) and all(v is None or _is_number(v) for v in column)
             for column in zip(*rows, strict=True)] if rows else [False] * len(columns)
    head = "".join(f"<th{_kind(r)}>{escape(str(c))}</th>" for c, r in zip(columns, right, strict=True))
    lines = "\n".join("<tr>" + "".join(f"<td{_kind(r, v)}>{escape(shown(v))}</td>" for v, r in
                                       zip(row, right, strict=True)) + "</tr>" for row in rows)
    return (f"<h2>{escape(caption)}</h2>\n<div class=\"wide\"><table>\n<thead><tr>{head}</tr></thead>\n"
            f"<tbody>\n{lines}\n</tbody></table></div>")


def _is_number(value: object) -> bool:
    """Whether the value is a number, or a text that starts like one ("12 ms", "n/a", "+0.3 %")."""
    if isinstance(value, str):
        return value == "n/a" or value.lstrip("+-.~")[:1].isdigit()
    return isinstance(value, int | float)


def _kind(right: bool, value: object = "") -> str:
    """The class attribute of a cell: numbers to the right, long texts may wrap."""
    return ' class="n"' if right else ' class="long"' if len(shown(value)) > LONG else ""


def _figure(caption: str, path: Path) -> str:
    """The picture's bytes inside the page, or a line that names it where the file is missing."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path.name} is not a picture the page can hold: give one of {', '.join(KINDS)}")
    if not path.is_file():
        return f"<figure><figcaption>{escape(f'{caption}: {path.name} was not made')}</figcaption></figure>"
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (f"<figure><figcaption>{escape(caption)}</figcaption>"
            f"<img alt=\"{escape(caption)}\" src=\"data:{kind};base64,{data}\"></figure>")


def class_rows(metrics: Metrics) -> list[list[object]]:
    """A row for all classes, then one a class, in the order of CLASS_COLUMNS; None without truth."""
    whole = ["all", metrics.images, metrics.truths, metrics.precision, metrics.recall, metrics.f1,
             metrics.map50, metrics.map50_95]
    return [whole, *([c.name, c.images, c.truths, c.precision, c.recall, c.f1, c.ap50, c.ap]
                     for c in metrics.classes)]


def aligned(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The table as text: the first column left, the others right, values as the page shows them."""
    cells = [list(columns), *([shown(value) for value in row] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(" " * (w - _width(c)) * (i > 0) + c + " " * (w - _width(c)) * (i == 0)
                               for i, (c, w) in enumerate(zip(line, widths, strict=True))) for line in cells)


def _width(text: str) -> int:
    """Columns the text takes on a terminal: Chinese characters take two."""
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)
