"""The training loop, which knows no models and no data: what it needs is given, a `State` and a `Task`."""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.config import TrainConfig
from training.log import Progress
from training.optim import MovingAverage, heal_statistics, learning_rate
from utils import ddp
from utils.errors import Interrupted, NumericError
from utils.runs import Interrupt

IN_A_ROW = 3                                       # non-finite steps before the last good state comes back
RETRIES = 3                                        # times it may come back, each at half the learning rate
READ_STEPS = 10                                    # on accelerators, where each look makes the host wait
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Task:
    """What the loop is given and does not know."""

    config: TrainConfig
    loader: Iterable
    loss: Callable                                     # (head outputs, targets, images) -> {term: scalar}
    validate: Callable[[nn.Module], dict]              # EMA module -> {"map50": ..., ...}
    save: Callable[["State", bool], bool]              # (state, best so far) -> whether it was written
    restore: Callable[[], dict]                        # State.as_dict() of the last checkpoint
    log: Callable[[dict], None]                        # one epoch's row
    replay: Callable[[dict], str]                      # keeps a bad batch; a sentence saying where
    signals: Interrupt
    precision: str = "fp32"
    sides: tuple[int, ...] = ()                        # input sides of multi-scale training, px
    main: bool = True                                  # whether this process shows, validates and logs
    again: str = "with --resume"                       # how the same command continues after a signal
    pause: Callable[["State"], bool] = lambda _: False   # whether to leave the loop after an epoch
    frozen: tuple[nn.Module, ...] = ()                 # these keep their batch-norm statistics
    read_steps: int = 1                                # optimizer steps between two looks at losses and flags


@dataclass
class State:
    """What training changes, and therefore what a checkpoint must hold to continue with the same bits.

    No random state is among it: order, augmentation and sizes are functions of (seed, epoch, index).
    """

    model: nn.Module
    ema: MovingAverage
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
    beside: nn.Module = field(default_factory=nn.Module)   # what of the loss learns as well

    COUNTERS = ("epoch", "batch", "step", "best", "lr_scale", "bad", "skipped", "retries", "sums")

    def as_dict(self) -> dict:
        """Return everything as tensors and plain values, for a checkpoint."""
        return {"model": unwrap(self.model).state_dict(), "ema": self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
                "beside": self.beside.state_dict(),
                **{name: getattr(self, name) for name in self.COUNTERS}}

    def load(self, saved: dict, weights_only: bool = False) -> None:
        """Take over what `as_dict` gave; weights_only leaves the counters where they are."""
        unwrap(self.model).load_state_dict(saved["model"])
        self.ema.load_state_dict(saved["ema"])
        self.beside.load_state_dict(saved.get("beside", {}))           # older ones had none
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


class Window(NamedTuple):
    """The batches of an optimizer step and what came of them, not read from the device yet."""

    batches: list
    terms: list[dict[str, Tensor]]                         # of each batch: "loss" and its parts, scalars
    good: Tensor                                           # bool: whether the step counts as a good one


def fit(state: State, task: Task) -> None:
    """Train, validate, log and save to the last epoch or `pause`; a signal saves and raises Interrupted."""
    config = task.config
    while state.epoch < config.epochs:
        train_one_epoch(state, task)
        row = {"epoch": state.epoch, **_means(ddp.mean_over_ranks(state.sums, state.device)),
               "lr": state.optimizer.param_groups[0]["lr"], "skipped": state.skipped}
        due = state.epoch + 1 == config.epochs or (state.epoch + 1) % config.val_interval == 0
        if due and task.main:
            try:
                row |= task.validate(state.ema.module)
            except Interrupted:
                _stop(state, task)
        measured = row.get(config.metric)
        before, reached = state.best, -1.0 if measured is None else measured
        state.best = max(before, reached)
        state.epoch, state.batch, state.sums = state.epoch + 1, 0, {}
        if task.main:
            task.log(row)
        if not task.save(state, due and reached >= before):        # of equals the later: it has learned more
            state.best = before                            # unwritten: the next good epoch is the best again
        ddp.wait()
        if state.epoch < config.epochs and ddp.any_rank(task.signals.poll(), state.device):
            _stop(state, task)
        if task.pause(state):
            return


def train_one_epoch(state: State, task: Task) -> None:
    """Train from state.batch to the epoch's end; a step ends every window of `accumulate` batches."""
    state.model.train()
    for module in task.frozen:
        module.eval()
    task.loader.set_epoch(state.epoch, state.batch)
    total, window = len(task.loader), task.config.accumulate
    saved, unread, batches, terms = time.monotonic(), [], [], []
    title = f"epoch {state.epoch + 1}/{task.config.epochs}"
    with Progress(title, total, state.batch, show=task.main) as bar:
        for at, batch in enumerate(task.loader, state.batch):
            first = at - at % window
            last = min(first + window, total) - 1
            if at == first:
                set_learning_rate(state, task.config, math.ceil(total / window))
            batches.append(batch)
            terms.append(gradients(state, task, batch, at, last))
            if at < last:
                continue
            unread.append(Window(batches, terms, step(state, task.config.clip, terms)))
            state.batch, batches, terms = at + 1, [], []
            # Until the next look the host only hands out work; it waits for no number.
            if state.batch % (window * task.read_steps) and state.batch < total:
                continue
            read(state, task, unread)
            done = [len(b.images) for w in unread for b in w.batches]
            bar.step(_means(state.sums), len(done), sum(done))
            unread = []
            if ddp.any_rank(task.signals.poll(), state.device):
                _stop(state, task)
            if time.monotonic() - saved >= 60 * task.config.save_minutes and state.batch < total:
                task.save(state, False)
                saved = time.monotonic()
    state.batch = total


def set_learning_rate(state: State, config: TrainConfig, steps: int) -> None:
    """Set the optimizer's learning rate for the next step; steps: of an epoch."""
    rate = learning_rate(state.step, config.epochs * steps, config.warmup * steps, config.peak_lr,
                         config.final_lr, config.cycles)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * state.lr_scale


def gradients(state: State, task: Task, batch: tuple, at: int, last: int) -> dict[str, Tensor]:
    """Add a batch's gradients, times its share of the window to `last`; return "loss" and its terms."""
    images = batch.images.to(state.device, non_blocking=True)
    images = (images.float() / 255).contiguous(memory_format=torch.channels_last)
    if task.sides:
        images = resized(images, task.sides, (task.config.seed, state.epoch, at))
    share = 1 / (last - (at - at % task.config.accumulate) + 1)
    waits = hasattr(state.model, "no_sync") and at < last   # ranks exchange gradients once, at a window's end
    half = HALF.get(task.precision)
    with state.model.no_sync() if waits else nullcontext():
        with torch.autocast(state.device.type, half, enabled=half is not None):
            outputs = state.model(images)
        terms = task.loss(outputs, batch.targets.to(state.device, non_blocking=True), images)
        weights = task.config.loss_weights(task.loss.terms)
        total = sum(weights[name] * value for name, value in terms.items())
        state.scaler.scale(total * share).backward()
    return {"loss": total.detach(), **{name: value.detach() for name, value in terms.items()}}


def resized(images: Tensor, sides: tuple[int, ...], key: tuple[int, ...]) -> Tensor:
    """Return images [B, 3, S, S] at one of the sides (px), chosen by `key` (seed, epoch, batch) alone."""
    side = sides[int(np.random.default_rng(key).integers(len(sides)))]
    if side == images.shape[-1]:
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=side < images.shape[-1])


def step(state: State, clip: float, terms: list[dict[str, Tensor]]) -> Tensor:
    """Move weights and average by the gradients, unless a number is not finite; return whether all is well.

    The host has not read a loss since the last look, so the decision is made on the device: by the flag with
    which a GradScaler makes fused optimizers leave weights and moments as they were.
    """
    ddp.mean_gradients(state.beside.parameters())
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_([*state.model.parameters(), *state.beside.parameters()], clip)
    # All ranks have the same gradients, but each has losses of its own.
    finite = ddp.on_all_ranks(torch.stack([batch["loss"] for batch in terms]).isfinite().all())
    good = finite & norm.isfinite()
    state.optimizer.grad_scale, state.optimizer.found_inf = None, (~good).float()
    state.optimizer.step()
    state.scaler.update()                                  # after an overflow it lowers its scale
    state.optimizer.zero_grad()
    heal_statistics(unwrap(state.model), state.ema.module)
    state.ema.update(unwrap(state.model), good)
    state.step += 1
    if not state.scaler.is_enabled():
        return good
    # A lowered scale now and then is how fp16 works; one that has fallen below 1 is not.
    return good | (finite & (state.scaler.scale(torch.ones((), device=state.device)) >= 1))


def read(state: State, task: Task, unread: list[Window]) -> None:
    """Read what has come of the windows, and count it; restart after IN_A_ROW bad steps."""
    losses = torch.stack([torch.stack([*terms.values()]) for window in unread for terms in window.terms])
    values, good = iter(losses.tolist()), torch.stack([window.good for window in unread]).tolist()
    for window, fine in zip(unread, good):
        suspect = None
        for batch, terms in zip(window.batches, window.terms):
            named = dict(zip(terms, next(values)))
            if math.isfinite(named["loss"]):
                for name, value in {**named, "count": 1.0}.items():
                    state.sums[name] = state.sums.get(name, 0.0) + value
            else:
                suspect = suspect or batch
        state.bad, state.skipped = (0, state.skipped) if fine else (state.bad + 1, state.skipped + 1)
        if state.bad == IN_A_ROW:                          # what came after is undone with it
            return restart(state, task, suspect or window.batches[-1])


def restart(state: State, task: Task, batch: tuple) -> None:
    """Bring the weights before a bad batch back at half the learning rate; NumericError after RETRIES."""
    where = task.replay({"images": batch.images, "targets": batch.targets,
                         "epoch": state.epoch, "batch": state.batch})
    if state.retries >= RETRIES:
        raise NumericError(f"{IN_A_ROW} steps in a row were not finite, after {RETRIES} restarts from the "
                           f"last good state at half the learning rate each; {where}")
    state.load(task.restore(), weights_only=True)
    state.bad, state.retries, state.lr_scale = 0, state.retries + 1, state.lr_scale / 2
    print(f"{IN_A_ROW} steps in a row were not finite ({where}); "
          "the last good state is back, learning rate halved")


def _stop(state: State, task: Task) -> None:
    """Save and end the run: a signal has arrived."""
    state.sums = ddp.mean_over_ranks(state.sums, state.device)
    task.save(state, False)
    raise Interrupted(f"stopped by a signal after epoch {state.epoch + 1}, batch {state.batch}; "
                      f"saved: run the same command {task.again} to continue", task.signals.code)


def _means(sums: dict[str, float]) -> dict[str, float]:
    """Return the mean loss terms of an epoch so far."""
    count = sums.get("count", 0.0)
    return {name: value / count for name, value in sums.items() if name != "count"} if count else {}


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside a DDP wrapper."""
    return getattr(model, "module", model)
