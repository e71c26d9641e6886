"""Cleaning of COCO boxes, all at once in arrays, and the record of every fault. Reads and prints nothing."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data.images import Inspection, turn_boxes

WORST_BAD_SHARE = 0.2              # more unreadable boxes than this: the file is not what it claims to be
NO_BOX = (None, [], "", [0, 0, 0, 0])              # what tools write where there is a mask alone
HUGE = 1e9                         # px; beyond it a coordinate is rubbish, not an object outside the image


@dataclass(frozen=True)
class Fault:
    """One kind of fault: how often, the first three, whether it stops training, and what to do."""

    rule: str
    count: int
    examples: tuple[str, ...]
    fatal: bool
    advice: str


class Boxes(NamedTuple):
    """The boxes of a set, one row each, n rows."""

    image: np.ndarray              # int64 [n] position of the image in the file's `images`
    label: np.ndarray              # int64 [n] class 0..K-1
    xyxy: np.ndarray               # float64 [n, 4] px
    area: np.ndarray               # float64 [n] px^2, of the mask where the file gives it
    crowd: np.ndarray              # bool [n]
    written: np.ndarray            # float64 [n, 5] (top-left xywh px, area px^2) as the file has them
    row: np.ndarray                # int64 [n] position in the file's `annotations`, for messages

    def where(self, keep: np.ndarray) -> "Boxes":
        """Return the rows picked by a boolean or index array."""
        return Boxes(*(column[keep] for column in self))


def id_key(value: object) -> str:
    """Return an id as ids are compared: 7, 7.0 (as tables write it) and "7" are the same."""
    return str(int(value)) if type(value) is float and value.is_integer() else str(value)


def written_id(key: str) -> int | str:
    """Return what a file has for an id: a number where `id_key` would give the same text back."""
    return int(key) if key.removeprefix("-").isdecimal() and str(int(key)) == key else key


def fault(rule: str, examples: Sequence[str], advice: str, fatal: bool = False,
          count: int | None = None) -> list[Fault]:
    """Return the fault as a list: empty when there is no example."""
    count = len(examples) if count is None else count
    return [Fault(rule, count, tuple(map(printable, examples[:3])), fatal, advice)] if count else []


def printable(text: str) -> str:
    """Return the text with what no terminal or UTF-8 file can hold written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def report_faults(faults: Sequence[Fault]) -> list[str]:
    """Return an aligned line per fault, fatal ones first: severity, rule, count, advice, first examples."""
    rule_width = max((len(f.rule) for f in faults), default=0)
    count_width = max((len(f"{f.count:,}") for f in faults), default=0)
    lines = []
    for f in sorted(faults, key=lambda f: not f.fatal):
        first = f" (first: {'; '.join(f.examples)})" if f.examples else ""
        severity = "error" if f.fatal else "warning"
        lines.append(f"{severity:<7}  {f.rule:<{rule_width}}  {f.count:>{count_width},}  {f.advice}{first}")
    return lines


def repeated(values: Iterable[object]) -> list[str]:
    """Return "value (n times)" of each value that appears more than once."""
    return [f"{value} ({count} times)" for value, count in Counter(values).items() if count > 1]


def duplicate_ids(images: list[dict], annotations: list[dict]) -> list[Fault]:
    """Return the faults of image and annotation ids that appear twice."""
    numbers = [id_key(a.get("id")) for a in annotations]
    return (fault("duplicate-image-id", repeated(id_key(i.get("id")) for i in images),
                  "image ids must be unique, or boxes land on the wrong image: renumber them", True)
            + fault("duplicate-annotation-id", repeated(numbers),
                    "annotation ids renumbered in memory: pycocotools would mix them up")
            + fault("annotation-id-zero", [f"annotation id {n}" for n in numbers if n in ("0", "None")],
                    "annotation ids renumbered in memory: pycocotools would count these as missed"))


def read_boxes(annotations: list[dict], images: list[dict], classes: Mapping[str, int],
               drop_unknown: bool) -> tuple[Boxes, list[Fault]]:
    """Return the readable boxes of known images and classes (id_key -> class), and others' faults."""
    positions = {id_key(image.get("id")): i for i, image in enumerate(images)}
    image = np.array([positions.get(id_key(a.get("image_id")), -1) for a in annotations], np.int64)
    label = np.array([classes.get(id_key(a.get("category_id")), -1) for a in annotations], np.int64)
    masked = [a.get("bbox") in NO_BOX and bool(a.get("segmentation")) for a in annotations]
    xywh = np.array([_four_numbers(mask_box(a["segmentation"]) if mask else a.get("bbox"))
                     for a, mask in zip(annotations, masked)], np.float64).reshape(-1, 4)
    area = np.array([_area(a.get("area")) for a in annotations], np.float64)
    crowd = np.array([a.get("iscrowd") in (1, True, "1") for a in annotations], bool)
    orphan, unknown, broken = image < 0, label < 0, np.isnan(xywh).any(1)
    share, limit = (orphan | broken).sum() / max(1, len(annotations)), f"{WORST_BAD_SHARE:.0%} may be lost"
    bad = share > WORST_BAD_SHARE
    faults = fault("annotation-without-image", _name(annotations, np.flatnonzero(orphan), "image_id"),
                   "boxes of an image that is not in `images`, dropped" if not bad else
                   f"{orphan.mean():.0%} of the boxes are of images not in `images`, {limit}: wrong file?",
                   bad)
    faults += _unknown_categories(annotations, np.flatnonzero(unknown & ~orphan), drop_unknown)
    faults += fault("unreadable-box", _name(annotations, np.flatnonzero(broken), "bbox"),
                    "boxes that are not four finite numbers, dropped" if not bad else
                    f"{broken.mean():.0%} of the boxes are not four finite numbers, {limit}: export the file "
                    "again", bad)
    faults += fault("box-from-mask", (), "annotations without `bbox`, taken from the mask", count=sum(masked))
    for key, what in (("iscrowd", "taken as 0"), ("area", "taken from the box")):
        missing = sum(a.get(key) is None for a in annotations)
        faults += fault(f"missing-{key}", (), f"annotations without `{key}`, {what}", count=missing)
    boxes = Boxes(image, label, np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1), area, crowd,
                  np.column_stack((xywh, np.where(area >= 0, area, xywh[:, 2:].prod(1)))),
                  np.arange(len(annotations)))
    return boxes.where(~(orphan | unknown | broken)), faults


def fit_boxes(boxes: Boxes, annotations: list[dict], stated: np.ndarray, real: Sequence[Inspection],
              trust: str | None) -> tuple[Boxes, Boxes, list[Fault]]:
    """Return boxes to learn from, boxes to measure against, and what was changed or dropped (px as decoded).

    The first are distinct, of positive size, inside their images; the second as the file has them, so that
    AP is that of pycocotools. `stated` int64 [I, 2] is the file's (width, height), 0 for none; with trust
    "image" both follow `real`.
    """
    size = np.array([(r.width, r.height) for r in real], np.float64).reshape(-1, 2)
    limit = size[boxes.image]
    counted = boxes.where((boxes.written[:, 2:4] >= 0).all(1))
    wrong_way = (boxes.xyxy[:, 2:] <= boxes.xyxy[:, :2]).any(1)
    faults: list[Fault] = []

    def tell(rule: str, rows: np.ndarray, advice: str, fatal: bool = False) -> None:
        faults.extend(fault(rule, _name(annotations, boxes.row[rows], "bbox"), advice, fatal))

    tell("empty-box", wrong_way, "boxes of zero or negative width or height, dropped")
    boxes, limit = boxes.where(~wrong_way), limit[~wrong_way]
    faults += _fractions(boxes, limit, annotations)
    if trust == "image":
        boxes, counted = _follow(boxes, stated, real), _follow(counted, stated, real)
    faults += _corners_suspected(boxes, limit)
    clipped = np.concatenate((boxes.xyxy[:, :2].clip(0, limit), boxes.xyxy[:, 2:].clip(0, limit)), 1)
    moved = np.abs(clipped - boxes.xyxy).max(1, initial=0)
    gone = (moved > 0) & ((clipped[:, 2:] - clipped[:, :2]).min(1, initial=np.inf) < 1)
    tell("box-outside-image", gone, "boxes with less than 1 px inside their image, dropped")
    tell("box-over-the-edge", (moved > 1) & ~gone, "boxes clipped to their image")
    whole = (clipped[:, 2:] - clipped[:, :2]).prod(1)
    area = np.where(boxes.area > 0, np.minimum(boxes.area, whole), whole)  # a mask is no larger than its box
    boxes = boxes._replace(xyxy=clipped, area=area).where(~gone)
    table = np.column_stack((boxes.image, boxes.label, boxes.crowd, boxes.xyxy))
    first = np.sort(np.unique(table, axis=0, return_index=True)[1])
    tell("duplicate-box", np.setdiff1d(np.arange(len(table)), first),
         "boxes that are exactly another's, learned once; counted twice in AP, as pycocotools does, so that "
         "even a perfect detector misses them: python -m data.doctor SET --fix OUT")
    return boxes.where(first), counted, faults


def _fractions(boxes: Boxes, limit: np.ndarray, annotations: list[dict]) -> list[Fault]:
    """Return the fault of boxes that lie in 0..1: fatal where all do, else a warning."""
    within = (boxes.xyxy >= 0).all(1) & (boxes.xyxy <= 1 + 1e-6).all(1) & (limit > 8).any(1)
    named = _name(annotations, boxes.row[within], "bbox")
    if len(within) and within.all():
        return fault("normalised-boxes", named, "all boxes are in 0..1, fractions of the image, not px: "
                     "multiply by width and height", True)
    return fault("fractions-among-px", named, "boxes in 0..1, within the first pixel: fractions of their "
                 "image, where the others are px?")


def _follow(boxes: Boxes, stated: np.ndarray, real: Sequence[Inspection]) -> Boxes:
    """Scale boxes from the stated to the real size; turn them where that before EXIF rotation is stated."""
    size = np.array([(r.width, r.height) for r in real], np.float64).reshape(-1, 2)[boxes.image]
    was = stated[boxes.image]
    orientation = np.array([r.orientation for r in real], np.int64)[boxes.image]
    known = (was > 0).all(1)
    exchanged = known & (was == size[:, ::-1]).all(1) & (was != size).any(1)       # no scale leads there
    turned = exchanged & (orientation > 4)
    ratio = np.where((known & ~exchanged)[:, None], size / was.clip(1), 1.0)
    xyxy = boxes.xyxy * np.tile(ratio, 2)
    for way in np.unique(orientation[turned]):
        rows = np.flatnonzero(turned & (orientation == way))
        xyxy[rows] = turn_boxes(xyxy[rows], int(way), size[rows, :1], size[rows, 1:])
    written = boxes.written * np.column_stack((np.tile(ratio, 2), ratio.prod(1)))
    written[turned, :4] = np.column_stack((xyxy[turned, :2], xyxy[turned, 2:] - xyxy[turned, :2]))
    return boxes._replace(xyxy=xyxy, area=boxes.area * ratio.prod(1), written=written)


def _corners_suspected(boxes: Boxes, limit: np.ndarray) -> list[Fault]:
    """Return a loud warning when boxes look like two corners where COCO wants corner, width and height."""
    x, y, w, h = boxes.xyxy[:, 0], boxes.xyxy[:, 1], *(boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]).T
    over = (boxes.xyxy[:, 2:] > limit + 1).any(1)
    like_corners = (w > x) & (h > y) & (w <= limit[:, 0] + 1) & (h <= limit[:, 1] + 1)
    if len(over) < 4 or over.mean() < 0.3 or like_corners.mean() < 0.9:
        return []
    return [Fault("corners-instead-of-size", int(over.sum()), (), False,
                  "boxes reach beyond their images and all read well as x1, y1, x2, y2: this file is "
                  "probably NOT in COCO's x, y, width, height; convert it before training")]


def _unknown_categories(annotations: list[dict], rows: np.ndarray, drop: bool) -> list[Fault]:
    """Return the fault of category ids that `categories` does not list, with the boxes of each."""
    tally = Counter(id_key(annotations[i].get("category_id")) for i in rows)
    examples = [f"category id {key}: {count:,} boxes" for key, count in tally.most_common()]
    advice = "boxes dropped, their category is not in `categories`" if drop else \
        "boxes whose category is not in `categories`: add it there, or pass --drop-unknown"
    return fault("unknown-category", examples, advice, not drop, len(rows))


def _name(annotations: list[dict], rows: np.ndarray, key: str) -> list[str]:
    """Return how messages call the annotations in these rows; only the first three are spelled out."""
    spelled = [f"annotation {annotations[i].get('id', f'number {i + 1}')} {key} "
               f"{str(annotations[i].get(key))[:60]}" for i in rows[:3]]
    return spelled + [""] * (len(rows) - len(spelled))


def _four_numbers(box: object) -> Sequence[float]:
    """Return the box when it is four finite numbers, else four NaN. Strings and booleans are no numbers."""
    four = isinstance(box, list) and len(box) == 4
    return box if four and all(type(v) in (int, float) and abs(v) < HUGE for v in box) else (np.nan,) * 4


def mask_box(mask: object) -> list[float] | None:
    """Return the box (top-left xywh px) of a COCO segmentation, polygons or RLE; None when it is neither."""
    try:
        if isinstance(mask, dict):
            return _rle_box(mask["counts"], *map(int, mask["size"]))
        rings = [mask] if isinstance(mask[0], int | float) else mask       # VIA writes one without its list
        points = np.array([value for ring in rings for value in ring], np.float64).reshape(-1, 2)
        return [*points.min(0).tolist(), *np.ptp(points, axis=0).tolist()]
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
        return None


def _rle_box(counts: str | Sequence[int], height: int, width: int) -> list[float]:
    """Return the box of run lengths that alternate between 0 and 1, down the columns of a mask."""
    # In a string: digits of 5 bits from 48 on, lowest first, a sixth where one more follows; from the fourth
    # length on it is the difference to the length two before
    if isinstance(counts, str):
        runs, value, shift = [], 0, 0
        for code in (ord(letter) - 48 for letter in counts):
            value, shift = value | (code & 31) << shift, shift + 5
            if shift > 60:
                raise ValueError("a run length beyond any mask")
            if not code & 32:
                value -= (code & 16) << shift - 4      # the last digit carries the sign
                runs.append(value + (runs[-2] if len(runs) > 2 else 0))
                value = shift = 0
        counts = runs
    ends = np.cumsum(np.array(counts, np.int64))
    if min(counts) < 0 or ends[-1] > height * width:
        raise ValueError("run lengths that leave the mask")
    starts, stops = ends[0::2][:len(ends[1::2])], ends[1::2]
    starts, stops = starts[stops > starts], stops[stops > starts] - 1
    whole = starts // height != stops // height        # a run over the end of a column takes its last row
    top = 0 if whole.any() else int((starts % height).min())
    bottom = height - 1 if whole.any() else int((stops % height).max())
    left, right = int((starts // height).min()), int((stops // height).max())
    return [left, top, right - left + 1, bottom - top + 1]


def _area(value: object) -> float:
    """Return the value when it is a finite number from 0 on, else NaN."""
    return value if type(value) in (int, float) and 0 <= value < HUGE ** 2 else np.nan
