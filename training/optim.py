"""Optimizer, learning rate and moving average of a training run."""
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def make_optimizer(model: nn.Module, name: str, lr: float, momentum: float,
                   decay: float) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW; weight decay on kernels only, not on batch-norm and biases."""
    kernels = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=True)


def make_ema(model: nn.Module, decay: float, ramp: float) -> AveragedModel:
    """Moving average of weights and batch-norm statistics.

    Its decay grows to `decay` over about `ramp` steps.
    """
    @torch.no_grad()
    def update(average: list[Tensor], new: list[Tensor], count: Tensor | int) -> None:
        if average[0].is_floating_point():
            torch._foreach_lerp_(average, new, 1 - decay * (1 - math.exp(-float(count) / ramp)))
        else:
            for a, n in zip(average, new):
                a.copy_(n)
    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def learning_rate(step: float, total: int, warm: float, lr: float, final: float) -> float:
    """The learning rate of an optimizer step.

    Linear warm-up over `warm` steps, then a cosine to final * lr at `total`.
    """
    if step < warm:
        return lr * (step + 1) / (warm + 1)
    along = min(1.0, (step - warm) / max(1.0, total - warm))
    return lr * (final + (1 - final) * (1 + math.cos(math.pi * along)) / 2)


def heal_statistics(model: nn.Module, average: nn.Module) -> None:
    """Takes batch-norm statistics that a bad forward pass spoilt from the average.

    No bad step ever reaches that.
    """
    for mine, good in zip(model.buffers(), average.buffers()):
        if mine.is_floating_point() and not mine.isfinite().all():
            mine.copy_(good)


def first_bad_layer(model: nn.Module, images: Tensor) -> str:
    """The name of the first leaf module whose output for pictures [B, 3, H, W] is not finite.

    "the loss" if none is.
    """
    found: list[str] = []

    def watch(name: str) -> Callable:
        def hook(_: nn.Module, __: tuple, out: Tensor) -> None:
            if not found and not torch.isfinite(out).all():
                found.append(name)
        return hook
    leaves = [(name, m) for name, m in model.named_modules() if not list(m.children())]
    handles = [m.register_forward_hook(watch(name)) for name, m in leaves]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found[0] if found else "the loss"
