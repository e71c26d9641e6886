"""Tables of a pruning as aligned text: channels a layer lost, the steps, the sensitivity scan."""
from __future__ import annotations

import math
from collections.abc import Sequence

from utils.text import aligned

LABELS = {"map50": "mAP@0.5", "map50_95": "mAP@0.5:0.95"}

def table3_lines(layers: Sequence[dict]) -> list[str]:
    """A line a layer: width before and after, sixteenths taken away, why it went no further; and their sums.

    The paper's Table 3. A row of `layers` has layer, original, width, sixteenths and stopped.
    """
    rows = [[row["layer"], row["original"], row["width"], f"{row['sixteenths']:g}/16"] for row in layers]
    before, after = (sum(row[key] for row in layers) for key in ("original", "width"))
    lost = 16 * (before - after) / before if before else 0.0
    total = ["all", before, after, f"{lost:.2g}/16"]
    return _told(("layer", "original", "width", "taken away"), [*rows, total],
                 "stopped because", [*(row["stopped"] for row in layers), ""])


def step_lines(steps: Sequence[dict], metric: str = "map50") -> list[str]:
    """A line a step: what was cut, what it reached and lost, its size and cost, whether it stood.

    A step is a row of the run's record; its drop and interval are in points of the metric.
    """
    digits = len(str(len(steps)))
    rows = [[f"{row['step']:{digits}} {row['layer']}", f"{row['sixteenths']:g}/16", row["width"],
             f"{row[metric]:.4f}", _signed(row["drop"]), _interval(row["interval"]),
             f"{row['parameters'] / 1e6:.3f}", f"{row['macs'] / 1e9:.4f}", row["epochs"],
             _time(row["seconds"])] for row in steps]
    columns = ("step", "taken", "width", LABELS[metric], "lost", "95 %", "M params", "GMACs", "epochs",
               "time")
    return _told(columns, rows, "", ["accepted" if row["accepted"] else "refused" for row in steps])


def scan_lines(units: Sequence[str], sixteenths: Sequence[int],
               drops: Sequence[Sequence[float]]) -> list[str]:
    """A line a layer: the points lost by each number of sixteenths; "-" where nothing was measured.

    drops: [units][sixteenths], NaN where nothing was measured.
    """
    rows = [[unit, *("-" if math.isnan(value) else _signed(value, 1) for value in row)]
            for unit, row in zip(units, drops, strict=True)]
    return aligned(["points lost by", *(f"{n:g}/16" for n in sixteenths)], rows).split("\n")


def _told(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str,
          words: Sequence[str]) -> list[str]:
    """An aligned table whose last column holds words, set left."""
    head, *lines = aligned(columns, rows).split("\n")
    return [f"{line}  {word}".rstrip() for line, word in zip((head, *lines), (title, *words), strict=True)]


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else " to ".join(map(_signed, interval))


def _signed(value: float, digits: int = 2) -> str:
    """The value with its sign, which a zero has not."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def _time(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
