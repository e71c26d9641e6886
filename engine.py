"""The training loop. Model, loss, loader, validation and saving come as arguments; imports no models and no data."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from utils import ddp
from utils.errors import Interrupted, NumericError
from utils.progress import Progress

IN_A_ROW = 3                                               # non-finite steps before the last good state comes back
RETRIES = 3                                                # times it may come back, each at half the learning rate


@dataclass(frozen=True)
class Settings:
    """What does not change during a run. Learning rates are per optimizer step; sizes are multi-scale sides in px."""

    epochs: int
    lr: float
    final_lr: float = 0.01                                 # share of lr at the end of the cosine
    warmup_epochs: float = 3.0
    accumulate: int = 1
    clip: float = 10.0
    weights: dict[str, float] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    precision: str = "fp32"
    seed: int = 0
    val_interval: int = 1
    metric: str = "map50"
    save_minutes: float = 5.0


@dataclass
class State:
    """What training changes, and therefore what a checkpoint must hold to continue with the same bits.

    No random state is among it: order, augmentation and sizes are functions of (seed, epoch, index).
    """

    model: nn.Module
    ema: AveragedModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    epoch: int = 0
    batch: int = 0                                         # next batch of the epoch
    step: int = 0                                          # optimizer steps taken
    best: float = -1.0
    lr_scale: float = 1.0
    bad: int = 0                                           # non-finite steps in a row
    skipped: int = 0
    retries: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    COUNTERS = ("epoch", "batch", "step", "best", "lr_scale", "bad", "skipped", "retries", "sums")

    def as_dict(self) -> dict:
        """Everything as tensors and plain values, for a checkpoint."""
        return {"model": _unwrap(self.model).state_dict(), "ema": self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
                **{name: getattr(self, name) for name in self.COUNTERS}}

    def load(self, saved: dict, weights_only: bool = False) -> None:
        """Takes over what `as_dict` gave; weights_only leaves the counters where they are."""
        _unwrap(self.model).load_state_dict(saved["model"])
        self.ema.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        if not weights_only:
            for name in self.COUNTERS:
                setattr(self, name, dict(saved[name]) if name == "sums" else saved[name])


def make_optimizer(model: nn.Module, name: str, lr: float, momentum: float, decay: float) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW; weight decay on kernels only, not on batch-norm and biases."""
    kernels = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=True, fused=True)


def make_ema(model: nn.Module, decay: float, ramp: float) -> AveragedModel:
    """Moving average of weights and batch-norm statistics, its decay growing to `decay` over about `ramp` steps."""
    @torch.no_grad()
    def update(average: list[Tensor], new: list[Tensor], count: Tensor | int) -> None:
        if average[0].is_floating_point():
            torch._foreach_lerp_(average, new, 1 - decay * (1 - math.exp(-float(count) / ramp)))
        else:
            for a, n in zip(average, new):
                a.copy_(n)
    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def learning_rate(step: float, steps_per_epoch: int, settings: Settings) -> float:
    """The learning rate of an optimizer step: linear warm-up, then a cosine to final_lr."""
    warm, total = settings.warmup_epochs * steps_per_epoch, settings.epochs * steps_per_epoch
    if step < warm:
        return settings.lr * (step + 1) / (warm + 1)
    along = min(1.0, (step - warm) / max(1.0, total - warm))
    return settings.lr * (settings.final_lr + (1 - settings.final_lr) * (1 + math.cos(math.pi * along)) / 2)


def fit(state: State, settings: Settings, loader: Iterable, loss: Callable, *, validate: Callable[[nn.Module], dict],
        save: Callable[[State, bool], None], restore: Callable[[], dict], log: Callable[[dict], None],
        poll: Callable[[], bool], code: Callable[[], int], replay: Callable[[dict], str], main: bool = True) -> State:
    """The state after the last epoch. Each epoch: train, validate, log, save; a signal saves and raises Interrupted.

    validate: EMA module -> {"map50": ..., ...}; save(state, best): writes the checkpoint; restore(): the training dict
    of the last one; poll(): whether to stop now; replay(batch and state): where it was written.
    """
    def stopped() -> bool:
        return ddp.any_rank(poll(), state.device)

    def stop() -> None:
        state.sums = ddp.mean_over_ranks(state.sums, state.device)
        save(state, False)
        raise Interrupted(f"stopped by a signal after epoch {state.epoch + 1}, batch {state.batch}; "
                          "saved: run the same command with --resume to go on", code())
    while state.epoch < settings.epochs:
        train_one_epoch(state, settings, loader, loss, save=save, restore=restore, stopped=stopped, stop=stop,
                        replay=replay, main=main)
        row = {"epoch": state.epoch, **_means(ddp.mean_over_ranks(state.sums, state.device)),
               "lr": state.optimizer.param_groups[0]["lr"], "skipped": state.skipped}
        best = False
        if state.epoch + 1 == settings.epochs or (state.epoch + 1) % settings.val_interval == 0:
            try:
                row |= validate(state.ema.module) if main else {}
            except Interrupted:
                stop()
            best = row.get(settings.metric, -1.0) > state.best
            state.best = max(state.best, row.get(settings.metric, -1.0))
        state.epoch, state.batch, state.sums = state.epoch + 1, 0, {}
        log(row)
        save(state, best)
        ddp.wait()
        if stopped():
            stop()
    return state


def train_one_epoch(state: State, settings: Settings, loader: Iterable, loss: Callable, *, save: Callable,
                    restore: Callable, stopped: Callable, stop: Callable, replay: Callable, main: bool) -> None:
    """Trains from state.batch to the epoch's end; state is left at the epoch's last batch."""
    state.model.train()
    loader.set_epoch(state.epoch, state.batch)
    total = len(loader)
    steps_per_epoch = math.ceil(total / settings.accumulate)
    with Progress(f"epoch {state.epoch + 1}/{settings.epochs}", total, state.batch, show=main,
                  every=settings.save_minutes * 60) as bar:
        good = True
        for at, batch in enumerate(loader, state.batch):
            first = at - at % settings.accumulate
            last = min(first + settings.accumulate, total) - 1
            if at == first:
                rate = learning_rate(state.step, steps_per_epoch, settings) * state.lr_scale
                for group in state.optimizer.param_groups:
                    group["lr"] = rate
                good = True
            if good:
                terms = _gradients(state, settings, batch, loss, 1 / (last - first + 1), at == last, at)
                good = terms is not None
            if at == last:
                good = good and _step(state, settings)
                _account(state, good, batch, restore, replay)
                if good:
                    for name, value in {**terms, "count": 1.0}.items():
                        state.sums[name] = state.sums.get(name, 0.0) + value
                state.batch = at + 1
                if stopped():
                    stop()
                if bar.due() and at + 1 < total and not torch.distributed.is_initialized():
                    save(state, False)
            bar.step(_means(state.sums), len(batch.images))
    state.batch = total


def _gradients(state: State, settings: Settings, batch: tuple, loss: Callable, share: float, last: bool,
               at: int) -> dict[str, float] | None:
    """Adds one batch's gradients; the loss terms as numbers, or None (and no gradients) when they are not finite."""
    images = batch.images.to(state.device, non_blocking=True)
    images = (images.float() / 255).contiguous(memory_format=torch.channels_last)
    if settings.sizes:
        pick = torch.Generator().manual_seed((settings.seed * 1_000_003 + state.epoch) * 1_000_003 + at)
        side = settings.sizes[int(torch.randint(len(settings.sizes), (), generator=pick))]
        if side != images.shape[-1]:
            images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=side < images.shape[-1])
    quiet = state.model.no_sync() if hasattr(state.model, "no_sync") and not last else nullcontext()
    with quiet:
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.precision)
        with torch.autocast(state.device.type, half, enabled=half is not None):
            maps = state.model(images)
        terms = loss(maps, batch.targets.to(state.device, non_blocking=True))
        total = sum(settings.weights[name] * value for name, value in terms.items())
        if ddp.any_rank(not bool(torch.isfinite(total)), state.device):
            state.optimizer.zero_grad()
            return None
        state.scaler.scale(total * share).backward()
    return {"loss": float(total.detach()), **{name: float(value.detach()) for name, value in terms.items()}}


def _step(state: State, settings: Settings) -> bool:
    """Whether an optimizer step was taken: clipped, with finite gradients; the EMA follows only then."""
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip)
    good = bool(torch.isfinite(norm))
    if good or state.scaler.is_enabled():                  # an enabled scaler skips the step itself and lowers its scale
        state.scaler.step(state.optimizer)
        state.scaler.update()
    state.optimizer.zero_grad()
    if good:
        state.ema.update_parameters(_unwrap(state.model))
    return good or state.scaler.is_enabled()


def _account(state: State, good: bool, batch: tuple, restore: Callable, replay: Callable) -> None:
    """Counts the step; after IN_A_ROW bad ones brings the last good weights back, after RETRIES of these gives up."""
    state.step += 1
    if good:
        state.bad = 0
        return
    state.bad, state.skipped = state.bad + 1, state.skipped + 1
    _heal_statistics(state)
    if state.bad < IN_A_ROW:
        return
    where = replay({"images": batch.images, "targets": batch.targets, "epoch": state.epoch, "batch": state.batch})
    if state.retries >= RETRIES:
        raise NumericError(f"{IN_A_ROW} steps in a row were not finite, after {RETRIES} restarts from the last good state "
                           f"at half the learning rate each; {where}")
    state.load(restore(), weights_only=True)
    state.bad, state.retries, state.lr_scale = 0, state.retries + 1, state.lr_scale / 2
    print(f"{IN_A_ROW} steps in a row were not finite ({where}); the last good state is back, learning rate halved")


def _heal_statistics(state: State) -> None:
    """Takes batch-norm statistics that a bad forward pass spoilt from the EMA, which no bad step ever reaches."""
    for mine, average in zip(_unwrap(state.model).buffers(), state.ema.module.buffers()):
        if mine.is_floating_point() and not mine.isfinite().all():
            mine.copy_(average)


def first_bad_layer(model: nn.Module, images: Tensor) -> str:
    """The name of the first leaf module whose output is not finite for pictures [B, 3, H, W]; "the loss" if none is."""
    found: list[str] = []

    def watch(name: str) -> Callable:
        def hook(_: nn.Module, __: tuple, out: Tensor) -> None:
            if not found and not torch.isfinite(out).all():
                found.append(name)
        return hook
    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if not list(m.children())]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found[0] if found else "the loss"


def _means(sums: dict[str, float]) -> dict[str, float]:
    """Mean loss terms of an epoch so far."""
    count = sums.get("count", 0.0)
    return {name: value / count for name, value in sums.items() if name != "count"} if count else {}


def _unwrap(model: nn.Module) -> nn.Module:
    """The module inside a DDP wrapper."""
    return getattr(model, "module", model)
