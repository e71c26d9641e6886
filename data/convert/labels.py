"""Labels of another format on their way to COCO: images, boxes in px, and a count of what was left out."""
from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from data.coco.clean import Fault, fault
from data.coco.find import split_of
from data.coco.jsonfile import coco_content
from data.images import MAX_PIXELS, Inspection, inspect_all
from utils.errors import DataError


class Layout(NamedTuple):
    """A recognised set of labels: what it is in words, its splits ("all": undivided), and how to read it."""

    what: str
    splits: tuple[str, ...]
    source: Path                   # the file that describes the set, or its folder
    read: Callable[["Labels"], Sequence[str] | None]       # fills the Labels, returns the class names
    folders: tuple[Path, ...] = ()                         # of images, where they may be outside the source


def by_folder(files: Iterable[Path], source: Path) -> dict[str, list[Path]]:
    """Return files by the split that a folder above them names, or as "all"; raise DataError for both."""
    splits: dict[str, list[Path]] = {}
    for path in files:
        parents = path.relative_to(source).parts[:-1]
        splits.setdefault(next(filter(None, map(split_of, parents)), "all"), []).append(path)
    if "all" in splits and len(splits) > 1:
        raise DataError(f"{source}: some labels lie in folders of splits and others do not "
                        f"(first: {splits['all'][0]}); sort them into train/ and val/")
    return splits


class Labels:
    """What a converter has read: images of each split with their boxes, and notes of what was left out."""

    def __init__(self, max_pixels: int = MAX_PIXELS) -> None:
        self.max_pixels = max_pixels
        self.splits: dict[str, dict[Path, tuple[int, int, list[tuple]]]] = {}
        self.notes: dict[tuple[str, str, str], list[str]] = {}
        self.names: tuple[str, ...] = ()
        self._seen: dict[Path, Inspection] = {}

    def note(self, split: str, rule: str, advice: str, place: object) -> None:
        """Count what was left out or changed: `rule`, what was done in words, and the place."""
        self.notes.setdefault((split, rule, advice), []).append(str(place))

    def faults(self, wanted: str | None = None) -> list[Fault]:
        """Return the notes of one split, or of all, as faults."""
        return [f for (split, rule, advice), places in self.notes.items() if wanted in (None, split)
                for f in fault(rule, places, advice)]

    def look(self, files: Iterable[Path]) -> None:
        """Inspect images ahead, by several threads."""
        files = [file for file in dict.fromkeys(files) if file not in self._seen]
        self._seen.update(zip(files, inspect_all(files, self.max_pixels) if files else ()))

    def add_image(self, split: str, file: Path | None, place: object) -> tuple[int, int] | None:
        """Add an image, return its size in px as decoded; None, noted, where it cannot be used."""
        if file is None:
            return self.note(split, "missing-image", "labels without an image file, left out", place)
        self.look([file])
        seen = self._seen[file]
        if seen.problem:
            return self.note(split, "undecodable-image", "images left out, damaged", f"{file} {seen.problem}")
        if file in self.splits.get(split, ()):
            return self.note(split, "listed-twice", "images named twice, taken once", file)
        self.splits.setdefault(split, {})[file] = (seen.width, seen.height, [])
        return seen.width, seen.height

    def add_box(self, split: str, file: Path, name: str, xywh: Sequence[float], place: object,
                crowd: bool = False) -> None:
        """Add a box (top-left xywh px) of an added image, clipped to it; noted when nothing is left of it."""
        width, height, boxes = self.splits[split][file]
        x, y, w, h = xywh
        x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
        if not all(map(math.isfinite, xywh)) or x2 <= x1 or y2 <= y1:
            self.note(split, "no-box", "lines dropped: no area inside the image, or not four numbers", place)
            return
        if max(x1 - x, y1 - y, x + w - x2, y + h - y2) > 1:
            self.note(split, "box-over-the-edge", "boxes clipped to their image", place)
        x, y, w, h = (round(value, 4) for value in (x1, y1, x2 - x1, y2 - y1))
        boxes.append((name, x, y, w, h, round(w * h, 4), crowd))

    def contents(self, names: Sequence[str] | None = None) -> dict[str, dict]:
        """Return COCO contents by split, classes as in `names` or sorted; raise DataError without a box.

        Two splits of the very same images are taken (who trains says what that means), not some in both.
        """
        for (one, first), (other, second) in combinations(self.splits.items(), 2):
            if first.keys() != second.keys() and (both := [file for file in second if file in first]):
                raise DataError(f"{both[0]}: is in {one} and again in {other} (first of {len(both):,}): it "
                                "must be in one split, once")
        if names is None:
            names = sorted({box[0] for images in self.splits.values() for *_, boxes in images.values()
                            for box in boxes})
        if len(set(names)) < len(names):
            raise DataError(f"class names must differ, got {', '.join(names)}; rename or merge classes")
        self.names = tuple(names)
        ids, made, first_id = {name: number for number, name in enumerate(names, 1)}, {}, 1
        for split, images in self.splits.items():
            rows = ((os.path.abspath(file), width, height, [(ids[name], *rest) for name, *rest in boxes])
                    for file, (width, height, boxes) in images.items())
            made[split] = coco_content(rows, {number: name for name, number in ids.items()}, first_id)
            first_id += len(images)
        for split in {"train", "all"} & self.splits.keys() or ["train"]:
            if not made.get(split, {}).get("annotations"):
                told = self.faults(split if split in self.splits else None)
                why = "".join(f"; {f.count:,} {f.advice} (first: {f.examples[0]})" for f in sorted(
                    told, key=lambda f: -f.count)[:2])
                raise DataError(f"{split}: {len(self.splits.get(split, ()))} images and not one box that can "
                                f"be used{why}")
        return made
