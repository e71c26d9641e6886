"""YOLO text labels: one file a picture, one line a box."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.coco.locate import read_yaml
from data.convert.labels import SUFFIXES, Box, Example, Labelled, Tally, clip_box, picture_size
from utils.errors import DataError


def read_yolo(source: Path, tally: Tally) -> Labelled:
    """What a YOLO folder holds (images/train, labels/train; or train/images, train/labels).

    Class names come from the `names` of a YAML file or from classes.txt. A line is class, centre and size
    (cxcywh, normalised to the picture as it is seen, EXIF rotation applied), or class and a polygon, of which
    the box is taken. Pictures without a label file are negatives. Raises DataError where folders or names are
    missing.
    """
    names = yolo_names(source)
    found: dict[str, list[Example]] = {}
    for split, folders in (("train", ("train",)), ("val", ("val", "valid"))):
        pairs = [pair for name in folders for pair in ((f"images/{name}", f"labels/{name}"),
                                                       (f"{name}/images", f"{name}/labels"))]
        here = [pair for pair in pairs if (source / pair[0]).is_dir()]
        if not here:
            raise DataError(f"{source}: no pictures for the {split} split; needs one of the folders "
                            + ", ".join(pair[0] for pair in pairs))
        images, labels = (source / part for part in here[0])
        files = sorted(path for path in images.rglob("*") if path.suffix.lower() in SUFFIXES)
        found[split] = []
        for file in files:
            below = file.relative_to(images)
            if size := picture_size(file, tally, str(file)):
                boxes = tuple(_boxes((labels / below).with_suffix(".txt"), names, size, tally))
                found[split].append(Example(file, f"{split}/{below.as_posix()}", *size, boxes))
    return Labelled(tuple(names), found)


def yolo_names(source: Path) -> list[str]:
    """Class names of a YOLO folder, by class number. Raises DataError when no file holds them."""
    for path in sorted([*source.glob("*.yaml"), *source.glob("*.yml")]):
        names = read_yaml(path).get("names")
        if isinstance(names, dict) and set(names) == set(range(len(names))):
            names = [names[number] for number in range(len(names))]
        if isinstance(names, list) and names:
            return [str(name) for name in names]
    for path in (source / "classes.txt", source / "labels" / "classes.txt"):
        if path.is_file():
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            return [line.strip() for line in lines if line.strip()]
    raise DataError(f"{source}: no class names here; needs a YAML with `names` (0: cat) or classes.txt")


def _boxes(path: Path, names: list[str], size: tuple[int, int], tally: Tally) -> Iterator[Box]:
    """The boxes of one label file, clipped to the picture; what cannot be used is counted by line."""
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not (words := line.split()):
            continue
        try:
            kind, values = int(words[0]), [float(word) for word in words[1:]]
        except ValueError:
            kind, values = -1, []
        if not (0 <= kind < len(names) and len(values) >= 4 and len(values) % 2 == 0):
            tally.add("lines dropped: not a known class number and 4 numbers", f"{path}:{number}")
            continue
        if len(values) > 4:
            tally.add("polygons of which the box was taken", f"{path}:{number}")
            xs, ys = values[0::2], values[1::2]
            values = [(min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)]
        (cx, cy, w, h), (width, height) = values, size
        box = Box(names[kind], (cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height)
        box = clip_box(box, size)
        if box is None or max(map(abs, values)) > 2:           # above 2 the numbers cannot be normalised ones
            tally.add("lines dropped: no area inside the picture, or not normalised", f"{path}:{number}")
        else:
            yield box
