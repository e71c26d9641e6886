"""Kernel search: every choice of kernels and block types trained and measured, or cut out of one supernet."""
from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial

from compress.kernels import crop_kernels
from compress.search.queue import Point, Queue
from compress.search.rows import ranked, values_of
from compress.search.space import Choice, Search, State, candidates, choice_of
from compress.supernet import SandwichLoss, Supernet
from models.count import parameters
from models.layer import Net
from training.finetune import Outcome, Tuner
from training.run import detection_loss
from utils import ddp, runs
from utils.errors import Interrupted, NumericError


def brute_force(search: Search) -> tuple[list[dict], list[dict]]:
    """Return all rows and those that failed: every choice trained, the best again with more seeds."""
    config, space = search.config, search.space()
    queue = search.queue("", space, config.trials or 0) if search.tuner.world.main else None
    rows, failed = trained(search, queue, lambda point: (search.choice(point), config.seed))
    if config.seeds > 1 and rows:
        order = ranked(rows, config.score)[:config.repeat_best]
        best = {rows[i]["label"]: choice_of(rows[i]) for i in order}
        space = {"label": list(best), "seed": list(range(config.seed + 1, config.seed + config.seeds))}
        queue = search.queue("-seeds", space) if search.tuner.world.main else None
        more = trained(search, queue, lambda point: (best[point["label"]], point["seed"]))
        rows, failed = rows + more[0], failed + more[1]
    return rows, failed


def trained(search: Search, queue: Queue | None,
            meaning: Callable[[Point], tuple[Choice, int]]) -> tuple[list[dict], list[dict]]:
    """Return the rows of a queue's points and those that failed, trained here or by others; close it.

    queue: the first process's; the others follow it. meaning: point -> choice and seed.
    """
    tuner, wait = search.tuner, waiting(search.tuner)
    try:
        while (point := tuner.share(queue.take(wait) if queue else None)) is not None:
            choice, seed = meaning(point)
            try:
                row = search.known.get((choice.label, seed)) or trial(search, choice, seed)
            except NumericError as error:          # it would end the same way again
                row = {"label": choice.label, "kernels": choice.kernels, "ops": choice.ops, "seed": seed}
                if queue:
                    queue.drop({**row, "error": str(error)})
                continue
            if queue:
                queue.finish(values_of(row, search.config.objectives), row)
        records = tuner.share(queue.records() if queue else None)
    except BaseException:
        if queue:
            queue.give_back()
        raise
    finally:
        if queue:
            queue.close()
    return [r for r in records if "error" not in r], [r for r in records if "error" in r]


def trial(search: Search, choice: Choice, seed: int) -> dict:
    """Return the row of a choice, trained here, or read where that is done already."""
    tuner, name, net = search.tuner, f"trials/k{choice.label}-s{seed}", search.net(choice)
    tuner.say(f"{choice.label}  seed {seed}  {parameters(net):,} parameters")
    start = {} if tuner.done(name) else search.start(net, seed)
    found = tuner.tune(net, start, name, search.config.epochs, seed=seed)
    return search.row(choice, net, found.state, found.metrics, seed, found.epochs, found.seconds)


def waiting(tuner: Tuner) -> Callable[[int], None]:
    """Return a function that says how many trials others work on, once each; it raises Interrupted."""
    said: set[int] = set()

    def wait(running: int) -> None:
        if tuner.interrupt.poll():
            raise Interrupted("stopped by a signal; the same command continues", tuner.interrupt.code)
        if running not in said:
            said.add(running)
            tuner.say(f"waiting: other workers have {running} to finish")
    return wait


def one_shot(search: Search) -> tuple[list[dict], list[dict]]:
    """Return the rows of all choices, cut out of one supernet, and none that failed.

    The network with the largest kernels is trained by the sandwich rule; each choice is then the centres of
    its kernels, with batch-norm statistics of its own.
    """
    tuner, config = search.tuner, search.config
    supernet = train_supernet(search)
    rows = []
    for point in candidates(search.space(), config.trials, config.seed):
        choice = search.choice(point)
        file = tuner.folder / "candidates" / f"k{choice.label}.json"
        row = tuner.share(json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None)
        if row is None:                            # remembered, so that a kill loses none
            began = time.monotonic()
            net, state = cut(search, supernet, choice)
            metrics = tuner.measure(net, state)
            row = search.row(choice, net, state, metrics, config.seed, 0, time.monotonic() - began)
            if tuner.world.main:
                file.parent.mkdir(exist_ok=True)
                runs.write_json(file, row)
            tuner.say(f"{choice.label}  AP50 {row['map50']:.4f}")
        rows.append(row)
        if ddp.any_rank(tuner.interrupt.poll(), tuner.device):
            raise Interrupted("stopped by a signal; the same command continues", tuner.interrupt.code)
    return rows, []


def train_supernet(search: Search) -> Outcome:
    """Return the trained network with the largest kernels, in which all choices are contained."""
    config, tuner = search.config, search.tuner
    layers, kernels = config.layers, sorted(config.kernels)
    net = search.net(search.choice({f"{name}.kernel": kernels[-1] for name in layers}))
    make = partial(Supernet, layers=layers, kernels=kernels, count=config.random, seed=config.seed)
    start = {}
    if not tuner.done("supernet"):
        tuner.say(f"supernet: {parameters(net):,} parameters, {config.random + 2} networks a step")
        start = search.start(net, config.seed)
    return tuner.tune(net, start, "supernet", config.epochs, make=make,
                      loss=SandwichLoss(detection_loss(net)))


def cut(search: Search, supernet: Outcome, choice: Choice) -> tuple[Net, State]:
    """Return a choice's network out of the supernet, with batch-norm statistics of its own."""
    net, state = crop_kernels(supernet.net, supernet.state, choice.kernels)
    return net, search.tuner.recalibrate(net, {key: value.contiguous() for key, value in state.items()})
