"""YOLO's head: boxes as offsets to a few anchor shapes a cell, with objectness (YOLOv3, arXiv 1804.02767)."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models.heads.base import Head, logit, numbers, sigmoid
from models.layer import Layer
from utils.boxes import ciou_pairs, cxcywh_to_xyxy, iou_rows, library
from utils.optional import Lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional as F

    from utils.boxes import Values
else:
    torch, F = Lazy("torch"), Lazy("torch.nn.functional")

OBJECTNESS, CLASSES = 4, slice(5, None)        # of the 5 + K channels: x, y, w, h, objectness, classes
EXP_LIMIT = 8.0                                # exp(8) anchors is wider than any image; exp(89) is inf
MAX_RATIO = 4.0                                # an anchor is matched to boxes up to 4 times wider or narrower
IGNORE = 0.7                                   # YOLOv3: a box that overlaps a target more is no background
RULES = ("ratio", "best")


class Matches(NamedTuple):
    """Predictions of one head that are matched to a ground-truth box, n in all."""

    image: Tensor                                          # [n] image in the batch
    anchor: Tensor                                         # [n]
    x: Tensor                                              # [n] cell
    y: Tensor
    boxes: Tensor                                          # [n, 4] ground truth, cxcywh px of the input
    classes: Tensor                                        # [n]


class AnchorHead(Head):
    """Predictions [B, A, 5 + K, G, G]: x, y, w, h, objectness, classes of A anchors in every cell.

    `assign` is the rule that matches them to ground truth. "ratio": every anchor of a like shape, in the
    cells whose reach (`xy_scale`) covers the centre; objectness learns the IoU. "best", YOLOv3's, by which
    the published weights learned: one anchor and one cell a box, objectness 1, near misses no background.
    """

    kind = "anchor"
    terms = {"box": 5.0, "obj": 1.0, "cls": 1.0}           # 1 - CIoU, cross-entropy, cross-entropy
    why_frozen = "a head's outputs are its anchors and classes"

    @classmethod
    def problem(cls, layer: Layer) -> str:
        count = len(layer.anchors)
        if not count or layer.out % count or layer.out // count <= 5:
            return f"out {layer.out} is not anchors ({count}) x (5 + classes)"
        if any(not 0 < side < 1e5 for anchor in layer.anchors for side in anchor):
            return f"anchors must be positive px: {layer.anchors}"
        if not 1 <= layer.xy_scale <= 2:
            return f"xy_scale is {layer.xy_scale}; needs 1 to 2"
        return "" if layer.assign in RULES else f"assign is {layer.assign!r}; needs {' or '.join(RULES)}"

    @property
    def classes(self) -> int:
        return self.shape[1] - 5

    @property
    def shape(self) -> tuple[int, ...]:
        count = len(self.layer.anchors)
        return count, self.layer.out // count

    def for_classes(self, classes: int) -> Layer:
        return replace(self.layer, out=len(self.layer.anchors) * (5 + classes))

    def with_anchors(self, anchors: Sequence[tuple[float, float]]) -> Layer:
        boxes = tuple((float(w), float(h)) for w, h in anchors)
        return replace(self.layer, anchors=boxes, out=len(boxes) * self.shape[1])

    def set_bias(self, bias: Tensor, prior: float) -> None:
        """Set objectness and classes to the logit of `prior` (Lin et al. 2017, arXiv 1708.02002, 4.1)."""
        bias.zero_()
        bias.view(self.shape)[:, OBJECTNESS:].fill_(-math.log((1 - prior) / prior))

    def anchors(self, like: Values) -> Values:
        """Return the anchors [A, 2] in px of the input, as what `like` is."""
        return numbers(self.layer.anchors, like)

    def boxes(self, raw: Values, cells: Values, anchors: Values) -> Values:
        """Return boxes [n, 4] (cxcywh px) of predictions [n, >=4], their cells (x, y) and anchors [n, 2]."""
        shift, xp = (self.layer.xy_scale - 1) / 2, library(raw)        # YOLOv3, 2.1, with YOLOv4's scale_x_y
        centre = (sigmoid(raw[:, :2]) * self.layer.xy_scale - shift + cells) * self.stride
        return xp.concatenate((centre, xp.exp(raw[:, 2:4].clip(max=EXP_LIMIT)) * anchors), 1)

    @classmethod
    def losses(cls, heads: Sequence[AnchorHead], outputs: Sequence[Tensor],
               targets: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        matches = match(heads, [output.shape for output in outputs], targets)
        parts = [head.terms_of(output, matched, targets)
                 for head, output, matched in zip(heads, outputs, matches)]
        count = torch.tensor(float(sum(len(found.image) for found in matches)), device=outputs[0].device)
        return {name: sum(part[at] for part in parts) for at, name in enumerate(cls.terms)}, count

    def terms_of(self, raw: Tensor, found: Matches, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the summed box, objectness and class losses of predictions [B, A, 5 + K, G, G]."""
        best = self.layer.assign == "best"
        objectness = raw.new_zeros(raw[:, :, OBJECTNESS].shape)
        box = classes = raw.sum() * 0
        if len(found.image):
            vectors = raw[found.image, found.anchor, :, found.y, found.x]
            anchors = self.anchors(raw)[found.anchor]
            predicted = self.boxes(vectors, torch.stack((found.x, found.y), 1), anchors)
            ciou, iou = ciou_pairs(predicted, found.boxes)
            box = (1 - ciou).sum()
            wanted = F.one_hot(found.classes, self.classes).to(vectors.dtype)
            classes = F.binary_cross_entropy_with_logits(vectors[:, CLASSES], wanted, self.class_weights,
                                                         reduction="sum")
            # Two boxes may claim one prediction; the better overlap is its objectness, whatever the order.
            _, count, _, height, width = raw.shape
            flat = ((found.image * count + found.anchor) * height + found.y) * width + found.x
            quality = torch.ones_like(iou) if best else iou.detach().clamp(0, 1)
            objectness.view(-1).scatter_reduce_(0, flat, quality.to(raw.dtype), "amax")
        counted = None
        if best:
            counted = ((objectness > 0) | (self.overlaps(raw, targets) < IGNORE)).to(raw.dtype)
        obj = F.binary_cross_entropy_with_logits(raw[:, :, OBJECTNESS], objectness, counted, reduction="sum")
        return box, obj, classes

    def overlaps(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Return the best IoU [B, A, G, G] of every predicted box with a target [N, 6] of its image, or 0."""
        batch, count, _, height, width = raw.shape
        best = raw.new_zeros(batch, count * height * width)
        with torch.no_grad():
            boxes, _ = self.everything(raw)
            size = torch.tensor((width, height), device=raw.device) * self.stride
            image = targets[:, 0].long()
            # A row a target against all boxes of its image: no padding, whatever the numbers per image.
            overlap = iou_rows(boxes[image],
                               cxcywh_to_xyxy(targets[:, 2:6] * torch.cat((size, size))))
            best.scatter_reduce_(0, image[:, None].expand_as(overlap), overlap.to(best.dtype), "amax")
        return best.view(batch, count, height, width)

    def promising(self, output: Values, conf_thres: float) -> Values:
        return output[:, :, OBJECTNESS] > logit(conf_thres)            # score <= objectness: none is lost

    def decoded(self, vectors: Values, cells: Values) -> tuple[Values, Values]:
        places = library(cells).stack((cells[:, 2], cells[:, 1]), 1)
        boxes = self.boxes(vectors, places, self.anchors(vectors)[cells[:, 0]])
        scores = sigmoid(vectors[:, CLASSES]) * sigmoid(vectors[:, OBJECTNESS:OBJECTNESS + 1])
        return cxcywh_to_xyxy(boxes), scores

    def distance(self, mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objectness-scaled distance (Mehta and Ozturk 2018, arXiv 1805.06361, 3.2)."""
        seen = theirs[:, :, OBJECTNESS].sigmoid()          # background teaches only that it is background
        box = (mine[:, :, :2].sigmoid() - theirs[:, :, :2].sigmoid()).square().sum(2)
        box = box + (mine[:, :, 2:4] - theirs[:, :, 2:4]).square().sum(2)
        classes = _divergence(mine[:, :, CLASSES], theirs[:, :, CLASSES]).sum(2)
        objectness = _divergence(mine[:, :, OBJECTNESS], theirs[:, :, OBJECTNESS])
        return (seen * (box + classes) + objectness).sum(), seen.sum()

    def differs(self, other: Head) -> str:
        same = (self.layer.anchors, self.layer.xy_scale) == (other.layer.anchors, other.layer.xy_scale)
        return "" if same else "other anchors or centre reach"

    def rows(self, names: Sequence[str], other_names: Sequence[str]) -> tuple[list[int], list[int]]:
        there = {name.lower(): at for at, name in enumerate(other_names)}
        pairs = [(i, i) for i in range(5)]
        pairs += [(5 + i, 5 + there[name.lower()]) for i, name in enumerate(names) if name.lower() in there]
        count, here, width = self.shape[0], 5 + len(names), 5 + len(other_names)
        return ([a * here + p for a in range(count) for p, _ in pairs],
                [a * width + q for a in range(count) for _, q in pairs])

    def in_graph(self, add: Callable[..., str], output: str, grid: int) -> tuple[str, str]:
        count, channels = self.shape
        cells = np.stack(np.meshgrid(np.arange(grid), np.arange(grid)), -1).reshape(1, 1, -1, 2)
        flat = add("Reshape", output, np.int64([count, channels, 1, grid * grid]))
        flat = add("Transpose", flat, perm=[2, 0, 3, 1])                # [1, A, P, C]
        xy, wh, seen, classes = (add("Slice", flat, *np.int64([[first], [last], [3]])) for first, last in (
            (0, 2), (2, 4), (OBJECTNESS, OBJECTNESS + 1), (CLASSES.start, channels)))
        centre = add("Mul", self.places_in_graph(add, xy, cells.astype(np.float32)), np.float32(self.stride))
        wide = add("Exp", add("Min", wh, np.float32(EXP_LIMIT)))
        half = add("Mul", wide, self.anchors(cells)[None, :, None] / 2)
        boxes = add("Concat", add("Sub", centre, half), add("Add", centre, half), axis=3)
        scores = add("Mul", add("Sigmoid", classes), add("Sigmoid", seen))
        return (add("Reshape", boxes, np.int64([1, -1, 4])),
                add("Reshape", scores, np.int64([1, -1, self.classes])))

    def places_in_graph(self, add: Callable[..., str], xy: str, cells: np.ndarray) -> str:
        """Append the middles [1, A, P, 2] of boxes, in cells, of raw x and y in `cells` [1, 1, P, 2]."""
        reach = add("Mul", add("Sigmoid", xy), np.float32(self.layer.xy_scale))
        return add("Add", reach, cells - np.float32((self.layer.xy_scale - 1) / 2))

    def metadata(self) -> dict[str, object]:
        return {"anchors": [list(anchor) for anchor in self.layer.anchors], "xy_scale": self.layer.xy_scale}


def _divergence(mine: Tensor, theirs: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of the Bernoulli variables behind each pair of logits."""
    soft = theirs.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(theirs, soft, reduction="none")
    return F.binary_cross_entropy_with_logits(mine, soft, reduction="none") - entropy


def match(heads: Sequence[AnchorHead], shapes: Sequence[tuple[int, ...]], targets: Tensor) -> list[Matches]:
    """Return which predictions of each head are matched to which ground-truth boxes.

    shapes: those of the outputs; targets [N, 6] (image, class, cxcywh normalised). Every box is taken by its
    best anchor (IoU of the shapes), by "ratio" also by those less than MAX_RATIO off in width and height; in
    the cell of its centre, and where xy_scale reaches it: at 2 the nearest cells in x and in y.
    """
    sizes = [torch.tensor((shape[4], shape[3]), device=targets.device) * head.stride
             for shape, head in zip(shapes, heads)]
    wh = targets[:, 4:6] * sizes[0]
    anchors = [head.anchors(targets) for head in heads]
    fits = [_shape_iou(wh, of_head) for of_head in anchors]            # each [N, A]
    best = torch.cat(fits, 1).amax(1, keepdim=True)
    found = []
    for head, shape, size, of_head, fit in zip(heads, shapes, sizes, anchors, fits):
        wanted = fit == best
        if head.layer.assign == "ratio":
            ratio = torch.maximum(wh[:, None] / of_head, of_head / wh[:, None].clamp(min=1e-6)).amax(2)
            wanted = wanted | (ratio < MAX_RATIO)
        found.append(_cells(head, shape, targets, size, wanted))
    return found


def _shape_iou(wh: Tensor, anchors: Tensor) -> Tensor:
    """Return the IoU [N, A] of boxes wh [N, 2] with anchors [A, 2] laid on the same centre."""
    inner = torch.minimum(wh[:, None], anchors).prod(2)
    return inner / (wh.prod(1)[:, None] + anchors.prod(1) - inner).clamp(min=1e-6)


def _cells(head: AnchorHead, shape: tuple[int, ...], targets: Tensor, size: Tensor,
           wanted: Tensor) -> Matches:
    """Return the matched predictions of one head for the box-anchor pairs `wanted` [N, A]."""
    row, anchor = wanted.nonzero(as_tuple=True)
    boxes = targets[row, 2:6] * torch.cat((size, size))
    grid = torch.tensor((shape[4], shape[3]), device=targets.device)
    centre = boxes[:, :2] / head.stride
    home = torch.minimum(centre.long(), grid - 1)
    inside = centre - home                                 # 0..1 within the home cell
    reach = (head.layer.xy_scale - 1) / 2
    near = torch.where(inside < 0.5, -1, 1)                # the nearer neighbour in x and in y
    distance = torch.where(inside < 0.5, inside, 1 - inside)
    steps = torch.tensor(((0, 0), (1, 0), (0, 1)), device=targets.device)
    cells = home[None] + steps[:, None] * near[None]       # [3, n, 2]
    exists = ((cells >= 0) & (cells < grid)).all(2)
    allowed = ((distance[None] < reach) | (steps[:, None] == 0)).all(2) & exists
    which, pick = allowed.nonzero(as_tuple=True)
    cell, target = cells[which, pick], targets[row[pick]]
    return Matches(target[:, 0].long(), anchor[pick], cell[:, 0], cell[:, 1], boxes[pick],
                   target[:, 1].long())
