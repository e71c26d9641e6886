"""How much each channel of a unit matters, by the rules of the pruning literature."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from models.channels import Channels, channels
from models.layer import Net
from utils.errors import ModelError
from utils.optional import Lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Lazy("torch")                                          # the names of rules are a flag's choices

# Of weights and gradients [channels, numbers]: the importance of each channel.
RULES: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "l1": lambda weight, _: weight.abs().sum(1),                   # Li et al. 2017, arXiv 1608.08710
    "l2": lambda weight, _: weight.square().sum(1).sqrt(),         # He et al. 2018, arXiv 1808.06866
    "fpgm": lambda weight, _: torch.cdist(weight, weight).sum(1),  # the middle one is replaceable: 1811.00250
    # The squared first-order change of the loss: Molchanov et al. 2019, arXiv 1906.10771, eq. 8.
    "taylor": lambda weight, gradient: (weight * gradient).sum(1).square(),
    # Of all that a channel takes along, its makers and its readers: Fang et al. 2023, arXiv 2301.12900.
    "group": lambda weight, _: weight.square().sum(1),
    "bn": lambda weight, _: weight.abs().sum(1),                   # batch-norm's scale: arXiv 1708.06519
    "random": lambda weight, _: weight.new_zeros(len(weight))}
DEFAULT = "l2"                     # of prune.py: docs/results.md, "Which channels go"


def channel_scores(net: Net, state: dict[str, Tensor], unit: str, rule: str, *,
                   gradients: dict[str, Tensor] | None = None, seed: int = 0) -> Tensor:
    """Return the importance [width] of each channel of a unit: of the kernels that make it, summed.

    group: of all kernels that make, filter and read it, each as a share of the unit's mean. bn: of the
    makers' batch-norms; a maker without one counts by its L2 norm, as such a share. taylor needs `gradients`
    (state key -> gradient of the loss). Raises ModelError for an unknown rule or unit.
    """
    if rule not in RULES:
        raise ModelError(f"unknown importance {rule!r}; known are {', '.join(RULES)}")
    table = channels(net)
    if unit not in table.units:
        raise ModelError(f"no unit {unit!r}; known are {', '.join(table.units)}")
    width = len(table.units[unit])
    if rule == "random":
        generator = torch.Generator().manual_seed(seed + sum(unit.encode()))
        return torch.rand(width, generator=generator)
    if rule == "taylor" and gradients is None:
        raise ModelError("importance taylor needs the gradients of the loss")
    place = torch.full((table.count,), width)                          # number -> its index in the unit
    place[torch.from_numpy(table.units[unit])] = torch.arange(width)
    total = torch.zeros(width)
    for key, axis, ids, by in _looked_at(table, unit, rule):
        weight, gradient = (found and found[key].detach().float().movedim(axis, 0).reshape(len(ids), -1)
                            for found in (state, gradients))
        score = torch.zeros(width + 1)                                 # the last takes other units' channels
        score = score.index_add_(0, place[torch.from_numpy(ids)], RULES[by](weight, gradient))[:width]
        total += score / score.mean().clamp(min=1e-12) if by == "group" or by != rule else score
    return total


def _looked_at(table: Channels, unit: str, rule: str) -> Iterator[tuple[str, int, np.ndarray, str]]:
    """Yield the tensors that a rule looks at: key, axis of the channels, their numbers, rule taken."""
    makers, normed = {maker.name for maker in table.makers[unit]}, _normed(table)
    for param in table.params:
        if not param.key.endswith(".weight"):
            continue
        if rule == "group":
            for axis, ids in enumerate((param.rows, param.cols)):
                if param.node.type == "conv" and ids is not None and np.isin(ids, table.units[unit]).any():
                    yield param.key, axis, ids, rule
        elif param.node.type == "norm" and rule == "bn" and param.node.inputs[0] in makers:
            yield param.key, 0, param.rows, rule
        elif param.node.name in makers and (rule != "bn" or param.node.name not in normed):
            yield param.key, 0, param.rows, "l2" if rule == "bn" else rule


def _normed(table: Channels) -> set[str]:
    return {param.node.inputs[0] for param in table.params if param.node.type == "norm"}


def without_norm(net: Net) -> list[str]:
    """Return the units that could be cut and of whose makers one has no batch-norm."""
    table = channels(net)
    normed = _normed(table)
    return [unit for unit, makers in table.makers.items() if unit not in table.frozen
            and any(maker.name not in normed for maker in makers)]


def loss_gradients(net: Net, state: dict[str, Tensor], batches: Iterable[tuple[Tensor, Tensor]],
                   loss: Callable, weights: dict[str, float],
                   device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Return state key -> gradient of the loss over batches of images (uint8 [B, 3, S, S]) and targets."""
    from models.network import from_state
    # In eval mode: the statistics are those of the network that will be cut.
    model = from_state(net, state).to(device).to(memory_format=torch.channels_last)
    for images, targets in batches:
        images = (images.to(device).float() / 255).contiguous(memory_format=torch.channels_last)
        terms = loss(model(images), targets.to(device), images)
        sum(weights[name] * value for name, value in terms.items()).backward()
    return {name: p.grad.detach().to("cpu").contiguous() for name, p in model.named_parameters()
            if p.grad is not None}
