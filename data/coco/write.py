"""A data set written in COCO layout, all at once: the new folder appears when it is complete."""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from utils.errors import UsageError


def write_layout(contents: Mapping[str, dict], pictures: Mapping[str, Path],
                 out: Path) -> dict[str, tuple[int, int]]:
    """(pictures, boxes) of each split written: out/annotations/instances_<split>.json and copies in
    out/images.

    `contents` holds the COCO content of each split, `pictures` the source of each file name below images/. A
    failure leaves nothing behind. Raises UsageError when `out` is taken.
    """
    refuse_taken(out)
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        (part / "annotations").mkdir(parents=True)
        for split, content in contents.items():
            text = json.dumps(content, ensure_ascii=False)
            (part / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
        for name, source in pictures.items():
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
    """Nothing, when `out` is a new or an empty folder; UsageError otherwise: no file is ever overwritten."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out}: is there already and not an empty folder; give a new one")


def refuse_inside(target: Path, folders: Iterable[Path]) -> None:
    """Nothing, when `target` lies outside every folder of the data set; UsageError otherwise."""
    for folder in folders:
        if target.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"{target}: lies inside the data set ({folder}), where nothing is ever written; "
                             "name a place outside it")
