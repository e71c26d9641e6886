"""The COCO evaluator on arrays in memory: safe ids on entry, no files, no printing, either backend."""
from __future__ import annotations

import contextlib
import io
from collections import Counter

import numpy as np

from utils.errors import DataError

BACKENDS = ("auto", "pycocotools", "faster")


def own_ids(foreign: dict) -> tuple[dict, list[str]]:
    """Return a copy with ids 1.., and a sentence per kind of unsafe id; raise DataError for ids in disorder.

    To pycocotools an annotation with id 0 is never matched; of two with one id it evaluates one twice.
    """
    images, categories = foreign.get("images", []), foreign.get("categories", [])
    boxes = foreign.get("annotations", [])
    positions = {image["id"]: i + 1 for i, image in enumerate(images)}
    ids = [category["id"] for category in categories]
    numeric = all(str(key).lstrip("-").isdigit() for key in ids)
    order = {key: i for i, key in enumerate(sorted(ids, key=int if numeric else str), 1)}
    if len(positions) < len(images) or len(order) < len(categories):
        raise DataError("an image id or a category id occurs twice, and ids must be unique: "
                        "python -m data.doctor names them and writes a clean copy")
    lost = [a for a in boxes if a["image_id"] not in positions or a["category_id"] not in order]
    if lost:
        raise DataError(f"{len(lost)} annotations name an image or a category that is not listed (the first: "
                        f"image {lost[0]['image_id']!r}, category {lost[0]['category_id']!r}): "
                        "python -m data.doctor names them all")
    clean = {
        "images": [{"id": i, "height": image.get("height", 0), "width": image.get("width", 0)}
                   for i, image in enumerate(images, 1)],
        "categories": [{"id": i + 1} for i in range(len(categories))],
        "annotations": [{"id": i, "image_id": positions[a["image_id"]], "bbox": list(a["bbox"]),
                         "category_id": order[a["category_id"]], "iscrowd": int(a.get("iscrowd", 0)),
                         "area": a.get("area", a["bbox"][2] * a["bbox"][3])}
                        for i, a in enumerate(boxes, 1)]}
    seen = Counter(a.get("id") for a in boxes)
    faults = ((seen[0], "annotations with id 0"), (len(boxes) - len(seen), "duplicate annotation ids"))
    return clean, [f"{count} {what} renumbered" for count, what in faults if count]


def usable(detections: np.ndarray, images: int, classes: int) -> tuple[np.ndarray, int]:
    """Return finite rows [D, 7] and how many were not. Raises DataError for an unknown image or class."""
    rows = np.asarray(detections, dtype=np.float64).reshape(-1, 7)
    kept = rows[np.isfinite(rows).all(1) & (rows[:, 3] >= rows[:, 1]) & (rows[:, 4] >= rows[:, 2])]
    for column, limit, what in ((0, images, "image position"), (6, classes, "class")):
        outside = kept[(kept[:, column] < 0) | (kept[:, column] >= limit)]
        if len(outside):
            raise DataError(f"{len(outside)} detections have a {what} outside 0..{limit - 1}, the first "
                            f"{outside[0, column]:g}: the detections do not belong to this ground truth")
    return kept, len(rows) - len(kept)


def result_records(rows: np.ndarray) -> list[dict]:
    """Return COCO result records of rows [D, 7] (position, xyxy px, score, class): id = row + 1, xywh px."""
    return [{"id": i, "image_id": int(image) + 1, "category_id": int(k) + 1, "score": score, "iscrowd": 0,
             "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            for i, (image, x1, y1, x2, y2, score, k) in enumerate(rows.tolist(), 1)]


def evaluate_arrays(ground_truth: dict, found: list[dict], max_det: int, backend: str) -> tuple[dict, str]:
    """Return precision [T, R, K, A, 3], recall [T, K, A, 3] (at 1, 10, max_det; -1: undefined), backend."""
    coco_class, evaluator, used = _backend(backend)
    if not ground_truth["images"] or not ground_truth["categories"]:
        k = len(ground_truth["categories"])
        return {"precision": -np.ones((10, 101, k, 4, 3)), "recall": -np.ones((10, k, 4, 3))}, used
    with contextlib.redirect_stdout(io.StringIO()):      # the reference prints its progress
        sets = []
        for annotations in ([dict(a) for a in ground_truth["annotations"]], found):
            one = coco_class()
            one.dataset = {"info": {}, **ground_truth, "annotations": annotations}
            one.createIndex()
            sets.append(one)
        run = evaluator(*sets, iouType="bbox")
        run.params.maxDets = [min(1, max_det), min(10, max_det), max_det]
        run.evaluate()
        run.accumulate()
    return run.eval, used


def _backend(wanted: str) -> tuple[type, type, str]:
    """COCO class, evaluator class and name with version; "auto" is the fast backend where it is installed."""
    if wanted not in BACKENDS:
        raise ValueError(f"backend {wanted!r}: needs one of {', '.join(BACKENDS)}")
    from importlib.metadata import version
    if wanted != "pycocotools":
        try:
            from faster_coco_eval import COCO, COCOeval_faster
            return COCO, COCOeval_faster, f"faster-coco-eval {version('faster-coco-eval')}"
        except ImportError:
            if wanted == "faster":
                raise
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    return COCO, COCOeval, f"pycocotools {version('pycocotools')}"
