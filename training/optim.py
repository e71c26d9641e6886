"""Optimizer, learning rate, moving average, and what brings batch-norm back from bad numbers."""
from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.config import Recipe
from utils.errors import UsageError

COMPILERS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")  # beside step, which is wrapped


def make_optimizer(model: nn.Module, config: Recipe, *more: nn.Module) -> torch.optim.Optimizer:
    """Return fused AdamW or Nesterov SGD; weight decay is on kernels only, not on batch-norm and biases.

    more: modules that learn with the model.
    """
    learned = [p for module in (model, *more) for p in module.parameters()]
    kernels = [p for p in learned if p.dim() > 1]
    others = [p for p in learned if p.dim() <= 1]
    groups = [{"params": kernels, "weight_decay": config.weight_decay},
              {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        return _plain(torch.optim.AdamW)(groups, lr=config.peak_lr, betas=(config.momentum, 0.999),
                                         fused=True)
    sgd = _plain(torch.optim.SGD)(groups, lr=config.peak_lr, momentum=config.momentum,
                                  nesterov=config.momentum > 0, fused=True)
    # Its first step would leave these uninitialised where that step is masked because it is not finite.
    sgd.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in learned if config.momentum > 0})
    return sgd


def _plain(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return the class without what torch.compile wraps around its methods.

    That imports all of the compiler at the first call, 1.3 s that a training never has a use for.
    """
    bare = {name: inspect.unwrap(getattr(kind, name)) for name in COMPILERS}
    return type(kind.__name__, (kind,), {**bare, "step": torch.no_grad()(inspect.unwrap(kind.step))})


def freeze(model: nn.Module, words: Sequence[str]) -> tuple[nn.Module, ...]:
    """Keep the named layers, or a number of the first ones, from learning; return their modules.

    Whoever trains must also keep these modules in eval mode, for their batch-norm. Raises UsageError.
    """
    layers = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    names = list(words)
    if len(names) == 1 and names[0].isdecimal():
        names = layers[:int(names[0])]
    if unknown := [name for name in names if name not in layers]:
        raise UsageError(f"--freeze {' '.join(unknown)}: layers that learn are {', '.join(layers)}; or give "
                         "the number of the first ones")
    if len(names) == len(layers):
        raise UsageError(f"--freeze {' '.join(words)}: nothing is left that learns, of {len(layers)} layers")
    frozen = tuple(model.get_submodule(name) for name in names)
    for module in frozen:
        module.requires_grad_(False)
    return frozen


class MovingAverage(nn.Module):
    """Weights and batch-norm statistics averaged over a fixed share of the steps taken so far.

    Of T steps the t-th weighs (t^p - (t - 1)^p) / T^p with p = 1 / age - 1, so the mean age is never more
    than `age` of T, whatever T (power function averages, Karras et al. 2024, arXiv 2312.02696, 3.1). The
    count stays on the device.
    """

    def __init__(self, model: nn.Module, age: float) -> None:
        super().__init__()
        self.module, self.age = copy.deepcopy(model).eval(), age
        self.register_buffer("n_averaged", torch.zeros((), dtype=torch.long,
                                                       device=next(model.parameters()).device))

    @torch.no_grad()
    def update(self, model: nn.Module, good: Tensor) -> None:
        """Move towards the model; where `good` (bool, on the device) is false, by nothing."""
        share = newest_share(self.n_averaged.double() + 1, self.age)
        pairs = list(zip([*self.module.parameters(), *self.module.buffers()],
                         [*model.parameters(), *model.buffers()]))
        mine, new = zip(*(pair for pair in pairs if pair[0].is_floating_point()))
        torch._foreach_lerp_(mine, new, [(share * good).float()] * len(mine))
        if counts := [pair for pair in pairs if not pair[0].is_floating_point()]:
            torch._foreach_copy_(*zip(*counts))
        self.n_averaged += good


def newest_share(step: Tensor, age: float) -> Tensor:
    """Return the share of the newest weights in the average after `step` (float64, 1 or more) steps.

    age: the average's mean age as a share of the steps, 0..1; 0 keeps the newest alone.
    """
    return -torch.expm1((1 / age - 1 if age else math.inf) * torch.log1p(-1 / step))


def learning_rate(step: float, total: int, warm: float, lr: float, final: float, cycles: int = 1) -> float:
    """Return an optimizer step's learning rate: linear over `warm` steps, then a cosine to final * lr.

    cycles: cosines one after another (warm restarts, Loshchilov and Hutter 2017, arXiv 1608.03983).
    """
    if step < warm:
        return lr * (step + 1) / (warm + 1)
    along = min(1.0, (step - warm) / max(1.0, total - warm)) * cycles
    along = along % 1 if along < cycles else 1.0
    return lr * (final + (1 - final) * (1 + math.cos(math.pi * along)) / 2)


@torch.no_grad()
def heal_statistics(model: nn.Module, average: nn.Module) -> None:
    """Take batch-norm statistics that a bad forward pass spoilt from the average, unseen by the host."""
    pairs = [pair for pair in zip(model.buffers(), average.buffers()) if pair[0].is_floating_point()]
    if pairs:
        mine, good = (torch.cat([buffer.flatten() for buffer in side]) for side in zip(*pairs))
        healed = torch.where(mine.isfinite(), mine, good).split([buffer.numel() for buffer, _ in pairs])
        torch._foreach_copy_([buffer.flatten() for buffer, _ in pairs], healed)


def first_bad_layer(model: nn.Module, images: Tensor) -> str:
    """Return the first leaf module whose output for images [B, 3, H, W] is not finite, or "the loss"."""
    names, found = {module: name for name, module in model.named_modules()}, []

    def watch(module: nn.Module, _: tuple, out: Tensor) -> None:
        if not torch.isfinite(out).all():
            found.append(names[module])
    handles = [module.register_forward_hook(watch) for module in names if not list(module.children())]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found[0] if found else "the loss"
