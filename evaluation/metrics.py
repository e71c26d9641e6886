"""Accuracy of detections: the COCO evaluator's AP; P, R, F1 and confusion by pycocotools' matching."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields

import numpy as np

from evaluation import curves as at_50
from evaluation.coco_eval import evaluate_arrays, own_ids, result_records, usable
from utils.errors import DataError


@dataclass(frozen=True)
class ClassScore:
    """One class: images that show it, ground-truth boxes (`truths`), scores in 0..1 (None without boxes)."""

    name: str
    images: int
    truths: int
    precision: float | None
    recall: float | None
    f1: float | None
    ap50: float | None
    ap: float | None


@dataclass(frozen=True, eq=False)
class Metrics:
    """What one evaluation found. Scores in 0..1; None where no ground-truth box (of that size) defines them.

    truths: ground-truth boxes. precision, recall, f1 and confusion [K+1, K+1] (rows ground truth, columns
    prediction, last background) are at `confidence`, of the best mean F1. ar_100: with max_det boxes.
    """

    map50_95: float | None
    map50: float | None
    map75: float | None
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    ar_1: float | None
    ar_10: float | None
    ar_100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    confidence: float
    classes: tuple[ClassScore, ...]
    images: int
    truths: int
    crowds: int
    detections: int
    dropped: int
    max_det: int
    backend: str
    notes: tuple[str, ...]
    confusion: np.ndarray = field(repr=False)
    curves: at_50.Curves = field(repr=False)
    matches: at_50.Matches = field(repr=False)

    @property
    def without_truth(self) -> tuple[str, ...]:
        """Names of the classes without ground truth here, so without AP; the means leave them out."""
        return tuple(row.name for row in self.classes if not row.truths)

    def as_dict(self) -> dict:
        """Return all but the curves and the matches as plain JSON values."""
        hidden = ("matches", "curves", "classes", "confusion", "notes")
        return {**{f.name: getattr(self, f.name) for f in fields(self) if f.name not in hidden},
                "classes": [asdict(row) for row in self.classes], "notes": list(self.notes),
                "without_truth": list(self.without_truth), "confusion": self.confusion.tolist()}


NUMBERS = [item.name for item in fields(Metrics)][:12]     # in the order of pycocotools' `stats`


def evaluate_detections(ground_truth: dict, detections: np.ndarray, names: Sequence[str], *,
                        max_det: int = 100, backend: str = "auto") -> Metrics:
    """Return the metrics of detections [D, 7] (image position, xyxy px, score, class) for a COCO dict.

    Class k is the k-th smallest category id. Neither argument is changed. Rows not finite or inside out are
    dropped and counted. Raises DataError for a dict or rows that do not fit each other.
    """
    clean, notes = own_ids(ground_truth)
    if len(clean["categories"]) != len(names):
        raise DataError(f"{len(names)} class names for {len(clean['categories'])} categories: "
                        "give one name a category, in the order of the category ids")
    rows, dropped = usable(detections, len(clean["images"]), len(names))
    if dropped:
        notes.append(f"{dropped} non-finite or inside-out detections dropped")
    found = result_records(rows)
    result, used = evaluate_arrays(clean, found, max_det, backend)
    matches = at_50.match_at_50(clean, found, rows, max_det, len(names))
    pr = result["precision"][0, :, :, 0, 2].T
    curves = at_50.confidence_curves(matches, np.where(pr < 0, np.nan, pr))
    confidence, (precision, recall, f1), per_class = at_50.operating_point(curves)
    crowds = sum(a["iscrowd"] for a in clean["annotations"])
    return Metrics(**_twelve(result), precision=precision, recall=recall, f1=f1, confidence=confidence,
                   classes=_class_scores(result["precision"], clean, names, per_class), crowds=crowds,
                   images=len(clean["images"]), truths=len(clean["annotations"]) - crowds,
                   detections=len(rows), dropped=dropped, max_det=max_det, backend=used, notes=tuple(notes),
                   confusion=at_50.confusion_matrix(matches, clean, rows, confidence), curves=curves,
                   matches=matches)


def matches_at(ground_truth: dict, detections: np.ndarray, classes: int, ious: Sequence[float], *,
               max_det: int = 100) -> list[at_50.Matches]:
    """Return the matches behind `evaluate_detections` at each of the IoUs, for the same arguments."""
    clean = own_ids(ground_truth)[0]
    rows = usable(detections, len(clean["images"]), classes)[0]
    return at_50.match_at(clean, result_records(rows), rows, max_det, classes, ious)


def _mean(values: np.ndarray) -> float | None:
    """Mean over the settings that have ground truth (> -1), as in pycocotools; None where there is none."""
    good = values[values > -1]
    return float(np.mean(good)) if good.size else None


def _twelve(result: dict) -> dict[str, float | None]:
    """The twelve COCO numbers by name."""
    ap, ar = result["precision"], result["recall"]
    values = [_mean(ap[..., 0, 2]), _mean(ap[0, ..., 0, 2]), _mean(ap[5, ..., 0, 2]),
              *(_mean(ap[..., a, 2]) for a in (1, 2, 3)), *(_mean(ar[..., 0, m]) for m in (0, 1, 2)),
              *(_mean(ar[..., a, 2]) for a in (1, 2, 3))]
    return dict(zip(NUMBERS, values, strict=True))


def _class_scores(ap: np.ndarray, clean: dict, names: Sequence[str],
                  per_class: np.ndarray) -> tuple[ClassScore, ...]:
    """One row per class with AP of the evaluator's precision [T, R, K, A, M], and P, R and F1 [K, 3]."""
    pairs = [(a["category_id"] - 1, a["image_id"]) for a in clean["annotations"] if not a["iscrowd"]]
    boxes, images = Counter(k for k, _ in pairs), Counter(k for k, _ in set(pairs))
    return tuple(ClassScore(name, images[k], boxes[k], *(scores if boxes[k] else (None,) * 3),
                            _mean(ap[0, :, k, 0, 2]), _mean(ap[:, :, k, 0, 2]))
                 for k, (name, scores) in enumerate(zip(names, per_class.tolist())))
