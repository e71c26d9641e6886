"""Reports of benchmarks read again: which of their cases belong together and may be compared."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.cases import SCHEMA, label, unpack
from bench.stats import contrast
from bench.tables import verdict_line
from utils.errors import DataError, UsageError
from utils.runs import read_record

SAME = ("imgsz", "batch", "threads", "device", "cpu")      # without these two times are of different things
LOOKED = ("pictures", "conf_thres", "iou_thres", "max_det")    # ... and end to end without these


def read_report(path: Path) -> dict:
    """A benchmark's report. Raises DataError where the file is none, or of another schema."""
    report = read_record("--compare", path, "benchmark")
    if report.get("schema") != SCHEMA:
        raise DataError(f"--compare {path} has schema {report.get('schema')}, this version reads {SCHEMA}; "
                        "measure again")
    if not all(row["samples"] for row in report["cases"] if row["status"] == "measured"):
        raise DataError(f"--compare {path} holds figures without the calls they are of, as results/ keeps "
                        "them; give the benchmark.json of the run folder")
    return report


def pairs(first: Mapping, other: Mapping, select: Sequence[str] = ()) -> list[tuple[dict, dict]]:
    """Cases of two reports that belong together.

    select: a text of the label for both or one for each; without it, cases whose labels are the same, or the
    only case of each. Raises UsageError with the labels where it does not say which.
    """
    sides = [[row for row in report["cases"] if row["status"] == "measured"] for report in (first, other)]
    if select:
        sides = [[row for row in side if text in label(row)]
                 for side, text in zip(sides, [*select, select[-1]])]
    known = {label(row): row for row in sides[1]}
    same = [(row, known[label(row)]) for row in sides[0] if label(row) in known]
    if same and len(select) < 2:
        return same
    if len(sides[0]) == len(sides[1]) == 1:
        return [(sides[0][0], sides[1][0])]
    shown = ["".join(f"\n  {label(row)}" for row in side) or " none" for side in sides]
    raise UsageError("--select: say which case of each report is meant, by a part of its label. The first "
                     f"has{shown[0]}\nand the second{shown[1]}")


def differences(first: Mapping, other: Mapping, a: Mapping, b: Mapping, scope: str) -> list[str]:
    """What sets the case `a` of report `first` and `b` of `other` apart so that their times mean little."""
    values = [{**report["settings"], "cpu": report["environment"]["cpu"], **row}
              for report, row in ((first, a), (other, b))]
    keys = (*SAME, *(LOOKED if scope == "end-to-end" else ()))
    return [f"{key.replace('_', ' ')} ({values[0][key]} and {values[1][key]})" for key in keys
            if values[0][key] != values[1][key]]


def compare(paths: Sequence[Path], select: Sequence[str], scopes: Sequence[str], force: bool) -> list[str]:
    """Lines that say which of two reports' cases are faster.

    Raises UsageError for cases that differ in more than what runs them, unless forced.
    """
    first, other = map(read_report, paths)
    out: list[str] = []
    for a, b in pairs(first, other, select):
        for scope in (scope for scope in scopes if scope in a["scopes"] and scope in b["scopes"]):
            unlike = differences(first, other, a, b, scope)
            if unlike and not force:
                raise UsageError(f"not compared: {label(a)} and {label(b)} differ in {', '.join(unlike)}. "
                                 "Measure both alike, or insist with --force")
            out += [f"warning: compared although they differ in {', '.join(unlike)}"] * bool(unlike)
            # Cases of one run took turns, so that what slowed one slowed the other.
            found = contrast(unpack(a["samples"][scope]), unpack(b["samples"][scope]),
                             paired=first == other and not unlike)
            out.append(verdict_line(label(a), label(b), scope, found))
    for path, report in zip(paths, (first, other)):
        out += [f"warning: {path} is TAINTED: {reason}" for reason in report["tainted"]]
    return list(dict.fromkeys(out))
