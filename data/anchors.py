"""Anchor boxes fitted to a data set: k-means under the IoU distance, then a small seeded climb."""
from __future__ import annotations

import numpy as np

from utils.errors import DataError

RATIO_LIMIT = 4.0      # an anchor that is off by more than this, in width or height, is a poor start
CLIMB_BLOCK = 2000     # boxes looked at in one step of the climb; more cost time and change little


def fit_anchors(sizes: np.ndarray, count: int, seed: int = 0,
                iterations: int = 300) -> list[tuple[float, float]]:
    """Return `count` anchors (width, height), smallest first, for boxes `sizes` [M, 2], in px of the input.

    K-means by 1 - IoU (Redmon and Farhadi, YOLO9000, 2017, section 2), then `iterations` seeded trials.
    Raises DataError for fewer distinct sizes than anchors and for sizes that are not positive numbers.
    """
    sizes = np.asarray(sizes, dtype=np.float64).reshape(-1, 2)
    if count < 1 or not np.isfinite(sizes).all() or (sizes <= 0).any():
        raise DataError(f"{count} anchors of {len(sizes)} boxes: "
                         "needs one anchor or more, and finite positive sizes")
    distinct = np.unique(sizes, axis=0)
    if len(distinct) < count:
        raise DataError(f"{count} anchors asked for, but the boxes have only {len(distinct)} different "
                         "sizes: ask for fewer anchors or keep the default ones")
    rng = np.random.default_rng(seed)
    centres = _lloyd(sizes, _spread(distinct, count, rng), iterations)
    centres = _climb(sizes, centres, rng, iterations)
    if centres.min() < 0.1:
        raise DataError(f"the anchors that fit have sides of {centres.min():.2g} px at this input, under "
                        "0.1: nothing can be found there; raise --imgsz, or cut the images into tiles")
    order = np.argsort(centres.prod(1), kind="stable")
    return [(float(w), float(h)) for w, h in centres[order].round(2)]


def anchor_recall(sizes: np.ndarray, anchors: list[tuple[float, float]]) -> tuple[float | None, float | None]:
    """Return mean best IoU and share within a factor of 4 of sizes [M, 2] px; None, None without boxes."""
    sizes = np.asarray(sizes, dtype=np.float64).reshape(-1, 2)
    if not len(sizes):
        return None, None
    centres = np.asarray(anchors, dtype=np.float64)
    ratio = sizes[:, None] / centres[None]
    worst = np.maximum(ratio, 1 / ratio).max(2).min(1)
    return float(_iou(sizes, centres).max(1).mean()), float((worst < RATIO_LIMIT).mean())


def _iou(sizes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the IoU [M, A] of boxes [M, 2] with anchors [A, 2] that share a corner."""
    inner = np.minimum(sizes[:, None], centres[None]).prod(2)
    return inner / (sizes.prod(1)[:, None] + centres.prod(1)[None] - inner)


def _spread(distinct: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` starting anchors [A, 2], far from each other rather than near."""
    chosen = distinct[rng.integers(len(distinct))][None]
    while len(chosen) < count:
        far = 1 - _iou(distinct, chosen).max(1)
        far = np.where(far > 1e-9, far, 0) ** 2
        chosen = np.vstack((chosen, distinct[rng.choice(len(distinct), p=far / far.sum())]))
    return chosen


def _lloyd(sizes: np.ndarray, centres: np.ndarray, iterations: int) -> np.ndarray:
    """Run k-means on anchors [A, 2]: box to its best anchor, anchor to the geometric mean of its boxes."""
    logs, before = np.log(sizes), None
    for _ in range(iterations):
        nearest = _iou(sizes, centres).argmax(1)
        if before is not None and (nearest == before).all():
            break
        members = np.bincount(nearest, minlength=len(centres))
        total = np.stack([np.bincount(nearest, logs[:, axis], len(centres)) for axis in (0, 1)], 1)
        taken = members > 0                # an anchor nobody chose stays where it is
        centres = centres.copy()
        centres[taken] = np.exp(total[taken] / members[taken, None])
        before = nearest
    return centres


def _climb(sizes: np.ndarray, centres: np.ndarray, rng: np.random.Generator, trials: int) -> np.ndarray:
    """Try `trials` small random changes of anchors [A, 2]; keep those that raise the mean best IoU."""
    if len(sizes) > CLIMB_BLOCK:
        sizes = sizes[rng.choice(len(sizes), CLIMB_BLOCK, replace=False)]
    best = _iou(sizes, centres).max(1).mean()
    for _ in range(trials):
        trial = centres * np.exp(rng.normal(0, 0.08, centres.shape) * (rng.random(centres.shape) < 0.5))
        score = _iou(sizes, trial).max(1).mean()
        if score > best:
            best, centres = score, trial
    return centres
