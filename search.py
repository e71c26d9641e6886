"""Search a detector's kernels and block types: all choices trained from the same start, or one supernet.

Start the same command again, on this machine or with --storage on many, and the work is shared; killed, it
goes on.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from models.zoo.tiny import SEARCHED
from training import flags
from utils import cli

SHARED = ("cfg", "weights", "data", "imgsz", "batch-size", "epochs", "device", "workers", "threads", "cache",
          "max-pixels", "drop-unknown", "trust", "project", "name", "seed")
OBJECTIVES = ("map50", "map50_95", "params", "macs", "latency")
LARGEST_GRID = 256                                 # choices that are tried one by one without being asked to


def parse() -> argparse.Namespace:
    """The checked command line; `trials` is None where every choice is tried."""
    parser = cli.parser(__doc__.splitlines()[0], *SHARED, defaults={
        "imgsz": 416, "batch-size": 16, "epochs": 20, "project": "runs/search"})
    flags.add_training_flags(parser.add_argument)
    parser.set_defaults(metric="map50")            # a trial is measured once, at its end: none is its best
    add_own_flags(parser)
    args = parser.parse_args()
    flags.check_ranges(parser, args)
    check_manner(parser, args)
    check_space(parser, args)
    return cli.check(parser, args, "data")


def add_own_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of a search."""
    add = parser.add_argument
    add("--layers", nargs="+", default=list(SEARCHED), help="layers whose kernels are searched")
    add("--kernels", nargs="+", type=int, choices=(1, 3, 5, 7), default=[3, 5],
        help="candidates for each layer")
    add("--ops", nargs="+", choices=("conv", "dsconv", "mbconv"),
        help="block types for each layer: several are searched, one is set (default: as in --cfg)")
    add("--separate", action="store_true",
        help="start DSConv and MBConv layers as factors (SVD) of the checkpoint's convolutions of the same "
             "name; larger kernels hold the same factors")
    add("--fit-anchors", action="store_true", help="fit the heads' anchors to the training boxes by k-means")
    add("--sampler", choices=("grid", "tpe"),
        help=f"every choice, or those that TPE proposes (default: grid up to {LARGEST_GRID} choices)")
    add("--trials", type=int, help="choices that are tried; needed by --sampler tpe")
    add("--objectives", nargs="+", choices=OBJECTIVES, default=["map50"],
        help="what is optimised; of several the Pareto front is shown. The first accuracy says what is best")
    add("--seeds", type=int, default=1, help="seeds that the best choices are trained with")
    add("--repeat-best", type=int, default=3, help="how many of the best are trained with all --seeds")
    add("--storage", metavar="URL",
        help="database of the search, which workers on several machines can share, e.g. "
             "postgresql://user@host/name (default: a SQLite file in the run folder)")
    add("--study", help="the search's name in that database (default: from what its values depend on)")
    add("--latency-threads", type=int, default=1, help="CPU threads latency is measured with (0: all)")
    add("--one-shot", action="store_true",
        help="train one network that holds all kernels (sandwich rule) and cut every choice out of it")
    add("--random", type=int, default=2,
        help="networks drawn a step of --one-shot, beside the largest and the smallest")
    add("--against", type=Path, metavar="JSON", help="compare the ranks with another search's record")
    add("--known", type=Path, nargs="+", default=[], metavar="JSON",
        help="records of the same search, whose run folders may be gone: their trials are not trained again")
    add("--save-json", metavar="NAME", help="also write the record to results/NAME.json")


def check_space(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends with a usage message where there is nothing to search, or more than was asked for."""
    for name in ("layers", "kernels", "ops", "objectives"):
        given = getattr(args, name) or []
        if twice := sorted({str(value) for value in given if given.count(value) > 1}):
            parser.error(f"--{name}: {', '.join(twice)} is given twice")
    choices = (len(args.kernels) * len(args.ops or [""])) ** len(args.layers)
    if choices == 1:
        parser.error("one kernel and one block type leave nothing to search: give several --kernels or --ops")
    if args.trials is not None and args.trials < 1:
        parser.error(f"--trials {args.trials}: needs 1 or more")
    large = args.sampler is None and choices > LARGEST_GRID
    if not args.one_shot and args.sampler != "grid" and args.trials is None and (large or args.sampler):
        parser.error(f"--trials is missing: there are {choices:,} choices; say how many TPE may try, or ask "
                     "for all of them with --sampler grid")
    if args.trials is not None and (args.sampler == "grid" or (args.sampler is None and not large)) \
            and not args.one_shot:
        parser.error(f"--trials {args.trials} needs --sampler tpe; the grid tries all {choices:,} choices")
    if args.one_shot and args.trials is None and choices > LARGEST_GRID:
        parser.error(f"--trials is missing: say how many of the {choices:,} choices are cut out and measured")


def check_manner(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends with a usage message where flags do not go together or are out of range."""
    if not args.cfg and not args.weights:
        parser.error("--cfg or --weights is missing: a network to vary")
    if args.separate and not args.weights:
        parser.error("--separate needs --weights, whose convolutions it factorises")
    if not set(args.objectives) & {"map50", "map50_95"}:
        parser.error(f"--objectives {' '.join(args.objectives)}: needs map50 or map50_95 among them; without "
                     "an accuracy the smallest network is best")
    for name, least in (("seeds", 1), ("repeat_best", 1), ("latency_threads", 0), ("random", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: needs {least} or more")
    if args.one_shot:
        for bad, flag in ((len(args.ops or ()) > 1, "several --ops"), (args.sampler, "--sampler"),
                          (len(args.kernels) < 2, "a single kernel"), (args.seeds > 1, "--seeds"),
                          (args.storage or args.study, "--storage and --study"), (args.known, "--known")):
            if bad:
                parser.error(f"{flag} and --one-shot do not go together: it trains one network whose kernels "
                             "are cut, once, in one run folder")
    for name, given in (("against", args.against), *(("known", path) for path in args.known)):
        if given is not None and not given.is_file():
            parser.error(f"--{name} {given}: no such file; give a result.json of search.py")


def main() -> None:
    """Opens the data, searches, writes and prints what was found."""
    args = parse()
    from compress.search.report import read_search, write_answer
    from compress.search.search import brute_force, one_shot
    from compress.search.space import Search
    against = read_search(args.against) if args.against else None
    search = Search.open(args)
    try:
        rows, failed = (one_shot if args.one_shot else brute_force)(search)
        write_answer(search, rows, failed, against)
    finally:
        search.tuner.close()


if __name__ == "__main__":
    cli.run(main)
