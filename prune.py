"""Prune a trained detector progressively: a sixteenth of a layer's channels a step, fine-tuned and measured.

Killed at any moment, the same command continues to the same result.
"""
from __future__ import annotations

from compress.pruning.config import DEFAULT_LR, FREE, PruneConfig
from utils import cli
from utils.errors import UsageError


def parse() -> PruneConfig:
    """Return what the flags say, checked."""
    parser = cli.config_parser(__doc__.splitlines()[0], PruneConfig)
    args = parser.parse_args()
    if args.decide != "mean" and args.metric != "map50":
        parser.error(f"--decide {args.decide} needs an interval, which --metric map50 alone has")
    if args.per != "none" and args.scope != "network":
        parser.error(f"--per {args.per} chooses among layers: it needs --scope network")
    if args.order == "sensitivity" and args.scope == "network":
        parser.error("--order sensitivity scans for an order of layers, which --scope network cuts all at "
                     "once: give one of the two")
    if args.lr is None:
        args.lr = DEFAULT_LR[args.optimizer]
    return cli.to_config(parser, args, PruneConfig, "weights", "data")


def main() -> None:
    """Prune as the flags say; write and print what came of it."""
    config = parse()
    from compress.pruning.progressive import Bench, Log, arrived, progressive, target_words, timed_cost
    from compress.pruning.report import chosen_units, compared, heading, measure_parent, scan, write_answer
    from compress.pruning.schedule import prunable
    from models import checkpoint as checkpoints
    from training.finetune import Tuner, claim
    from training.start import settle
    config, parent = settle(config), checkpoints.load(config.weights)
    units, reasons = prunable(parent.net, config.cut, config.sixteenths)
    units = chosen_units(units, reasons, config.layers)
    tuner = Tuner(config, lambda: claim(config, FREE))
    try:
        with tuner.beginning():
            cost = timed_cost(tuner, parent.net, parent.state, "parent")
            targets = config.targets(cost)
            if arrived(targets, cost):
                words = target_words(targets, cost)
                raise UsageError(f"--until: nothing to do, the unpruned network has {words}")
            bench = Bench(tuner, config, targets, parent.net, parent.state)
            tuner.say("\n".join(heading(bench, units, reasons)))
            before = measure_parent(bench, parent)
        if config.scan or config.order == "sensitivity":
            units = scan(bench, parent, before, units)
        if not config.scan:
            units = units[::-1] if config.order == "back" else units
            log = Log(config, tuner.say)
            net, state, after = progressive(parent.net, parent.state, before, units, bench, log)
            against = compared(bench, before, after, log)
            if tuner.world.main:
                child = checkpoints.Checkpoint(net, state, tuner.names, config.imgsz, parent.class_map)
                write_answer(bench, log, (parent, before), (child, after), units, against)
    finally:
        tuner.close()


if __name__ == "__main__":
    cli.run(main)
