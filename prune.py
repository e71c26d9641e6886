"""Prune a trained detector progressively: a sixteenth of a layer's channels a step, fine-tuned and measured.

Killed at any moment, the same command goes on to the same result.
"""
from __future__ import annotations

import argparse
from dataclasses import fields

from training import flags
from utils import cli
from utils.errors import UsageError

SHARED = ("weights", "data", "imgsz", "batch-size", "device", "workers", "threads", "cache", "max-pixels",
          "drop-unknown", "trust", "project", "name", "seed")
MEASURES = ("params", "stored", "macs", "loose-macs", "latency")
UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}
FREE = ("device", "workers", "threads", "cache", "save_json", "project", "name")   # where it runs, not what


def parse() -> argparse.Namespace:
    """The checked command line."""
    parser = cli.parser(__doc__.splitlines()[0], *SHARED, defaults={
        "imgsz": 416, "batch-size": 16, "project": "runs/prune"})
    flags.add_training_flags(parser.add_argument)
    add_own_flags(parser)
    parser.set_defaults(lr=None, warmup_epochs=0.5)
    args = parser.parse_args()
    flags.check_ranges(parser, args)
    for name, good, need in (("tolerance", args.tolerance >= 0, "0 or more points"),
                             ("budget", args.budget is None or args.budget >= 0, "0 or more points"),
                             ("sixteenths", 0 < args.sixteenths <= 8, "more than 0, at most 8"),
                             ("seeds", args.seeds >= 1, "1 or more"),
                             ("round-to", args.round_to >= 1, "1 or more channels"),
                             ("epochs-per-step", args.epochs_per_step >= 1, "1 or more")):
        if not good:
            parser.error(f"--{name} {getattr(args, name.replace('-', '_'))}: needs {need}")
    if args.decide != "mean" and args.metric != "map50":
        parser.error(f"--decide {args.decide} needs an interval, which --metric map50 alone has")
    args.lr = args.lr or {"sgd": 0.005, "adamw": 0.001}[args.optimizer]
    return cli.check(parser, args, "weights", "data")


def add_own_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of pruning; where the paper leaves a choice open, the default is this project's."""
    add = parser.add_argument
    add("--epochs-per-step", type=int, default=20, help="fine-tuning epochs after each step (paper: 20)")
    add("--sixteenths", type=float, default=1.0, help="of a layer's channels that a step takes (paper: 1)")
    add("--tolerance", type=float, default=0.5, help="points a step may lose (paper: 0.5)")
    add("--metric", choices=("map50", "map50_95"), default="map50", help="what the tolerance is held against")
    add("--reference", choices=("original", "layer", "previous"), default="layer",
        help="what a step's loss is counted against: the unpruned network, the network before this layer's "
             "first step, or before this step (the paper does not say)")
    add("--scope", choices=("layer", "network"), default="layer",
        help="a step cuts one layer after the other (paper), or all layers at once")
    add("--order", choices=("front", "back", "sensitivity"), default="front",
        help="layers front to back, back to front, or the least sensitive first (by a scan, which is run)")
    add("--layers", nargs="+", help="cut these channel groups only, e.g. conv11 conv13 (default: all)")
    add("--cut", choices=("outputs", "hidden", "both"), default="outputs",
        help="block outputs (the hidden widths they feed follow, as in the paper), hidden widths, or both")
    add("--importance", choices=("l1", "l2", "bn", "fpgm", "taylor", "random"), default="l1",
        help="which channels go: those of the smallest value by this rule (the paper does not say)")
    add("--round-to", type=int, default=1, help="keep widths at multiples of this; 8 or 16 run faster")
    add("--budget", type=float, help="points the whole may lose against the unpruned network")
    add("--until", nargs="+", metavar="MEASURE=VALUE", type=target, default=[],
        help="stop once all are reached: params=1.92M, stored=1.92M, macs=0.83G, loose-macs=0.87G, "
             "latency=8ms (1 thread), or as a share of the unpruned network, e.g. params=75%%")
    add("--seeds", type=int, default=1, help="fine-tunings a step, whose mean decides")
    add("--decide", choices=("mean", "lower", "upper"), default="mean",
        help="what the tolerance is held against: the drop, or an end of its 95 %% interval over pictures")
    add("--teacher", choices=("parent", "none"), default="parent",
        help="the unpruned network teaches its child during fine-tuning, or nobody does")
    add("--scan", action="store_true",
        help="only measure what each layer would lose by 1 to 8 sixteenths without training")
    add("--save-json", metavar="NAME", help="also write the record to results/NAME.json")


def target(text: str) -> tuple[str, str]:
    """A measure and its value's text, checked; raises argparse's error."""
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


def wanted(until: list[tuple[str, str]], now: dict[str, float]) -> tuple[tuple[str, float], ...]:
    """The targets as numbers: 1.92M, 0.87G, or a share of what the parent has."""
    def value(name: str, text: str) -> float:
        if text.endswith("%"):
            return now[name] * float(text[:-1]) / 100
        return float(text.rstrip("kmg")) * UNITS.get(text[-1], 1)
    return tuple((name, value(name, text)) for name, text in until)


def main() -> None:
    """Opens the data, prunes, writes and prints what came of it."""
    args = parse()
    from compress.pruning.plan import Log, Plan, arrived, target_words
    from compress.pruning.progressive import Bench, progressive
    from compress.pruning.report import chosen_units, heading, measure_parent, parent_cost, scan, write_answer
    from compress.pruning.schedule import prunable
    from models import checkpoint as checkpoints
    from training.finetune import Tuner, claim
    parent = checkpoints.load(args.weights)
    units, reasons = prunable(parent.net, args.cut, args.sixteenths)
    units = chosen_units(units, reasons, args.layers)
    tuner = Tuner.open(args, lambda: claim(args, FREE))
    try:
        own = {f.name: getattr(args, f.name) for f in fields(Plan) if hasattr(args, f.name)}
        now = parent_cost(tuner, parent, args.until)
        own["until"] = wanted(args.until, now)
        plan = Plan(**own, epochs=args.epochs_per_step, teach=args.teacher == "parent")
        if arrived(plan, now):
            raise UsageError(f"--until: nothing to do, the unpruned network has {target_words(plan, now)}")
        tuner.say("\n".join(heading(plan, units, reasons, tuner.folder)))
        bench = Bench(tuner, plan, parent.net, parent.state)
        before = measure_parent(bench, parent)
        if args.scan or args.order == "sensitivity":
            units = scan(bench, parent, before, units)
        if not args.scan:
            units = units[::-1] if args.order == "back" else units
            log = Log(plan, tuner.say)
            net, state, after = progressive(parent.net, parent.state, before, units, bench, log)
            if tuner.world.main:
                child = checkpoints.Checkpoint(net, state, tuner.names, args.imgsz, parent.class_map)
                write_answer(args, bench, log, (parent, before), (child, after), units)
    finally:
        tuner.close()


if __name__ == "__main__":
    cli.run(main)
