"""Learning from a trained network: what it predicts as soft targets, whatever the heads of either are."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.features import Features, ends_and_features
from compress.fold import fold
from models.checkpoint import Checkpoint
from models.graph import heads_of
from models.heads.assign import one_each
from models.heads.base import Head
from models.heads.loss import DetectionLoss, distillation, over_ranks
from models.layer import Net
from models.network import from_state
from utils.boxes import iou_rows
from utils.errors import ModelError

SEEN = 0.05                                    # what a teacher is less sure of is background to it
MOST = 64                                      # predictions an image that teach, the surest
NEAR = 0.5                                     # IoU with one of them from which nothing is background
Teach = Callable[[Tensor], list[Tensor] | None]          # None: it has nothing to say yet


class DistilledLoss(nn.Module):
    """Callable like its base, with the term "distill": how far the outputs are from the teacher's.

    Heads that mean the same are compared number by number. Others, or of other classes (`pairs`: the class
    here and there of each that both know), by their decoded boxes and scores: see `imitation`. With
    `features` both networks return their `ends_and_features`, which the term "distill_features" compares.
    """

    def __init__(self, base: DetectionLoss, teach: Teach, heads: Sequence[Head] = (),
                 pairs: Sequence[tuple[int, int]] = (), features: Features | None = None) -> None:
        super().__init__()
        self.base, self.teach, self.heads, self.pairs = base, teach, heads, list(zip(*pairs))
        self.features, self.terms = features, {**base.terms, "distill": 1.0}
        if features is not None:
            self.terms["distill_features"] = 1.0

    def forward(self, outputs: list[Tensor], targets: Tensor, images: Tensor) -> dict[str, Tensor]:
        told, more = self.teach(images), {}
        if self.features is not None:
            more["distill_features"] = self.features(outputs, told)
            outputs = outputs[:len(self.base.heads)]       # told is cut by the heads beside it
        if told is None:
            distance = outputs[0].new_zeros(())
        elif not self.pairs:
            distance = distillation(outputs, told, self.base.heads)
        else:
            mine, here = everything(outputs, self.base.heads)
            theirs, there = everything(told, self.heads)
            total, weight = imitation(mine, here[..., self.pairs[0]], theirs, there[..., self.pairs[1]])
            distance = total * over_ranks(weight)
        return {**self.base(outputs, targets, images), "distill": distance, **more}


def everything(outputs: Sequence[Tensor], heads: Sequence[Head]) -> tuple[Tensor, Tensor]:
    """Return all boxes [B, P, 4] (xyxy px of the input) and scores [B, P, K] of head outputs."""
    parts = [head.everything(output.float()) for head, output in zip(heads, outputs)]
    return torch.cat([boxes for boxes, _ in parts], 1), torch.cat([scores for _, scores in parts], 1)


def imitation(mine: Tensor, scores: Tensor, theirs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return a student's distance from a teacher's predictions, summed, and the weight to divide it by.

    mine [B, P, 4], theirs [B, Q, 4]: boxes, xyxy px; scores [B, P, K], wanted [B, Q, K]: of the same classes.
    Each prediction that the teacher is sure of is learned by the student's that lies nearest: its scores, and
    its box as far as it is sure. What is far from all of them should have no score that the teacher sees.
    """
    with torch.no_grad():
        sure, order = wanted.amax(2).topk(min(MOST, wanted.shape[1]), 1)
        image, at = (sure > SEEN).nonzero(as_tuple=True)
        place = order[image, at]
        boxes, soft, sure = theirs[image, place], wanted[image, place], sure[image, at]
        overlap = iou_rows(mine[image], boxes)
        nearest = (overlap - _apart(mine[image], boxes)).argmax(1, keepdim=True)
        picked = torch.zeros_like(overlap, dtype=torch.bool).scatter_(1, nearest, True)
        image_of, at, row = one_each(picked, sure[:, None].expand_as(overlap), image, len(mine))
        near = overlap.new_zeros(mine.shape[:2])
        near.scatter_reduce_(0, image[:, None].expand_as(overlap), overlap, "amax")
        target = scores.clamp(max=SEEN)
        target[near > NEAR] = scores[near > NEAR]          # left to the ground truth
        target[image_of, at] = soft[row]
    size = boxes[row, 2:] - boxes[row, :2]
    off = (mine[image_of, at] - boxes[row]) / torch.cat((size, size), 1).clamp(min=1)
    off = F.smooth_l1_loss(off, torch.zeros_like(off), reduction="none", beta=0.1).sum(1)
    divergence = F.binary_cross_entropy(scores, target, reduction="sum") \
        - F.binary_cross_entropy(target, target, reduction="sum")
    return divergence + (off * sure[row]).sum(), sure.sum()


def _apart(boxes: Tensor, others: Tensor) -> Tensor:
    """Return how far [N, P] boxes [N, P, 4] and others [N, 4] are apart: squared, as a share of the hull."""
    others = others[:, None]
    hull = torch.maximum(boxes[..., 2:], others[..., 2:]) - torch.minimum(boxes[..., :2], others[..., :2])
    middles = (boxes[..., :2] + boxes[..., 2:] - others[..., :2] - others[..., 2:]) / 2
    return middles.square().sum(2) / hull.square().sum(2).clamp(min=1e-7)


def teacher(net: Net, state: dict[str, Tensor], device: torch.device,
            dtype: torch.dtype = torch.float32, ends: tuple[str, ...] = ()) -> Teach:
    """Return a function: images [B, 3, S, S], float 0..1 -> head outputs of a trained network, frozen.

    ends: records whose values it returns in their place.
    """
    model = from_state(*fold(net, state), ends).to(device, dtype).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def teach(images: Tensor) -> list[Tensor]:
        return model(images.to(dtype))
    return teach


def common_classes(names: Sequence[str], teacher_names: Sequence[str]) -> list[tuple[int, int]]:
    """Return the class here and there of each that both know by name, or raise ModelError where none is."""
    there = {name.strip().casefold(): at for at, name in enumerate(teacher_names)}
    pairs = [(at, there[name.strip().casefold()]) for at, name in enumerate(names)
             if name.strip().casefold() in there]
    if not pairs:
        raise ModelError(f"the teacher knows none of the classes {', '.join(names)}; it knows "
                         f"{', '.join(teacher_names)}: train one on this data set, or leave --teacher out")
    return pairs


def taught(base: DetectionLoss, names: Sequence[str], found: Checkpoint, device: torch.device,
           dtype: torch.dtype = torch.float32, student: Net = ()) -> tuple[DistilledLoss, str]:
    """Return the loss with a teacher's part, and a sentence on classes that the teacher does not know.

    student: the network that learns the teacher's features as well; none learns them without.
    """
    features = Features(student, found.net).to(device) if student else None
    teach = teacher(found.net, found.state, device, dtype, ends_and_features(found.net) if student else ())
    heads = heads_of(found.net)
    if alike(base.heads, heads) and tuple(names) == found.names:
        return DistilledLoss(base, teach, features=features), ""
    pairs = common_classes(names, found.names)
    lacking = [name for at, name in enumerate(names) if at not in dict(pairs)]
    return DistilledLoss(base, teach, heads, pairs, features), (
        f"the teacher knows no {', '.join(lacking)}: learned from the ground truth alone" if lacking else "")


def alike(mine: Sequence[Head], theirs: Sequence[Head]) -> bool:
    """Return whether heads mean the same, number by number; classes aside."""
    return len(mine) == len(theirs) and all(
        type(a) is type(b) and a.stride == b.stride and not a.differs(b) for a, b in zip(mine, theirs))
