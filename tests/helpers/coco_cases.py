"""Ground truth and detections for the tests of evaluation; pycocotools run the usual way, their oracle."""
from __future__ import annotations

import contextlib
import copy
import io

import numpy as np

from evaluation.metrics import NUMBERS

SQUARES = [(10, 10, 40, 40), (100, 100, 50, 50), (200, 20, 60, 60)]     # top-left xywh px, far apart


def coco(boxes: list[tuple], names: tuple[str, ...] = ("cat", "dog"), images: int = 1) -> dict:
    """A COCO dict of boxes (image 0-based, class, x, y, w, h[, iscrowd])."""
    return {"images": [{"id": i + 1, "width": 400, "height": 400} for i in range(images)],
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(names)],
            "annotations": [{"id": n, "image_id": b[0] + 1, "category_id": b[1] + 1, "bbox": list(b[2:6]),
                             "area": b[4] * b[5], "iscrowd": b[6] if len(b) > 6 else 0}
                            for n, b in enumerate(boxes, 1)]}


def row(image: int, label: int, box: tuple, score: float = 0.9) -> list[float]:
    """A detection row of a top-left xywh box."""
    return [image, box[0], box[1], box[0] + box[2], box[1] + box[3], score, label]


def crowded(images: int = 60, classes: int = 4, seed: int = 0) -> tuple[dict, np.ndarray]:
    """Random ground truth (some crowds, all sizes) and detections near and far from it, with tied scores."""
    rng = np.random.default_rng(seed)
    boxes, rows = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 7)):
            x, y, w, h = *rng.uniform(0, 200, 2), *rng.uniform(6, 180, 2)
            boxes.append((image, int(rng.integers(classes)), x, y, w, h, int(rng.random() < 0.08)))
            for _ in range(rng.integers(0, 4)):
                near = np.array([x, y, w, h]) + rng.normal(0, 0.12, 4) * [w, h, w, h]
                label = boxes[-1][1] if rng.random() < 0.8 else int(rng.integers(classes))
                rows.append(row(image, label, (*near[:2], *np.abs(near[2:])), round(float(rng.random()), 2)))
        for _ in range(4):
            far = (*rng.uniform(0, 200, 2), *rng.uniform(6, 90, 2))
            rows.append(row(image, int(rng.integers(classes)), far, round(float(rng.random()), 2)))
    return coco(boxes, tuple(f"c{k}" for k in range(classes)), images), np.array(rows)


def plain_pycocotools(ground_truth: dict, rows: np.ndarray) -> object:
    """COCOeval after the usual loadRes, evaluate, accumulate, summarize."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = copy.deepcopy(ground_truth)
        reference.createIndex()
        results = [{"image_id": int(r[0]) + 1, "category_id": int(r[6]) + 1, "score": r[5],
                    "bbox": [r[1], r[2], r[3] - r[1], r[4] - r[2]]} for r in rows.tolist()]
        run = COCOeval(reference, reference.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def twelve(metrics: object) -> list[float]:
    """The twelve numbers with pycocotools' -1 where there is no ground truth."""
    return [-1.0 if getattr(metrics, name) is None else getattr(metrics, name) for name in NUMBERS]
