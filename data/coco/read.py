"""Reading of COCO annotation files as they are in the wild, into one clean record that training and
evaluation share.

Every fault is a record in `CocoSet.faults`; nothing is printed and nothing is written.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.coco.clean import Boxes, Fault, fault, fit_boxes, id_key, read_boxes, report_faults
from data.coco.jsonfile import class_table, duplicates, load_json, sections
from data.coco.locate import Located, Split, find_pictures, locate
from data.images import MAX_PIXELS, Inspection, inspect_all
from utils.errors import DataError

__all__ = ["CocoSet", "Fault", "ImageRecord", "Located", "Split", "load_json", "locate", "read_coco",
           "report_faults"]


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """A picture and its boxes; width and height in px are those after EXIF rotation, as decoded."""

    id: int | str
    path: Path
    width: int
    height: int
    boxes: np.ndarray              # float32 [M, 5] (class, xyxy px)
    crowd: np.ndarray              # float32 [C, 5], the same; never a target, ignored in evaluation
    areas: np.ndarray              # float32 [M] px^2
    crowd_areas: np.ndarray        # float32 [C] px^2


@dataclass(frozen=True, eq=False)
class CocoSet:
    """A data set once read and cleaned. `class_map` leads from str(category id) to the class 0..K-1."""

    names: tuple[str, ...]
    class_map: dict[str, int]
    images: tuple[ImageRecord, ...]
    faults: tuple[Fault, ...]
    root: Path

    def ground_truth(self) -> dict:
        """A clean COCO dict for pycocotools: image id = position + 1, category id = class + 1, annotation ids
        1..n.

        pycocotools scores an annotation with id 0 as missed and mixes up duplicate ids, hence the fresh
        numbers.
        """
        annotations = []
        for position, image in enumerate(self.images):
            for boxes, areas, crowd in ((image.boxes, image.areas, 0), (image.crowd, image.crowd_areas, 1)):
                for (label, x1, y1, x2, y2), area in zip(boxes.tolist(), areas.tolist()):
                    annotations.append({"id": len(annotations) + 1, "image_id": position + 1,
                                        "category_id": int(label) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1],
                                        "area": area, "iscrowd": crowd})
        images = [{"id": i + 1, "file_name": r.path.name, "width": r.width, "height": r.height}
                  for i, r in enumerate(self.images)]
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(self.names)]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def read_coco(json_path: str | Path, image_dir: str | Path, *, max_pixels: int = MAX_PIXELS,
              drop_unknown: bool = False, trust: str | None = None, verify: bool = True,
              names: Sequence[str] | None = None, class_map: Mapping[str, int] | None = None,
              memo: Path | None = None, strict: bool = True) -> CocoSet:
    """The cleaned data set of an annotation file and its picture folder.

    Pictures that are missing or cannot be decoded are left out and reported; pictures without boxes stay, as
    negatives. Crowd boxes are kept apart. `names` with `class_map` are those of the training set, so that
    classes keep their numbers; `names` alone (from a YAML) give the classes their order. `verify=False`
    trusts the stated sizes and opens no picture. `trust` settles stated sizes that differ from the pictures
    ("image": boxes follow the pictures, "json": boxes stay). `memo`: see `images.inspect_all`. Raises
    DataError for every fault that would make training wrong; `strict=False` only records those that leave the
    rest readable.
    """
    if trust not in (None, "image", "json"):
        raise ValueError(f"trust {trust!r}: needs image, json or None")
    json_path, image_dir = Path(json_path), Path(image_dir)
    content, faults = load_json(json_path)
    categories, images, annotations = sections(content, json_path)
    names, classes, stored_map, found = class_table(categories, json_path, names, class_map)
    faults += found + duplicates(images, annotations)
    paths, found = find_pictures([str(image.get("file_name", "")) for image in images], image_dir, json_path)
    faults += found
    stated = np.array([(_side(image.get("width")), _side(image.get("height"))) for image in images], np.int64)
    real, found = _inspect(paths, stated, images, max_pixels, verify, memo)
    faults += found + _sizes_differ(images, stated, real, trust)
    positions = {id_key(image.get("id")): i for i, image in enumerate(images)}
    boxes, found = read_boxes(annotations, positions, classes, drop_unknown)
    faults += found
    boxes = boxes.where(np.array([r.problem == "" for r in real], bool)[boxes.image])
    boxes, found = fit_boxes(boxes, annotations, stated, real, trust)
    faults += found
    _stop(json_path, faults, strict)
    records = _records(images, paths, real, boxes)
    if not records:
        raise DataError(f"{json_path}: not one picture can be used:\n" + "\n".join(report_faults(faults)))
    return CocoSet(names, stored_map, records, tuple(faults), image_dir)


def _inspect(paths: list[Path | None], stated: np.ndarray, images: list[dict], max_pixels: int, verify: bool,
             memo: Path | None) -> tuple[list[Inspection], list[Fault]]:
    """One Inspection an image (a missing file has a problem), and the fault of undecodable ones."""
    real = [Inspection(0, 0, 1, "missing") if path is None else Inspection(int(w), int(h), 1, "")
            for path, (w, h) in zip(paths, stated)]
    todo = [i for i, path in enumerate(paths) if path is not None and (verify or min(stated[i]) < 1)]
    for i, found in zip(todo, inspect_all([paths[i] for i in todo], max_pixels, memo)):
        real[i] = found
    bad = [f"{images[i].get('file_name')} {real[i].problem}" for i in todo if real[i].problem]
    return real, fault("undecodable-picture", bad, "pictures left out with their boxes")


def _sizes_differ(images: list[dict], stated: np.ndarray, real: Sequence[Inspection],
                  trust: str | None) -> list[Fault]:
    """The fault of pictures whose size is not what the file states."""
    faults = fault("missing-size", [str(i.get("file_name")) for i, s in zip(images, stated) if min(s) < 1],
                   "`width` or `height` missing, taken from the pictures")
    wrong = []
    for image, (w, h), r in zip(images, stated, real):
        if r.problem or min(w, h) < 1 or (w, h) == (r.width, r.height):
            continue
        unturned = r.orientation > 4 and (w, h) == (r.height, r.width)
        turned = " (the size before EXIF rotation)" if unturned else ""
        wrong.append(f"{image.get('file_name')} is {r.width}x{r.height}, stated {w}x{h}{turned}")
    advice = {None: "pictures whose size is not the stated one: pass --trust image to move the boxes with "
                    "the pictures, --trust json to leave them",
              "image": "pictures of another size than stated, boxes moved with them",
              "json": "pictures of another size than stated, boxes left as they are"}[trust]
    return faults + fault("size-differs", wrong, advice, trust is None)


def _stop(path: Path, faults: list[Fault], strict: bool) -> None:
    """Raises DataError when a fault is fatal, with one sentence each."""
    fatal = [f for f in faults if f.fatal]
    if fatal and strict:
        raise DataError(f"{path}: cannot be used as it is:\n" + "\n".join(report_faults(fatal)))


def _records(images: list[dict], paths: list[Path | None], real: Sequence[Inspection],
             boxes: Boxes) -> tuple[ImageRecord, ...]:
    """One record a usable picture, in the file's order."""
    table = np.concatenate((boxes.label[:, None], boxes.xyxy), 1).astype(np.float32)
    areas = boxes.area.astype(np.float32)
    order = np.argsort(boxes.image, kind="stable")
    bounds = np.searchsorted(boxes.image[order], np.arange(len(images) + 1))
    records = []
    for i, (image, path, r) in enumerate(zip(images, paths, real)):
        if r.problem or path is None:
            continue
        rows = order[bounds[i]:bounds[i + 1]]
        plain, crowd = rows[~boxes.crowd[rows]], rows[boxes.crowd[rows]]
        records.append(ImageRecord(image.get("id"), path, r.width, r.height, table[plain], table[crowd],
                                   areas[plain], areas[crowd]))
    return tuple(records)


def _side(value: object) -> int:
    """A stated width or height in px; 0 when it is missing or no positive whole number."""
    return int(value) if type(value) in (int, float) and 0 < value < 1e6 and value == int(value) else 0
