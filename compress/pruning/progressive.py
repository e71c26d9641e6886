"""The paper's progressive pruning: choose, cut, fine-tune, measure, accept or reject."""
from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from bench.profile.costs import (
    Clock,
    Table,
    latency_ms,
    layer_clock,
    measure,
    read_or_measure,
    setup_of,
    told,
)
from compress.distill import DistilledLoss, teacher
from compress.importance import channel_scores, loss_gradients
from compress.prune import prune
from compress.pruning.config import REFERENCES, PruneConfig
from compress.pruning.schedule import PARTS, Unit, cheapest, narrowed, next_widths, prunable
from data.loader import collate
from deploy.runtimes.torchscript import DTYPES
from evaluation.curves import Matches, drop_interval
from models.channels import sizes, widths, with_widths
from models.count import layer_macs, loose_macs, macs, parameters
from models.heads.loss import DetectionLoss
from models.layer import Net
from training.finetune import Tuner
from training.prepare import TIMED_IMAGES, plain_images
from training.run import SHOWN, shown
from utils import ddp, runs
from utils.errors import EnvironmentFault

TAYLOR_IMAGES = 64
State = dict[str, Tensor]


@dataclass(frozen=True)
class Measured:
    """What a network reaches: its metrics over seeds (fractions 0..1) and its counts at the input size."""

    metrics: dict[str, float]
    counts: dict[str, float]
    matches: Matches                                       # of the first seed
    first: float                                           # AP50 of the first seed
    seeds: tuple[float, ...] = ()                          # the metric that decides, seed by seed

    @property
    def figures(self) -> dict[str, float]:
        """Return metrics and counts under the names of records."""
        names = {"parameters": "params", "stored": "stored", "macs": "macs", "loose_macs": "loose-macs"}
        return {**self.metrics, **{name: self.counts[count] for name, count in names.items()}}


class Drop(NamedTuple):
    """Points lost (of 100), and their 95 % interval over resampled images where the metric has one."""

    points: float
    interval: tuple[float, float] | None


@dataclass
class Log:
    """What a progressive pruning did: a row a step, why each unit stopped, and why the whole ended."""

    config: PruneConfig
    say: Callable[[str], None]
    rows: list[dict] = field(default_factory=list)
    stopped: dict[str, str] = field(default_factory=dict)
    ended: str = ""

    @property
    def accepted(self) -> int:
        """Return how many steps the child has had."""
        return sum(row["accepted"] for row in self.rows)

    def step(self, units: list[Unit], net: Net, reached: Measured, lost: Drop, accepted: bool, why: str,
             seconds: float) -> None:
        """Write and print one step."""
        config, label = self.config, units[0].name if len(units) == 1 else "all layers"
        width, original = sum(widths(net)[u.name] for u in units), sum(u.original for u in units)
        several = config.seeds > 1
        row = {"step": len(self.rows) + 1, "layer": label,
               "sixteenths": round(PARTS * (original - width) / original, 2), "width": width,
               **reached.figures, **({"seeds": reached.seeds} if several else {}),
               "drop": round(lost.points, 3),
               "interval": lost.interval and [round(v, 3) for v in lost.interval], "accepted": accepted,
               "why": why, "epochs": config.epochs_per_step * config.seeds, "seconds": round(seconds, 1)}
        self.rows.append(row)
        self.say(f"step {row['step']:3}  {label:12} {row['sixteenths']:g}/16  "
                 f"{config.metric} {row[config.metric]:.4f}  "
                 f"{row['parameters'] / 1e6:.3f} M  {row['macs'] / 1e9:.3f} GMACs  "
                 f"{'accepted' if accepted else 'rejected'}: {why}  ({seconds:.0f} s)"
                 + (f"  seeds {', '.join(f'{v:.4f}' for v in reached.seeds)}" if several else ""))


class Bench:
    """Fine-tunes and measures candidates of one parent, up to targets (measure -> largest value wanted)."""

    def __init__(self, tuner: Tuner, config: PruneConfig, targets: dict[str, float], origin: Net,
                 parent: State) -> None:
        self.tuner, self.config, self.targets, self.origin = tuner, config, targets, origin
        self.taken: dict[str, int] = {}                    # steps that a round of units has had
        self.gradients: tuple[State, State] | None = None  # the weights last asked for, and theirs
        self.controls: list[Measured] = []                 # the unpruned network after 1, 2, ... fine-tunings
        self.uncut = origin, parent                        # it, as the last of them left it
        self.loss, self.setup = None, setup_of(config.runtime, config.latency_threads)
        if config.teacher == "parent":
            teach = teacher(origin, parent, tuner.device, DTYPES[tuner.precision])
            self.loss = DistilledLoss(DetectionLoss(origin), teach)

    def choose(self, net: Net, state: State, units: list[Unit]) -> dict[str, list[int]]:
        """Return the kept indices of one step of all units that can still take one, the same on all ranks."""
        first, round_to = units[0].name, self.config.round_to
        if self.config.per == "none":
            new, self.taken[first] = next_widths(units, widths(net), self.taken.get(first, 0), round_to)
        else:
            new = self._cheapest(net, state, units)
        if not new:
            return {}
        keep = self.best_channels(net, state, narrowed(net, self.origin, new, round_to))
        if not ddp.same_on_all(zlib.crc32(json.dumps(keep).encode())):
            raise EnvironmentFault("the processes would cut different channels; nothing was cut. "
                                   "Are all of them the same machine type and versions?")
        return keep

    def best_channels(self, net: Net, state: State, width: dict[str, int]) -> dict[str, list[int]]:
        """Return kept indices, the best by --importance, that leave the units as many channels as `width`."""
        return {unit: sorted(found.argsort(descending=True, stable=True)[:width[unit]].tolist())
                for unit, found in self._scores(net, state, width).items()}

    def _scores(self, net: Net, state: State, units: Iterable[str]) -> dict[str, Tensor]:
        rule, gradients = self.config.importance, None
        if rule == "taylor":
            if self.gradients is None or self.gradients[0] is not state:
                self.gradients = state, self._gradients(net, state)
            gradients = self.gradients[1]
        return {unit: channel_scores(net, state, unit, rule, gradients=gradients, seed=self.config.seed)
                for unit in units}

    def _cheapest(self, net: Net, state: State, units: list[Unit]) -> dict[str, int]:
        """Return the widths that save a share of the unpruned network's cost where it matters least."""
        config, names = self.config, [unit.name for unit in units]
        scores = {unit: found.tolist() for unit, found in self._scores(net, state, names).items()}
        return cheapest(self.table, {unit: widths(net)[unit] for unit in names}, scores,
                        self.table.total({}) * config.sixteenths / PARTS, config.round_to)

    @cached_property
    def table(self) -> Table:
        """What records cost by --per against the widths of the units, of the first process, measured once."""
        config, tuner, origin = self.config, self.tuner, self.origin
        units = [unit.name for unit in prunable(origin, config.cut, config.sixteenths)[0]]

        def narrow(new: dict[str, int]) -> Net:
            return with_widths(origin, narrowed(origin, origin, new, config.round_to))

        def make() -> Table:
            if config.per == "ms":
                tuner.say(f"measuring what channels cost: {' '.join(map(str, self.setup))} threads")
            return measure(origin, units, narrow, self._clock(), tuner.interrupt.stop)
        if not tuner.world.main:
            return tuner.share(None)
        what = self.setup.told() if config.per == "ms" else {"per": config.per}
        of = {**told(origin, config.imgsz, units, what), "round_to": config.round_to}
        own = read_or_measure(tuner.folder, of, lambda: read_or_measure(Path(config.costs), of, make)
                              if config.costs else make())
        return tuner.share(own)

    def _clock(self) -> Clock:
        if self.config.per == "ms":
            return layer_clock(self.setup, self.config.imgsz)
        return sizes if self.config.per == "params" else partial(layer_macs, imgsz=self.config.imgsz)

    def tune(self, net: Net, state: State, keep: dict[str, list[int]],
             name: str) -> tuple[Net, State, Measured, float]:
        """Return the network cut and tuned (first seed), what it reaches over all seeds, the seconds."""
        config, tuner = self.config, self.tuner
        names = [f"steps/{name}-s{s}" for s in range(config.seeds)]
        if keep and not all(tuner.done(n) for n in names):
            net, state = tuner.cut(net, state, partial(prune, keep=keep))
        tries = [tuner.tune(net, state, n, config.epochs_per_step, seed=config.seed + s, loss=self.loss)
                 for s, n in enumerate(names)]
        mean = {key: float(np.mean([t.metrics[key] for t in tries])) for key in SHOWN}
        first = tries[0]
        reached = replace(self.measure(first.net, first.state, mean),
                          counts=timed_cost(tuner, first.net, first.state, name),
                          seeds=tuple(t.metrics[config.metric] for t in tries))
        return first.net, first.state, reached, sum(t.seconds for t in tries)

    def control(self, steps: int, original: Measured) -> Measured:
        """Return what the unpruned network reaches after as many fine-tunings as a child of so many steps."""
        while len(self.controls) < steps:
            name = f"control-{len(self.controls) + 1:03}"
            *self.uncut, reached, seconds = self.tune(*self.uncut, {}, name)
            self.controls.append(reached)
            self.tuner.say(f"{name}: {self.config.metric} {reached.metrics[self.config.metric]:.4f}, nothing "
                           f"cut  ({seconds:.0f} s)")
        return self.controls[steps - 1] if steps else original

    def measure(self, net: Net, state: State, metrics: dict[str, float] | None = None) -> Measured:
        """Return a network's metrics, counts and matches on the validation set."""
        full = self.tuner.validator(net, state)[0] if self.tuner.world.main else None
        own, matches = self.tuner.share(full and (shown(full), full.matches))
        return Measured(metrics or own, cost(net, self.config.imgsz), matches, own["map50"])

    def drop(self, reference: Measured, reached: Measured) -> Drop:
        """Return what was lost against the reference."""
        metric = self.config.metric
        lost = 100 * (reference.metrics[metric] - reached.metrics[metric])
        if metric != "map50":
            return Drop(lost, None)
        low, high = drop_interval(reference.matches, reached.matches, seed=self.config.seed)
        # The chance of the images is that of the first seed; the mean of several moves it, not its width.
        first = 100 * (reference.first - reached.first)
        return Drop(lost, (100 * low + lost - first, 100 * high + lost - first))

    def _gradients(self, net: Net, state: State) -> State:
        size, data, loss = self.config.batch_size, self.tuner.train_set, DetectionLoss(net)
        count = min(TAYLOR_IMAGES, len(data))
        chosen = [data.unvaried(i * len(data) // count) for i in range(count)]
        batches = [collate(chosen[at:at + size])[:2] for at in range(0, count, size)]
        weights = self.config.loss_weights(loss.terms)
        return loss_gradients(net, state, batches, loss, weights, self.tuner.device)


def progressive(net: Net, state: State, original: Measured, units: list[Unit], bench: Bench,
                log: Log) -> tuple[Net, State, Measured]:
    """Return the network when no unit can lose another step, and what it reaches: the paper's Algorithm 1."""
    config = bench.config
    current = reference = original
    for turn in [[unit] for unit in units] if config.scope == "layer" else [units]:
        if config.reference == "layer":
            reference = current
        while not log.ended:
            if not (keep := bench.choose(net, state, turn)):
                log.stopped |= {unit.name: "nothing is left to take" for unit in turn}
                break
            name = f"{len(log.rows) + 1:03}-{turn[0].name if len(turn) == 1 else 'network'}"
            child, child_state, reached, seconds = bench.tune(net, state, keep, name)
            if config.reference == "control":
                reference = bench.control(log.accepted + 1, original)
            lost = bench.drop(reference, reached)
            accepted, why = accepts(config, lost, bench.drop(original, reached).points)
            log.step(turn, child, reached, lost, accepted, why, seconds)
            if not accepted:
                log.stopped |= {unit.name: why for unit in turn}
                break
            net, state, current = child, child_state, reached
            if config.reference == "previous":
                reference = current
            if arrived(bench.targets, reached.counts):
                log.ended = f"the target is reached: {target_words(bench.targets, reached.counts)}"
                log.say(log.ended)
    return net, state, current


def accepts(config: PruneConfig, lost: Drop, total: float) -> tuple[bool, str]:
    """Return whether a step that lost this much is accepted, and why; total: points lost since the parent."""
    value = lost.points
    words = f"lost {value:+.2f} points against {REFERENCES[config.reference]}"
    if lost.interval is not None:
        low, high = lost.interval
        value = {"mean": value, "lower": low, "upper": high}[config.decide]
        kind = "a real drop" if low > 0 else "a real gain" if high < 0 else "within the noise of the images"
        words += f" (95 %: {low:+.1f} to {high:+.1f}, {kind})"
    if config.budget is not None and total > config.budget:
        return False, f"{words}; {total:.2f} in all, over the budget of {config.budget:g}"
    if value > config.tolerance:
        return False, f"{words}; over the tolerance of {config.tolerance:g}"
    return True, words


def arrived(targets: Mapping[str, float], now: Mapping[str, float]) -> bool:
    """Return whether every measure of --until is at its wanted value or below."""
    return bool(targets) and all(now[name] <= value for name, value in targets.items())


def target_words(targets: Mapping[str, float], now: Mapping[str, float]) -> str:
    """Return the measures of --until as they are and as they were wanted."""
    return ", ".join(f"{name} {now[name]:,.6g} of {value:,.6g}" for name, value in targets.items())


def cost(net: Net, imgsz: int) -> dict[str, float]:
    """Return the measures of --until that need no clock."""
    return {"params": parameters(net), "stored": parameters(net, statistics=True),
            "macs": macs(net, imgsz), "loose-macs": loose_macs(net, imgsz)}


def timed_cost(tuner: Tuner, net: Net, state: State, name: str) -> dict[str, float]:
    """Return every measure of --until; latency where asked for: median ms of an image in --runtime."""
    found, path = cost(net, tuner.config.imgsz), tuner.folder / "latency" / f"{name}.json"
    if "latency" not in dict(tuner.config.until):
        return found
    if tuner.world.main and not path.is_file():            # measured once; a second run reads it
        path.parent.mkdir(exist_ok=True)
        images = plain_images(tuner.val_set, TIMED_IMAGES)
        setup = setup_of(tuner.config.runtime, tuner.config.latency_threads)
        runs.write_json(path, {"ms": latency_ms(setup, net, state, tuner.config.imgsz, images)})
    ms = tuner.share(runs.read_object(path)["ms"] if tuner.world.main else 0.0)
    return {**found, "latency": float(ms)}
