"""Precision, recall and F1 over the confidence, confusion matrix: by pycocotools' matching at IoU 0.5."""
from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np

AREA_ALL = [0, 1e10]               # pycocotools' "all" range, px^2


class Matches(NamedTuple):
    """Every evaluated detection [D] (those within max_det a picture and class) with its fate at IoU 0.5.

    row: its row in the detections; image: position; label: class; score; truth: the matched truth's index,
    -1 for none; ignored: matched to a crowd, neither right nor wrong. Truths [M] without crowds:
    truth_image, truth_label and truth_index, their indices in the ground truth. Detections are in
    pycocotools' order: class, image, score.
    """

    row: np.ndarray
    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    truth: np.ndarray
    ignored: np.ndarray
    truth_image: np.ndarray
    truth_label: np.ndarray
    truth_index: np.ndarray
    images: int
    classes: int

    @property
    def right(self) -> np.ndarray:
        """Which detections [D] are true positives."""
        return (self.truth >= 0) & ~self.ignored

    @property
    def wrong(self) -> np.ndarray:
        """Which detections [D] are false positives."""
        return (self.truth < 0) & ~self.ignored


class Curves(NamedTuple):
    """Curves a class; rows are NaN for classes without truths.

    recall [101] and pr [K, 101], COCO's interpolated precision at IoU 0.5 (its mean is AP50);
    confidence [1001] and over it precision, rate (the recall) and f1 [K, 1001].
    """

    recall: np.ndarray
    pr: np.ndarray
    confidence: np.ndarray
    precision: np.ndarray
    rate: np.ndarray
    f1: np.ndarray


class OperatingPoint(NamedTuple):
    """The confidence of the best mean F1, the means there, and (P, R, F1) a class [K, 3] (may be NaN)."""

    confidence: float
    precision: float
    recall: float
    f1: float
    per_class: np.ndarray


def match_at_50(truth: dict, found: list[dict], rows: np.ndarray, max_det: int, classes: int) -> Matches:
    """Matches of detections, as result records and as rows [D, 7], with a COCO dict (ids 1.. throughout).

    The matching is pycocotools' own evaluateImg; pairs of picture and class without truth, where it has
    nothing to decide, are not sent through it. The records are left as they were.
    """
    wanted = [(a["image_id"], a["category_id"], a["id"]) for a in truth["annotations"] if not a["iscrowd"]]
    truths = np.array(wanted, dtype=int).reshape(-1, 3).T - 1
    images = len(truth["images"])
    matched, ignored = _fates(truth, found, max_det)
    pair = (rows[:, 6] * images + rows[:, 0]).astype(int)
    order = np.lexsort((-rows[:, 5], pair))
    ordered = pair[order]
    row = order[np.arange(len(order)) - np.searchsorted(ordered, ordered) < max_det]
    image, label = rows[row, 0].astype(int), rows[row, 6].astype(int)
    return Matches(row, image, label, rows[row, 5], matched[row], ignored[row], *truths, images, classes)


def _fates(truth: dict, found: list[dict], max_det: int) -> tuple[np.ndarray, np.ndarray]:
    """The matched truth's index [D] (-1: none) and whether it is a crowd [D], for each result record."""
    from pycocotools.cocoeval import COCOeval
    run = COCOeval(iouType="bbox")
    run.params.iouThrs, run.params.areaRng, run.params.maxDets = np.array([0.5]), [AREA_ALL], [max_det]
    run._gts, run._dts = defaultdict(list), defaultdict(list)
    for a in truth["annotations"]:
        run._gts[a["image_id"], a["category_id"]].append({**a, "ignore": a["iscrowd"]})
    for d in found:
        if (d["image_id"], d["category_id"]) in run._gts:
            run._dts[d["image_id"], d["category_id"]].append(d)
    matched, ignored = np.full(len(found), -1), np.zeros(len(found), dtype=bool)
    for image, category in list(run._dts):
        run.ious[image, category] = run.computeIoU(image, category)
        one = run.evaluateImg(image, category, AREA_ALL, max_det)
        row = np.array(one["dtIds"]) - 1
        matched[row], ignored[row] = one["dtMatches"][0].astype(int) - 1, one["dtIgnore"][0]
    return matched, ignored


def confidence_curves(matches: Matches, pr: np.ndarray) -> Curves:
    """Curves over the confidences 0, 0.001, ... 1 (a detection counts up to its score), and `pr` as given.

    Where a class has no detection at a confidence its precision is 0, so that its F1 is 0 as well.
    """
    grid = np.linspace(0, 1, 1001)
    truths = np.bincount(matches.truth_label, minlength=matches.classes)[:, None].astype(float)
    right, wrong = (_count_above(matches, mask, grid) for mask in (matches.right, matches.wrong))
    precision = right / np.maximum(right + wrong, 1)
    rate = right / np.where(truths == 0, np.nan, truths)
    precision = np.where(np.isnan(rate), np.nan, precision)
    f1 = 2 * right / np.where(truths == 0, np.nan, truths + right + wrong)
    return Curves(np.linspace(0, 1, 101), pr, grid, precision, rate, f1)


def _count_above(matches: Matches, mask: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """How many masked detections of each class score at least each confidence of the grid [K, 1001]."""
    counts = np.zeros((matches.classes, len(grid)))
    for k in np.unique(matches.label[mask]):
        scores = np.sort(matches.score[mask & (matches.label == k)])
        counts[k] = len(scores) - np.searchsorted(scores, grid, side="left")
    return counts


def operating_point(curves: Curves) -> OperatingPoint:
    """Where the mean F1 over classes with truths is best (lowest such confidence); zeros without truths."""
    has_truth = ~np.isnan(curves.f1).any(1)
    if not has_truth.any():
        return OperatingPoint(0.0, 0.0, 0.0, 0.0, np.full((len(curves.f1), 3), np.nan))
    best = int(curves.f1[has_truth].mean(0).argmax())
    per_class = np.stack([curve[:, best] for curve in (curves.precision, curves.rate, curves.f1)], 1)
    precision, recall, f1 = per_class[has_truth].mean(0).tolist()
    return OperatingPoint(float(curves.confidence[best]), precision, recall, f1, per_class)


def confusion_matrix(matches: Matches, truth: dict, rows: np.ndarray, confidence: float) -> np.ndarray:
    """Counts [K+1, K+1] (rows truth, columns prediction, last background) from score `confidence` on.

    The diagonal is the matching's true positives. What stays unmatched on both sides of a picture is then
    paired across classes at IoU >= 0.5, best score first; the rest is missed (last column) or background
    (last row). Detections on crowds count nowhere. `rows` [D, 7] are the detections the matches point into.
    """
    k = matches.classes
    out = np.zeros((k + 1, k + 1), dtype=int)
    shown = matches.score >= confidence
    right = matches.right & shown
    np.add.at(out, (matches.label[right], matches.label[right]), 1)
    free = np.flatnonzero(~np.isin(matches.truth_index, matches.truth[right]))
    wrong = np.flatnonzero(matches.wrong & shown)
    boxes = np.array([a["bbox"] for a in truth["annotations"]], dtype=float).reshape(-1, 4)
    boxes = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)
    confused = _pair_across_classes(matches, wrong, free, rows[matches.row, 1:5], boxes[matches.truth_index])
    np.add.at(out, (matches.truth_label[confused[:, 1]], matches.label[confused[:, 0]]), 1)
    out[k, :k] = np.bincount(matches.label[np.setdiff1d(wrong, confused[:, 0])], minlength=k)
    out[:k, k] = np.bincount(matches.truth_label[np.setdiff1d(free, confused[:, 1])], minlength=k)
    return out


def _pair_across_classes(matches: Matches, wrong: np.ndarray, free: np.ndarray, boxes: np.ndarray,
                         truths: np.ndarray) -> np.ndarray:
    """Pairs [P, 2] (detection, truth) in one picture at IoU >= 0.5, each used once, best score first."""
    pairs: list[tuple[int, int]] = []
    by_image = np.argsort(matches.image[wrong], kind="stable")
    wrong = wrong[by_image]
    for image in np.intersect1d(matches.image[wrong], matches.truth_image[free]):
        start, stop = np.searchsorted(matches.image[wrong], [image, image + 1])
        d, m = wrong[start:stop], free[matches.truth_image[free] == image]
        iou = _iou(boxes[d], truths[m])
        i, j = np.nonzero(iou >= 0.5)
        order = np.lexsort((-iou[i, j], -matches.score[d[i]]))
        taken: set[tuple[str, int]] = set()
        for a, b in zip(d[i[order]].tolist(), m[j[order]].tolist(), strict=True):
            if ("d", a) not in taken and ("m", b) not in taken:
                taken |= {("d", a), ("m", b)}
                pairs.append((a, b))
    return np.array(pairs, dtype=int).reshape(-1, 2)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU [N, M] of xyxy boxes a [N, 4] with b [M, 4]; 0 where both are empty."""
    a, b = a[:, None], b[None]
    inter = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(2)
    area_a, area_b = (np.prod(x[..., 2:] - x[..., :2], axis=2) for x in (a, b))
    return inter / np.maximum(area_a + area_b - inter, 1e-12)
