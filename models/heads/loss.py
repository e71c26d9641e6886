"""The loss of a detector, whatever the kind of its heads."""
from __future__ import annotations

from torch import Tensor
from torch import distributed as dist

from models.graph import heads_of, require_heads
from models.heads.base import Head
from models.layer import Net


class DetectionLoss:
    """Callable: (outputs, targets, images) -> {term: scalar}; the images are not looked at.

    Each term is a sum over predictions divided by the matches of the whole (global) batch. `terms` names
    them, and their weights. outputs: list of [B, *shape, G, G]; targets [N, 6] (image, class, cxcywh
    normalised), N may be 0: the terms stay finite and every parameter gets a gradient. Under torch.distributed
    the count is summed over ranks and the terms scaled so that DDP's mean of gradients equals one process with
    the whole batch. Raises ModelError for a classifier.
    """

    def __init__(self, net: Net) -> None:
        self.heads = heads_of(require_heads(net, "a detection loss"))
        self.terms = self.heads[0].terms

    def __call__(self, outputs: list[Tensor], targets: Tensor, images: Tensor | None = None) -> dict[str, Tensor]:
        found, count = self.heads[0].losses(self.heads, [output.float() for output in outputs], targets)
        scale = over_ranks(count)
        return {name: value * scale for name, value in found.items()}


def over_ranks(count: Tensor) -> Tensor:
    """Return what a rank's sum is to be multiplied by, so that DDP's mean is the sum over all ranks / count."""
    world = 1
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        world = dist.get_world_size()
    return world / count.clamp(min=1)


def distillation(student: list[Tensor], teacher: list[Tensor], kind: type[Head]) -> Tensor:
    """Return a scalar, 0 where the student's outputs equal the teacher's; both lists of [B, *shape, G, G].

    By the distance of heads of a kind, over the teacher's weight in the whole (global) batch.
    """
    pairs = [kind.distance(mine.float(), theirs.detach().float()) for mine, theirs in zip(student, teacher)]
    return sum(total for total, _ in pairs) * over_ranks(sum(weight for _, weight in pairs))
