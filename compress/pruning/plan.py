"""The choices of a progressive pruning, what its steps come to, and which of them stand.

Section A6 of our notes on the paper lists what it leaves open; each is a field of `Plan`.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from compress.pruning.schedule import PARTS, Unit
from evaluation.curves import Matches
from models.channels import widths
from models.count import loose_macs, macs, parameters
from models.layer import Net

REFERENCES = {"original": "the unpruned network", "layer": "the network before this layer's first step",
              "previous": "the network before this step"}


@dataclass(frozen=True)
class Plan:
    """The choices of a progressive pruning, as the flags of prune.py name them."""

    tolerance: float = 0.5                                 # points a step may lose against the reference
    reference: str = "layer"                               # original, layer or previous
    scope: str = "layer"                                   # one layer a step, or all of them
    sixteenths: float = 1.0                                 # of the original width, a step
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
    seeds: tuple[float, ...] = ()                          # the plan's metric, seed by seed


class Drop(NamedTuple):
    """Points lost (of 100), and their 95 % interval over resampled pictures where the metric has one."""

    points: float
    interval: tuple[float, float] | None


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
        return f"{len(self.rows) + 1:03}-{group[0].name if len(group) == 1 else 'network'}"

    def step(self, group: list[Unit], net: Net, reached: Measured, lost: Drop, good: bool, why: str,
             seconds: float) -> None:
        """Writes and prints one step."""
        plan, label = self.plan, group[0].name if len(group) == 1 else "all layers"
        width, original = sum(widths(net)[u.name] for u in group), sum(u.original for u in group)
        taken = round(PARTS * (original - width) / original, 2)
        self.rows.append({
            "step": len(self.rows) + 1, "layer": label, "sixteenths": taken, "width": width,
            **reached.metrics, **({"seeds": reached.seeds} if plan.seeds > 1 else {}),
            "drop": round(lost.points, 3),
            "interval": lost.interval and [round(v, 3) for v in lost.interval], "accepted": good, "why": why,
            "epochs": plan.epochs * plan.seeds, "seconds": round(seconds, 1),
            "parameters": reached.counts["params"], "macs": reached.counts["macs"],
            "loose_macs": reached.counts["loose-macs"]})
        self.say(f"step {len(self.rows):3}  {label:12} {taken:g}/16  "
                 f"{plan.metric} {reached.metrics[plan.metric]:.4f}  "
                 f"{reached.counts['params'] / 1e6:.3f} M  {reached.counts['macs'] / 1e9:.3f} GMACs  "
                 f"{'stands' if good else 'refused'}: {why}  ({seconds:.0f} s)"
                 + (f"  seeds {', '.join(f'{v:.4f}' for v in reached.seeds)}" if plan.seeds > 1 else ""))

    def stop(self, group: list[Unit], why: str) -> None:
        """Leaves the units alone from now on."""
        self.stopped |= {unit.name: why for unit in group}

    def end(self, why: str) -> None:
        """Ends the whole pruning."""
        self.ended = why
        self.say(why)


def accepts(plan: Plan, lost: Drop, total: float) -> tuple[bool, str]:
    """Whether a step that lost this much stands, and the sentence that says why.

    total: points lost against the unpruned parent.
    """
    words = f"lost {lost.points:+.2f} points against {REFERENCES[plan.reference]}"
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


def cost(net: Net, imgsz: int) -> dict[str, float]:
    """What --until can ask for without a clock: trainable and stored parameters, MACs in both conventions."""
    return {"params": parameters(net), "stored": parameters(net, statistics=True),
            "macs": macs(net, imgsz), "loose-macs": loose_macs(net, imgsz)}
