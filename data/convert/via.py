"""The labels of VIA (VGG Image Annotator): one JSON with the regions of every image."""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath

from data.coco.find import is_file, visible_files
from data.convert.labels import Labels, Layout, by_folder
from utils.errors import DataError

CLASS = ("class", "label", "category", "name", "type", "object")     # attributes that can only be the class
PLACES = ("images", "Images", "imgs")                  # where images lie beside the JSON
PEEKED = 20


def via_layout(source: Path) -> Layout | None:
    """Return the layout of such a file, or of a folder that holds one for each split; None without one."""
    if source.is_file():
        files = {"all": [source]} if _images(source) is not None else {}
    else:
        given = (path for path in visible_files(source) if path.suffix.lower() == ".json")
        found = [path for path, _ in zip(given, range(PEEKED)) if _images(path) is not None]
        files = by_folder(found, source)
    for split, paths in files.items():
        if len(paths) > 1:
            raise DataError(f"{source}: {paths[0].name} and {paths[1].name} could each be "
                            f"{'the set' if split == 'all' else split}; give the right file itself")
    return Layout("VIA labels", tuple(files), source, partial(_read, files)) if files else None


def _images(path: Path) -> list[dict] | None:
    """Return the entries of a VIA file, one an image; None where it is another kind of file."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
        entries = list(content.get("_via_img_metadata", content).values())
        return entries if entries and all("filename" in e and "regions" in e for e in entries) else None
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        return None


def _regions(entry: dict) -> Iterator[tuple[dict, dict]]:
    """Yield (shape, attributes) of an image's regions; VIA 1 numbered them in an object."""
    regions = entry["regions"]
    for region in regions.values() if isinstance(regions, dict) else regions or ():
        shape, attributes = (region.get(f"{what}_attributes") for what in ("shape", "region"))
        yield shape or {}, attributes if isinstance(attributes, dict) else {}


def _read(splits: dict[str, list[Path]], labels: Labels) -> None:
    """Add every image and the box of every region to `labels`."""
    entries = {split: (path, _images(path) or []) for split, (path,) in splits.items()}
    key = _class_attribute(entries)
    for split, (path, images) in entries.items():
        for entry in images:
            named = Path(PureWindowsPath(str(entry["filename"])).as_posix())
            places = [place / part for part in (named, named.name)
                      for place in (path.parent, *(path.parent / name for name in PLACES))]
            file = next(filter(is_file, places), None)
            if labels.add_image(split, file, f"{path}: {named}") is None:
                continue
            for shape, attributes in _regions(entry):
                name, box = _name(attributes.get(key)), _box(shape)
                if box is None or not name:
                    labels.note(split, "no-box", "regions dropped: a line, a point, or no class",
                                f"{path}: {named}")
                else:
                    labels.add_box(split, file, name, box, f"{path}: {named}")


def _class_attribute(entries: dict[str, tuple[Path, list[dict]]]) -> str:
    """Return the attribute that holds the class; raise DataError where there is none, or one could guess."""
    used = Counter(key for _, images in entries.values() for entry in images
                   for _, attributes in _regions(entry) for key, value in attributes.items() if _name(value))
    known = [key for key in used if key.strip().lower() in CLASS]
    if len(used) == 1 or len(known) == 1:
        return (known or list(used))[0]
    path = next(iter(entries.values()))[0]
    raise DataError(f"{path}: " + (
        f"its regions have the attributes {', '.join(used)}; rename the one that is the class to `class`"
        if used else "no region has an attribute, which would be its class; give them one in VIA"))


def _name(value: object) -> str:
    """Return the class of an attribute's value: a text, or of check boxes the one that is ticked."""
    if isinstance(value, dict):
        ticked = [key for key, on in value.items() if on]
        value = ticked[0] if len(ticked) == 1 else ""
    return str(value if value is not None else "").strip()


def _box(shape: dict) -> Sequence[float] | None:
    """Return the box of a region, top-left xywh px; None where it has no inside or no numbers."""
    def numbers(*keys: str) -> list[float]:
        return [float(shape[key]) for key in keys]
    try:
        kind = shape.get("name")
        if kind == "rect":
            return numbers("x", "y", "width", "height")
        if kind in ("circle", "ellipse"):
            x, y, rx, ry = numbers("cx", "cy", *(("r", "r") if kind == "circle" else ("rx", "ry")))
            return x - rx, y - ry, 2 * rx, 2 * ry
        if kind != "polygon":
            return None
        xs, ys = (list(map(float, shape[f"all_points_{axis}"])) for axis in "xy")
        return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    except (KeyError, TypeError, ValueError):
        return None
