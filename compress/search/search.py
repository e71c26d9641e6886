"""Kernel search: every choice of kernels and block types, trained and measured or cut out of a supernet."""
from __future__ import annotations

import json
import random
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.profile.latency import latency
from compress.kernels import crop_kernels, with_kernels
from compress.search.config import FREE, SAME, TRAINED_BY, SearchConfig
from compress.search.queue import Point, Queue, emptied, shared_tuner
from compress.search.rows import OBJECTIVES, ranked, values_of
from compress.search.storage import file_url
from compress.supernet import SandwichLoss, Supernet
from models import checkpoint as checkpoints
from models.count import loose_macs, macs, parameters
from models.heads.loss import DetectionLoss
from models.layer import Net
from models.network import Network, initialise
from models.records import to_json
from models.zoo.tiny import substitute
from training.finetune import Outcome, Tuner
from training.prepare import TIMED_IMAGES, choose_net, plain_images, start_from
from training.run import data_hash, shown
from utils import ddp, runs
from utils.errors import Interrupted, UsageError

TIMED = 50                                         # rounds of a latency
State = dict[str, Tensor]


class Choice(NamedTuple):
    """A point of the space: a kernel and a block type for each layer that is searched.

    label: the kernels in the layers' order, as 35353; where block types are searched, as m3m5d3.
    """

    label: str
    kernels: dict[str, int]
    ops: dict[str, str]


def choice_of(row: dict) -> Choice:
    """Return the choice of a trial's row."""
    return Choice(row["label"], row["kernels"], row["ops"])


@dataclass(frozen=True)
class Search:
    """The network that is varied, the weights all start from, (label, seed) -> row of earlier searches."""

    tuner: Tuner
    config: SearchConfig
    base: Net
    weights: checkpoints.Checkpoint | None
    known: dict[tuple[str, int], dict] = field(default_factory=dict)

    @classmethod
    def open(cls, config: SearchConfig) -> Search:
        """Return a search; raise as Tuner does, and ModelError for layers that hold no kernels."""
        known = known_trials(config)
        tuner = shared_tuner(config, FREE, locked=config.one_shot)
        with tuner.beginning():
            base, weights = choose_net(config, tuner.train_set, tuner.say)
            substitute(base, kernels=dict.fromkeys(config.layers, config.kernels[0]))  # is any not there?
        return cls(tuner, config, base, weights, known)

    def space(self) -> dict[str, list]:
        """Return parameter -> candidates: kernels of a layer, and block types where several are given."""
        config = self.config
        kernels = {f"{name}.kernel": sorted(config.kernels) for name in config.layers}
        several = len(config.ops or ()) > 1
        return kernels | {f"{name}.op": list(config.ops) for name in config.layers if several}

    def choice(self, point: Point) -> Choice:
        """Return what a point of the space means."""
        now, names = {layer.name: layer.op for layer in self.base}, self.config.layers
        fixed = (self.config.ops or (None,))[0]
        kernels = {name: point[f"{name}.kernel"] for name in names}
        ops = {name: point.get(f"{name}.op", fixed or now[name]) for name in names}
        return Choice("".join(f"{point.get(f'{n}.op', '')[:1]}{kernels[n]}" for n in names), kernels, ops)

    def net(self, choice: Choice) -> Net:
        """Return the network of a choice."""
        return substitute(self.base, choice.ops, choice.kernels)

    def start(self, net: Net, seed: int) -> State:
        """Return the state a network is trained from: what --weights holds, resized, the rest fresh."""
        model = initialise(Network(net), seed)
        if self.weights is not None:
            there = {layer.name: layer for layer in self.weights.net}
            sides = {layer.name: layer.kernel for layer in net if layer.name in self.config.layers
                     and layer.name in there and there[layer.name].op == layer.op}
            resized, state = with_kernels(self.weights.net, self.weights.state, sides)
            source = replace(self.weights, net=resized, state=state)
            start_from(model, source, self.tuner.train_set, self.config.separate,
                       lambda text: self.tuner.say(f"  {text.splitlines()[0]}"))
        return model.state_dict()

    def row(self, choice: Choice, net: Net, state: State, metrics: dict[str, float], seed: int, epochs: int,
            seconds: float) -> dict[str, object]:
        """Return a trial as the reports show it."""
        size = self.config.imgsz
        row = {**choice._asdict(), "seed": seed, **metrics, "parameters": parameters(net),
               "macs": macs(net, size), "loose_macs": loose_macs(net, size), "epochs": epochs,
               "seconds": round(seconds, 1)}
        if "latency" in self.config.objectives:
            threads, images = self.config.latency_threads, plain_images(self.tuner.val_set, TIMED_IMAGES)
            row["latency_ms"] = self.tuner.share(self.tuner.world.main and latency(
                net, state, size, images, threads or torch.get_num_threads(), TIMED, self.tuner.device))
        return row

    def queue(self, name: str, space: dict[str, list], trials: int = 0) -> Queue:
        """Return the queue of a space in this search's study."""
        config, folder = self.config, self.tuner.folder
        settings = {key: value for key, value in sorted(asdict(config).items())
                    if key not in (*FREE, "data", "weights", "cfg", "seeds", "repeat_best")}
        sets = self.tuner.train_set, self.tuner.val_set
        settings |= {"net": zlib.crc32(to_json(self.base).encode()), "space": space,
                     "start": self.weights and checkpoints.checksum(self.weights.state),
                     "pictures": [data_hash(data.coco) for data in sets]}
        study = config.study or f"search-{zlib.crc32(json.dumps(settings, default=str).encode()):08x}"
        own = file_url(folder.resolve() / "study.db")
        ways = [OBJECTIVES[name][1] for name in config.objectives]
        return Queue(config.storage or own, study + name, space, ways, settings, folder / "workers", trials,
                     config.seed)


def known_trials(config: SearchConfig) -> dict[tuple[str, int], dict]:
    """Return (label, seed) -> row of --known's records; DataError, UsageError for no or another search's."""
    mine, found = asdict(config) | {"kernels": sorted(config.kernels)}, {}

    def plain(values: dict, key: str) -> object:
        value = values.get(key)
        value = list(value) if isinstance(value, tuple) else value         # as JSON has it
        # Only the last part of a path: the record may come from another machine.
        return Path(value).name if value and key in ("cfg", "weights", "data") else value
    for path in config.known:
        record = runs.read_record("--known", path, "search")
        if record.get("method") == "one-shot":
            raise UsageError(f"--known {path}: its networks were cut out of one, none was trained by itself; "
                             "give records of searches that train each choice")
        record |= record.get("training", {})       # older records do not tell how they trained
        told = {key: 0 for key in (*SAME, *TRAINED_BY) if key in SAME or key in record}
        told |= record.get("training", {})         # a field that is no more made another training
        if other := [key for key in told if plain(record, key) != plain(mine, key)]:
            raise UsageError(f"--known {path}: a search with " + ", ".join(
                f"{key} {plain(record, key)} where now it is {plain(mine, key)}" for key in other))
        found |= {(row["label"], row["seed"]): row for row in record["trials"]}
    return found


def candidates(space: dict[str, list], trials: int | None, seed: int) -> list[Point]:
    """Return all points of a space in order, or `trials` of them, drawn evenly."""
    shape = [len(values) for values in space.values()]
    size = prod(shape)
    chosen = range(size) if not trials or trials >= size else sorted(
        random.Random(seed).sample(range(size), trials))
    return [{key: values[place] for (key, values), place in zip(space.items(), np.unravel_index(at, shape))}
            for at in chosen]


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

    queue: None but in the first process, which the others follow. meaning: point -> choice and seed.
    """
    def named(point: Point) -> dict:
        choice, seed = meaning(point)
        return {**choice._asdict(), "seed": seed}

    def work(point: Point) -> tuple[dict, list]:
        choice, seed = meaning(point)
        row = search.known.get((choice.label, seed)) or trial(search, choice, seed)
        return row, values_of(row, search.config.objectives)
    return emptied(queue, search.tuner, work, named)


def trial(search: Search, choice: Choice, seed: int) -> dict:
    """Return the row of a choice, trained here or read."""
    tuner, name, net = search.tuner, f"trials/k{choice.label}-s{seed}", search.net(choice)
    tuner.say(f"{choice.label}  seed {seed}  {parameters(net):,} parameters")
    start = {} if tuner.done(name) else search.start(net, seed)
    found = tuner.tune(net, start, name, search.config.epochs, seed=seed)
    return search.row(choice, net, found.state, found.metrics, seed, found.epochs, found.seconds)


def one_shot(search: Search) -> tuple[list[dict], list[dict]]:
    """Return the rows of all choices, cut out of one supernet, and none that failed."""
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
            metrics = tuner.share(tuner.world.main and shown(tuner.validator(net, state)[0]))
            row = search.row(choice, net, state, metrics, config.seed, 0, time.monotonic() - began)
            row["val_loss"] = tuner.val_loss(net, state)
            if tuner.world.main:
                file.parent.mkdir(exist_ok=True)
                runs.write_json(file, row)
            tuner.say(f"{choice.label}  AP50 {row['map50']:.4f}  val loss {row['val_loss']:.4f}")
        rows.append(row)
        if ddp.any_rank(tuner.interrupt.poll(), tuner.device):
            raise Interrupted("stopped by a signal; the same command continues", tuner.interrupt.code)
    return rows, []


def train_supernet(search: Search) -> Outcome:
    """Return the trained network with the largest kernels, in which all choices are contained."""
    config, tuner, start = search.config, search.tuner, {}
    net = search.net(search.choice({f"{name}.kernel": max(config.kernels) for name in config.layers}))
    make = partial(Supernet, layers=config.layers, kernels=config.kernels, count=config.random,
                   seed=config.seed)
    if not tuner.done("supernet"):
        tuner.say(f"supernet: {parameters(net):,} parameters, {config.random + 2} networks a step")
        start = search.start(net, config.seed)
    return tuner.tune(net, start, "supernet", config.epochs, seed=config.seed, make=make,
                      loss=SandwichLoss(DetectionLoss(net)))


def cut(search: Search, supernet: Outcome, choice: Choice) -> tuple[Net, State]:
    """Return a choice's network out of the supernet, with batch-norm statistics of its own."""
    return search.tuner.cut(supernet.net, supernet.state, partial(crop_kernels, kernels=choice.kernels))
