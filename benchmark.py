"""Measure how fast networks run on this device, and compare two measurements (docs/benchmark.md).

    python benchmark.py --weights weights/micro-yolo-voc5.pt --runtimes torch onnx openvino
    python benchmark.py --compare before.json after.json
"""
from __future__ import annotations

import argparse
from pathlib import Path

from bench.cases import FULL, SCOPES, Config
from utils import cli

SEVERAL = ("weights", "runtimes", "precisions", "threads", "batch_sizes", "imgsz")
OTHER = ("compare", "select", "force", "worker")           # flags that measure nothing


def parse() -> tuple[Config, dict]:
    """Return what is to be measured, and the values of OTHER."""
    parser = cli.config_parser(__doc__.splitlines()[0], Config)
    add = parser.add_argument
    add("--compare", nargs=2, type=Path, metavar="JSON", help="compare two reports instead of measuring")
    add("--select", nargs="+", metavar="TEXT",
        help="--compare: the case, by a part of its label; or one text for each report")
    add("--force", action="store_true", help="--compare: also what differs in size, batch, threads or CPU")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.worker:
        check_own(parser, args)
    other = {name: vars(args).pop(name) for name in OTHER}
    return cli.to_config(parser, args, Config), other


def check_own(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a usage message where flags are missing or do not go together; set what --full means."""
    if bool(args.weights) == bool(args.compare):
        parser.error("give either --weights to measure or --compare with two reports")
    if args.select and (len(args.select) > 2 or not args.compare):
        parser.error("--select takes one text, or two, and goes with --compare")
    for name in SEVERAL:
        values = getattr(args, name) or []
        if twice := [value for value in values if values.count(value) > 1]:
            parser.error(f"--{name.replace('_', '-')}: {twice[0]} is given twice")
    if "int8" in args.precisions and not args.data and set(args.runtimes) & {"onnx", "openvino"}:
        parser.error("--precisions int8 is calibrated on your own images: give --data")
    if args.full and args.iterations:
        parser.error("--full sets its own number of calls: leave --iterations out")
    if args.full:
        args.iterations, args.seconds = FULL["iterations"], FULL["seconds"]


def main() -> None:
    """Measure, compare, or work for a benchmark that does."""
    config, other = parse()
    if other["worker"]:
        from bench.worker import serve
        serve()
    elif other["compare"]:
        from bench.report import compare
        scopes = SCOPES if config.scope == "both" else [config.scope]
        print("\n".join(compare(other["compare"], other["select"] or (), scopes, other["force"])))
    else:
        from bench.plan import benchmark
        benchmark(config)


if __name__ == "__main__":
    cli.run(main)
