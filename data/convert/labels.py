"""Labels of another format on their way to COCO: images, boxes in px, and a count of what was left out."""
from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from data.coco.clean import Fault, fault
from data.coco.jsonfile import coco_content
from data.images import MAX_PIXELS, inspect
from utils.errors import DataError


class Labels:
    """What a converter has read: images of each split with their boxes, and notes of what was left out."""

    def __init__(self, max_pixels: int = MAX_PIXELS) -> None:
        self.max_pixels = max_pixels
        self.splits: dict[str, dict[Path, tuple[int, int, list[tuple]]]] = {}
        self.notes: dict[tuple[str, str], list[str]] = {}

    def note(self, rule: str, advice: str, place: str) -> None:
        """Count what was left out or changed: `rule`, what was done in words, and the place."""
        self.notes.setdefault((rule, advice), []).append(place)

    @property
    def faults(self) -> list[Fault]:
        """Return the notes as faults."""
        return [f for (rule, advice), places in self.notes.items() for f in fault(rule, places, advice)]

    def add_image(self, split: str, file: Path | None, place: str) -> tuple[int, int] | None:
        """Add an image and return its size in px as decoded; None, noted, when it is missing or damaged."""
        if file is None:
            self.note("missing-image", "labels without an image file, left out", place)
            return None
        seen = inspect(file, self.max_pixels)
        if seen.problem:
            self.note("undecodable-image", "images left out, damaged", f"{file} {seen.problem}")
            return None
        other = next((name for name, images in self.splits.items() if file in images), None)
        if other is not None:
            raise DataError(f"{file}: is in {other} and again in {split}: it must be in one split, once")
        self.splits.setdefault(split, {})[file] = (seen.width, seen.height, [])
        return seen.width, seen.height

    def add_box(self, split: str, file: Path, name: str, xywh: Sequence[float], place: str,
                crowd: bool = False) -> None:
        """Add a box (top-left xywh px) of an added image, clipped to it; noted when nothing is left of it."""
        width, height, boxes = self.splits[split][file]
        x, y, w, h = xywh
        x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
        if not all(map(math.isfinite, xywh)) or x2 <= x1 or y2 <= y1:
            self.note("no-box", "lines dropped: no area inside the image, or not four numbers", place)
            return
        x, y, w, h = (round(value, 4) for value in (x1, y1, x2 - x1, y2 - y1))
        boxes.append((name, x, y, w, h, round(w * h, 4), crowd))

    def contents(self, names: Sequence[str] | None = None) -> dict[str, dict]:
        """Return the COCO content of each split; `file_name` is the source's path, `names` the class order.

        Without `names` the classes are those of the boxes, sorted. Raises DataError when two classes share a
        name or a split has no box.
        """
        if names is None:
            names = sorted({box[0] for images in self.splits.values() for *_, boxes in images.values()
                            for box in boxes})
        if len(set(names)) < len(names):
            raise DataError(f"class names must differ, got {', '.join(names)}; rename or merge classes")
        ids, made, first_id = {name: number for number, name in enumerate(names, 1)}, {}, 1
        for split, images in self.splits.items():
            if not any(boxes for *_, boxes in images.values()):
                raise DataError(f"{split}: {len(images)} images and not one box that can be used; "
                                "see the list of what was left out")
            rows = ((str(file), width, height, [(ids[name], *rest) for name, *rest in boxes])
                    for file, (width, height, boxes) in images.items())
            made[split] = coco_content(rows, {number: name for name, number in ids.items()}, first_id)
            first_id += len(images)
        return made
