"""How much each channel of a group matters, by the rules of the pruning literature."""
from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from models.channels import layout, widths
from models.layer import Net
from models.network import Network
from utils.errors import ModelError


def _l1(weight: Tensor, _: Tensor | None) -> Tensor:
    """Sum of absolute weights (Li et al. 2017, arXiv 1608.08710)."""
    return weight.abs().sum(1)


def _l2(weight: Tensor, _: Tensor | None) -> Tensor:
    """Euclidean norm (He et al. 2018, arXiv 1808.06866)."""
    return weight.square().sum(1).sqrt()


def _fpgm(weight: Tensor, _: Tensor | None) -> Tensor:
    """Sum of distances to the other filters: the middle one is replaceable (FPGM, arXiv 1811.00250)."""
    return torch.cdist(weight, weight).sum(1)


def _taylor(weight: Tensor, gradient: Tensor | None) -> Tensor:
    """Squared first-order change of the loss without it (Molchanov et al. 2019, arXiv 1906.10771, eq. 8)."""
    return (weight * gradient).sum(1).square()


KERNEL_RULES: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "l1": _l1, "l2": _l2, "fpgm": _fpgm, "taylor": _taylor}
RULES = (*KERNEL_RULES, "bn", "random")


def channel_scores(net: Net, state: dict[str, Tensor], group: str, rule: str, *,
                   gradients: dict[str, Tensor] | None = None, seed: int = 0) -> Tensor:
    """Importance [width] of each channel of a group, larger is more.

    It is that of the kernels that produce the channels, summed where residual adds tie several layers into
    the group. bn: the absolute scale of their batch-norm (Liu et al. 2017, arXiv 1708.06519). random: a
    function of the seed and the group's name. taylor needs `gradients` (state key -> gradient of the loss).
    Raises ModelError for an unknown rule, a group nothing produces, or bn where there is none.
    """
    if rule not in RULES:
        raise ModelError(f"unknown importance {rule!r}; known are {', '.join(RULES)}")
    keys = [p.key for p in layout(net) if p.rows == (group,) and p.cols is not None
            and not p.key.endswith("se.expand.weight")]
    if not keys:
        raise ModelError(f"no layer produces the channel group {group!r}")
    if rule == "random":
        generator = torch.Generator().manual_seed(seed + sum(group.encode()))
        return torch.rand(widths(net)[group], generator=generator)
    if rule == "bn":
        scales = [key.replace(".conv.weight", ".bn.weight") for key in keys]
        if missing := [key for key in scales if key not in state or not key.endswith(".bn.weight")]:
            raise ModelError(f"importance bn: {missing[0].split('.')[0]} has no batch-norm; use another rule")
        return sum(state[key].detach().float().abs() for key in scales)
    if rule == "taylor" and gradients is None:
        raise ModelError("importance taylor needs the gradients of the loss")
    return sum(KERNEL_RULES[rule](state[key].detach().float().flatten(1),
                                  gradients[key].float().flatten(1) if gradients else None) for key in keys)


def loss_gradients(net: Net, state: dict[str, Tensor], batches: Iterable[tuple[Tensor, Tensor]],
                   loss: Callable, weights: dict[str, float],
                   device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """State key -> gradient of the summed loss over batches of (pictures uint8 [B, 3, S, S], targets [N, 6]).

    Batch-norm in eval mode: the statistics are those of the network that will be cut.
    """
    model = Network(net)
    model.load_state_dict(state)
    model = model.to(device).to(memory_format=torch.channels_last).eval()
    for images, targets in batches:
        images = (images.to(device).float() / 255).contiguous(memory_format=torch.channels_last)
        terms = loss(model(images), targets.to(device), images)
        sum(weights[name] * value for name, value in terms.items()).backward()
    return {name: p.grad.detach().to("cpu").contiguous() for name, p in model.named_parameters()
            if p.grad is not None}
