"""The choices of a progressive pruning: what the paper leaves open is a field, and the default is ours."""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from compress.importance import DEFAULT, RULES
from training.config import Recipe, rate
from utils.cli import NOT_NEGATIVE, ONE_OR_MORE, option

MEASURES = ("params", "stored", "macs", "loose-macs", "latency")
UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}
DEFAULT_LR = {"sgd": 0.005, "adamw": 0.001}        # of the fine-tuning after a step
# Where it runs and how often it saves, not what.
FREE = ("costs", "device", "workers", "threads", "cache", "save_json", "save_minutes", "project", "name")
POINTS = (lambda v: v >= 0, "0 or more points")
REFERENCES = {"original": "the unpruned network", "layer": "the network before this layer's first step",
              "previous": "the network before this step", "control": "the unpruned network trained as long"}


def target(text: str) -> tuple[str, str]:
    """Return a measure and its value's text, checked; raise argparse's error."""
    name, _, value = text.partition("=")
    value = value.removesuffix("ms") if name == "latency" else value
    number, unit = (value[:-1], value[-1:].lower()) if value[-1:].lower() in {*UNITS, "%"} else (value, "")
    try:
        good = name in MEASURES and float(number) > 0
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"{text!r}: needs MEASURE=VALUE with a measure of "
                                         f"{', '.join(MEASURES)}, e.g. params=1.92M or macs=79%")
    return name, number + unit


@dataclass(frozen=True)
class PruneConfig(Recipe):
    """A progressive pruning, as the flags of prune.py name it."""

    project: str = "runs/prune"
    lr: float | None = rate(DEFAULT_LR)
    warmup_epochs: float = option(0.5, "epochs of linear warm-up", NOT_NEGATIVE)
    epochs_per_step: int = option(20, "fine-tuning epochs after each step (paper: 20)", ONE_OR_MORE)
    sixteenths: float = option(1.0, "of a layer's channels that a step takes (paper: 1)",
                               (lambda v: 0 < v <= 8, "more than 0, at most 8"))
    tolerance: float = option(0.5, "points a step may lose (paper: 0.5)", POINTS)
    metric: str = option("map50", "what the tolerance is held against", choices=("map50", "map50_95"))
    reference: str = option(
        "layer", "what a step's loss is counted against: the unpruned network, that before this layer's "
        "first step, or that before this step (the paper does not say), or the control",
        choices=tuple(REFERENCES))
    control: bool = option(False, "also fine-tune the unpruned network as often as the child, nothing "
                                  "cut, and count what the child lost against that")
    scope: str = option("layer", "a step cuts one layer after the other (paper), or all layers at once",
                        choices=("layer", "network"))
    order: str = option(
        "front", "layers front to back, back to front, or least sensitive first (by a scan, which is run)",
        choices=("front", "back", "sensitivity"))
    layers: tuple[str, ...] | None = option(None, "cut these units only, e.g. conv11 conv13 (default: all)",
                                            nargs="+")
    cut: str = option(
        "outputs", "block outputs (hidden widths they feed follow, as in the paper), hidden widths, or both",
        choices=("outputs", "hidden", "both"))
    importance: str = option(
        DEFAULT, "which channels go: those of the smallest value by this rule (the paper does not say)",
        choices=tuple(RULES))
    per: str = option(
        "none", "a step takes what matters least per ms, MAC or parameter saved, in any layer, until a "
        "sixteenth of the network's is saved; none: a sixteenth of every layer",
        choices=("none", "ms", "macs", "params"))
    runtime: str = option("auto", "of --per ms and --until latency; auto: the first that is installed",
                          choices=("auto", "onnx", "openvino", "torch"))
    latency_threads: int = option(1, "CPU threads that latency is measured with", ONE_OR_MORE)
    costs: str | None = option(None, "folder that keeps the measured table for other runs, by CPU, runtime, "
                                     "precision and threads (default: the run folder)", metavar="FOLDER")
    round_to: int = option(1, "keep widths at multiples of this; 8 or 16 run faster",
                           (lambda v: v >= 1, "1 or more channels"))
    budget: float | None = option(None, "points the whole may lose against the unpruned network",
                                  POINTS, type=float)
    until: tuple[tuple[str, str], ...] = option(
        (), "stop once all are reached: params=1.92M, stored=1.92M, macs=0.83G, loose-macs=0.87G, "
        "latency=8ms, or as a share of the unpruned network, e.g. params=75%%", nargs="+",
        metavar="MEASURE=VALUE", type=target)
    seeds: int = option(1, "fine-tunings a step, whose mean decides", ONE_OR_MORE)
    decide: str = option(
        "mean", "what the tolerance is held against: the drop, or an end of its 95 %% interval over images",
        choices=("mean", "lower", "upper"))
    teacher: str = option("parent", "whether the unpruned network teaches its child in fine-tuning",
                          choices=("parent", "none"))
    scan: bool = option(False, "only measure what each layer would lose by 1 to 8 sixteenths untrained")
    save_json: str | None = option(None, "also write the record to results/NAME.json", metavar="NAME")

    def targets(self, parent: Mapping[str, float]) -> dict[str, float]:
        """Return measure -> largest value wanted, of texts such as 1.92M or 75% of what the parent has."""
        return {name: parent[name] * float(text[:-1]) / 100 if text.endswith("%")
                else float(text.rstrip("kmg")) * UNITS.get(text[-1], 1) for name, text in self.until}
