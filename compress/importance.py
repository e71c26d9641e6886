"""How much each channel of a unit matters, by the rules of the pruning literature."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from models.channels import channels
from models.graph import expand
from models.layer import Net
from utils.errors import ModelError
from utils.optional import Lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = Lazy("torch")                                          # the names of rules are a flag's choices

# Of weights and gradients [filters, numbers]; None looks at no kernels.
RULES: dict[str, Callable[[Tensor, Tensor | None], Tensor] | None] = {
    "l1": lambda weight, _: weight.abs().sum(1),                   # Li et al. 2017, arXiv 1608.08710
    "l2": lambda weight, _: weight.square().sum(1).sqrt(),         # He et al. 2018, arXiv 1808.06866
    "fpgm": lambda weight, _: torch.cdist(weight, weight).sum(1),  # the middle one is replaceable: 1811.00250
    # The squared first-order change of the loss: Molchanov et al. 2019, arXiv 1906.10771, eq. 8.
    "taylor": lambda weight, gradient: (weight * gradient).sum(1).square(), "bn": None, "random": None}


def channel_scores(net: Net, state: dict[str, Tensor], unit: str, rule: str, *,
                   gradients: dict[str, Tensor] | None = None, seed: int = 0) -> Tensor:
    """Return the importance [width] of each channel of a unit: of the kernels that make it, summed.

    bn: the absolute scale of their batch-norm (Liu et al. 2017, arXiv 1708.06519). taylor needs `gradients`
    (state key -> gradient of the loss). Raises ModelError for an unknown rule or unit, or bn where none is.
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
    norms = {node.inputs[0]: node.name for node in expand(net).nodes if node.type == "norm"}
    rows = {param.key: torch.from_numpy(param.rows) for param in table.params}
    place = torch.full((table.count,), width)                          # number -> its index in the unit
    place[torch.from_numpy(table.units[unit])] = torch.arange(width)
    total = torch.zeros(width + 1)                                     # the last takes other units' channels
    for maker in table.makers[unit]:
        key = f"{maker.name}.weight"
        if rule == "bn":
            if maker.name not in norms:
                raise ModelError(f"importance bn: {unit} has no batch-norm; use another rule")
            score = state[f"{norms[maker.name]}.weight"].detach().float().abs()
        else:
            score = RULES[rule](state[key].detach().float().flatten(1),
                                gradients[key].float().flatten(1) if gradients else None)
        total.index_add_(0, place[rows[key]], score)
    return total[:width]


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
