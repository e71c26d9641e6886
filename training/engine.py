"""The training loop. Model, loss, loader and what happens around a step come as arguments.

It imports no models and no data.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from training.multiscale import resized
from training.optim import heal_statistics, learning_rate
from training.progress import Progress
from utils import ddp
from utils.errors import Interrupted, NumericError

IN_A_ROW = 3                                       # non-finite steps before the last good state comes back
RETRIES = 3                                        # times it may come back, each at half the learning rate
AGAIN = "with --resume"
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """What does not change during a run. lr is per optimizer step; sizes are multi-scale sides in px."""

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


@dataclass(frozen=True)
class Hooks:
    """What the loop calls and does not know."""

    validate: Callable[[nn.Module], dict]              # EMA module -> {"map50": ..., ...}
    save: Callable[["State", bool], bool]          # (state, best so far) -> whether it was written
    restore: Callable[[], dict]                        # State.as_dict() of the last checkpoint
    log: Callable[[dict], None]                        # one epoch's row
    poll: Callable[[], bool]                           # whether a signal has arrived
    code: Callable[[], int]                            # the exit code that tells of it
    replay: Callable[[dict], str]                      # keeps a bad batch; a sentence saying where
    main: bool = True                                  # whether this process shows and validates
    again: str = AGAIN                                 # how the same command goes on after a signal


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
        return {"model": unwrap(self.model).state_dict(), "ema": self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
                **{name: getattr(self, name) for name in self.COUNTERS}}

    def load(self, saved: dict, weights_only: bool = False) -> None:
        """Takes over what `as_dict` gave; weights_only leaves the counters where they are."""
        unwrap(self.model).load_state_dict(saved["model"])
        self.ema.load_state_dict(saved["ema"])
        mine = [{k: v for k, v in group.items() if k not in ("params", "lr")}
                for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(saved["optimizer"])
        for group, flags in zip(self.optimizer.param_groups, mine):
            group.update(flags)                            # momentum and decay are this run's
        if saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        if not weights_only:
            for name in self.COUNTERS:
                setattr(self, name, dict(saved[name]) if name == "sums" else saved[name])


def fit(state: State, settings: Settings, loader: Iterable, loss: Callable, hooks: Hooks) -> State:
    """The state after the last epoch.

    Each epoch: train, validate, log, save; a signal saves and raises Interrupted.
    """
    while state.epoch < settings.epochs:
        train_one_epoch(state, settings, loader, loss, hooks)
        row = {"epoch": state.epoch, **_means(ddp.mean_over_ranks(state.sums, state.device)),
               "lr": state.optimizer.param_groups[0]["lr"], "skipped": state.skipped}
        due = state.epoch + 1 == settings.epochs or (state.epoch + 1) % settings.val_interval == 0
        if due and hooks.main:
            try:
                row |= hooks.validate(state.ema.module)
            except Interrupted:
                _stop(state, hooks)
        reached = row.get(settings.metric, -1.0)
        before, best = state.best, reached > state.best
        state.best = max(before, reached)
        state.epoch, state.batch, state.sums = state.epoch + 1, 0, {}
        hooks.log(row)
        if not hooks.save(state, best):
            state.best = before                            # unwritten: the next good epoch is the best again
        ddp.wait()
        if state.epoch < settings.epochs and ddp.any_rank(hooks.poll(), state.device):
            _stop(state, hooks)
    return state


def train_one_epoch(state: State, settings: Settings, loader: Iterable, loss: Callable, hooks: Hooks) -> None:
    """Trains from state.batch to the epoch's end; a step ends every window of `accumulate` batches."""
    state.model.train()
    loader.set_epoch(state.epoch, state.batch)
    total, window = len(loader), settings.accumulate
    per_epoch = math.ceil(total / window)
    title = f"epoch {state.epoch + 1}/{settings.epochs}"
    with Progress(title, total, state.batch, show=hooks.main, every=settings.save_minutes * 60) as bar:
        for at, batch in enumerate(loader, state.batch):
            first = at - at % window
            last = min(first + window, total) - 1
            if at == first:
                rate = learning_rate(
                    state.step, settings.epochs * per_epoch, settings.warmup_epochs * per_epoch,
                    settings.lr, settings.final_lr) * state.lr_scale
                for group in state.optimizer.param_groups:
                    group["lr"] = rate
                good, suspect = True, None
            if good and not _gradients(state, settings, batch, loss, at, last):
                good, suspect = False, batch
            if at == last:
                _account(state, good and _step(state, settings), suspect or batch, hooks)
                state.batch = at + 1
                if ddp.any_rank(hooks.poll(), state.device):
                    _stop(state, hooks)
                if bar.due() and at + 1 < total:
                    hooks.save(state, False)
            bar.step(_means(state.sums), len(batch.images))
    state.batch = total


def _stop(state: State, hooks: Hooks) -> None:
    """Saves and ends the run: a signal has arrived."""
    state.sums = ddp.mean_over_ranks(state.sums, state.device)
    hooks.save(state, False)
    raise Interrupted(f"stopped by a signal after epoch {state.epoch + 1}, batch {state.batch}; "
                      f"saved: run the same command {hooks.again} to go on", hooks.code())


def _gradients(state: State, settings: Settings, batch: tuple, loss: Callable, at: int, last: int) -> bool:
    """Whether a batch's loss was finite.

    If so, its gradients, times its share of the window, and its terms are added; else all are gone.
    """
    images = batch.images.to(state.device, non_blocking=True)
    images = (images.float() / 255).contiguous(memory_format=torch.channels_last)
    if settings.sizes:
        images = resized(images, settings.sizes, (settings.seed, state.epoch, at))
    share = 1 / (last - (at - at % settings.accumulate) + 1)
    waits = hasattr(state.model, "no_sync") and at < last   # ranks exchange gradients once, at a window's end
    quiet = state.model.no_sync() if waits else nullcontext()
    with quiet:
        half = HALF.get(settings.precision)
        with torch.autocast(state.device.type, half, enabled=half is not None):
            maps = state.model(images)
        terms = loss(maps, batch.targets.to(state.device, non_blocking=True), images)
        total = sum(settings.weights[name] * value for name, value in terms.items())
        if ddp.any_rank(not bool(torch.isfinite(total)), state.device):
            state.optimizer.zero_grad()
            return False
        state.scaler.scale(total * share).backward()
    for name, value in {"loss": total, **terms, "count": torch.ones(())}.items():
        state.sums[name] = state.sums.get(name, 0.0) + float(value.detach())
    return True


def _step(state: State, settings: Settings) -> bool:
    """Whether the step was good: clipped, with finite gradients; only then do weights and EMA move."""
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip)
    good = bool(torch.isfinite(norm))
    if good:
        state.scaler.step(state.optimizer)
    state.scaler.update()                                  # after an overflow it lowers its scale
    state.optimizer.zero_grad()
    if good:
        state.ema.update_parameters(unwrap(state.model))
    # A lowered scale now and then is how fp16 works; one that has fallen below 1 is not.
    return good or (state.scaler.is_enabled() and state.scaler.get_scale() >= 1)


def _account(state: State, good: bool, batch: tuple, hooks: Hooks) -> None:
    """Counts the step.

    After IN_A_ROW bad ones it brings the last good weights back, after RETRIES of these it gives up.
    """
    state.step += 1
    if good:
        state.bad = 0
        return
    state.bad, state.skipped = state.bad + 1, state.skipped + 1
    if state.bad < IN_A_ROW:
        heal_statistics(unwrap(state.model), state.ema.module)
        return
    where = hooks.replay({"images": batch.images, "targets": batch.targets,
                          "epoch": state.epoch, "batch": state.batch})
    if state.retries >= RETRIES:
        raise NumericError(f"{IN_A_ROW} steps in a row were not finite, after {RETRIES} restarts from the "
                           f"last good state at half the learning rate each; {where}")
    state.load(hooks.restore(), weights_only=True)
    state.bad, state.retries, state.lr_scale = 0, state.retries + 1, state.lr_scale / 2
    print(f"{IN_A_ROW} steps in a row were not finite ({where}); "
          "the last good state is back, learning rate halved")


def _means(sums: dict[str, float]) -> dict[str, float]:
    """Mean loss terms of an epoch so far."""
    count = sums.get("count", 0.0)
    return {name: value / count for name, value in sums.items() if name != "count"} if count else {}


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside a DDP wrapper."""
    return getattr(model, "module", model)
