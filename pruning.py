"""The paper's progressive pruning: choose, cut, fine-tune, measure, accept or restore.

Section A6 of the paper leaves several choices open; each is a field of `Plan`, and every report prints it.
"""
from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor

from data.loader import collate
from models.count import loose_macs, macs, parameters
from models.decode import head_specs
from models.distill import DistilledLoss, teacher
from models.importance import channel_scores, loss_gradients
from models.layout import widths
from models.loss import DetectionLoss
from models.prune import prune
from models.runtimes import DTYPES
from models.shrink import PARTS, Unit, narrowed, next_width, strongest
from models.spec import Net
from tuning import Tuner
from utils import ddp
from utils.bootstrap import drop_interval
from utils.curves import Matches
from utils.errors import EnvironmentFault

TAYLOR_PICTURES = 64
METRICS = ("map50", "map50_95", "precision", "recall", "f1")
State = dict[str, Tensor]


@dataclass(frozen=True)
class Plan:
    """The choices of a progressive pruning, as the flags of prune.py name them."""

    tolerance: float = 0.5                                 # points a step may lose against the reference
    reference: str = "layer"                               # original, layer or previous
    scope: str = "layer"                                   # one layer a step, or all of them
    metric: str = "map50"
    cut: str = "outputs"
    importance: str = "l1"
    order: str = "front"                                   # front, back or sensitivity
    decide: str = "mean"                                   # mean, lower or upper end of the drop's interval
    epochs: int = 20                                       # a step
    seeds: int = 1
    round_to: int = 1
    budget: float | None = None                            # points the whole may lose against the parent
    until: tuple[tuple[str, float], ...] = ()              # measure -> largest value wanted
    teach: bool = True                                     # the unpruned parent teaches


@dataclass(frozen=True)
class Measured:
    """What a network reaches: its metrics over seeds (fractions 0..1) and its counts at the input size."""

    metrics: dict[str, float]
    counts: dict[str, float]
    matches: Matches                                       # of the first seed
    first: float                                           # AP50 of the first seed


class Drop(NamedTuple):
    """Points lost (of 100), and their 95 % interval over resampled pictures where the metric has one."""

    points: float
    interval: tuple[float, float] | None


class Bench:
    """Fine-tunes and measures candidates of one parent; every finished step is remembered on disk."""

    def __init__(self, tuner: Tuner, plan: Plan, origin: Net, parent: State) -> None:
        self.tuner, self.plan, self.origin, self.parent = tuner, plan, origin, parent
        self.loss = None
        if plan.teach:
            teach = teacher(origin, parent, tuner.device, DTYPES[tuner.precision])
            self.loss = DistilledLoss(DetectionLoss(head_specs(origin)), teach)

    def choose(self, net: Net, state: State, units: list[Unit]) -> dict[str, list[int]]:
        """The keep-set of one step of every unit that can still take one; the same on all processes."""
        new = {u.group: smaller for u in units
               if (smaller := next_width(widths(net)[u.group], u, self.plan.round_to)) is not None}
        if not new:
            return {}
        gradients = self._gradients(net, state) if self.plan.importance == "taylor" else None
        keep = strongest(narrowed(net, self.origin, new, self.plan.round_to),
                         lambda group: channel_scores(net, state, group, self.plan.importance,
                                                      gradients=gradients, seed=self.tuner.args.seed))
        if not ddp.same_on_all(zlib.crc32(json.dumps(keep).encode())):
            raise EnvironmentFault("the processes would cut different channels; nothing was cut. "
                                   "Are all of them the same machine type and versions?")
        return keep

    def tune(self, net: Net, state: State, name: str) -> tuple[Net, State, Measured, float]:
        """The network fine-tuned (first seed), what it reaches over all seeds, and the seconds spent."""
        names = [f"steps/{name}-s{s}" for s in range(self.plan.seeds)]
        if not all(self.tuner.done(n) for n in names):
            state = self.tuner.recalibrate(net, state)
        seed = self.tuner.args.seed
        tries = [self.tuner.tune(net, state, n, self.plan.epochs, seed=seed + s, loss=self.loss)
                 for s, n in enumerate(names)]
        mean = {key: float(np.mean([t.metrics[key] for t in tries])) for key in METRICS}
        first = tries[0]
        reached = self.measure(first.net, first.state, mean)
        return first.net, first.state, reached, sum(t.seconds for t in tries)

    def measure(self, net: Net, state: State, metrics: dict[str, float] | None = None) -> Measured:
        """A network's metrics, counts and matches on the validation set."""
        found = None
        if self.tuner.world.main:
            full, _, _ = self.tuner.validator(net, state)
            found = {key: getattr(full, key) or 0.0 for key in METRICS}, full.matches
        own, matches = self.tuner.share(found)
        return Measured(metrics or own, counts(net, self.tuner.args.imgsz), matches, own["map50"])

    def drop(self, reference: Measured, reached: Measured) -> Drop:
        """What was lost against the reference."""
        lost = 100 * (reference.metrics[self.plan.metric] - reached.metrics[self.plan.metric])
        if self.plan.metric != "map50":
            return Drop(lost, None)
        low, high = drop_interval(reference.matches, reached.matches, seed=self.tuner.args.seed)
        # The pictures' chance is that of the first seed; the mean of several seeds moves it, not its width.
        first = 100 * (reference.first - reached.first)
        return Drop(lost, (100 * low + lost - first, 100 * high + lost - first))

    def _gradients(self, net: Net, state: State) -> State:
        args, data = self.tuner.args, self.tuner.train_set
        count = min(TAYLOR_PICTURES, len(data))
        chosen = [data.unvaried(i * len(data) // count) for i in range(count)]
        batches = [collate(chosen[at:at + args.batch_size])[:2] for at in range(0, count, args.batch_size)]
        return loss_gradients(net, state, batches, DetectionLoss(head_specs(net)),
                              {"box": args.box, "obj": args.obj, "cls": args.cls}, self.tuner.device)


@dataclass
class Log:
    """What a progressive pruning did: a row a step, why each unit stopped, and why the whole ended."""

    plan: Plan
    say: Callable[[str], None]
    rows: list[dict] = field(default_factory=list)
    stopped: dict[str, str] = field(default_factory=dict)
    ended: str = ""

    def name(self, group: list[Unit]) -> str:
        """The next step's folder."""
        return f"{len(self.rows) + 1:03}-{group[0].group if len(group) == 1 else 'network'}"

    def step(self, group: list[Unit], net: Net, reached: Measured, lost: Drop, good: bool, why: str,
             seconds: float) -> None:
        """Writes and prints one step."""
        width, plan = widths(net), self.plan
        first = group[0]
        label = first.group if len(group) == 1 else "all layers"
        taken = round(PARTS * (first.original - width[first.group]) / first.original, 2)
        self.rows.append({
            "step": len(self.rows) + 1, "layer": label, "sixteenths": taken, "width": width[first.group],
            **reached.metrics, "drop": round(lost.points, 3),
            "interval": lost.interval and [round(v, 3) for v in lost.interval], "accepted": good, "why": why,
            "epochs": plan.epochs * plan.seeds, "seconds": round(seconds, 1),
            "parameters": reached.counts["params"], "macs": reached.counts["macs"],
            "loose_macs": reached.counts["loose-macs"]})
        self.say(f"step {len(self.rows):3}  {label:12} {taken:g}/16  "
                 f"{plan.metric} {reached.metrics[plan.metric]:.4f}  "
                 f"{reached.counts['params'] / 1e6:.3f} M  {reached.counts['macs'] / 1e9:.3f} GMACs  "
                 f"{'stands' if good else 'refused'}: {why}  ({seconds:.0f} s)")

    def stop(self, group: list[Unit], why: str) -> None:
        """Leaves the units alone from now on."""
        self.stopped |= {unit.group: why for unit in group}

    def end(self, why: str) -> None:
        """Ends the whole pruning."""
        self.ended = why
        self.say(why)


def progressive(net: Net, state: State, original: Measured, units: list[Unit], bench: Bench,
                log: Log) -> tuple[Net, State, Measured]:
    """Algorithm 1 of the paper: the network that is left when no layer can lose another sixteenth.

    original: what the unpruned network reaches; also returned is what the pruned one does.

    Each step takes 1/16 of a unit's original channels away, fine-tunes, measures; it stands while the drop
    stays within the tolerance, else the network before it comes back and the unit is left alone.
    """
    plan = bench.plan
    current = reference = original
    for group in [[unit] for unit in units] if plan.scope == "layer" else [units]:
        if plan.reference == "layer":
            reference = current
        while not log.ended:
            keep = bench.choose(net, state, group)
            if not keep:
                log.stop(group, "nothing is left to take")
                break
            child, child_state, reached, seconds = bench.tune(*prune(net, state, keep), log.name(group))
            lost = bench.drop(reference, reached)
            good, why = accepts(plan, lost, bench.drop(original, reached).points)
            log.step(group, child, reached, lost, good, why, seconds)
            if not good:
                log.stop(group, why)
                break
            net, state, current = child, child_state, reached
            if plan.reference == "previous":
                reference = current
            if arrived(plan, reached.counts):
                log.end(f"the target is reached: {target_words(plan, reached.counts)}")
    return net, state, current


def accepts(plan: Plan, lost: Drop, total: float) -> tuple[bool, str]:
    """Whether a step that lost this much stands, and the sentence that says why.

    total: points lost against the unpruned parent.
    """
    words = f"lost {lost.points:+.2f} points against the {plan.reference} network"
    value = lost.points
    if lost.interval is not None:
        low, high = lost.interval
        value = {"mean": value, "lower": low, "upper": high}[plan.decide]
        kind = "a real drop" if low > 0 else "a real gain" if high < 0 else "within the noise of the pictures"
        words += f" (95 %: {low:+.1f} to {high:+.1f}, {kind})"
    if plan.budget is not None and total > plan.budget:
        return False, f"{words}; {total:.2f} in all, over the budget of {plan.budget:g}"
    if value > plan.tolerance:
        return False, f"{words}; over the tolerance of {plan.tolerance:g}"
    return True, words


def arrived(plan: Plan, now: dict[str, float]) -> bool:
    """Whether every measure of --until is at its wanted value or below."""
    return bool(plan.until) and all(now[name] <= value for name, value in plan.until)


def target_words(plan: Plan, now: dict[str, float]) -> str:
    """The measures of --until as they are and as they were wanted."""
    return ", ".join(f"{name} {now[name]:,.6g} of {value:,.6g}" for name, value in plan.until)


def counts(net: Net, imgsz: int) -> dict[str, float]:
    """What --until can ask for: trainable and stored parameters, MACs in both conventions."""
    return {"params": parameters(net), "stored": parameters(net, statistics=True),
            "macs": macs(net, imgsz), "loose-macs": loose_macs(net, imgsz)}
