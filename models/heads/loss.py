"""Target assignment and the named loss terms."""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from models.heads.decode import HeadSpec, decode_boxes
from utils.boxes import ciou_pairs, cxcywh_to_xyxy, iou_rows

MAX_RATIO = 4.0                                # an anchor answers for boxes up to 4 times wider or narrower
IGNORE = 0.7                                   # YOLOv3: a box that overlaps a truth more is no background


class Assigned(NamedTuple):
    """Predictions of one head that answer for a truth, n in all."""

    image: Tensor                                          # [n] picture in the batch
    anchor: Tensor                                         # [n]
    x: Tensor                                              # [n] cell
    y: Tensor
    boxes: Tensor                                          # [n, 4] truth, cxcywh px of the input
    classes: Tensor                                        # [n]


class DetectionLoss:
    """Callable: (maps, targets, images) -> {"box", "obj", "cls"}, scalars; the pictures are not looked at.

    Each is a sum over its predictions divided by the number of positive predictions in the whole (global)
    batch.

    maps: list of [B, A, 5 + K, G, G]; targets [N, 6] (image, class, cxcywh normalised), N may be 0: the terms
    stay finite and every parameter gets a gradient. Under torch.distributed the count is summed over ranks
    and the terms scaled so that DDP's mean of gradients equals one process with the whole batch.
    """

    def __init__(self, specs: tuple[HeadSpec, ...]) -> None:
        self.specs = specs

    def __call__(self, maps: list[Tensor], targets: Tensor,
                 images: Tensor | None = None) -> dict[str, Tensor]:
        specs = [s._replace(anchors=s.anchors.to(maps[0].device)) for s in self.specs]
        found = assign(specs, [m.shape for m in maps], targets)
        positives = torch.tensor(float(sum(len(a.image) for a in found)), device=maps[0].device)
        world = 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(positives)
            world = dist.get_world_size()
        scale = world / positives.clamp(min=1)
        terms = [_terms(m.float(), spec, a, targets) for m, spec, a in zip(maps, specs, found)]
        return {name: sum(t[i] for t in terms) * scale for i, name in enumerate(("box", "obj", "cls"))}


def one_anchor(spec: HeadSpec) -> bool:
    """Whether a head's rule is YOLOv3's: one anchor and one cell a truth, objectness 1, near misses ignored.

    The published weights, whose centres stay in their cell (xy_scale 1), learned by it; the rule of the wider
    heads teaches their other anchors to answer too, and every object is then found several times.
    """
    return spec.xy_scale == 1


def _terms(raw: Tensor, spec: HeadSpec, a: Assigned, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Summed box (1 - CIoU), objectness (BCE) and class (BCE) losses of one head.

    An assigned prediction's objectness is its IoU with the truth, or 1 in a head of one anchor a truth.
    """
    objectness = raw.new_zeros(raw[:, :, 4].shape)
    box = cls = raw.sum() * 0 if not len(a.image) else None
    if box is None:
        vectors = raw[a.image, a.anchor, :, a.y, a.x]
        predicted = decode_boxes(vectors, torch.stack((a.x, a.y), 1), spec.anchors[a.anchor], spec)
        ciou, iou = ciou_pairs(predicted, a.boxes)
        box = (1 - ciou).sum()
        truth = F.one_hot(a.classes, raw.shape[2] - 5).to(vectors.dtype)
        cls = F.binary_cross_entropy_with_logits(vectors[:, 5:], truth, reduction="sum")
        # Two truths may claim one prediction; the better overlap is its objectness, whatever the order.
        flat = ((a.image * raw.shape[1] + a.anchor) * raw.shape[3] + a.y) * raw.shape[4] + a.x
        quality = torch.ones_like(iou) if one_anchor(spec) else iou.detach().clamp(0, 1)
        objectness.view(-1).scatter_reduce_(0, flat, quality.to(raw.dtype), "amax")
    counted = None
    if one_anchor(spec):
        counted = ((objectness > 0) | (near_truth(raw, spec, targets) < IGNORE)).to(raw.dtype)
    obj = F.binary_cross_entropy_with_logits(raw[:, :, 4], objectness, counted, reduction="sum")
    return box, obj, cls


@torch.no_grad()
def near_truth(raw: Tensor, spec: HeadSpec, targets: Tensor) -> Tensor:
    """The best IoU [B, A, G, G] of every predicted box of a head with a truth of its picture; 0 without one.

    raw [B, A, 5 + K, G, G]; targets [N, 6] (image, class, cxcywh normalised).
    """
    batch, anchors, _, height, width = raw.shape
    best = raw.new_zeros(batch, anchors * height * width)
    if not len(targets):
        return best.view(batch, anchors, height, width)
    y, x, a = torch.meshgrid(*(torch.arange(n, device=raw.device) for n in (height, width, anchors)),
                             indexing="ij")
    y, x, a = (v.permute(2, 0, 1).reshape(-1) for v in (y, x, a))
    cells, shapes = (v.repeat(batch, 1) for v in (torch.stack((x, y), 1), spec.anchors[a]))
    boxes = decode_boxes(raw.permute(0, 1, 3, 4, 2).reshape(-1, raw.shape[2]), cells, shapes, spec)
    size = torch.tensor((width, height), device=raw.device) * spec.stride
    image = targets[:, 0].long()
    truths = targets[:, 2:6] * torch.cat((size, size))
    # A row a truth against all boxes of its picture: no padding, whatever the numbers a picture.
    overlap = iou_rows(cxcywh_to_xyxy(boxes.view(batch, -1, 4))[image], cxcywh_to_xyxy(truths))
    best.scatter_reduce_(0, image[:, None].expand_as(overlap), overlap.to(best.dtype), "amax")
    return best.view(batch, anchors, height, width)


def assign(specs: list[HeadSpec], shapes: list[torch.Size], targets: Tensor) -> list[Assigned]:
    """Which predictions of each head answer for which truths.

    An anchor takes a truth whose width and height differ from it by less than MAX_RATIO; every truth is taken
    by at least its best anchor (IoU of the shapes), and in a head of one anchor a truth by no other. Beside
    the cell of its centre it is given to the cells whose reach (xy_scale) covers the centre: none at 1, the
    nearest one in x and in y at 2. Shapes are the maps' [B, A, 5 + K, G, G].
    """
    sizes = [torch.tensor((s[4], s[3]), device=targets.device) * spec.stride
             for s, spec in zip(shapes, specs)]
    wh = targets[:, 4:6] * sizes[0]
    ratios = [torch.maximum(wh[:, None] / spec.anchors, spec.anchors / wh[:, None].clamp(min=1e-6)).amax(2)
              for spec in specs]                           # each [N, A]
    fits = [_shape_iou(wh, spec.anchors) for spec in specs]
    best = torch.cat(fits, 1).amax(1, keepdim=True)
    return [_cells(spec, shape, targets, size,
                   (fit == best) if one_anchor(spec) else (ratio < MAX_RATIO) | (fit == best))
            for spec, shape, size, ratio, fit in zip(specs, shapes, sizes, ratios, fits)]


def _shape_iou(wh: Tensor, anchors: Tensor) -> Tensor:
    """IoU [N, A] of boxes wh [N, 2] with anchors [A, 2] laid on the same centre."""
    inner = torch.minimum(wh[:, None], anchors).prod(2)
    return inner / (wh.prod(1)[:, None] + anchors.prod(1) - inner).clamp(min=1e-6)


def _cells(spec: HeadSpec, shape: torch.Size, targets: Tensor, size: Tensor, match: Tensor) -> Assigned:
    """The assigned predictions of one head for the truth-anchor pairs `match` [N, A]."""
    row, anchor = match.nonzero(as_tuple=True)
    truth = targets[row]
    boxes = truth[:, 2:6] * torch.cat((size, size))
    grid = torch.tensor((shape[4], shape[3]), device=targets.device)
    centre = boxes[:, :2] / spec.stride
    home = torch.minimum(centre.long(), grid - 1)
    inside = centre - home                                 # 0..1 within the home cell
    reach = (spec.xy_scale - 1) / 2
    near = torch.where(inside < 0.5, -1, 1)                # the nearer neighbour in x and in y
    distance = torch.where(inside < 0.5, inside, 1 - inside)
    steps = torch.tensor(((0, 0), (1, 0), (0, 1)), device=targets.device)
    cells = home[None] + steps[:, None] * near[None]       # [3, n, 2]
    exists = ((cells >= 0) & (cells < grid)).all(2)
    allowed = ((distance[None] < reach) | (steps[:, None] == 0)).all(2) & exists
    which, pick = allowed.nonzero(as_tuple=True)
    cell = cells[which, pick]
    return Assigned(truth[pick, 0].long(), anchor[pick], cell[:, 0], cell[:, 1], boxes[pick],
                    truth[pick, 1].long())
