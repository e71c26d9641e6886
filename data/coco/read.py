"""COCO annotation files as they are in the wild, read into one clean record that holds their faults."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data.coco.clean import Boxes, Fault, duplicate_ids, fault, fit_boxes, read_boxes, repeated, report_faults
from data.coco.find import find_images, image_files
from data.coco.jsonfile import class_table, coco_content, empty_parents, load_json, sections
from data.images import MAX_PIXELS, Inspection, inspect_all
from utils.errors import DataError


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """An image and its boxes; width and height in px are those after EXIF rotation, as decoded."""

    id: int | str
    path: Path
    width: int
    height: int
    boxes: np.ndarray              # float32 [M, 5] (class, xyxy px)
    crowd: np.ndarray              # float32 [C, 5], the same; never a target, ignored in evaluation
    areas: np.ndarray              # float32 [M] px^2
    crowd_areas: np.ndarray        # float32 [C] px^2
    written: np.ndarray            # float64 [T, 7] (class, top-left xywh px, area, crowd) as the file has it
    crc: int                       # of the file's bytes; 0 where it was not opened

    def rows(self, ids: Mapping[int, object]) -> Iterator[tuple]:
        """Yield COCO's (category id, x, y, w, h, area, crowd) of every box; `ids` leads from class to id."""
        for boxes, areas, crowd in ((self.boxes, self.areas, 0), (self.crowd, self.crowd_areas, 1)):
            for (label, x1, y1, x2, y2), area in zip(boxes.tolist(), areas.tolist(), strict=True):
                yield ids[int(label)], x1, y1, x2 - x1, y2 - y1, area, crowd


@dataclass(frozen=True, eq=False)
class CocoSet:
    """A data set once read and cleaned. `class_map` leads from str(category id) to the class 0..K-1."""

    names: tuple[str, ...]
    class_map: dict[str, int]
    images: tuple[ImageRecord, ...]
    faults: tuple[Fault, ...]
    root: Path
    listed: tuple[Path | str, ...] = ()        # all images of the file; bare names of those not found
    unlabelled: tuple[ImageRecord, ...] = ()   # without ground truth: what only a teacher speaks of

    @cached_property
    def records(self) -> tuple[ImageRecord, ...]:
        """Return all that training sees: the images, then those without ground truth."""
        return (*self.images, *self.unlabelled)

    def ground_truth(self) -> dict:
        """Return a clean COCO dict: image id = position + 1, category id = class + 1, annotation ids 1..n."""
        ids = {k: k + 1 for k in range(len(self.names))}
        return coco_content(((r.path.name, r.width, r.height, r.rows(ids)) for r in self.images),
                            dict(enumerate(self.names, 1)))

    def as_written(self) -> tuple[dict, np.ndarray]:
        """Return that dict with every box as the file has it, repeated ones too: what AP is measured on.

        Images come in the order of the file's ids, by which equal scores are ranked; with their int64 [I]
        places in it, by position.
        """
        def of_id(position: int) -> tuple:
            found = self.images[position].id
            return (0, found, "") if isinstance(found, int | float) else (1, 0, str(found))
        order = sorted(range(len(self.images)), key=of_id)
        rows = ((r.path.name, r.width, r.height, [
            (int(k) + 1, *box, area, crowd) for k, *box, area, crowd in r.written.tolist()])
            for r in (self.images[i] for i in order))
        return coco_content(rows, dict(enumerate(self.names, 1))), np.argsort(order)


def read_coco(json_path: str | Path, image_dir: str | Path,
              content: Callable[[int], tuple[dict, list[Fault]]] | None = None, *,
              max_pixels: int = MAX_PIXELS, drop_unknown: bool = False, trust: str | None = None,
              verify: bool = True, strict: bool = True, names: Sequence[str] | None = None,
              class_map: Mapping[str, int] | None = None, memo: Path | None = None) -> CocoSet:
    """Return the cleaned data set of an annotation file, or of what `content` makes of it, and its images.

    `names` with `class_map` are the training set's, `names` alone give an order. `verify=False` opens no
    image. `trust` settles sizes that differ ("image": boxes follow the images, "json": they stay). Raises
    DataError for faults that would make training wrong; `strict=False` records what it can of these.
    """
    json_path, image_dir = Path(json_path), Path(image_dir)
    made, faults = content(max_pixels) if content else load_json(json_path)
    categories, images, annotations = sections(made, json_path)
    categories, found = empty_parents(categories, annotations, names)
    names, classes, stored_map, differ = class_table(categories, json_path, names, class_map)
    faults = [*faults, *found, *differ, *duplicate_ids(images, annotations)]
    file_names = [str(image.get("file_name") or "") for image in images]
    paths, sought = find_images(file_names, image_dir, json_path)
    stated = np.array([(_side(image.get("width")), _side(image.get("height"))) for image in images], np.int64)
    real, opened = _inspect(paths, stated, images, max_pixels, verify, memo)
    faults += sought + opened + _sizes_differ(images, stated, real, trust) + fault(
        "same-file-twice", repeated(os.path.relpath(path, image_dir) for path in paths if path),
        "one image under several image ids: its boxes are split, each half teaches the other as background; "
        "python -m data.doctor SET --fix OUT joins them")
    boxes, read = read_boxes(annotations, images, classes, drop_unknown)
    boxes = boxes.where(np.array([r.problem == "" for r in real], bool)[boxes.image])
    boxes, counted, fitted = fit_boxes(boxes, annotations, stated, real, trust)
    faults += read + fitted
    if strict and (fatal := [f for f in faults if f.fatal]):
        raise DataError(f"{json_path}: cannot be used as it is:\n" + "\n".join(report_faults(fatal)))
    if not (records := _records(images, paths, real, boxes, counted)):
        raise DataError(f"{json_path}: not one image can be used:\n" + "\n".join(report_faults(faults)))
    if not any(len(record.boxes) for record in records):
        faults += fault("split-without-boxes", [json_path.name], "no box to measure against or to learn from "
                        "in this split: its AP is undefined, and no epoch can be the best")
    listed = tuple(path or name.replace("\\", "/").rsplit("/", 1)[-1]
                   for path, name in zip(paths, file_names))
    return CocoSet(names, stored_map, records, tuple(faults), image_dir, listed)


def read_unlabelled(folder: str | Path, max_pixels: int = MAX_PIXELS,
                    memo: Path | None = None) -> tuple[tuple[ImageRecord, ...], list[Fault]]:
    """Return the images below a folder as records without boxes, and the fault of those that are left out.

    Raises DataError where not one can be read.
    """
    root = Path(folder).expanduser()
    paths = image_files(root)
    found = inspect_all(paths, max_pixels, memo)
    bad = fault("undecodable-image", [f"{path.name} {seen.problem}" for path, seen in zip(paths, found)
                                      if seen.problem], "unlabelled images left out")
    none, written = np.zeros((0, 5), np.float32), np.zeros((0, 7))
    records = tuple(ImageRecord(path.relative_to(root).as_posix(), path, seen.width, seen.height, none, none,
                                none[:, 0], none[:, 0], written, seen.crc)
                    for path, seen in zip(paths, found) if not seen.problem)
    if not records:
        raise DataError(f"{folder}: not one image below this folder can be used; give one that holds images"
                        + "".join(f"\n{line}" for line in report_faults(bad)))
    return records, bad


def _inspect(paths: list[Path | None], stated: np.ndarray, images: list[dict], max_pixels: int, verify: bool,
             memo: Path | None) -> tuple[list[Inspection], list[Fault]]:
    """Return one Inspection per image (a missing file has a problem), and the fault of undecodable ones."""
    real = [Inspection(0, 0, 1, "missing") if path is None else Inspection(int(w), int(h), 1, "")
            for path, (w, h) in zip(paths, stated)]
    todo = [i for i, path in enumerate(paths) if path is not None and (verify or min(stated[i]) < 1)]
    for i, found in zip(todo, inspect_all([paths[i] for i in todo], max_pixels, memo)):
        real[i] = found
    bad = [f"{images[i].get('file_name')} {real[i].problem}" for i in todo if real[i].problem]
    return real, fault("undecodable-image", bad, "images left out with their boxes")


def _sizes_differ(images: list[dict], stated: np.ndarray, real: Sequence[Inspection],
                  trust: str | None) -> list[Fault]:
    """Return the faults of images whose size is not stated, or not what the file states."""
    faults = fault("missing-size", [str(i.get("file_name")) for i, s in zip(images, stated) if min(s) < 1],
                   "`width` or `height` missing, taken from the images")
    wrong, exchanged = [], []
    for image, (w, h), r in zip(images, stated, real):
        if r.problem or min(w, h) < 1 or (w, h) == (r.width, r.height):
            continue
        crossed = (w, h) == (r.height, r.width)
        turned = " (the size before EXIF rotation)" if crossed and r.orientation > 4 else ""
        (exchanged if crossed and not turned else wrong).append(
            f"{image.get('file_name')} is {r.width}x{r.height}, stated {w}x{h}{turned}")
    faults += fault("size-exchanged", exchanged, "images whose stated width and height are exchanged" + (
        ", boxes left as they are" if trust else ": correct the file, or pass --trust json if the boxes are "
        "right"), trust is None)
    advice = {None: "images whose size is not the stated one: pass --trust image to move the boxes with "
                    "the images, --trust json to leave them",
              "image": "images of another size than stated, boxes moved with them",
              "json": "images of another size than stated, boxes left as they are"}[trust]
    return faults + fault("size-differs", wrong, advice, trust is None)


def _records(images: list[dict], paths: list[Path | None], real: Sequence[Inspection],
             boxes: Boxes, counted: Boxes) -> tuple[ImageRecord, ...]:
    """Return one record per usable image, in the file's order."""
    table = np.concatenate((boxes.label[:, None], boxes.xyxy), 1).astype(np.float32)
    areas = boxes.area.astype(np.float32)
    own, written = _by_image(boxes, len(images)), _by_image(counted, len(images))
    truth = np.column_stack((counted.label, counted.written, counted.crowd)).astype(np.float64)
    records = []
    for i, (image, path, r) in enumerate(zip(images, paths, real)):
        if r.problem or path is None:
            continue
        rows = own[i]
        plain, crowd = rows[~boxes.crowd[rows]], rows[boxes.crowd[rows]]
        records.append(ImageRecord(image.get("id"), path, r.width, r.height, table[plain], table[crowd],
                                   areas[plain], areas[crowd], truth[written[i]], r.crc))
    return tuple(records)


def _by_image(boxes: Boxes, images: int) -> list[np.ndarray]:
    """Return the rows of the boxes of each image, in the file's order."""
    order = np.argsort(boxes.image, kind="stable")
    return np.split(order, np.searchsorted(boxes.image[order], np.arange(1, images)))


def _side(value: object) -> int:
    """Return a stated width or height in px; 0 when it is missing or no positive whole number."""
    return int(value) if type(value) in (int, float) and 0 < value < 1e6 and value == int(value) else 0
