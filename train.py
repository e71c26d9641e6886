"""Train a detector or fine-tune one: `python train.py --cfg micro-yolo --weights x.weights --data SET`.

Without --weights it learns from scratch. Resume with the same command and `--resume`;
several processes by `torchrun --nproc-per-node N train.py ...`.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from training import flags
from utils import cli

SHARED = ("cfg", "weights", "data", "imgsz", "batch-size", "epochs", "device", "workers", "threads", "cache",
          "max-pixels", "drop-unknown", "trust", "project", "name", "exist-ok", "seed")
# Flags of the moment, never taken from the run that is resumed; and flags that may differ from it: they
# change where and how it runs, not what it computes.
NOW = ("resume", "accept", "exist_ok", "project", "name")
FREE = ("device", "workers", "threads", "cache", "val_interval", "no_report", "save_minutes")


def parse() -> argparse.Namespace:
    """The checked command line; with --resume, the flags the run was started with."""
    parser = cli.parser(__doc__.splitlines()[0], *SHARED, defaults={
        "imgsz": 416, "batch-size": 16, "epochs": 100, "project": "runs/train"})
    flags.add_training_flags(parser.add_argument)
    add_own_flags(parser.add_argument)
    args = parser.parse_args()
    if args.resume is not None:
        args = resumed(parser, args)
    flags.check_ranges(parser, args)
    if not args.cfg and not args.weights:
        parser.error("--cfg or --weights is missing: a network to build, or one to go on from")
    if args.separate and not args.weights:
        parser.error("--separate needs --weights, whose convolutions it factorises")
    return cli.check(parser, args, "data")


def add_own_flags(add: Callable) -> None:
    """Declares the flags that this script alone has; add is a parser's add_argument."""
    add("--separate", action="store_true",
        help="start DSConv and MBConv layers as factors (SVD) of the checkpoint's convolutions "
             "of the same name")
    add("--fit-anchors", action="store_true", help="fit the heads' anchors to the training boxes by k-means")
    add("--teacher", help="checkpoint with the same heads and classes whose answers are learned as well")
    add("--metric", choices=("map50", "map50_95"), default="map50", help="what the best network is best at")
    add("--val-interval", type=int, default=1,
        help="epochs between validations; the last one always validates")
    add("--no-report", action="store_true", help="no plots and no report.html at the end")
    add("--resume", nargs="?", const="", default=None, metavar="RUN",
        help="go on with a run folder (default: the newest)")
    add("--accept", action="store_true", help="resume although the continuation will not be bit-exact")


def resumed(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    """The arguments of the run that --resume names; what is typed now may differ only where it is free to."""
    folder = Path(args.resume) if args.resume else newest(Path(args.project), args.name)
    if folder is not None and folder.suffix == ".pt":
        folder = folder.parent.parent
    if folder is None or not (folder / "args.json").is_file():
        parser.error(f"--resume: no run with an args.json in {folder or args.project}; "
                     "give its folder, or start without")
    saved = json.loads((folder / "args.json").read_text())
    for action in parser._actions:
        action.default = argparse.SUPPRESS         # so that a second parse gives what was typed, and no more
    typed = vars(parser.parse_args())
    for key, value in saved.items():
        if key in NOW or key not in vars(args):
            continue
        if key not in typed:
            setattr(args, key, value)
        elif key not in FREE and typed[key] != value and (key == "optimizer" or not args.accept):
            flag, way = key.replace("_", "-"), "" if key == "optimizer" else ", or add --accept to change it"
            parser.error(f"--resume: the run was started with --{flag} {value}, now {typed[key]}; "
                         f"leave it out to go on exactly{way}")
    args.resume = str(folder)
    return args


def newest(project: Path, name: str) -> Path | None:
    """The run folder project/name* whose last checkpoint is the youngest."""
    saves = [p for p in project.glob(f"{name}*/weights/last*.pt")
             if p.parts[-3] == name or p.parts[-3].removeprefix(name).isdigit()]
    latest = max(saves, key=lambda p: p.stat().st_mtime, default=None)
    return latest and latest.parent.parent


def main() -> None:
    """Parses, then trains; nothing heavy is imported before the flags are known to be good."""
    args = parse()
    from training.prepare import prepare
    from utils import ddp
    run = prepare(args)
    try:
        run.train()
    finally:
        run.close()
        ddp.leave()


if __name__ == "__main__":
    cli.run(main)
