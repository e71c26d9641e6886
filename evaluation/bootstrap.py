"""How sure an AP50 is: its confidence interval over resampled pictures, from the stored matches."""
from __future__ import annotations

import numpy as np

from evaluation.curves import Matches

RECALLS = np.linspace(0.0, 1.0, 101)
CHUNK = 2_000_000                  # cells of one block [samples, detections]: about 16 MB an array


def bootstrap_map50(matches: Matches, samples: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """(low, high, median) of AP50 in 0..1: the 95 % interval over pictures drawn with replacement.

    Classes that a draw leaves without truths are not in its mean, as pycocotools would have it. Draws
    repeat pictures, which lifts the AP50 of classes with few truths: `median` is that of the draws as they
    are, and the percentiles are moved by its distance to the AP50 of all pictures.
    """
    if matches.images == 0 or len(matches.truth_image) == 0:
        return 0.0, 0.0, 0.0
    generator = np.random.default_rng(seed)
    n = matches.images
    draws = generator.multinomial(n, np.full(n, 1 / n), size=samples)
    low, median, high = np.nanpercentile(map50_of(matches, draws), (2.5, 50, 97.5)).tolist()
    shift = float(map50_of(matches, np.ones((1, n), dtype=int))[0]) - median
    return max(0.0, low + shift), min(1.0, high + shift), median


def drop_interval(before: Matches, after: Matches, samples: int = 1000,
                  seed: int = 0) -> tuple[float, float]:
    """(low, high): the 95 % interval of AP50 lost from `before` to `after`, in 0..1.

    Both networks see the same resampled pictures, so that what a hard picture costs both is no difference. It
    holds the chance of the pictures alone, not that of training. Raises ValueError for different sets.
    """
    if before.images != after.images or len(before.truth_image) != len(after.truth_image):
        raise ValueError(f"two different sets: {before.images} and {after.images} pictures, "
                         f"{len(before.truth_image)} and {len(after.truth_image)} truths")
    if before.images == 0 or len(before.truth_image) == 0:
        return 0.0, 0.0
    n = before.images
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=samples)
    lost = map50_of(before, draws) - map50_of(after, draws)
    low, high = np.nanpercentile(lost, (2.5, 97.5)).tolist()
    return low, high


def map50_of(matches: Matches, draws: np.ndarray) -> np.ndarray:
    """AP50 [S] of each row of draws [S, I] (how often each picture is taken); NaN without any truth.

    One row of ones gives pycocotools' AP50.
    """
    total, counted = np.zeros(len(draws)), np.zeros(len(draws))
    keep = ~matches.ignored
    for k in np.unique(matches.truth_label):
        mine = np.flatnonzero(keep & (matches.label == k))
        mine = mine[np.argsort(-matches.score[mine], kind="stable")]
        truths = np.bincount(matches.truth_image[matches.truth_label == k], minlength=matches.images)
        positives = draws @ truths
        step = max(1, CHUNK // max(1, len(mine)))
        blocks = [slice(start, start + step) for start in range(0, len(draws), step)]
        ap = np.concatenate([_ap(draws[b][:, matches.image[mine]], matches.right[mine], positives[b])
                             for b in blocks])
        total += np.where(positives > 0, ap, 0)
        counted += positives > 0
    return np.divide(total, counted, out=np.full(len(draws), np.nan), where=counted > 0)


def _ap(times: np.ndarray, right: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """COCO's 101-point AP [S] of one class; times [S, D]: how often each detection, best first, is there."""
    hits = np.cumsum(times * right, 1, dtype=float)
    precision = hits / (np.cumsum(times, 1, dtype=float) + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    recall = hits / np.maximum(positives, 1)[:, None]
    padded = np.concatenate((precision, np.zeros((len(times), 1))), 1)       # beyond the last recall: 0
    return np.array([row[np.searchsorted(reached, RECALLS, side="left")].mean()
                     for row, reached in zip(padded, recall, strict=True)])
