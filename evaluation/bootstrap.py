"""How sure an AP50 is: its confidence interval over resampled images, from the stored matches."""
from __future__ import annotations

import numpy as np

from evaluation.curves import Matches

RECALLS = np.linspace(0.0, 1.0, 101)
CHUNK = 2_000_000                  # cells of one block [samples, detections]: about 16 MB an array


def bootstrap_map50(matches: Matches, samples: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """Return (low, high, median) of AP50 in 0..1: its 95 % interval over images drawn with replacement.

    Draws repeat images, which lifts AP50: the percentiles are moved by the distance of their median to AP50.
    """
    if not len(matches.target_image):
        return 0.0, 0.0, 0.0
    low, median, high = np.nanpercentile(map50_of(matches, _draws(matches, samples, seed)),
                                         (2.5, 50, 97.5)).tolist()
    shift = float(map50_of(matches, np.ones((1, matches.images), dtype=int))[0]) - median
    return max(0.0, low + shift), min(1.0, high + shift), median


def drop_interval(before: Matches, after: Matches, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of AP50 lost between two networks on the same resampled images.

    It holds the chance of the images alone, not that of training. Raises ValueError for different sets.
    """
    if before.images != after.images or len(before.target_image) != len(after.target_image):
        raise ValueError(f"two different sets: {before.images} and {after.images} images, "
                         f"{len(before.target_image)} and {len(after.target_image)} ground-truth boxes")
    if not len(before.target_image):
        return 0.0, 0.0
    draws = _draws(before, 1000, seed)
    return tuple(np.nanpercentile(map50_of(before, draws) - map50_of(after, draws), (2.5, 97.5)).tolist())


def _draws(matches: Matches, samples: int, seed: int) -> np.ndarray:
    """How often each image is taken [S, I], in draws of as many images as there are."""
    n = matches.images
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=samples)


def map50_of(matches: Matches, draws: np.ndarray) -> np.ndarray:
    """Return AP50 [S] of each row of draws [S, I] (how often an image is taken); NaN without boxes."""
    total, counted = np.zeros(len(draws)), np.zeros(len(draws))
    for k in np.unique(matches.target_label):
        mine = np.flatnonzero(~matches.ignored & (matches.label == k))
        mine = mine[np.argsort(-matches.score[mine], kind="stable")]
        positives = draws @ np.bincount(matches.target_image[matches.target_label == k],
                                        minlength=matches.images)
        step = max(1, CHUNK // max(1, len(mine)))
        blocks = [slice(start, start + step) for start in range(0, len(draws), step)]
        ap = np.concatenate([_ap(draws[b][:, matches.image[mine]], matches.right[mine], positives[b])
                             for b in blocks])
        total += np.where(positives > 0, ap, 0)
        counted += positives > 0
    return np.divide(total, counted, out=np.full(len(draws), np.nan), where=counted > 0)


def _ap(times: np.ndarray, right: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """COCO's 101-point AP [S] of one class; times [S, D]: how often each detection, best first, is drawn."""
    hits = np.cumsum(times * right, 1, dtype=float)
    precision = hits / (np.cumsum(times, 1, dtype=float) + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    recall = hits / np.maximum(positives, 1)[:, None]
    padded = np.concatenate((precision, np.zeros((len(times), 1))), 1)       # beyond the last recall: 0
    return np.array([row[np.searchsorted(reached, RECALLS, side="left")].mean()
                     for row, reached in zip(padded, recall, strict=True)])
