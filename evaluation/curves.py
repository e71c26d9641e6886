"""By pycocotools' matching at IoU 0.5: P, R and F1 over the confidence, confusion, how sure an AP50 is."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RECALLS = np.linspace(0.0, 1.0, 101)
CHUNK = 2_000_000                  # cells of one block [samples, detections]: about 16 MB an array
AREA_ALL = [0, 1e10]               # pycocotools' "all" range, px^2


class Matches(NamedTuple):
    """Detections [D] in pycocotools' order (class, image, score), what they match, and boxes [M]."""

    row: np.ndarray                # of the detections
    image: np.ndarray              # position
    label: np.ndarray
    score: np.ndarray
    target: np.ndarray             # index of the ground-truth box matched, -1 for none
    ignored: np.ndarray            # matched to a crowd, neither right nor wrong
    target_image: np.ndarray
    target_label: np.ndarray
    target_index: np.ndarray       # in the COCO dict
    images: int
    classes: int

    @property
    def right(self) -> np.ndarray:
        """Which detections [D] are true positives."""
        return (self.target >= 0) & ~self.ignored

    @property
    def wrong(self) -> np.ndarray:
        """Which detections [D] are false positives."""
        return (self.target < 0) & ~self.ignored


class Curves(NamedTuple):
    """Curves per class; rows are NaN for classes without ground truth."""

    recall: np.ndarray             # [101]
    pr: np.ndarray                 # [K, 101], COCO's interpolated precision at IoU 0.5; its mean is AP50
    confidence: np.ndarray         # [1001]
    precision: np.ndarray          # [K, 1001] over the confidence, like the next two
    rate: np.ndarray               # the recall
    f1: np.ndarray


def match_at_50(ground_truth: dict, found: list[dict], rows: np.ndarray, max_det: int,
                classes: int) -> Matches:
    """Return pycocotools' matches of detections, as records and as rows [D, 7], with a COCO dict; ids 1..."""
    return match_at(ground_truth, found, rows, max_det, classes, (0.5,))[0]


def match_at(ground_truth: dict, found: list[dict], rows: np.ndarray, max_det: int, classes: int,
             ious: Sequence[float]) -> list[Matches]:
    """Return what `match_at_50` gives, at each of the IoUs."""
    targets = np.array([(a["image_id"], a["category_id"], a["id"]) for a in ground_truth["annotations"]
                        if not a["iscrowd"]], dtype=int).reshape(-1, 3).T - 1
    images = len(ground_truth["images"])
    matched, ignored = _fates(ground_truth, found, max_det, ious)
    pair = (rows[:, 6] * images + rows[:, 0]).astype(int)
    order = np.lexsort((-rows[:, 5], pair))
    ordered = pair[order]
    row = order[np.arange(len(order)) - np.searchsorted(ordered, ordered) < max_det]
    image, label = rows[row, 0].astype(int), rows[row, 6].astype(int)
    return [Matches(row, image, label, rows[row, 5], mine[row], crowd[row], *targets, images, classes)
            for mine, crowd in zip(matched, ignored)]


def _fates(ground_truth: dict, found: list[dict], max_det: int,
           ious: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The index of the box matched [T, D] (-1: none), whether it is a crowd [T, D], by IoU and record."""
    from pycocotools.cocoeval import COCOeval
    run = COCOeval(iouType="bbox")
    run.params.iouThrs, run.params.areaRng, run.params.maxDets = np.array(ious), [AREA_ALL], [max_det]
    run._gts, run._dts = defaultdict(list), defaultdict(list)
    for a in ground_truth["annotations"]:
        run._gts[a["image_id"], a["category_id"]].append({**a, "ignore": a["iscrowd"]})
    for d in found:
        if (d["image_id"], d["category_id"]) in run._gts:
            run._dts[d["image_id"], d["category_id"]].append(d)
    matched = np.full((len(ious), len(found)), -1)
    ignored = np.zeros(matched.shape, dtype=bool)
    for image, category in list(run._dts):
        run.ious[image, category] = run.computeIoU(image, category)
        one = run.evaluateImg(image, category, AREA_ALL, max_det)
        row = np.array(one["dtIds"]) - 1
        matched[:, row], ignored[:, row] = one["dtMatches"].astype(int) - 1, one["dtIgnore"]
    return matched, ignored


def confidence_curves(matches: Matches, pr: np.ndarray) -> Curves:
    """Return curves over the confidences 0, 0.001, ... 1; precision is 0 where a class has no detection."""
    grid = np.linspace(0, 1, 1001)
    boxes = np.bincount(matches.target_label, minlength=matches.classes)[:, None].astype(float)
    boxes[boxes == 0] = np.nan                             # and so are all curves of such a class
    right, wrong = (np.zeros((matches.classes, len(grid))) for _ in range(2))
    for counts, mask in ((right, matches.right), (wrong, matches.wrong)):
        for k in np.unique(matches.label[mask]):
            scores = np.sort(matches.score[mask & (matches.label == k)])
            counts[k] = len(scores) - np.searchsorted(scores, grid, side="left")
    precision = np.where(np.isnan(boxes), np.nan, right / np.maximum(right + wrong, 1))
    return Curves(RECALLS, pr, grid, precision, right / boxes,
                  2 * right / (boxes + right + wrong))


def operating_point(curves: Curves) -> tuple[float, tuple[float | None, ...], np.ndarray]:
    """Return the confidence of the best mean F1, P, R, F1 there, and per class [K, 3]; None, NaN: no box."""
    per_class = np.stack((curves.precision, curves.rate, curves.f1), 1)        # [K, 3, 1001]
    defined = ~np.isnan(curves.f1).any(1)
    if not defined.any():
        return 0.0, (None, None, None), per_class[..., 0]
    best = int(curves.f1[defined].mean(0).argmax())
    means = per_class[defined, :, best].mean(0).tolist()
    return float(curves.confidence[best]), tuple(means), per_class[..., best]


def confusion_matrix(matches: Matches, ground_truth: dict, rows: np.ndarray, confidence: float) -> np.ndarray:
    """Return counts [K+1, K+1] (rows ground truth, columns prediction, last background) from `confidence` on.

    What the matching of `rows` [D, 7] leaves in an image is paired across classes at IoU >= 0.5, best score
    first; the rest is missed (last column) or background (last row). Detections on crowds count nowhere.
    """
    k = matches.classes
    out = np.zeros((k + 1, k + 1), dtype=int)
    shown = matches.score >= confidence
    right = matches.right & shown
    np.add.at(out, (matches.label[right], matches.label[right]), 1)
    free = np.flatnonzero(~np.isin(matches.target_index, matches.target[right]))
    wrong = np.flatnonzero(matches.wrong & shown)
    targets = np.array([a["bbox"] for a in ground_truth["annotations"]], dtype=float).reshape(-1, 4)
    boxes = rows[matches.row, 1:5] - np.pad(rows[matches.row, 1:3], ((0, 0), (2, 0)))
    pairs = _pair_across_classes(matches, wrong, free, boxes, targets[matches.target_index])
    np.add.at(out, (matches.target_label[pairs[:, 1]], matches.label[pairs[:, 0]]), 1)
    out[k, :k] = np.bincount(matches.label[np.setdiff1d(wrong, pairs[:, 0])], minlength=k)
    out[:k, k] = np.bincount(matches.target_label[np.setdiff1d(free, pairs[:, 1])], minlength=k)
    return out


def _pair_across_classes(matches: Matches, wrong: np.ndarray, free: np.ndarray, boxes: np.ndarray,
                         targets: np.ndarray) -> np.ndarray:
    """Pairs [P, 2] (detection, target) at IoU >= 0.5, each used once; boxes and targets [., 4] in xywh px."""
    from pycocotools.mask import iou as iou_of
    pairs: dict[int, int] = {}                             # target -> detection
    image, target_image = matches.image[wrong], matches.target_image[free]
    for at in np.intersect1d(image, target_image):
        d, m = wrong[image == at], free[target_image == at]
        iou = iou_of(boxes[d], targets[m], [0] * len(m))
        i, j = np.nonzero(iou >= 0.5)
        taken = set()
        for best in np.lexsort((-iou[i, j], -matches.score[d[i]])):
            if i[best] not in taken and m[j[best]] not in pairs:
                taken.add(i[best])
                pairs[m[j[best]]] = d[i[best]]
    return np.array([(d, m) for m, d in pairs.items()], dtype=int).reshape(-1, 2)


def bootstrap_map50(matches: Matches, samples: int = 1000,
                    seed: int = 0) -> tuple[float, float, float] | None:
    """Return (low, high, median) of AP50 in 0..1: its 95 % interval over images drawn with replacement.

    None without ground truth: an interval of nothing.

    Draws repeat images, which lifts AP50: the percentiles are moved by the distance of their median to AP50.
    """
    if not len(matches.target_image):
        return None
    low, median, high = np.nanpercentile(map50_of(matches, _draws(matches, samples, seed)),
                                         (2.5, 50, 97.5)).tolist()
    shift = float(map50_of(matches, np.ones((1, matches.images), dtype=int))[0]) - median
    return max(0.0, low + shift), min(1.0, high + shift), median


def drop_interval(before: Matches, after: Matches, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of AP50 lost, by chance of images alone; raise ValueError for unfit sets."""
    if before.images != after.images or len(before.target_image) != len(after.target_image):
        raise ValueError(f"two different sets: {before.images} and {after.images} images, "
                         f"{len(before.target_image)} and {len(after.target_image)} ground-truth boxes")
    if not len(before.target_image):
        raise ValueError("no ground-truth box: an interval of nothing")
    draws = _draws(before, 1000, seed)
    return tuple(np.nanpercentile(map50_of(before, draws) - map50_of(after, draws), (2.5, 97.5)).tolist())


def _draws(matches: Matches, samples: int, seed: int) -> np.ndarray:
    """How often each image is taken [S, I], in draws of as many images as there are."""
    n = matches.images
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=samples)


def map50_of(matches: Matches, draws: np.ndarray) -> np.ndarray:
    """Return AP50 [S] of each row of draws [S, I] (how often an image is taken); NaN without boxes.

    Of matches at another IoU it is the AP there.
    """
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
