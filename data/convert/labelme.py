"""Labelme's and X-AnyLabeling's labels: one JSON per image, its shapes as points in px."""
from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PureWindowsPath

from data.coco.find import image_named, is_file, visible_files
from data.convert.labels import Labels, Layout, by_folder

LINES = ("point", "points", "line", "linestrip")       # shapes without an inside


def labelme_layout(source: Path) -> Layout | None:
    """Return the layout of a folder of such JSON files, split where folders say so; None without one."""
    files = [path for path in visible_files(source) if path.suffix.lower() == ".json"]
    files = [path for path in files[:3] if _shapes(path) is not None] and files
    if not files:
        return None
    splits = by_folder(files, source)
    return Layout("labelme labels", tuple(splits), source, partial(_read, splits))


def _shapes(path: Path) -> dict | None:
    """Return the content of a label file; None where it is not one."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
        return content if isinstance(content["shapes"], list) and all(
            isinstance(shape, dict) for shape in content["shapes"]) else None
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None


def _read(splits: dict[str, list[Path]], labels: Labels) -> None:
    """Add every image and the box of every shape to `labels`."""
    for split, files in splits.items():
        for path in files:
            if (content := _shapes(path)) is None:
                labels.note(split, "no-shapes", "JSON files that hold no shapes, left out", path)
                continue
            named = PureWindowsPath(str(content.get("imagePath") or "-")).as_posix()
            beside = path.parent, path.parent.parent / "images"
            places = [path.parent / named, *(place / Path(named).name for place in beside)]
            file = next(filter(is_file, places), None) or image_named(path.stem, beside)
            if labels.add_image(split, file, path) is None:
                continue
            for shape in content["shapes"]:
                if (box := _box(shape)) is None:
                    labels.note(split, "no-box", "shapes dropped: a line, a point, or no label", path)
                else:
                    labels.add_box(split, file, str(shape["label"]).strip(), box, path)


def _box(shape: dict) -> Sequence[float] | None:
    """Return the box of a shape, top-left xywh px; None without an area, a label or points in numbers."""
    kind, points = shape.get("shape_type") or "polygon", shape.get("points")
    try:
        points = [(float(x), float(y)) for x, y in points]
        if kind in LINES or len(points) < 2 or not str(shape.get("label") or "").strip():
            return None
        if kind == "circle":                           # the centre and a point of the edge
            (cx, cy), (x, y) = points[:2]
            r = ((x - cx) ** 2 + (y - cy) ** 2) ** 0.5
            points = [(cx - r, cy - r), (cx + r, cy + r)]
    except (TypeError, ValueError):
        return None
    (x1, x2), (y1, y2) = ((min(axis), max(axis)) for axis in zip(*points))
    return x1, y1, x2 - x1, y2 - y1
