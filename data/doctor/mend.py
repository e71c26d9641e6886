"""The cleaned content of a data set: boxes as training sees them, fresh ids, no picture in two places."""
from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from data.coco.read import CocoSet, ImageRecord


def cleaned(splits: Mapping[str, CocoSet], left_out: Mapping[str, Collection[int]],
            ) -> tuple[dict[str, dict], dict[str, Path]]:
    """The COCO content of each split, and the source of each file name below images/ (for `write_layout`).

    `left_out` holds positions in each split's `images` that are not taken. Category ids and names stay; image
    and annotation ids are fresh; records of one file are joined; sizes and boxes are those of the pictures as
    decoded.
    """
    contents: dict[str, dict] = {}
    names: dict[Path, str] = {}
    first_id = 1
    for split, coco in splits.items():
        records = _joined([r for i, r in enumerate(coco.images) if i not in left_out.get(split, ())])
        taken = set(names.values())
        for record in records:
            if record.path not in names:
                names[record.path] = _free_name(record.path, coco.root, taken)
                taken.add(names[record.path])
        contents[split] = _content(coco, records, first_id, names)
        first_id += len(records)
    return contents, {name: path for path, name in names.items()}


def _joined(records: list[ImageRecord]) -> list[ImageRecord]:
    """One record a file: boxes of records of the same file put together, exact repeats dropped."""
    table: dict[Path, list[ImageRecord]] = {}
    for record in records:
        table.setdefault(record.path, []).append(record)
    return [group[0] if len(group) == 1 else _join(group) for group in table.values()]


def _join(group: list[ImageRecord]) -> ImageRecord:
    """The record of one file from several."""
    rows = {}
    for name, areas in (("boxes", "areas"), ("crowd", "crowd_areas")):
        boxes = np.concatenate([getattr(record, name) for record in group])
        first = np.sort(np.unique(boxes, axis=0, return_index=True)[1])
        rows[name] = boxes[first]
        rows[areas] = np.concatenate([getattr(record, areas) for record in group])[first]
    return ImageRecord(group[0].id, group[0].path, group[0].width, group[0].height, **rows)


def _content(coco: CocoSet, records: list[ImageRecord], first_id: int, names: Mapping[Path, str]) -> dict:
    """The COCO content of one split, image ids from `first_id`."""
    ids = {k: int(key) if key.lstrip("-").isdecimal() else key for key, k in coco.class_map.items()}
    images, annotations = [], []
    for image_id, record in enumerate(records, first_id):
        images.append({"id": image_id, "file_name": names[record.path], "width": record.width,
                       "height": record.height})
        for rows, areas, crowd in ((record.boxes, record.areas, 0), (record.crowd, record.crowd_areas, 1)):
            for (label, x1, y1, x2, y2), area in zip(rows.tolist(), areas.tolist(), strict=True):
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, "iscrowd": crowd,
                                    "category_id": ids[int(label)], "bbox": [x1, y1, x2 - x1, y2 - y1],
                                    "area": area})
    return {"info": {}, "images": images, "annotations": annotations,
            "categories": [{"id": ids[k], "name": name} for k, name in enumerate(coco.names)]}


def _free_name(path: Path, root: Path, taken: Collection[str]) -> str:
    """A name below images/: the path below the picture folder, else the bare name, numbered when taken."""
    name = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    number, free = 1, name
    while free.as_posix() in taken:
        number += 1
        free = name.with_name(f"{name.stem}-{number}{name.suffix}")
    return free.as_posix()
