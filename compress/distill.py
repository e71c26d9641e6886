"""Learning from a trained network: its head outputs as soft targets of a detector with the same heads."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compress.fold import fold
from models.graph import heads_of
from models.heads.loss import DetectionLoss, distillation
from models.layer import Net
from models.network import from_state
from utils.errors import ModelError


class DistilledLoss:
    """Callable like its base, with the term "distill": how far the outputs are from the teacher's."""

    def __init__(self, base: DetectionLoss, teach: Callable[[Tensor], list[Tensor]]) -> None:
        self.base, self.teach, self.terms = base, teach, {**base.terms, "distill": 1.0}

    def __call__(self, outputs: list[Tensor], targets: Tensor, images: Tensor) -> dict[str, Tensor]:
        distance = distillation(outputs, self.teach(images), self.base.heads)
        return {**self.base(outputs, targets, images), "distill": distance}


def teacher(net: Net, state: dict[str, Tensor], device: torch.device,
            dtype: torch.dtype = torch.float32) -> Callable[[Tensor], list[Tensor]]:
    """Return a function: images [B, 3, S, S], float 0..1 -> head outputs of a trained network, frozen."""
    model = from_state(*fold(net, state)).to(device, dtype).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def teach(images: Tensor) -> list[Tensor]:
        return model(images.to(dtype))
    return teach


def check_teacher(net: Net, names: tuple[str, ...], teacher: Net, teacher_names: tuple[str, ...]) -> None:
    """Raise ModelError unless the teacher's head outputs mean what the student's do, number by number."""
    if tuple(names) != tuple(teacher_names):
        raise ModelError(f"the teacher knows the classes {', '.join(teacher_names)}, the student learns "
                         f"{', '.join(names)}; train the teacher on this data set first")
    mine, theirs = heads_of(net), heads_of(teacher)
    if len(mine) != len(theirs) or any(type(a) is not type(b) or a.differs(b) for a, b in zip(mine, theirs)):
        told = [[(head.layer.kind, head.metadata()) for head in found] for found in (theirs, mine)]
        raise ModelError("the teacher's heads have other anchors or another centre reach than the student's; "
                         f"teacher {told[0]}, student {told[1]}: train one with the anchors of the other")
