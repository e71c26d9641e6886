"""Reading of COCO annotation files as they are in the wild, into one clean record that training and evaluation share.

Every fault is a record in `CocoSet.faults`; nothing is printed and nothing is written.
"""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.clean import Boxes, Fault, fault, fit_boxes, read_boxes, report_faults
from data.images import MAX_PIXELS, Inspection, inspect_all
from data.locate import Located, Split, find_pictures, locate
from utils.errors import DataError

__all__ = ["CocoSet", "Fault", "ImageRecord", "Located", "Split", "load_json", "locate", "read_coco", "report_faults"]


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """A picture and its boxes; width and height in px are those of the picture as decoded (EXIF rotation applied)."""

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
        """A clean COCO dict for pycocotools: image id = position + 1, category id = class + 1, annotation ids 1..n.

        pycocotools scores an annotation with id 0 as missed and mixes up duplicate ids, hence the fresh numbers.
        """
        annotations = []
        for position, image in enumerate(self.images):
            for boxes, areas, crowd in ((image.boxes, image.areas, 0), (image.crowd, image.crowd_areas, 1)):
                for (label, x1, y1, x2, y2), area in zip(boxes.tolist(), areas.tolist()):
                    annotations.append({"id": len(annotations) + 1, "image_id": position + 1, "iscrowd": crowd,
                                        "category_id": int(label) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area})
        return {"info": {}, "annotations": annotations,
                "images": [{"id": i + 1, "file_name": image.path.name, "width": image.width, "height": image.height}
                           for i, image in enumerate(self.images)],
                "categories": [{"id": k + 1, "name": name} for k, name in enumerate(self.names)]}


def read_coco(json_path: str | Path, image_dir: str | Path, *, max_pixels: int = MAX_PIXELS, drop_unknown: bool = False,
              trust: str | None = None, verify: bool = True, names: Sequence[str] | None = None,
              class_map: Mapping[str, int] | None = None, memo: Path | None = None, strict: bool = True) -> CocoSet:
    """The cleaned data set of an annotation file and its picture folder.

    Pictures that are missing or cannot be decoded are left out and reported; pictures without boxes stay, as negatives.
    Crowd boxes are kept apart. `names` with `class_map` are those of the training set, so that classes keep their
    numbers; `names` alone (from a YAML) give the classes their order. `verify=False` trusts the stated sizes and opens
    no picture. `trust` settles stated sizes that differ from the pictures ("image": boxes follow the pictures, "json":
    boxes stay). `memo`: see `images.inspect_all`. Raises DataError for every fault that would make training wrong;
    `strict=False` only records those that leave the rest readable.
    """
    json_path, image_dir = Path(json_path), Path(image_dir)
    content, faults = load_json(json_path)
    categories, images, annotations = _sections(content, json_path)
    names, classes, own_map, found = _classes(categories, json_path, names, class_map)
    faults += found + _duplicates(images, annotations)
    paths, found = find_pictures([str(image.get("file_name", "")) for image in images], image_dir, json_path)
    faults += found
    stated = np.array([(_side(image.get("width")), _side(image.get("height"))) for image in images], np.int64).reshape(-1, 2)
    real, found = _inspect(paths, stated, images, max_pixels, verify, memo)
    faults += found + _sizes_differ(images, stated, real, trust)
    positions = {str(image.get("id")): i for i, image in enumerate(images)}
    boxes, found = read_boxes(annotations, positions, classes, drop_unknown)
    faults += found
    boxes = boxes.where(np.array([r.problem == "" for r in real], bool)[boxes.image])
    boxes, found = fit_boxes(boxes, annotations, stated, real, trust)
    faults += found
    _stop(json_path, faults, strict)
    records = _records(images, paths, real, boxes)
    if not records:
        raise DataError(f"{json_path}: not one picture can be used:\n" + "\n".join(report_faults(faults)))
    return CocoSet(names, own_map, records, tuple(faults), image_dir)


def load_json(path: Path) -> tuple[dict, list[Fault]]:
    """The object in a UTF-8 JSON file, and a fault when it starts with a byte-order mark (accepted).

    Raises DataError with the byte offset of what cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    mark = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    try:
        text = data[mark:].decode("utf-8")
        content = json.loads(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 at byte offset {mark + error.start}; save it again as UTF-8") from None
    except json.JSONDecodeError as error:
        offset = mark + len(text[:error.pos].encode())
        ends = "is empty" if not text.strip() else \
            "breaks off (truncated)" if offset >= len(data.rstrip()) - 1 or "Unterminated" in error.msg else error.msg
        raise DataError(f"{path}: not valid JSON at byte offset {offset} of {len(data)}: {ends}; "
                        "download or export it again") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); export it again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a JSON {type(content).__name__}; a COCO file is an object with `images`, "
                        "`annotations` and `categories` (a list is what detections look like)")
    return content, fault("byte-order-mark", ("byte offset 0",), "the file starts with a UTF-8 byte-order mark, accepted") if mark else []


def _sections(content: dict, path: Path) -> tuple[list[dict], list[dict], list[dict]]:
    """Categories, images and annotations, each a list of objects; DataError names what is missing."""
    wanted = ("categories", "images", "annotations")
    missing = [key for key in wanted if key not in content]
    if missing:
        raise DataError(f"{path}: has no {' and no '.join(f'`{key}`' for key in missing)} "
                        f"(found: {', '.join(map(str, content)) or 'nothing'}); a COCO file needs all three of {', '.join(wanted)}")
    for key in wanted:
        bad = not isinstance(content[key], list) or next((i for i, v in enumerate(content[key]) if not isinstance(v, dict)), None)
        if bad is True or (bad is not None and bad is not False):
            raise DataError(f"{path}: `{key}` must be a list of objects; fix the file or export it again")
    for key in ("categories", "images"):
        if not content[key]:
            raise DataError(f"{path}: `{key}` is empty; nothing can be learned or measured from it")
    return tuple(content[key] for key in wanted)


def _classes(categories: list[dict], path: Path, names: Sequence[str] | None, class_map: Mapping[str, int] | None,
             ) -> tuple[tuple[str, ...], dict[str, int], dict[str, int], list[Fault]]:
    """Class names, str(category id) -> class of this file, the map to store, and warnings; DataError for ambiguity."""
    ids, own = [str(c.get("id")) for c in categories], [str(c.get("name", "")) for c in categories]
    for what, values in (("ids", ids), ("names", own)):
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice or "" in values or "None" in ids:
            raise DataError(f"{path}: category {what} must be present and unique, got {', '.join(map(repr, twice)) or 'none'} "
                            f"{'more than once' if twice else 'for one'}; rename or merge them in `categories`")
    numeric = all(value.lstrip("-").isdecimal() for value in ids)
    order = sorted(range(len(ids)), key=lambda i: int(ids[i]) if numeric else ids[i])
    by_name = dict(zip(own, ids))
    if class_map is None:
        if names is not None and (set(names) != set(own) or len(names) != len(own)):
            raise DataError(f"{path}: `names` lists {', '.join(names)} but `categories` holds {', '.join(own)}; "
                            "make them agree, or leave `names` out")
        ordered = tuple(names) if names is not None else tuple(own[i] for i in order)
        table = {by_name[name]: k for k, name in enumerate(ordered)}
        return ordered, table, {ids[i]: table[ids[i]] for i in order}, []
    names = tuple(names) if names is not None else tuple(dict(zip(ids, own)).get(key, f"class {key}") for key in class_map)
    place = {name: k for k, name in enumerate(names)}
    strange = [f"{name} (id {key})" for name, key in by_name.items() if name not in place]
    if strange:
        raise DataError(f"{path}: {', '.join(strange[:5])} not among the {len(names)} classes trained on "
                        f"({', '.join(names[:10])}{', ...' if len(names) > 10 else ''}); remove these categories or train with them")
    table = {key: place[name] for name, key in by_name.items()}
    other = [f"{name}: id {key}" for name, key in by_name.items() if class_map.get(key) != table[key]]
    return names, table, dict(class_map), fault("category-ids-differ", other, "ids differ from the training file; matched by name")


def _duplicates(images: list[dict], annotations: list[dict]) -> list[Fault]:
    """Faults of ids that appear twice and of one file under two ids."""
    def twice(values: list[str]) -> list[str]:
        return [f"{value} ({count} times)" for value, count in Counter(values).items() if count > 1]

    numbers = [str(a.get("id")) for a in annotations]
    zero = [f"annotation id {n}" for n in numbers if n in ("0", "None")]
    return (fault("duplicate-image-id", twice([str(i.get("id")) for i in images]),
                  "image ids must be unique, or boxes land on the wrong picture: renumber them", True)
            + fault("same-file-twice", twice([str(i.get("file_name", "")) for i in images]),
                    "one picture under several image ids: its boxes are split, it counts twice")
            + fault("duplicate-annotation-id", twice(numbers), "ids renumbered in memory: pycocotools would mix them up")
            + fault("annotation-id-zero", zero, "ids renumbered in memory: pycocotools would count these as missed"))


def _inspect(paths: list[Path | None], stated: np.ndarray, images: list[dict], max_pixels: int, verify: bool,
             memo: Path | None) -> tuple[list[Inspection], list[Fault]]:
    """One Inspection an image (a missing file has a problem), and a fault for those that cannot be decoded."""
    real = [Inspection(0, 0, 1, "missing") if path is None else Inspection(int(w), int(h), 1, "")
            for path, (w, h) in zip(paths, stated)]
    todo = [i for i, path in enumerate(paths) if path is not None and (verify or min(stated[i]) < 1)]
    for i, found in zip(todo, inspect_all([paths[i] for i in todo], max_pixels, memo)):
        real[i] = found
    bad = [f"{images[i].get('file_name')} {real[i].problem}" for i in todo if real[i].problem]
    return real, fault("undecodable-picture", bad, "pictures left out with their boxes")


def _sizes_differ(images: list[dict], stated: np.ndarray, real: Sequence[Inspection], trust: str | None) -> list[Fault]:
    """The fault of pictures whose size is not what the file states."""
    faults = fault("missing-size", [str(i.get("file_name")) for i, s in zip(images, stated) if min(s) < 1],
                   "`width` or `height` missing, taken from the pictures")
    wrong = [f"{image.get('file_name')} is {r.width}x{r.height}, stated {w}x{h}"
             + (" (the size before EXIF rotation)" if r.orientation > 4 and (w, h) == (r.height, r.width) else "")
             for image, (w, h), r in zip(images, stated, real) if not r.problem and min(w, h) > 0 and (w, h) != (r.width, r.height)]
    advice = {None: "pictures whose size is not the stated one: pass --trust image to move the boxes with the pictures, "
                    "--trust json to leave them", "image": "pictures of another size than stated, boxes moved with them",
              "json": "pictures of another size than stated, boxes left as they are"}[trust]
    return faults + fault("size-differs", wrong, advice, trust is None)


def _stop(path: Path, faults: list[Fault], strict: bool) -> None:
    """Raises DataError when a fault is fatal, with one sentence each."""
    fatal = [f for f in faults if f.fatal]
    if fatal and strict:
        raise DataError(f"{path}: cannot be used as it is:\n" + "\n".join(report_faults(fatal)))


def _records(images: list[dict], paths: list[Path | None], real: Sequence[Inspection], boxes: Boxes) -> tuple[ImageRecord, ...]:
    """One record a usable picture, in the file's order."""
    table = np.concatenate((boxes.label[:, None], boxes.xyxy), 1).astype(np.float32)
    order = np.argsort(boxes.image, kind="stable")
    bounds = np.searchsorted(boxes.image[order], np.arange(len(images) + 1))
    records = []
    for i, (image, path, r) in enumerate(zip(images, paths, real)):
        if r.problem or path is None:
            continue
        rows = order[bounds[i]:bounds[i + 1]]
        plain, crowd = rows[~boxes.crowd[rows]], rows[boxes.crowd[rows]]
        records.append(ImageRecord(image.get("id"), path, r.width, r.height, table[plain], table[crowd],
                                   boxes.area[plain].astype(np.float32), boxes.area[crowd].astype(np.float32)))
    return tuple(records)


def _side(value: object) -> int:
    """A stated width or height in px; 0 when it is missing or no positive whole number."""
    return int(value) if type(value) in (int, float) and 0 < value < 1e6 and value == int(value) else 0
