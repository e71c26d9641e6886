"""Which precision a network trains in on this CPU: the faster of two, by steps that nothing else uses."""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from data.dataset import DetectionSet
from data.loader import EpochSampler, collate
from models.heads.loss import DetectionLoss
from models.network import Network, from_state
from training import engine
from training.config import TrainConfig
from training.optim import freeze
from training.run import Session, make_state
from utils import ddp

TRIED = 4                                          # images of a step: the first of the first batch
ROUNDS = 5                                         # steps in each precision at most, beside one of warm-up
SECONDS, SHARE = 3.0, 0.03                         # of the steps, and of a short run, at most
MARGIN = 1.05                                      # by which the less exact has to be faster


def faster(config: TrainConfig, session: Session, model: Network, train_set: DetectionSet) -> str:
    """Return bf16 or fp32, the same on all processes, and say how much faster the one is.

    A run too short for the steps to be a small share of it is not worth them: it keeps `session`'s.
    """
    images = config.epochs * min(len(train_set), config.epoch_images or len(train_set))
    rounds = min(ROUNDS, int(images * SHARE / (2 * TRIED)) - 1)
    if rounds < 1 and not config.time:
        return session.precision
    limit = min(SECONDS, SHARE * config.time) if config.time else SECONDS
    ratio = ddp.from_main(speed_of_bf16(config, session, model, train_set, max(1, rounds), limit))
    chosen = "bf16" if ratio >= MARGIN else "fp32"
    session.say(f"bf16: {ratio:.2f} times as fast as fp32 on this CPU" +
                ("; training in fp32" if chosen == "fp32" else ""))
    return chosen


def speed_of_bf16(config: TrainConfig, session: Session, model: Network, train_set: DetectionSet,
                  rounds: int, limit: float) -> float:
    """Return how many times as fast as in fp32 a step is in bf16; at most so many rounds and seconds.

    The median over rounds of a step in each. Neither the model nor torch's random state is another after it.
    """
    world, ratios, began = session.world, [], time.monotonic()
    sampler = EpochSampler(len(train_set), max(1, config.batch_size // world.size), seed=config.seed,
                           rank=world.rank, world=world.size, part=config.epoch_images)
    batch = collate([train_set[key] for key in next(iter(sampler))[:TRIED]])
    with torch.random.fork_rng(devices=[]):
        steps = [stepper(config, session._replace(precision=name), model, batch) for name in ("fp32", "bf16")]
        for warm_up in steps:
            warm_up()
        while True:
            full, half = (step() for step in steps)
            ratios.append(full / half)
            over = len(ratios) >= rounds or time.monotonic() - began + full + half > limit
            if ddp.from_main(over):                # processes step together
                return statistics.median(ratios)


def stepper(config: TrainConfig, session: Session, model: Network, batch: tuple) -> Callable[[], float]:
    """Return what takes a step of a copy of the model and returns its seconds."""
    copied = from_state(model.net, model.state_dict()).to(memory_format=torch.channels_last)
    frozen, nothing = freeze(copied, config.freeze), (lambda *_: None)
    state = make_state(copied, config, session)
    task = engine.Task(config, (), DetectionLoss(model.net), nothing, nothing, nothing, nothing, nothing,
                       signals=None, precision=session.precision)
    state.model.train()
    for module in frozen:
        module.eval()

    def step() -> float:
        began = time.perf_counter()
        bool(engine.step(state, config.clip, [engine.gradients(state, task, batch, 0, 0)]))
        return time.perf_counter() - began
    return step
