"""One JSON per image: labelme's and X-AnyLabeling's shapes, Supervisely's objects, as points in px."""
from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from data.coco.find import image_named, is_file, visible_files
from data.convert.labels import Labels, Layout, by_folder

OTHERS = ("meta.json", "obj_class_to_machine_color.json")            # of a Supervisely project
LINES = ("point", "points", "line", "linestrip")       # shapes without an inside


class _Shape(NamedTuple):
    """One labelled shape: its class, its kind in labelme's words, its points (px)."""

    label: str
    kind: str
    points: Sequence[Sequence[float]]


def labelme_layout(source: Path) -> Layout | None:
    """Return the layout of a folder of such JSON files, split where folders say so; None without one."""
    files = [path for path in visible_files(source) if path.suffix.lower() == ".json"]
    found = [content[0] for path in files[:3] if (content := _shapes(path)) is not None]
    if not found:
        return None
    splits = by_folder((path for path in files if path.name not in OTHERS), source)
    return Layout(f"{found[0]} labels", tuple(splits), source, partial(_read, splits))


def _shapes(path: Path) -> tuple[str, str, list[_Shape]] | None:
    """Return a label file's kind, the image it names and its shapes; None where it is not one."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
        if isinstance(content.get("shapes"), list):
            return "labelme", str(content.get("imagePath") or "-"), [
                _Shape(str(s.get("label") or "").strip(), s.get("shape_type") or "polygon", s.get("points"))
                for s in content["shapes"]]
        if isinstance(content.get("objects"), list) and isinstance(content.get("size"), dict):
            return "Supervisely", path.stem, [_Shape(str(o.get("classTitle") or "").strip(), *_geometry(o))
                                              for o in content["objects"]]
        return None
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):
        return None


def _geometry(item: dict) -> tuple[str, Sequence[Sequence[float]]]:
    """Return the kind and points of a Supervisely object; of a bitmap, the corners of its mask."""
    kind = item.get("geometryType")
    kind = "linestrip" if kind == "polyline" else kind
    if kind != "bitmap":
        return kind or "polygon", (item.get("points") or {}).get("exterior")
    bitmap = item["bitmap"]                            # a PNG of just the object; its size stands at byte 16
    head = zlib.decompressobj().decompress(base64.b64decode(bitmap["data"]), 24)
    x, y = bitmap["origin"]
    w, h = (int.from_bytes(head[at:at + 4], "big") for at in (16, 20))
    return "rectangle", [(x, y), (x + w, y + h)]


def _read(splits: dict[str, list[Path]], labels: Labels) -> None:
    """Add every image and the box of every shape to `labels`."""
    for split, files in splits.items():
        for path in files:
            if (content := _shapes(path)) is None:
                labels.note(split, "no-shapes", "JSON files that hold no shapes, left out", path)
                continue
            named = PureWindowsPath(content[1]).as_posix()
            beside = path.parent, *(path.parent.parent / name for name in ("images", "img", "JPEGImages"))
            places = [path.parent / named, *(place / Path(named).name for place in beside)]
            file = next(filter(is_file, places), None) or image_named(path.stem, beside)
            if labels.add_image(split, file, path) is None:
                continue
            for shape in content[2]:
                if (box := _box(shape)) is None:
                    labels.note(split, "no-box", "shapes dropped: a line, a point, or no label", path)
                else:
                    labels.add_box(split, file, shape.label, box, path)


def _box(shape: _Shape) -> Sequence[float] | None:
    """Return the box of a shape, top-left xywh px; None without an area, a label or points in numbers."""
    try:
        points = [(float(x), float(y)) for x, y in shape.points]
        if shape.kind in LINES or len(points) < 2 or not shape.label:
            return None
        if shape.kind == "circle":                     # the centre and a point of the edge
            (cx, cy), (x, y) = points[:2]
            r = ((x - cx) ** 2 + (y - cy) ** 2) ** 0.5
            points = [(cx - r, cy - r), (cx + r, cy + r)]
    except (TypeError, ValueError):
        return None
    (x1, x2), (y1, y2) = ((min(axis), max(axis)) for axis in zip(*points))
    return x1, y1, x2 - x1, y2 - y1
