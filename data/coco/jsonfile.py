"""The annotation file itself: its three lists, the classes, ids that clash. Opens no image."""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data.coco.clean import Fault, fault, id_key
from utils.errors import DataError

SECTIONS = ("categories", "images", "annotations")
# names in class order, id_key(category id) -> class in this file, the map a checkpoint keeps, warnings
Classes = tuple[tuple[str, ...], dict[str, int], dict[str, int], list[Fault]]


def load_json(path: Path) -> tuple[dict, list[Fault]]:
    """Return the object in a UTF-8 JSON file and the fault of a byte-order mark, which is accepted."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    mark = 3 * data.startswith(b"\xef\xbb\xbf")
    try:
        text = data[mark:].decode("utf-8")
        content = json.loads(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 at byte offset {mark + error.start} of {len(data)}; "
                        "save it again as UTF-8") from None
    except json.JSONDecodeError as error:
        offset = mark + len(text[:error.pos].encode())
        cut = offset >= len(data.rstrip()) - 1 or "Unterminated" in error.msg
        ends = "the file breaks off (truncated)" if cut else error.msg
        raise DataError(f"{path}: not valid JSON at byte offset {offset} of {len(data)}: "
                        f"{ends if text.strip() else 'the file is empty'}; "
                        "download or export it again") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); export it again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a JSON {type(content).__name__}; a COCO file is an object with "
                        "`images`, `annotations` and `categories` (a list is what detections look like)")
    return content, fault("byte-order-mark", ("byte offset 0",) * (mark > 0),
                          "the file starts with a UTF-8 byte-order mark, accepted")


def sections(content: dict, path: Path) -> tuple[list[dict], list[dict], list[dict]]:
    """Return categories, images and annotations, each a list of objects; raise DataError where one lacks."""
    if missing := [key for key in SECTIONS if key not in content]:
        raise DataError(f"{path}: has no {' and no '.join(f'`{key}`' for key in missing)} "
                        f"(found: {', '.join(map(str, content)) or 'nothing'}); "
                        f"a COCO file needs all three of {', '.join(SECTIONS)}")
    for key in SECTIONS:
        if not isinstance(content[key], list) or not all(isinstance(v, dict) for v in content[key]):
            raise DataError(f"{path}: `{key}` must be a list of objects; fix the file or export it again")
        if not content[key] and key != "annotations":
            raise DataError(f"{path}: `{key}` is empty; nothing can be learned or measured from it")
    return tuple(content[key] for key in SECTIONS)


def coco_content(images: Iterable[tuple[str, int, int, Iterable[tuple]]], categories: Mapping[object, str],
                 first_id: int = 1, info: Mapping[str, object] | None = None) -> dict:
    """Return a COCO dict of images (name, width, height, (category id, x, y, w, h, area, crowd) of each)."""
    records, annotations = [], []
    for image_id, (name, width, height, boxes) in enumerate(images, first_id):
        records.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for category, x, y, w, h, area, crowd in boxes:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": category,
                                "bbox": [x, y, w, h], "area": area, "iscrowd": int(crowd)})
    return {"info": dict(info or {}), "images": records, "annotations": annotations,
            "categories": [{"id": key, "name": name} for key, name in categories.items()]}


def empty_parents(categories: list[dict], annotations: list[dict],
                  names: Sequence[str] | None) -> tuple[list[dict], list[Fault]]:
    """Return the categories without those that only name a group of others (Roboflow), and their fault."""
    used = {id_key(a.get("category_id")) for a in annotations}
    groups = {c.get("supercategory") for c in categories if c.get("supercategory") != c.get("name")
              and isinstance(c.get("supercategory"), str)}
    empty = [c for c in categories if str(c.get("name")) in groups and id_key(c.get("id")) not in used
             and c.get("name") not in (names or ()) and c.get("supercategory") in (None, "", "none")]
    if len(empty) == len(categories):
        return categories, []
    advice = "classes that name a group of the others and have no box, left out"
    kept = [c for c in categories if c not in empty]
    return kept, fault("empty-parent-class", [str(c["name"]) for c in empty], advice)


def class_table(categories: list[dict], path: Path, names: Sequence[str] | None,
                class_map: Mapping[str, int] | None) -> Classes:
    """Return a file's classes by sorted id or as in `names`, or with `class_map` the training set's.

    Raises DataError for missing or repeated ids or names, and for classes that do not agree.
    """
    if any(c.get("id") is None or c.get("name") in (None, "") for c in categories):
        raise DataError(f"{path}: a category has no `id` or no `name`; every one needs both")
    ids, own = [id_key(c["id"]) for c in categories], [str(c["name"]) for c in categories]
    for what, values in (("ids", ids), ("names", own)):
        if twice := [value for value, count in Counter(values).items() if count > 1]:
            raise DataError(f"{path}: category {what} must be unique, got {', '.join(map(repr, twice))} "
                            "more than once; rename or merge them in `categories`")
    numeric = all(value.removeprefix("-").isdecimal() for value in ids)
    order = sorted(zip(ids, own), key=lambda pair: int(pair[0]) if numeric else pair[0])
    if class_map is not None:
        return _training_classes(dict(order), path, names, class_map)
    if names is not None and sorted(names) != sorted(own):
        raise DataError(f"{path}: `names` lists {', '.join(names)} but `categories` holds {', '.join(own)}; "
                        "make them agree, or leave `names` out")
    names = tuple(names) if names is not None else tuple(name for _, name in order)
    table = {key: names.index(name) for key, name in order}
    return names, table, table, []


def _training_classes(own: Mapping[str, str], path: Path, names: Sequence[str] | None,
                      class_map: Mapping[str, int]) -> Classes:
    """Return the training set's classes for a file whose category ids lead to the names `own`."""
    if names is None:
        by_class = sorted(class_map, key=class_map.__getitem__)
        names = tuple(own.get(key, f"class {key}") for key in by_class)
    place = {name: k for k, name in enumerate(names)}
    if strange := [f"{name} (id {key})" for key, name in own.items() if name not in place]:
        raise DataError(f"{path}: {', '.join(strange[:5])} not among the {len(names)} classes trained on "
                        f"({', '.join(names[:10])}{', ...' if len(names) > 10 else ''}); "
                        "remove these categories or train with them")
    table = {key: place[name] for key, name in own.items()}
    other = [f"{name}: id {key}" for key, name in own.items() if class_map.get(key) != table[key]]
    return tuple(names), table, dict(class_map), fault(
        "category-ids-differ", other, "ids differ from the training file; matched by name")
