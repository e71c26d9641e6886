"""A data set written in COCO layout, cleaned, all at once: the new folder appears when it is complete."""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.coco.clean import written_id
from data.coco.jsonfile import coco_content
from data.coco.read import CocoSet, ImageRecord
from utils.errors import UsageError


def cleaned(splits: Mapping[str, CocoSet], left_out: Mapping[str, Collection[int]],
            ) -> tuple[dict[str, dict], dict[str, Path]]:
    """Return the COCO content of each split without the positions `left_out`, and the source of each name."""
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
        ids = {k: written_id(key) for key, k in coco.class_map.items()}
        contents[split] = coco_content(((names[r.path], r.width, r.height, r.rows(ids)) for r in records),
                                       {ids[k]: name for k, name in enumerate(coco.names)}, first_id)
        first_id += len(records)
    return contents, {name: path for path, name in names.items()}


def _joined(records: list[ImageRecord]) -> list[ImageRecord]:
    """Return one record per file: boxes of records of the same file joined, exact repeats dropped."""
    table: dict[Path, list[ImageRecord]] = {}
    for record in records:
        table.setdefault(record.path, []).append(record)
    for path, same in table.items():
        for name, areas in (("boxes", "areas"), ("crowd", "crowd_areas")) if len(same) > 1 else ():
            boxes = np.concatenate([getattr(record, name) for record in same])
            first = np.sort(np.unique(boxes, axis=0, return_index=True)[1])
            area = np.concatenate([getattr(record, areas) for record in same])[first]
            table[path] = [replace(table[path][0], **{name: boxes[first], areas: area})]
    return [same[0] for same in table.values()]


def _free_name(path: Path, root: Path, taken: Collection[str]) -> str:
    """Return a name below images/: the path below the image folder, else the bare name; numbered if taken."""
    below = path.relative_to(root).parts if path.is_relative_to(root) else (path.name,)
    name = Path(*(part for part in below if part not in ("images", "JPEGImages")))
    number, free = 1, name
    while free.as_posix() in taken:
        number += 1
        free = name.with_name(f"{name.stem}-{number}{name.suffix}")
    return free.as_posix()


def write_layout(contents: Mapping[str, dict], images: Mapping[str, Path],
                 out: Path) -> dict[str, tuple[int, int]]:
    """Write COCO contents by split and copies of images to a new folder; return (images, boxes) by split."""
    refuse_taken(out)
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        (part / "annotations").mkdir(parents=True)
        for split, content in contents.items():
            text = json.dumps(content)                 # ASCII, for names that are not UTF-8
            (part / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
        for name, source in images.items():
            target = part / "images" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        if out.is_dir():
            out.rmdir()
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return {split: (len(content["images"]), len(content["annotations"]))
            for split, content in contents.items()}


def refuse_taken(out: Path) -> None:
    """Raise UsageError unless `out` is a new or an empty folder: no file is ever overwritten."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out}: is there already and not an empty folder; give a new one")


def refuse_inside(target: Path, folders: Iterable[Path]) -> None:
    """Raise UsageError when `target` lies inside a folder of the data set."""
    for folder in folders:
        if target.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"{target}: lies inside the data set ({folder}), where nothing is ever written; "
                             "name a place outside it")
