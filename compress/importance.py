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
    torch = Lazy("torch")                                  # the names of the rules are flags' choices

Rule = Callable[["Tensor", "Tensor | None"], "Tensor"]
RULES: dict[str, Rule | None] = {"bn": None, "random": None}           # None: by no look at the kernels


def rule(score: Rule) -> Rule:
    """Register a rule under its function's name: kernels [C, n] and their gradients, or None -> scores [C]."""
    RULES[score.__name__] = score
    return score


@rule
def l1(weight: Tensor, _: Tensor | None) -> Tensor:
    """Return the sum of absolute weights (Li et al. 2017, arXiv 1608.08710)."""
    return weight.abs().sum(1)


@rule
def l2(weight: Tensor, _: Tensor | None) -> Tensor:
    """Return the Euclidean norm (He et al. 2018, arXiv 1808.06866)."""
    return weight.square().sum(1).sqrt()


@rule
def fpgm(weight: Tensor, _: Tensor | None) -> Tensor:
    """Return the sum of distances to the other filters: the middle one is replaceable (arXiv 1811.00250)."""
    return torch.cdist(weight, weight).sum(1)


@rule
def taylor(weight: Tensor, gradient: Tensor | None) -> Tensor:
    """Return the squared first-order change of the loss (Molchanov et al. 2019, arXiv 1906.10771, eq. 8)."""
    return (weight * gradient).sum(1).square()


def channel_scores(net: Net, state: dict[str, Tensor], unit: str, rule: str, *,
                   gradients: dict[str, Tensor] | None = None, seed: int = 0) -> Tensor:
    """Return the importance [width] of each channel of a unit; larger is more.

    It is that of the kernels that make the channels, summed where several do (tied records, a width that one
    record uses twice). bn: the absolute scale of their batch-norm (Liu et al. 2017, arXiv 1708.06519).
    random: a function of the seed and the unit's name. taylor needs `gradients` (state key -> gradient of the
    loss). Raises ModelError for an unknown rule or unit, or bn where there is none.
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
    """Return state key -> gradient of the loss over batches of images uint8 [B, 3, S, S] and targets [N, 6].

    Batch-norm in eval mode: the statistics are those of the network that will be cut.
    """
    from models.network import Network
    model = Network(net)
    model.load_state_dict(state)
    model = model.to(device).to(memory_format=torch.channels_last).eval()
    for images, targets in batches:
        images = (images.to(device).float() / 255).contiguous(memory_format=torch.channels_last)
        terms = loss(model(images), targets.to(device), images)
        sum(weights[name] * value for name, value in terms.items()).backward()
    return {name: p.grad.detach().to("cpu").contiguous() for name, p in model.named_parameters()
            if p.grad is not None}
