"""Learning what a teacher's heads read: its features, at the strides that both networks look at."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.graph import expand, heads_of, outputs
from models.layer import Net
from utils import ddp
from utils.errors import ModelError

LEAST = 1e-6                                   # variance; a channel of less says nothing


def ends_and_features(net: Net) -> tuple[str, ...]:
    """Return the records that a network ends in, then those that its heads read, head by head."""
    return (*outputs(net), *(name for head in heads_of(net) for name in head.layer.inputs))


def read_at(net: Net) -> dict[int, tuple[list[int], int]]:
    """Return stride -> what heads of it read: places in `ends_and_features`, and channels in all."""
    graph, at, found = expand(net), len(outputs(net)), {}
    channels = {node.name: node.channels for node in graph.nodes}
    for head in heads_of(net):
        for name in head.layer.inputs:
            places, width = found.get(head.stride, ([], 0))
            found[head.stride] = [*places, at], width + channels[graph.value[name]]
            at += 1
    return found


class Features(nn.Module):
    """The part of a teacher's features that 1x1 convolutions of a student's do not explain: 1 at the start.

    They learn with the student and belong to no network (FitNets, Romero et al. 2015, arXiv 1412.6550); at
    first they are zero. Both networks return their `ends_and_features`; strides that only one of them has are
    left out. Raises ModelError where they have none in common.
    """

    def __init__(self, student: Net, teacher: Net) -> None:
        super().__init__()
        mine, theirs = read_at(student), read_at(teacher)
        self.pairs = [(mine[stride][0], theirs[stride][0]) for stride in mine if stride in theirs]
        if not self.pairs:
            raise ModelError(f"the teacher's heads have strides {', '.join(map(str, theirs))}, this "
                             f"network's {', '.join(map(str, mine))}: no features to compare; leave out "
                             "--distill-features, or take another teacher")
        self.adapters = nn.ModuleList(nn.Conv2d(mine[stride][1], theirs[stride][1], 1)
                                      for stride in mine if stride in theirs)
        for parameter in self.parameters():        # the same on every rank, without a random number
            nn.init.zeros_(parameter)

    def forward(self, outputs: Sequence[Tensor], told: Sequence[Tensor]) -> Tensor:
        parts = []
        for adapter, (mine, theirs) in zip(self.adapters, self.pairs):
            wanted = normalised(torch.cat([told[at] for at in theirs], 1).float())
            found = adapter(torch.cat([outputs[at] for at in mine], 1).float())
            parts.append((found - wanted).square().mean())
        return torch.stack(parts).mean()


def normalised(features: Tensor) -> Tensor:
    """Return features [B, C, G, G] with channels of mean 0 and deviation 1 over the batch of all ranks.

    So none outweighs another by its size (PKD, Cao et al. 2022, arXiv 2207.02039).
    """
    exact = features.double()
    sums = ddp.sum_over_ranks(torch.stack((exact.sum((0, 2, 3)), exact.square().sum((0, 2, 3)),
                                           exact.new_full(exact.shape[1:2], exact[:, 0].numel()))))
    mean, square = (sums[:2] / sums[2])[..., None, None]
    return ((exact - mean) * (square - mean.square()).clamp(min=LEAST).rsqrt()).to(features.dtype)
