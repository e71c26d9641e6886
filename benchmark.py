"""Measure how fast networks run on this device, and compare two measurements.

    python benchmark.py --weights weights/micro-yolo-voc5.pt --runtimes torch onnx openvino
    python benchmark.py --compare before.json after.json

Every case runs in a process of its own, and all of them take turns. docs/benchmark.md tells what the figures
mean and when they are not to be trusted.
"""
from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from bench.cases import PRECISIONS, RUNTIMES, SCOPES, Config
from utils import cli

FULL = {"iterations": 1024, "seconds": 60.0}   # of a case, over all rounds; once MLPerf's least
SEVERAL = ("weights", "runtimes", "precisions", "threads", "batch_sizes", "imgsz")


def parse() -> argparse.Namespace:
    """Return the checked command line."""
    parser = cli.parser(__doc__.splitlines()[0], "source", "data", "device", "conf-thres", "iou-thres",
                        "max-det", "project", "name", "exist-ok", defaults={
                            "conf-thres": 0.25, "iou-thres": 0.45, "max-det": 300,
                            "project": "runs/benchmark"})
    add = parser.add_argument
    add("--weights", nargs="+", help="checkpoints (.pt, .weights) and exported files or folders")
    add("--runtimes", nargs="+", choices=RUNTIMES, default=["torch"],
        help="what runs the checkpoints, exported into the run folder where needed. torch-plain is PyTorch "
             "without this project's fast path; exported files run in their own runtime")
    add("--precisions", nargs="+", choices=PRECISIONS, default=["fp32"],
        help="numbers they are computed in; int8 is calibrated on the train split of --data")
    add("--threads", nargs="+", type=int, default=[1], help="CPU threads of the network (0: all cores)")
    add("--batch-sizes", nargs="+", type=int, default=[1], help="images a call")
    add("--imgsz", "--img", "--img-size", nargs="+", type=int, default=[416], help="input sides in px")
    add("--scope", choices=(*SCOPES, "both"), default="both",
        help="the network alone, image files to drawn images, or both")
    add("--pictures", type=int, default=32, help="how many different ones of --source are taken in turn")
    add("--rounds", type=int, default=3, help="how often every case is measured in a fresh process")
    add("--seconds", type=float, default=10.0, help="of a case, scope and round")
    add("--iterations", type=int, help="calls of a case, scope and round, instead of --seconds")
    add("--full", action="store_true", help=f"at least {FULL['iterations']} calls and "
        f"{FULL['seconds']:.0f} s of a case and scope, over all rounds")
    add("--layers", action="store_true", help="also time the layers in torch beside this machine's roofline")
    add("--save-json", metavar="NAME", help="also write the report to results/NAME.json")
    add("--compare", nargs=2, type=Path, metavar="JSON", help="compare two reports instead of measuring")
    add("--select", nargs="+", metavar="TEXT",
        help="--compare: the case, by a part of its label; or one text for each report")
    add("--force", action="store_true", help="--compare: also what differs in size, batch, threads or CPU")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return args
    check_own(parser, args)
    return cli.check(parser, args)


def check_own(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage message where flags are missing, out of range, or do not go together."""
    if bool(args.weights) == bool(args.compare):
        parser.error("give either --weights to measure or --compare with two reports")
    if args.select and (len(args.select) > 2 or not args.compare):
        parser.error("--select takes one text, or two, and goes with --compare")
    for name in SEVERAL:
        values = getattr(args, name) or []
        if twice := [value for value in values if values.count(value) > 1]:
            parser.error(f"--{name.replace('_', '-')}: {twice[0]} is given twice")
    for name, least in (("rounds", 1), ("pictures", 1), ("iterations", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            parser.error(f"--{name} {getattr(args, name)}: needs {least} or more")
    if not 0 < args.seconds < 86400:
        parser.error(f"--seconds {args.seconds:g}: needs more than 0, at most a day")
    if "int8" in args.precisions and not args.data and set(args.runtimes) & {"onnx", "openvino"}:
        parser.error("--precisions int8 is calibrated on your own images: give --data")
    if args.full and args.iterations:
        parser.error("--full sets its own number of calls: leave --iterations out")
    if args.full:
        args.iterations, args.seconds = FULL["iterations"], FULL["seconds"]


def main() -> None:
    """Measure, compare, or work for a benchmark that does."""
    args = parse()
    if args.worker:
        from bench.worker import serve
        serve()
    elif args.compare:
        from bench.report import compare
        scopes = SCOPES if args.scope == "both" else [args.scope]
        print("\n".join(compare(args.compare, args.select or (), scopes, args.force)))
    else:
        from bench.plan import benchmark
        benchmark(Config(**{field.name: getattr(args, field.name) for field in fields(Config)}))


if __name__ == "__main__":
    cli.run(main)
