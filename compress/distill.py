"""Learning from a trained network: its raw maps as soft targets of a detector with the same heads."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from compress.fold import fold
from models.layer import Net, heads
from models.network import from_state
from utils.errors import ModelError


def distillation(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """A scalar, 0 where the student's maps equal the teacher's; both lists of [B, A, 5 + K, G, G].

    Objectness-scaled distillation (Mehta and Ozturk 2018, arXiv 1805.06361, section 3.2): each prediction's
    boxes and classes count as much as the teacher sees an object there, so that background teaches only that
    it is background. Binary cross-entropy less the teacher's own entropy for objectness and classes, squares
    for the raw x, y (after the sigmoid), w, h; all divided by the teacher's sum of objectness in the whole
    (global) batch.
    """
    total = mass = student[0].new_zeros((), dtype=torch.float32)
    for mine, theirs in zip(student, teacher):
        mine, theirs = mine.float(), theirs.detach().float()
        seen = theirs[:, :, 4].sigmoid()
        box = (mine[:, :, :2].sigmoid() - theirs[:, :, :2].sigmoid()).square().sum(2)
        box = box + (mine[:, :, 2:4] - theirs[:, :, 2:4]).square().sum(2)
        classes = _divergence(mine[:, :, 5:], theirs[:, :, 5:]).sum(2)
        total = total + (seen * (box + classes) + _divergence(mine[:, :, 4], theirs[:, :, 4])).sum()
        mass = mass + seen.sum()
    world = 1
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(mass)
        world = dist.get_world_size()
    return total * world / mass.clamp(min=1)


def _divergence(mine: Tensor, theirs: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the Bernoulli variables behind two logits, element by element."""
    soft = theirs.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(theirs, soft, reduction="none")
    return F.binary_cross_entropy_with_logits(mine, soft, reduction="none") - entropy


class DistilledLoss:
    """Callable like DetectionLoss, with the term "distill": how far the maps are from the teacher's.

    base: the loss against the truths. teach: pictures [B, 3, S, S], float 0..1 -> the teacher's raw maps.
    """

    def __init__(self, base: Callable, teach: Callable[[Tensor], list[Tensor]]) -> None:
        self.base, self.teach = base, teach

    def __call__(self, maps: list[Tensor], targets: Tensor, images: Tensor) -> dict[str, Tensor]:
        return {**self.base(maps, targets, images), "distill": distillation(maps, self.teach(images))}


def teacher(net: Net, state: dict[str, Tensor], device: torch.device,
            dtype: torch.dtype = torch.float32) -> Callable[[Tensor], list[Tensor]]:
    """A function: pictures [B, 3, S, S], float 0..1 -> raw maps of a trained network, without gradients.

    Batch-norm is folded, as for every inference.
    """
    model = from_state(*fold(net, state)).to(device, dtype).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def teach(images: Tensor) -> list[Tensor]:
        return model(images.to(dtype))
    return teach


def check_teacher(net: Net, names: tuple[str, ...], teacher: Net, teacher_names: tuple[str, ...]) -> None:
    """Raises ModelError unless the teacher's raw maps mean what the student's do, number by number."""
    mine, theirs = ([(h.anchors, h.xy_scale, h.out) for h in heads(n)] for n in (net, teacher))
    if tuple(names) != tuple(teacher_names):
        raise ModelError(f"the teacher knows the classes {', '.join(teacher_names)}, the student learns "
                         f"{', '.join(names)}; train the teacher on this data set first")
    if mine != theirs:
        raise ModelError("the teacher's heads have other anchors or another centre reach than the student's; "
                         f"teacher {theirs}, student {mine}: train one with the anchors of the other")
