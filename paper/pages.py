"""Tables of a page that come from results/: found between markers, compared, and filled in place.

<!-- table:NAME --> begins a whole table (paper, "voc5/table4 long") under the page's own header. <!--
table:records {map50:.3f}; {macs} --> begins rows of a label, figures, and a link to their results/X.json; a
comment {...} in a label replaces the templates of that row. <!-- /table --> ends either.
"""
from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from paper.claims import Form
from utils.text import markdown

OPEN = re.compile(r"^<!--\s*table:\s*(\S+)\s*(.*?)\s*-->\s*$")
CLOSE = re.compile(r"^<!--\s*/table\s*-->\s*$")
LINK = re.compile(r"\]\([^)]*\bresults/([\w./-]+\.json)\)")
FIELD = re.compile(r"\{([\w.-]+)(?::([^{}]*))?\}")
OWN = re.compile(r"<!--(.*?\{.*?)-->")


class Filled(NamedTuple):
    """A page with its marked tables as results have them, and how many there are."""

    text: str
    errors: list[str]              # tables that results cannot give, with page and line
    differences: list[str]         # rows that said something else
    tables: int


def fill(text: str, name: str, results: Path, make: Callable[[str, str], Form]) -> Filled:
    """Return the filled page; `make(table, option)` gives a table, or raises KeyError or ValueError."""
    lines, out, errors, found, tables, done = text.splitlines(), [], [], [], 0, 0
    for at, line in enumerate(lines):
        if not (start := OPEN.match(line)) or at < done:
            continue
        tables += 1
        place = f"{name}:{at + 1}: {line.strip()}"
        end = next((i for i in range(at + 1, len(lines)) if CLOSE.match(lines[i])), None)
        if end is None or any(map(OPEN.match, lines[at + 1:end])):
            return Filled(text, [*errors, f"{place} has no <!-- /table -->"], found, tables)
        body = made = lines[at + 1:end]
        try:
            made = (_records(body, start[2], results) if start[1] == "records" else
                    _whole(body, *make(start[1], start[2])))
        except KeyError as error:
            errors.append(f"{place}: no such table or field: {error.args[0]}")
        except (ValueError, OSError) as error:
            errors.append(f"{place}: {error}")
        found += _differences(name, at + 2, body, made)
        out += [*lines[done:at + 1], *made]
        done = end
    if not tables:                                         # a misspelt marker must not pass for agreement
        errors.append(f"{name}: no marked table, hence nothing to compare or to fill")
    return Filled("\n".join([*out, *lines[done:]]) + "\n", errors, found, tables)


def _cells(line: str) -> list[str]:
    """The cells of a Markdown row; a pipe behind a backslash is part of its cell."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def _whole(body: Sequence[str], header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A whole table under the page's own header where it has as many columns."""
    first = next((_cells(line) for line in body if line.lstrip().startswith("|")), [])
    kept = first if len(first) == len(header) else header
    return markdown([cell.replace(r"\|", "|") for cell in kept], rows).splitlines()


def _records(body: Sequence[str], templates: str, results: Path) -> list[str]:
    """The same rows with the figures of the records that they link to."""
    made, seen = [], 0
    for line in body:
        link = LINK.search(line)
        seen += line.lstrip().startswith("|")
        if not line.lstrip().startswith("|") or (seen <= 2 and not link):      # header and rule
            made.append(line)
            continue
        if not link:
            raise ValueError(f"the row {line.strip()[:60]!r} links to no record in results/")
        cells, record = _cells(line), json.loads((results / link[1]).read_text(encoding="utf-8"))
        own = OWN.search(cells[0])
        figures = [_figure(part.strip(), record, link[1])
                   for part in (own[1] if own else templates).split(";")]
        if len(figures) != len(cells) - 2:
            raise ValueError(f"{len(figures)} figures for {len(cells) - 2} cells between label and link of "
                             f"{cells[0][:40]!r}")
        made.append("| " + " | ".join((cells[0], *figures, cells[-1])) + " |")
    return made


def _figure(template: str, record: dict, file: str) -> str:
    """The template with each {field.of.record:format} replaced; a number is a place in a list."""
    def value(match: re.Match) -> str:
        node: object = record
        for part in match[1].split("."):
            try:
                node = node[int(part) if isinstance(node, list) else part]
            except (KeyError, IndexError, TypeError, ValueError):
                raise ValueError(f"{file} has no {match[1]}") from None
        return format(node, match[2] or "")
    return FIELD.sub(value, template)


def _differences(name: str, line: int, body: Sequence[str], made: Sequence[str]) -> list[str]:
    """What a page says otherwise than results do, a line each; blanks within cells do not count."""
    def plain(text: str) -> list[str]:
        return ["-" if re.fullmatch(r":?-+:?", cell) else cell for cell in _cells(text)] or [text.strip()]
    return [f"{name}:{at}: says {says.strip() or 'nothing'!r}, results give {should.strip() or 'nothing'!r}"
            for at, (says, should) in enumerate(zip_longest(body, made, fillvalue=""), line)
            if plain(says) != plain(should)]
