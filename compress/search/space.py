"""What a search varies and stands on: the choices, their networks, their common start, their queue."""
from __future__ import annotations

import argparse
import json
import random
import zlib
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.profile.latency import latency
from compress.kernels import with_kernels
from compress.search.queue import Point, Queue
from compress.search.rows import ACCURACY, directions
from compress.search.storage import alone
from models import checkpoint as checkpoints
from models.count import loose_macs, macs, parameters
from models.layer import Net
from models.network import Network, initialise
from models.records import to_json
from models.zoo.tiny import substitute
from training.assembly import data_hash
from training.finetune import Tuner, claim, plain_pictures
from training.prepare import choose_net, start_from
from utils import runs
from utils.errors import UsageError

# Flags that say where and how a search runs and is reported, not what its values are.
FREE = ("device", "workers", "threads", "cache", "project", "name", "save_json", "save_minutes", "against",
        "storage", "study", "known")
# What a record must say of a search for its trials to be taken as known.
SAME = ("layers", "kernels", "ops", "epochs", "imgsz", "cfg", "separate", "weights", "data", "objectives")
TRAINED_BY = ("fit_anchors", "batch_size", "optimizer", "lr", "final_lr", "momentum", "weight_decay",
              "warmup_epochs", "nominal_batch", "augment", "close_mosaic", "multi_scale", "box", "obj", "cls")
TIMED, TIMED_PICTURES = 50, 16                     # rounds of a latency, and pictures they take in turn
State = dict[str, Tensor]


class Choice(NamedTuple):
    """A point of the space: a kernel and a block type for each layer that is searched.

    label: the kernels in the layers' order, as 35353; where block types are searched, as m3m5d3.
    """

    label: str
    kernels: dict[str, int]
    ops: dict[str, str]


def choice_of(row: dict) -> Choice:
    """The choice that a trial's row is about."""
    return Choice(row["label"], row["kernels"], row["ops"])


@dataclass
class Search:
    """What a search stands on: the tuner, the flags, the network it varies, the weights all start from.

    known: (label, seed) -> row of an earlier search of the same things.
    """

    tuner: Tuner
    args: argparse.Namespace
    base: Net
    weights: checkpoints.Checkpoint | None
    known: dict[tuple[str, int], dict] = field(default_factory=dict)

    @classmethod
    def open(cls, args: argparse.Namespace) -> Search:
        """A search for checked flags: the run folder claimed, data read, network built.

        Workers of one search share the folder and come in one after the other. Raises as Tuner.open does, and
        ModelError for layers that are not there or hold no kernels.
        """
        known = known_trials(args)
        Path(args.project).mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            def own() -> Path:
                with alone(Path(args.project) / ".claim.lock"):
                    folder = claim(args, FREE)
                held.enter_context(alone(folder / ".open.lock"))
                return folder
            tuner = Tuner.open(args, own, alone=args.one_shot)
        base, weights = choose_net(args, tuner.train_set, tuner.say)
        substitute(base, kernels=dict.fromkeys(args.layers, args.kernels[0]))  # a layer that is not there
        return cls(tuner, args, base, weights, known)

    @property
    def score(self) -> str:
        """What "best" means."""
        return next(name for name in self.args.objectives if name in ACCURACY)

    def space(self) -> dict[str, list]:
        """Parameter -> candidates: a kernel a layer, and a block type a layer where several are given."""
        kernels = {f"{name}.kernel": sorted(self.args.kernels) for name in self.args.layers}
        ops = {f"{name}.op": list(self.args.ops) for name in self.args.layers if len(self.args.ops or ()) > 1}
        return {**kernels, **ops}

    def choice(self, point: Point) -> Choice:
        """What a point of the space means."""
        now, names = {layer.name: layer.op for layer in self.base}, self.args.layers
        fixed = (self.args.ops or (None,))[0]
        kernels = {name: point[f"{name}.kernel"] for name in names}
        ops = {name: point.get(f"{name}.op", fixed or now[name]) for name in names}
        return Choice("".join(f"{point.get(f'{n}.op', '')[:1]}{kernels[n]}" for n in names), kernels, ops)

    def net(self, choice: Choice) -> Net:
        """The network of a choice."""
        return substitute(self.base, choice.ops, choice.kernels)

    def start(self, net: Net, seed: int) -> State:
        """The state a network is trained from: what --weights holds, the rest fresh.

        A layer whose kernels have another size there takes their centres, or them in a border of zeros, so
        that all choices start from the same weights.
        """
        model = initialise(Network(net), seed)
        if self.weights is not None:
            there = {layer.name: layer for layer in self.weights.net}
            sides = {layer.name: layer.kernel for layer in net if layer.name in self.args.layers
                     and layer.name in there and there[layer.name].op == layer.op}
            resized, state = with_kernels(self.weights.net, self.weights.state, sides)
            source = replace(self.weights, net=resized, state=state)
            start_from(model, source, self.tuner.train_set, self.args.separate,
                       lambda text: self.tuner.say(f"  {text.splitlines()[0]}"))
        return model.state_dict()

    def row(self, choice: Choice, net: Net, state: State, metrics: dict[str, float], seed: int, epochs: int,
            seconds: float) -> dict[str, object]:
        """A trial as the reports show it."""
        size = self.args.imgsz
        row = {"label": choice.label, "kernels": choice.kernels, "ops": choice.ops, "seed": seed, **metrics,
               "parameters": parameters(net), "macs": macs(net, size), "loose_macs": loose_macs(net, size),
               "epochs": epochs, "seconds": round(seconds, 1)}
        if "latency" in self.args.objectives:
            ms = None
            if self.tuner.world.main:
                threads = self.args.latency_threads or torch.get_num_threads()
                ms = latency(net, state, size, plain_pictures(self.tuner.val_set, TIMED_PICTURES), threads,
                             TIMED, self.tuner.device)
            row["latency_ms"] = self.tuner.share(ms)
        return row

    def queue(self, name: str, space: dict[str, list], trials: int = 0) -> Queue:
        """The queue of a space in this search's study; see compress.search.queue."""
        args, folder = self.args, self.tuner.folder
        settings = {key: value for key, value in sorted(vars(args).items())
                    if key not in (*FREE, "data", "weights", "cfg", "seeds", "repeat_best")}
        settings |= {"net": zlib.crc32(to_json(self.base).encode()), "space": space,
                     "start": self.weights and checkpoints.checksum(self.weights.state),
                     "pictures": data_hash(self.tuner.train_set.coco)}
        study = args.study or f"search-{zlib.crc32(json.dumps(settings, default=str).encode()):08x}"
        # The storage fills in its schema's version where a URL has braces.
        own = f"sqlite:///{folder.resolve()}/study.db".replace("{", "{{").replace("}", "}}")
        return Queue(args.storage or own, study + name, space, directions(args.objectives), settings,
                     folder / "workers", trials, args.seed)


def known_trials(args: argparse.Namespace) -> dict[tuple[str, int], dict]:
    """(Label, seed) -> row of the records that --known names; of rows told twice, the last.

    Raises DataError for a file that is no record of a search, UsageError for one of another search. Paths are
    compared by their last part: the record may come from another machine.
    """
    mine, found = {**vars(args), "kernels": sorted(args.kernels)}, {}

    def plain(values: dict, key: str) -> object:
        value = values.get(key)
        return Path(value).name if value and key in ("cfg", "weights", "data") else value
    for path in args.known:
        record = runs.read_record("--known", path, "search")
        record |= record.get("training", {})       # older records do not tell how they trained
        told = [key for key in (*SAME, *TRAINED_BY) if key in SAME or key in record]
        if other := [key for key in told if plain(record, key) != plain(mine, key)]:
            raise UsageError(f"--known {path}: a search with " + ", ".join(
                f"{key} {plain(record, key)} where now it is {plain(mine, key)}" for key in other))
        found |= {(row["label"], row["seed"]): row for row in record["trials"]}
    return found


def candidates(space: dict[str, list], trials: int | None, seed: int) -> list[Point]:
    """All points of a space in order, or `trials` of them, drawn evenly."""
    size = prod(len(values) for values in space.values())
    chosen = range(size) if not trials or trials >= size else sorted(
        random.Random(seed).sample(range(size), trials))

    def point(at: int) -> Point:
        out = {}
        for key, values in reversed(space.items()):
            at, place = divmod(at, len(values))
            out[key] = values[place]
        return {key: out[key] for key in space}
    return [point(at) for at in chosen]
