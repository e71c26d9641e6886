"""What a data set is made of, as plain numbers: classes, box sizes at the network's input, anchors, time."""
from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import numpy as np

from data.anchors import anchor_recall, fit_anchors
from data.coco.read import CocoSet, ImageRecord
from data.images import decode
from utils.boxes import letterbox_geometry
from utils.errors import DataError

TINY_ANCHORS = ((23, 27), (37, 58), (81, 82), (135, 169), (344, 319))    # px, what the tiny networks have
ALIKE = 0.75               # mean best IoU of fitted anchors; bccd has .85, digits .82, voc5 .61
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
SMALL, MEDIUM = 32 ** 2, 96 ** 2       # px^2, COCO's limits, here at the network's input
UNSEEN = 8                 # px; half a cell of the finest grid (stride 16)
ASSUMED_RATE = 20.0        # images/s: micro-yolo training at 416 in bf16 on 2 cores of a 2024 x86


def class_counts(coco: CocoSet) -> list[tuple[int, int]]:
    """Return (boxes, images) of each class, crowd boxes left out."""
    boxes, images = np.zeros((2, len(coco.names)), np.int64)
    for record in coco.images:
        labels = record.boxes[:, 0].astype(np.int64)
        boxes += np.bincount(labels, minlength=len(boxes))
        images[np.unique(labels)] += 1
    return list(zip(boxes.tolist(), images.tolist()))


def input_sizes(images: Sequence[ImageRecord], imgsz: int) -> np.ndarray:
    """Return box sizes float64 [M, 2] (width, height) in px of a letterboxed input of `imgsz`."""
    rows = [np.zeros((0, 2))]
    for image in images:
        geometry = letterbox_geometry(image.height, image.width, imgsz)
        ratio = geometry.width / image.width, geometry.height / image.height
        rows.append((image.boxes[:, 3:5] - image.boxes[:, 1:3]).astype(np.float64) * ratio)
    return np.concatenate(rows)


def size_summary(sizes: np.ndarray) -> dict:
    """Return how many boxes [M, 2] (px at the input) have COCO's sizes or are unseen, and percentiles."""
    areas = sizes.prod(1)
    small, large = int((areas < SMALL).sum()), int((areas >= MEDIUM).sum())
    lengths = {"width": sizes[:, 0], "height": sizes[:, 1], "sqrt(area)": np.sqrt(areas)}
    spread = {name: np.percentile(values, PERCENTILES).round(1).tolist() if len(values) else []
              for name, values in lengths.items()}
    return {"small": small, "medium": len(sizes) - small - large, "large": large,
            "unseen": int((sizes.max(1) < UNSEEN).sum()), "percentiles": spread}


def anchor_fits(sizes: np.ndarray, count: int, seed: int) -> dict[str, dict]:
    """Return YOLOv3-tiny's anchors and, with enough different boxes, fitted ones."""
    sets = {"default": list(TINY_ANCHORS)}
    with contextlib.suppress(DataError):       # too few different sizes, or too small ones
        sets["fitted"] = fit_anchors(sizes, count, seed)
    recalls = {kind: anchor_recall(sizes, anchors) for kind, anchors in sets.items()}
    return {kind: {"anchors": anchors, "mean_iou": recalls[kind][0], "within_four": recalls[kind][1]}
            for kind, anchors in sets.items()}


def duration(images: Sequence[ImageRecord], imgsz: int, epochs: int, rate: float | None,
             max_pixels: int, sample: int = 24) -> dict:
    """Return the seconds of training at `rate` images/s; of reading, measured on `sample` images."""
    chosen = images[::max(1, len(images) // sample)][:sample]
    start = time.perf_counter()
    for image in chosen:
        decode(image.path, max_pixels)
    decode_rate = len(chosen) / max(time.perf_counter() - start, 1e-6)
    train_rate = rate or ASSUMED_RATE * (416 / imgsz) ** 2     # right within a factor of three at best
    reading, epoch = len(images) / decode_rate, len(images) / train_rate
    return {"reading": reading, "epoch": epoch, "total": reading + epochs * epoch,
            "decode_rate": decode_rate, "train_rate": train_rate, "given": rate is not None}
