"""Accuracy of detections: pycocotools' AP, and by its matching precision, recall, F1 and confusion matrix.

AP is always the COCO evaluator's own number. faster-coco-eval, where installed, computes the same twelve
numbers in a fraction of the time; the matching behind precision, recall, F1 and the confusion matrix is
pycocotools' in both cases.
"""
from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from evaluation.coco_eval import evaluate_arrays, own_ids, result_records, usable
from evaluation.curves import (
    Curves,
    Matches,
    confidence_curves,
    confusion_matrix,
    match_at_50,
    operating_point,
)
from utils.errors import DataError

# in the order of pycocotools' `stats`
NUMBERS = ("map50_95", "map50", "map75", "map_small", "map_medium", "map_large",
           "ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large")
MAY_BE_ABSENT = ("map_small", "map_medium", "map_large", "ar_small", "ar_medium", "ar_large")


@dataclass(frozen=True)
class ClassScore:
    """One class: pictures that show it, truths, and scores in 0..1 (None where it has no truth)."""

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
    """What one evaluation found. Scores in 0..1; those by size are None where no truth has that size.

    precision, recall and f1 are means over the classes with truths at `confidence`, the score of the best
    mean F1 at IoU 0.5. The confusion matrix [K+1, K+1] (rows truth, columns prediction, last background) is
    taken there too. ar_100 is the recall with max_det boxes a picture.
    """

    map50_95: float
    map50: float
    map75: float
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    ar_1: float
    ar_10: float
    ar_100: float
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    confidence: float | None
    classes: tuple[ClassScore, ...]
    images: int
    truths: int
    crowds: int
    detections: int
    dropped: int
    max_det: int
    backend: str
    notes: tuple[str, ...] = ()
    confusion: np.ndarray | None = field(default=None, repr=False)
    curves: Curves | None = field(default=None, repr=False)
    matches: Matches | None = field(default=None, repr=False)

    @property
    def without_truth(self) -> tuple[str, ...]:
        """Names of the classes that have no truth here, so no AP; the means leave them out."""
        return tuple(row.name for row in self.classes if not row.truths)

    def as_dict(self, curves: bool = False) -> dict:
        """Everything but the matches as plain JSON values; the curves' arrays only when asked for."""
        hidden = ("matches", "curves", "classes", "confusion", "notes")
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in hidden}
        out["classes"] = [dataclasses.asdict(row) for row in self.classes]
        out["notes"], out["without_truth"] = list(self.notes), list(self.without_truth)
        out["confusion"] = None if self.confusion is None else self.confusion.tolist()
        if curves and self.curves is not None:
            out["curves"] = {key: _plain(value) for key, value in self.curves._asdict().items()}
        return out


def evaluate_detections(ground_truth: dict, detections: np.ndarray, names: tuple[str, ...] | list[str], *,
                        max_det: int = 100, backend: str = "auto", curves: bool = True) -> Metrics:
    """Metrics of detections [D, 7] (image position, xyxy px of the photo, score, class) against a COCO dict.

    Position i is the i-th entry of `images`; class k is the k-th smallest category id. Neither argument is
    changed. Without `curves` the P/R/F1, the confusion matrix and the matches are left out (None). Rows
    that are not finite or inside out are dropped and counted. Raises DataError for a dict or rows that do
    not fit each other.
    """
    truth, notes = own_ids(ground_truth)
    if len(truth["categories"]) != len(names):
        raise DataError(f"{len(names)} class names for {len(truth['categories'])} categories: "
                        "give one name a category, in the order of the category ids")
    rows, dropped = usable(detections, len(truth["images"]), len(names))
    if dropped:
        notes.append(f"{dropped} non-finite or inside-out detections dropped")
    found = result_records(rows)
    result, used = evaluate_arrays(truth, found, max_det, backend)
    per_class = _class_scores(result["precision"], truth, names)
    extra: dict = {"precision": None, "recall": None, "f1": None, "confidence": None}
    if curves:
        extra, per_class = _by_matching(truth, found, rows, result["precision"], per_class, max_det)
    crowds = sum(a["iscrowd"] for a in truth["annotations"])
    return Metrics(**_twelve(result), **extra, classes=per_class, images=len(truth["images"]),
                   truths=len(truth["annotations"]) - crowds, crowds=crowds, detections=len(rows),
                   dropped=dropped, max_det=max_det, backend=used, notes=tuple(notes))


def _plain(values: np.ndarray) -> list:
    """Nested lists with None for NaN, which JSON lacks."""
    rounded = np.round(values, 6)
    return np.where(np.isnan(rounded), None, rounded).tolist()


def _mean(values: np.ndarray) -> float | None:
    """Mean over the settings that have truths (> -1), as pycocotools takes it; None where there is none."""
    good = values[values > -1]
    return float(np.mean(good)) if good.size else None


def _twelve(result: dict) -> dict[str, float | None]:
    """The twelve COCO numbers by name."""
    ap, ar = result["precision"], result["recall"]
    values = [_mean(ap[..., 0, 2]), _mean(ap[0, ..., 0, 2]), _mean(ap[5, ..., 0, 2]),
              *(_mean(ap[..., a, 2]) for a in (1, 2, 3)), *(_mean(ar[..., 0, m]) for m in (0, 1, 2)),
              *(_mean(ar[..., a, 2]) for a in (1, 2, 3))]
    return {name: 0.0 if value is None and name not in MAY_BE_ABSENT else value
            for name, value in zip(NUMBERS, values, strict=True)}


def _class_scores(ap: np.ndarray, truth: dict, names: tuple[str, ...] | list[str]) -> tuple[ClassScore, ...]:
    """One row a class with AP from the evaluator's precision [T, R, K, A, M]; P, R and F1 still None."""
    pairs = [(a["category_id"] - 1, a["image_id"]) for a in truth["annotations"] if not a["iscrowd"]]
    truths, images = Counter(k for k, _ in pairs), Counter(k for k, _ in set(pairs))
    return tuple(ClassScore(name, images[k], truths[k], None, None, None, _mean(ap[0, :, k, 0, 2]),
                            _mean(ap[:, :, k, 0, 2])) for k, name in enumerate(names))


def _by_matching(truth: dict, found: list[dict], rows: np.ndarray, ap: np.ndarray,
                 per_class: tuple[ClassScore, ...], max_det: int) -> tuple[dict, tuple[ClassScore, ...]]:
    """The matching's share of the Metrics (by field name), and the class rows with P, R and F1 filled in."""
    matches = match_at_50(truth, found, rows, max_det, len(per_class))
    pr = ap[0, :, :, 0, 2].T
    curves = confidence_curves(matches, np.where(pr < 0, np.nan, pr))
    point = operating_point(curves)
    filled = tuple(dataclasses.replace(row, precision=p, recall=r, f1=f) if row.truths else row
                   for row, (p, r, f) in zip(per_class, point.per_class.tolist(), strict=True))
    confusion = confusion_matrix(matches, truth, rows, point.confidence)
    return {"precision": point.precision, "recall": point.recall, "f1": point.f1, "curves": curves,
            "confidence": point.confidence, "confusion": confusion, "matches": matches}, filled
