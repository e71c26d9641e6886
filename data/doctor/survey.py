"""What a data set is made of, as numbers: classes, box sizes at the network's input, anchors, time."""
from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from data.anchors import anchor_recall, fit_anchors
from data.coco.read import CocoSet, ImageRecord
from data.images import decode
from utils.boxes import letterbox_geometry

TINY_ANCHORS = ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319))    # YOLOv3-tiny, px at 416
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
SMALL, MEDIUM = 32 ** 2, 96 ** 2       # px^2, COCO's limits, here at the network's input
UNSEEN = 8                 # px; half a cell of the finest grid (stride 16)
ASSUMED_RATE = 20.0        # pictures/s: micro-yolo training at 416 in bf16 on 2 cores of a 2024 x86


class Sizes(NamedTuple):
    """Boxes at the input: counts by COCO's size names, boxes too small to be found, percentiles."""

    small: int
    medium: int
    large: int
    unseen: int
    percentiles: dict[str, list[float]]


class AnchorFit(NamedTuple):
    """Anchors (px at the input), the boxes' mean best IoU with them, and the share within a factor of 4."""

    anchors: list[tuple[float, float]]
    mean_iou: float
    within_four: float


class Duration(NamedTuple):
    """Seconds of reading all pictures once, of one epoch after it, of the run; the rates behind them."""

    reading: float
    epoch: float
    total: float
    decode_rate: float
    train_rate: float
    given: bool


def class_counts(coco: CocoSet) -> list[tuple[int, int]]:
    """(boxes, pictures) of each class, crowd boxes left out."""
    boxes, pictures = np.zeros((2, len(coco.names)), np.int64)
    for image in coco.images:
        labels = image.boxes[:, 0].astype(np.int64)
        boxes += np.bincount(labels, minlength=len(boxes))
        pictures[np.unique(labels)] += 1
    return [(int(b), int(p)) for b, p in zip(boxes, pictures)]


def input_sizes(images: tuple[ImageRecord, ...], imgsz: int) -> np.ndarray:
    """Box sizes float64 [N, 2] (width, height) in px of a letterboxed input of `imgsz`."""
    rows = [np.zeros((0, 2))]
    for image in images:
        geometry = letterbox_geometry(image.height, image.width, imgsz)
        ratio = geometry.width / image.width, geometry.height / image.height
        rows.append((image.boxes[:, 3:5] - image.boxes[:, 1:3]).astype(np.float64) * ratio)
    return np.concatenate(rows)


def size_summary(sizes: np.ndarray) -> Sizes:
    """How large boxes [N, 2] (px at the input) are."""
    areas = sizes.prod(1)
    small, large = int((areas < SMALL).sum()), int((areas >= MEDIUM).sum())
    lengths = {"width": sizes[:, 0], "height": sizes[:, 1], "sqrt(area)": np.sqrt(areas)}
    spread = {name: np.percentile(values, PERCENTILES).round(1).tolist() if len(values) else []
              for name, values in lengths.items()}
    return Sizes(small, len(sizes) - small - large, large, int((sizes.max(1) < UNSEEN).sum()), spread)


def anchor_fits(sizes: np.ndarray, imgsz: int, count: int, seed: int) -> dict[str, AnchorFit]:
    """Yolov3-tiny's anchors scaled to the input and, where enough different boxes exist, fitted ones."""
    default = [(w * imgsz / 416, h * imgsz / 416) for w, h in TINY_ANCHORS]
    fits = {"default": AnchorFit(default, *anchor_recall(sizes, default))}
    if len(np.unique(sizes, axis=0)) >= count:
        fitted = fit_anchors(sizes, count, seed)
        fits["fitted"] = AnchorFit(fitted, *anchor_recall(sizes, fitted))
    return fits


def duration(images: tuple[ImageRecord, ...], imgsz: int, epochs: int, rate: float | None,
             sample: int = 24) -> Duration:
    """Training time by the formula: read every picture once, then `epochs` times pictures / rate.

    The reading rate is measured on `sample` pictures with one thread. `rate` is pictures/s of a training step
    at this input; without it ASSUMED_RATE is scaled by the input's area: right within a factor of three at
    best.
    """
    chosen = images[::max(1, len(images) // sample)][:sample]
    start = time.perf_counter()
    for image in chosen:
        decode(image.path)
    decode_rate = len(chosen) / max(time.perf_counter() - start, 1e-6)
    train_rate = rate or ASSUMED_RATE * (416 / imgsz) ** 2
    reading, epoch = len(images) / decode_rate, len(images) / train_rate
    return Duration(reading, epoch, reading + epochs * epoch, decode_rate, train_rate, rate is not None)
