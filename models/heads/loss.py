"""The loss of a detector, whatever the kind of its heads."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist

from models.graph import heads_of, require_heads
from models.heads.base import Head
from models.layer import Net


class DetectionLoss:
    """Callable: (outputs, targets, images) -> {term: scalar}; the images are not looked at.

    outputs: list of [B, *shape, G, G]; targets [N, 6] (image, class, cxcywh normalised), N may be 0; of an
    image with a row of class -1 no ground truth is known, and no term looks at it. A term is a sum divided
    by the matches of the global batch. class_weights: one a class, of what the class term says of it. Raises
    ModelError for a classifier.
    """

    def __init__(self, net: Net, class_weights: Tensor | None = None) -> None:
        self.heads = heads_of(require_heads(net, "a detection loss"))
        for head in self.heads:
            head.class_weights = class_weights
        self.terms = self.heads[0].terms

    def __call__(self, outputs: list[Tensor], targets: Tensor,
                 images: Tensor | None = None) -> dict[str, Tensor]:
        outputs, targets = labelled([output.float() for output in outputs], targets)
        found, count = self.heads[0].losses(self.heads, outputs, targets)
        scale = over_ranks(count)
        return {name: value * scale for name, value in found.items()}


def labelled(outputs: list[Tensor], targets: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return outputs [B, ...] and targets [N, 6] of the images without a row of class -1, B may be 0."""
    unknown = targets[targets[:, 1] < 0, 0].long()
    if not len(unknown):
        return outputs, targets
    known = torch.ones(len(outputs[0]), dtype=torch.bool, device=targets.device)
    known[unknown] = False
    targets = targets[targets[:, 1] >= 0]
    place = (known.cumsum(0) - 1)[targets[:, 0].long()].to(targets.dtype)
    return [output[known] for output in outputs], torch.cat((place[:, None], targets[:, 1:]), 1)


def over_ranks(count: Tensor) -> Tensor:
    """Return the factor of a rank's sum for which DDP's mean is the sum over all ranks / count."""
    world = 1
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        world = dist.get_world_size()
    return world / count.clamp(min=1)


def distillation(student: list[Tensor], teacher: list[Tensor], heads: Sequence[Head]) -> Tensor:
    """Return the distance of outputs [B, *shape, G, G] from a teacher's, by its weight in the whole batch."""
    pairs = [head.distance(mine.float(), theirs.detach().float())
             for head, mine, theirs in zip(heads, student, teacher)]
    return sum(total for total, _ in pairs) * over_ranks(sum(weight for _, weight in pairs))
