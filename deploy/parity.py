"""Is an exported network still the same: raw maps, boxes and AP50 beside torch in fp32, and the limits."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from data.augment import letterbox
from data.coco.locate import locate
from data.coco.read import read_coco
from data.dataset import DetectionSet
from deploy.runtimes.runtime import HALF_SHARE, INT8_SHARE, Runtime
from models.heads.nms import detections

SURE, NEARLY = 0.25, 0.2               # a box above the first must be found by the other above the second
OVERLAP = 0.9                          # from this IoU on, in the same class, two boxes are one
NMS_IOU, MAX_DET = 0.45, 300           # as detect.py's
CHUNK = 4                              # after a single picture: the batch size is to be free


class Limits(NamedTuple):
    """What an export may be off by.

    diff: largest absolute difference of a raw map. share: mean difference as a share of the maps' standard
    deviation. matched: share of boxes. map50: points of AP50, lost or won in fp32, lost elsewhere.
    """

    diff: float
    share: float
    matched: float
    map50: float


# Of fp16 the weights alone are so; what computes in it as well is held to HALF_SHARE when it runs.
LIMITS = {"fp32": Limits(1e-3, math.inf, 0.98, 0.1), "fp16": Limits(math.inf, 0.02, 0.95, 0.3),
          "bf16": Limits(math.inf, HALF_SHARE, 0.9, 0.5),
          "int8": Limits(math.inf, INT8_SHARE, 0.3, 1.0)}


def embedded_pictures(imgsz: int) -> list[np.ndarray]:
    """Pictures uint8 [3, S, S] that every machine has: scikit-learn's two photographs and parts of them."""
    from sklearn.datasets import load_sample_images
    found = []
    for photo in load_sample_images().images:
        height, width = photo.shape[:2]
        found += [photo, photo[:height // 2], photo[:, width // 2:], photo[height // 3:, :2 * width // 3]]
    return [_planar(letterbox(np.ascontiguousarray(part), imgsz)[0]) for part in found]


def set_pictures(data: str, split: str, imgsz: int, count: int) -> list[np.ndarray]:
    """Up to `count` letterboxed pictures uint8 [3, S, S] of a split of --data, evenly spread over it."""
    where = locate(data)
    pictures = DetectionSet(read_coco(*where[split], names=where.names), imgsz, cache="off")
    chosen = np.unique(np.linspace(0, len(pictures) - 1, min(count, len(pictures))).round().astype(int))
    return [_planar(pictures.plain(int(at))) for at in chosen]


def _planar(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def compare(exact: Runtime, other: Runtime, pictures: Sequence[np.ndarray],
            poll: Callable[[], object] = lambda: None) -> dict[str, float | int | None]:
    """max_diff and mean_share of the raw maps, matched (None without boxes) and boxes, over the pictures.

    poll: called between batches, ends the comparison by raising.
    """
    worst, shares, hits, boxes = 0.0, [], 0, 0
    for images in _batches(pictures):
        poll()
        a, b = exact.predict(images), other.predict(images)
        for wanted, got in zip(a, b, strict=True):
            if wanted.shape != got.shape or not got.isfinite().all():
                return {"max_diff": math.inf, "mean_share": math.inf, "matched": 0.0, "boxes": 0}
            off = (got - wanted).abs()
            worst, shares = max(worst, float(off.max())), [*shares, float(off.mean() / wanted.std())]
        for found, back in zip(_boxes(exact, a), _boxes(exact, b), strict=True):
            for mine, theirs in ((found, back), (back, found)):
                sure = mine[mine[:, 4] > SURE]
                hits, boxes = hits + _matched(sure, theirs), boxes + len(sure)
    return {"max_diff": worst, "mean_share": max(shares), "matched": hits / boxes if boxes else None,
            "boxes": boxes}


def _batches(pictures: Sequence[np.ndarray]) -> Iterator[Tensor]:
    for start, end in [(0, 1), *((at, at + CHUNK) for at in range(1, len(pictures), CHUNK))]:
        yield torch.from_numpy(np.stack(pictures[start:end]))


def _boxes(runtime: Runtime, maps: list[Tensor]) -> list[Tensor]:
    return [found.cpu() for found in detections(maps, runtime.heads, NEARLY, NMS_IOU, MAX_DET).boxes]


def _matched(mine: Tensor, theirs: Tensor) -> int:
    """How many of the boxes [N, 6] are among the others; NMS left no two that could claim the same one."""
    same = mine[:, None, 5] == theirs[None, :, 5]
    return int(((box_iou(mine[:, :4], theirs[:, :4]) >= OVERLAP) & same).any(1).sum())


def faults(found: dict, limits: Limits, exact: bool) -> list[str]:
    """What is over the limits, in words; `exact`: an AP50 that grew is a fault too."""
    out = []
    if not found["max_diff"] <= limits.diff:
        out.append(f"raw maps are off by up to {found['max_diff']:.3g}, {limits.diff:g} are allowed")
    if not found["mean_share"] <= limits.share:
        out.append(f"raw maps are off by {100 * found['mean_share']:.3g} % of their spread, "
                   f"{100 * limits.share:g} % are allowed")
    if found["matched"] is not None and not found["matched"] >= limits.matched:
        out.append(f"{100 * found['matched']:.1f} % of the boxes are found again, {100 * limits.matched:g} % "
                   "are needed")
    if (moved := found.get("map50_diff")) is not None:
        lost = abs(moved) if exact else -moved
        if not 100 * lost <= limits.map50 + 1e-9:
            out.append(f"AP50 moved by {100 * moved:+.2f} points, {limits.map50:g} are allowed")
    return out
