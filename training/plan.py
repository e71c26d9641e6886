"""A training that is to end within a budget of time: what its parts cost, and how many epochs that leaves."""
from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import NamedTuple

from training import engine
from training.config import TrainConfig
from utils import ddp
from utils.errors import UsageError

FEWEST = 8                                         # epochs; of a set too large for them, each takes a part
REPORT = 8.0                                       # s that plots and the page take beside the validation
SLACK = 0.03                                       # of the budget, for what was measured too short
OFF = 0.05                                         # of the budget: an end this far away is planned again
FULL, MOST = 0.7, 64                               # of the free memory; images of a batch at most
TRIED = 6.0                                        # s of trial steps at most, and of the budget at most OFF


class Costs(NamedTuple):
    """Seconds of a training image, of a validation of the whole set, and of a save."""

    image: float
    validation: float
    save: float


def first_plan(config: TrainConfig, images: int, costs: Costs, spent: float) -> TrainConfig:
    """Return the config whose schedule ends at the budget; spent: seconds since the command.

    Validations take a tenth of the training at most, epochs without mosaic are a quarter at most, and of a
    set too large for FEWEST epochs each takes a part. Raises UsageError where nothing fits.
    """
    batch, whole = max(config.batch_size, config.nominal_batch), images * costs.image + costs.save
    interval = max(config.val_interval, math.ceil(costs.validation / (0.1 * whole)))
    left = remaining(config, costs, spent)
    epochs, part = int(left / (whole + costs.validation / interval)), config.epoch_images
    if epochs < FEWEST:
        epochs, interval = FEWEST, FEWEST
        part = int((left / FEWEST - costs.save) / costs.image) // batch * batch
        if part < batch:
            raise UsageError(f"--time {config.time:.0f} s: start, validation and report need "
                             f"{config.time - left:.0f} s, and a step {batch * costs.image:.1f} s; give more")
    return replace(config, epochs=epochs, val_interval=interval, epoch_images=part,
                   close_mosaic=min(config.close_mosaic, epochs // 4))


def later_plan(config: TrainConfig, done: int, costs: Costs, images: int, spent: float) -> TrainConfig | None:
    """Return the config with another number of epochs after `done`, None where its end is about right."""
    epoch = images * costs.image + costs.save + costs.validation / config.val_interval
    left, to_come = remaining(config, costs, spent), config.epochs - done
    if to_come < 1 or abs(left - to_come * epoch) < max(OFF * config.time, epoch):
        return None
    epochs = done + max(1, int(left / epoch))
    return replace(config, epochs=epochs) if epochs != config.epochs else None


def remaining(config: TrainConfig, costs: Costs, spent: float) -> float:
    """Return the seconds that are left for epochs: without the last validation, report and some slack."""
    end = costs.validation + (0 if config.no_report else costs.validation + REPORT)
    return config.time * (1 - SLACK) - spent - end


def seconds_per_image(state: engine.State, task: engine.Task) -> float:
    """Return what a training image costs, by steps with a state that nothing else uses."""
    began, images = time.monotonic(), 0
    state.model.train()
    task.loader.set_epoch(0)
    for at, batch in enumerate(task.loader):
        bool(engine.step(state, task.config.clip, [engine.gradients(state, task, batch, at, at)]))
        if at == 0 and len(task.loader) > 1:       # the first starts workers and builds kernels
            began = time.monotonic()
            continue
        images += len(batch.images)
        over = time.monotonic() - began > min(TRIED, OFF * task.config.time)
        if ddp.any_rank(over, state.device):       # processes step together
            break
    return (time.monotonic() - began) / images


class Clock:
    """What the epochs of a process really cost, against what was planned with."""

    def __init__(self, costs: Costs | None = None) -> None:
        self.costs, self.mark, self.validated = costs, None, 0.0

    def begin(self) -> None:
        """Begin to count, at the start of a whole epoch."""
        self.mark, self.validated = time.monotonic(), 0.0

    def epoch(self, images: int) -> Costs | None:
        """Return the costs after an epoch of so many images has ended; None where it was not seen whole."""
        if self.mark is not None:
            image = (time.monotonic() - self.mark - self.validated) / images
            before = self.costs or Costs(image, self.validated, 0.0)
            self.costs = Costs((before.image + image) / 2, self.validated or before.validation, 0.0)
        self.begin()
        return self.costs


def largest_batch(peaks: dict[int, int], free: int, images: int) -> int:
    """Return the largest power of two of images that fits FULL of the free memory (bytes), at most MOST.

    peaks: bytes of a step at two batch sizes, from which the others' follow on a line.
    """
    (few, low), (more, high) = sorted(peaks.items())
    each = max(1.0, (high - low) / (more - few))
    fits = min((FULL * free - low) / each + few, MOST, max(1, images))
    return 2 ** int(math.log2(max(1.0, fits)))
