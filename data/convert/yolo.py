"""YOLO text labels: one file per image, one line per box."""
from __future__ import annotations

from pathlib import Path

from data.coco.locate import read_yaml
from data.convert.labels import Labels
from data.images import SUFFIXES
from utils.errors import DataError


def read_yolo(source: Path, labels: Labels) -> list[str]:
    """Add a YOLO folder (images/train, labels/train; or train/images, ...) to `labels`; return class names.

    A line is class, centre and size (cxcywh, normalised to the image after EXIF rotation), or class and a
    polygon, of which the box is taken. Images without a label file are negatives. Raises DataError where
    folders or names are missing.
    """
    names = yolo_names(source)
    for split, folders in (("train", ("train",)), ("val", ("val", "valid"))):
        pairs = [pair for name in folders for pair in ((f"images/{name}", f"labels/{name}"),
                                                       (f"{name}/images", f"{name}/labels"))]
        here = next((pair for pair in pairs if (source / pair[0]).is_dir()), None)
        if here is None:
            raise DataError(f"{source}: no images for the {split} split; needs one of the folders "
                            + ", ".join(pair[0] for pair in pairs))
        images, texts = (source / part for part in here)
        for file in sorted(path for path in images.rglob("*") if path.suffix.lower() in SUFFIXES):
            if size := labels.add_image(split, file, str(file)):
                text = (texts / file.relative_to(images)).with_suffix(".txt")
                for place, name, xywh in _boxes(text, names, labels) if text.is_file() else ():
                    labels.add_box(split, file, name, [v * side for v, side in zip(xywh, size * 2)], place)
    return names


def yolo_names(source: Path) -> list[str]:
    """Return the class names of a YOLO folder, by class number; raise DataError when no file holds them."""
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


def _boxes(path: Path, names: list[str], labels: Labels) -> list[tuple[str, str, tuple[float, ...]]]:
    """Return (place, class name, xywh normalised, top-left) of a label file's lines; note the others."""
    found = []
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    for place, line in ((f"{path}:{number}", line) for number, line in enumerate(text.splitlines(), 1)):
        if not (words := line.split()):
            continue
        try:
            kind, values = int(words[0]), [float(word) for word in words[1:]]
        except ValueError:
            kind, values = -1, []
        if not (0 <= kind < len(names) and len(values) >= 4 and len(values) % 2 == 0):
            labels.note("bad-line", "lines dropped: not a known class number and 4 numbers", place)
        elif max(map(abs, values)) > 2:                        # above 2 the numbers cannot be normalised ones
            labels.note("not-normalised", "lines dropped: numbers above 2 are px, not normalised", place)
        elif len(values) > 4:
            labels.note("polygon", "polygons of which the box was taken", place)
            (x1, x2), (y1, y2) = ((min(axis), max(axis)) for axis in (values[0::2], values[1::2]))
            found.append((place, names[kind], (x1, y1, x2 - x1, y2 - y1)))
        else:
            cx, cy, w, h = values
            found.append((place, names[kind], (cx - w / 2, cy - h / 2, w, h)))
    return found
