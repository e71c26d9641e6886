"""Tables of a page that come from results/: found between markers, compared, and filled in place.

    <!-- table:NAME -->                      a whole table, e.g. paper, voc5/table2, "voc5/table4 long"
    <!-- table:records {map50:.3f}; {map50_95:.3f} -->
                                             rows of the page's own words: first cell a label, last cell a
                                             link to results/X.json, between them figures of that record
    <!-- /table -->                          ends either

A row's own templates, in a comment of the same form within its first cell, go before those of its table. The
header of a table stays as the page has it while the number of its columns is right, so it can be in any
language.
"""
from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from paper.claims import Form
from utils.text import markdown

OPEN = re.compile(r"^<!--\s*table:\s*(\S+)\s*(.*?)\s*-->\s*$")
CLOSE = re.compile(r"^<!--\s*/table\s*-->\s*$")
LINK = re.compile(r"\]\([^)]*\bresults/([\w./-]+\.json)\)")
FIELD = re.compile(r"\{([\w.]+)(?::([^{}]*))?\}")
OWN = re.compile(r"<!--(.*?\{.*?)-->")


class Filled(NamedTuple):
    """A page with its marked tables as results have them, and how many there are.

    errors: tables that results cannot give; differences: rows that said something else; with page and line.
    """

    text: str
    errors: list[str]
    differences: list[str]
    tables: int


def fill(text: str, name: str, results: Path, make: Callable[[str, str], Form]) -> Filled:
    """The page with its tables filled.

    `make(table, option)` gives a whole table and raises KeyError for an unknown one; ValueErrors say what is
    wrong with its records.
    """
    lines, out, errors, found, tables, at = text.splitlines(), [], [], [], 0, 0
    while at < len(lines):
        out.append(lines[at])
        if start := OPEN.match(lines[at]):
            tables += 1
            end = next((i for i in range(at + 1, len(lines)) if CLOSE.match(lines[i])), None)
            if end is None or any(OPEN.match(line) for line in lines[at + 1:end]):
                errors.append(f"{name}:{at + 1}: {start[0].strip()} has no <!-- /table -->")
                return Filled(text, errors, found, tables)
            body = lines[at + 1:end]
            try:
                made = _records(body, start[2], results) if start[1] == "records" else _whole(
                    body, make(start[1], start[2]))
            except (KeyError, ValueError, OSError) as error:
                errors.append(f"{name}:{at + 1}: {start[0].strip()}: {_words(error)}")
                made = body
            found += _differences(name, at + 2, body, made)
            out += made
            at = end
            out.append(lines[at])
        at += 1
    if not tables:                                         # a misspelt marker must not pass for agreement
        errors.append(f"{name}: no marked table, hence nothing to compare or to fill")
    return Filled("\n".join(out) + "\n", errors, found, tables)


def _words(error: Exception) -> str:
    return f"no such table or field: {error.args[0]}" if isinstance(error, KeyError) else str(error)


def _cells(line: str) -> list[str]:
    """The cells of a Markdown row; a pipe behind a backslash is part of its cell."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def _whole(body: Sequence[str], form: Form) -> list[str]:
    """A whole table under the page's own header where it has as many columns."""
    header, rows = form
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
        parts = (own[1] if own else templates).split(";")
        figures = [_figure(part.strip(), record, link[1]) for part in parts]
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
            if isinstance(node, list):
                node = {str(place): item for place, item in enumerate(node)}
            if not isinstance(node, dict) or part not in node:
                raise ValueError(f"{file} has no {match[1]}")
            node = node[part]
        return format(node, match[2] or "")
    return FIELD.sub(value, template)


def _differences(name: str, line: int, body: Sequence[str], made: Sequence[str]) -> list[str]:
    """What a page says otherwise than results do, a line each; blanks within cells do not count."""
    def plain(text: str) -> list[str]:
        return ["-" if re.fullmatch(r":?-+:?", cell) else cell for cell in _cells(text)] or [text.strip()]
    faults = []
    for at in range(max(len(body), len(made))):
        says, should = (part[at] if at < len(part) else "" for part in (body, made))
        if plain(says) != plain(should):
            faults.append(f"{name}:{line + at}: says {says.strip() or 'nothing'!r}, results give "
                          f"{should.strip() or 'nothing'!r}")
    return faults
