"""Which predictions are matched to which ground-truth boxes, by rules that look at what is predicted."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from utils.boxes import iou_rows
from utils.optional import Lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Lazy("torch")

ALPHA, BETA, PICKS = 1.0, 6.0, 13              # of TAL, as the paper has them
RADIUS, TOP, IOU_COST, FAR = 2.5, 10, 3.0, 1e5             # of SimOTA, as YOLOX has them
LEAST = 1e-3                                   # an IoU below counts as this: there the score decides
FLOOR = 0.1                                    # what a box still asks for that no prediction overlaps more


class Predictions(NamedTuple):
    """What the heads of a network predict for a batch, P predictions an image."""

    scores: Tensor                                         # [B, P, K] 0..1
    boxes: Tensor                                          # [B, P, 4] xyxy px of the input
    points: Tensor                                         # [P, 2] px: the middles of their cells
    strides: Tensor                                        # [P] px
    reach: Tensor                                          # [P] px: the farthest side that can be said


class Truth(NamedTuple):
    """The ground truth of a batch, N boxes in all."""

    image: Tensor                                          # [N] image in the batch
    label: Tensor                                          # [N] class
    boxes: Tensor                                          # [N, 4] xyxy px of the input


class Matched(NamedTuple):
    """Matched predictions, n in all, each to one box."""

    image: Tensor                                          # [n] image in the batch
    at: Tensor                                             # [n] prediction of that image
    row: Tensor                                            # [n] ground-truth box
    quality: Tensor                                        # [n] 0..1: the score that it should have


def task_aligned(found: Predictions, truth: Truth) -> Matched:
    """Return the matches by task-aligned assignment (TOOD, arXiv 2108.07755, 3.2).

    A box takes the PICKS predictions of greatest alignment score^ALPHA x IoU^BETA whose cell's middle lies in
    it. The quality is their alignment, scaled to the greatest IoU of the box's predictions.
    """
    inside, _ = _near(found, truth)
    overlap = iou_rows(found.boxes[truth.image], truth.boxes)
    score = found.scores[truth.image, :, truth.label].clamp(min=1e-6)
    alignment = score.pow(ALPHA) * overlap.clamp(min=LEAST).pow(BETA)
    picked = _best(alignment.where(inside, -1.0), PICKS) & inside
    image, at, row = one_each(picked, overlap, truth.image, len(found.boxes))
    mine = alignment[row, at]
    most, largest = (value.new_zeros(len(truth.image)).scatter_reduce(0, row, value, "amax")[row]
                     for value in (mine, overlap[row, at]))
    return Matched(image, at, row, mine / most * largest.clamp(min=FLOOR))


def simota(found: Predictions, truth: Truth) -> Matched:
    """Return the matches by SimOTA (YOLOX, arXiv 2107.08430, 2.3); the quality is the IoU.

    A box takes the k predictions of the least cost, k the sum of its TOP greatest IoUs. The cost is the
    scores' cross-entropy, IOU_COST times -log IoU, and FAR outside the box or RADIUS cells from its middle.
    """
    inside, central = _near(found, truth)
    near = inside | central
    overlap = iou_rows(found.boxes[truth.image], truth.boxes)
    score = found.scores.clamp(1e-6, 1 - 1e-6)
    others = -(1 - score).log().sum(2)[truth.image]
    score = score[truth.image, :, truth.label]
    cost = others + (1 - score).log() - score.log() - IOU_COST * (overlap + 1e-8).log()
    cost = (cost + FAR * ~(inside & central)).where(near, float("inf"))
    count = overlap.where(near, 0.0).topk(min(TOP, overlap.shape[1]), 1).values.sum(1).int().clamp(min=1)
    picked = _best(-cost, TOP, count) & near
    image, at, row = one_each(picked, -cost, truth.image, len(found.boxes))
    return Matched(image, at, row, overlap[row, at].clamp(0, 1))


RULES = {"tal": task_aligned, "simota": simota}


def _near(found: Predictions, truth: Truth) -> tuple[Tensor, Tensor]:
    """Return [N, P] whose cell's middle lies in a box, and [N, P] whose is near the box's middle.

    Cells that cannot reach a box's sides are left out where others can. A box that holds no middle has the
    nearest cell of the finest grid: it is not lost.
    """
    low, high = (found.points - truth.boxes[:, None, :2]), (truth.boxes[:, None, 2:] - found.points)
    sides = torch.cat((low, high), 2)                      # [N, P, 4] px from the middle outwards
    inside = sides.amin(2) > 0
    within = inside & (sides.amax(2) <= found.reach)
    inside = torch.where(within.any(1, keepdim=True), within, inside)
    away = (low - high).abs() / 2                          # of the box's middle
    distance = away.square().sum(2).where(found.strides == found.strides.min(), float("inf"))
    nearest = torch.zeros_like(inside).scatter_(1, distance.argmin(1, keepdim=True), True)
    inside = torch.where(inside.any(1, keepdim=True), inside, nearest)
    return inside, (away.amax(2) < RADIUS * found.strides) | nearest


def _best(worth: Tensor, most: int, count: Tensor | None = None) -> Tensor:
    """Return [N, P] which are the `most` of greatest worth in their row, of them the first `count`."""
    order = worth.topk(min(most, worth.shape[1]), 1).indices
    taken = torch.ones_like(order, dtype=torch.bool)
    if count is not None:
        taken = torch.arange(order.shape[1], device=order.device) < count[:, None]
    return torch.zeros_like(worth, dtype=torch.bool).scatter_(1, order, taken)


def one_each(picked: Tensor, worth: Tensor, image: Tensor, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return image, prediction and row of the picks [N, P], of those of one prediction the worthiest."""
    row, at = picked.nonzero(as_tuple=True)
    place, value = image[row] * picked.shape[1] + at, worth[row, at]
    best = value.new_full((batch * picked.shape[1],), -float("inf")).scatter_reduce(0, place, value, "amax")
    row, at, place = (x[value == best[place]] for x in (row, at, place))
    # Of boxes that lie on each other the first has it, on any device.
    first = row.new_full((len(best),), len(picked)).scatter_reduce(0, place, row, "amin")
    row, at = (x[first[place] == row] for x in (row, at))
    return image[row], at, row
