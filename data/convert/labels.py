"""Labelled pictures on their way from another format to COCO: records, a tally of what was left out."""
from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from data.images import inspect

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class Box(NamedTuple):
    """One labelled box: class name, top-left corner and size in px of the picture, whether to ignore it."""

    name: str
    x: float
    y: float
    width: float
    height: float
    crowd: bool = False


class Example(NamedTuple):
    """One labelled picture: its file, the name it gets below images/, its size in px and its boxes."""

    file: Path
    name: str
    width: int
    height: int
    boxes: tuple[Box, ...]


class Labelled(NamedTuple):
    """A labelled set: class names in their order, and the examples of "train" and "val"."""

    names: tuple[str, ...]
    splits: dict[str, list[Example]]


class Tally:
    """What was left out or changed, by reason, with the places."""

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = {}

    def add(self, reason: str, place: str) -> None:
        """Counts one more `reason`, seen at `place`."""
        self.places.setdefault(reason, []).append(place)

    def table(self) -> str:
        """One line a reason: count, reason, first three places; empty when nothing happened."""
        return "\n".join(f"{len(seen):>7}  {reason}: {', '.join(seen[:3])}{', ...' * (len(seen) > 3)}"
                         for reason, seen in sorted(self.places.items()))


def clip_box(box: Box, size: tuple[int, int]) -> Box | None:
    """The part of a box inside a picture of (width, height) px; None when nothing, or no number, is left."""
    if not all(math.isfinite(value) for value in box[1:5]):
        return None
    x1, y1 = max(box.x, 0.0), max(box.y, 0.0)
    x2, y2 = min(box.x + box.width, size[0]), min(box.y + box.height, size[1])
    return box._replace(x=x1, y=y1, width=x2 - x1, height=y2 - y1) if x2 > x1 and y2 > y1 else None


def picture_size(file: Path | None, tally: Tally, place: str) -> tuple[int, int] | None:
    """Width and height in px of a picture as it is seen; None, counted, when it is missing or damaged."""
    if file is None:
        tally.add("pictures left out, file missing", place)
        return None
    seen = inspect(file)
    if seen.problem:
        tally.add("pictures left out, damaged", f"{file} {seen.problem}")
        return None
    return seen.width, seen.height
