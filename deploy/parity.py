"""Is an exported network still the same: outputs, boxes and AP50 beside torch in fp32, and the limits."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torchvision.ops import box_iou

from data.augment import letterbox
from data.coco.locate import Located
from data.coco.read import read_coco
from data.dataset import DetectionSet
from deploy.runtimes.runtime import HALF_SHARE, INT8_SHARE, Runtime
from models.heads.nms import detections

SURE, NEARLY = 0.25, 0.2               # a box above the first must be found by the other above the second
OVERLAP = 0.9                          # from this IoU on, in the same class, two boxes are one
NMS_IOU, MAX_DET = 0.45, 300           # as detect.py's
CHUNK = 4                              # after a single image: the batch size is to be free


class Limits(NamedTuple):
    """What an export may be off by."""

    diff: float                        # largest absolute difference of a head output
    share: float                       # mean difference as a share of the outputs' standard deviation
    matched: float                     # share of boxes
    map50: float                       # points of AP50, lost or won in fp32, lost elsewhere


# Of fp16 the weights alone are so; what computes in it as well is held to HALF_SHARE when it runs.
LIMITS = {"fp32": Limits(1e-3, math.inf, 0.98, 0.1), "fp16": Limits(math.inf, 0.02, 0.95, 0.3),
          "bf16": Limits(math.inf, HALF_SHARE, 0.9, 0.5),
          "int8": Limits(math.inf, INT8_SHARE, 0.3, 1.0)}


def embedded_images(imgsz: int) -> list[np.ndarray]:
    """Return images uint8 [3, S, S] that every machine has: scikit-learn's two and parts of them."""
    from sklearn.datasets import load_sample_images
    found = []
    for image in load_sample_images().images:
        height, width = image.shape[:2]
        found += [image, image[:height // 2], image[:, width // 2:], image[height // 3:, :2 * width // 3]]
    return [letterbox(np.ascontiguousarray(part), imgsz)[0].transpose(2, 0, 1).copy() for part in found]


def gate_images(where: Located | None, imgsz: int, count: int) -> list[np.ndarray]:
    """Return the gate's images uint8 [3, S, S]: of a set's val split, or embedded ones."""
    return split_images(where, "val", imgsz, count) if where else embedded_images(imgsz)


def split_images(where: Located, split: str, imgsz: int, count: int) -> list[np.ndarray]:
    """Return up to `count` letterboxed images uint8 [3, S, S] of a split of a set, evenly spread over it."""
    images = DetectionSet(read_coco(*where[split], names=where.names), imgsz, cache="off")
    chosen = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int))
    return [images.plain(int(at)).transpose(2, 0, 1).copy() for at in chosen]


def compare(exact: Runtime, other: Runtime, images: Sequence[np.ndarray],
            poll: Callable[[], object] = lambda: None) -> dict[str, float | int | None]:
    """Return max_diff and mean_share of the head outputs, matched (None without boxes) and boxes."""
    worst, shares, hits, boxes = 0.0, [], 0, 0
    for start, end in [(0, 1), *((at, at + CHUNK) for at in range(1, len(images), CHUNK))]:
        poll()
        batch = torch.from_numpy(np.stack(images[start:end]))
        a, b = exact.predict(batch), other.predict(batch)
        for wanted, got in zip(a, b, strict=True):
            if wanted.shape != got.shape or not got.isfinite().all():
                return {"max_diff": math.inf, "mean_share": math.inf, "matched": 0.0, "boxes": 0}
            off = (got - wanted).abs()
            worst, shares = max(worst, float(off.max())), [*shares, float(off.mean() / wanted.std())]
        boxes_of = [detections(outputs, exact.heads, NEARLY, NMS_IOU, MAX_DET).boxes for outputs in (a, b)]
        for found, back in zip(*boxes_of, strict=True):
            for mine, theirs in ((found, back), (back, found)):
                sure = mine[mine[:, 4] > SURE]
                hits, boxes = hits + _matched(sure, theirs), boxes + len(sure)
    return {"max_diff": worst, "mean_share": max(shares), "matched": hits / boxes if boxes else None,
            "boxes": boxes}


def same_boxes(other: Runtime, final: Callable[[np.ndarray], np.ndarray], images: Sequence[np.ndarray],
               *thresholds: float, poll: Callable[[], object] = lambda: None) -> float | None:
    """Return the share of boxes that a file with NMS inside and the one it is made of both find; or None.

    final: image uint8 [3, S, S] -> boxes [n, 6]; thresholds: score, NMS IoU, boxes an image.
    """
    hits, boxes = 0, 0
    for image in images:
        poll()
        found, wanted = final(image), detections(other.predict(torch.from_numpy(image[None])), other.heads,
                                                 *thresholds).boxes[0]
        hits += _matched(found, wanted) + _matched(wanted, found)
        boxes += len(found) + len(wanted)
    return hits / boxes if boxes else None


def _matched(mine: np.ndarray, theirs: np.ndarray) -> int:
    """Return how many boxes [N, 6] are among the others; NMS left no two that could claim the same one."""
    same = mine[:, None, 5] == theirs[None, :, 5]
    overlap = box_iou(*(torch.from_numpy(boxes[:, :4]) for boxes in (mine, theirs))).numpy()
    return int(((overlap >= OVERLAP) & same).any(1).sum())


def faults(found: dict, limits: Limits, exact: bool) -> list[str]:
    """Return what is over the limits, in words; `exact`: an AP50 that grew is a fault too."""
    matched, moved = found["matched"], 100 * (found.get("map50_diff") or 0.0)
    rules = ((found["max_diff"] <= limits.diff,
              f"head outputs are off by up to {found['max_diff']:.3g}, {limits.diff:g} are allowed"),
             (found["mean_share"] <= limits.share,
              f"head outputs are off by {100 * found['mean_share']:.3g} % of their spread, "
              f"{100 * limits.share:g} % are allowed"),
             (matched is None or matched >= limits.matched, f"{100 * (matched or 0):.1f} % of the boxes are "
              f"found again, {100 * limits.matched:g} % are needed"),
             ((abs(moved) if exact else -moved) <= limits.map50 + 1e-9,
              f"AP50 moved by {moved:+.2f} points, {limits.map50:g} are allowed"))
    return [text for good, text in rules if not good]
