"""Train a detector on your images: `python train.py --data SET`.

It starts from the checkpoint that comes with the project, another (--weights FILE), or at random (none), with
--backbone-weights but for the layers of a pretrained classifier.
Resume with the same command and `--resume`; several processes by `torchrun --nproc-per-node N train.py ...`.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from training.config import TrainConfig, misfits
from utils import cli, runs
from utils.errors import DataError

# Flags of the moment, never taken from the run that is resumed; and flags that may differ from it: they
# change where and how it runs, not what it computes.
NOW = ("resume", "accept", "exist_ok", "project", "name")
AUTO = {"batch_size": 0, "precision": "auto"}      # typed, it stands for whatever the run was given
FREE = ("device", "workers", "threads", "cache", "val_interval", "no_report", "save_minutes")


def parse() -> TrainConfig:
    """Return the checked command line; with --resume, the flags the run was started with."""
    parser = cli.config_parser(__doc__.splitlines()[0], TrainConfig)
    args = parser.parse_args()
    if args.resume is not None:
        args = resumed(parser, args)
    if args.separate and args.weights in (None, "none"):
        parser.error("--separate needs --weights, whose convolutions it factorises")
    if args.backbone_weights and args.weights not in (None, "none"):
        parser.error("--backbone-weights starts the rest at random; leave out --weights, or give none")
    if args.self_distill and args.teacher:
        parser.error("--self-distill makes the run its own teacher; leave out --teacher, or it")
    if args.distill_features and not args.teacher:
        parser.error("--distill-features needs --teacher, whose features are learned")
    if args.unlabelled and not (args.teacher or args.self_distill):
        parser.error("--unlabelled needs --teacher, or --self-distill: nothing else says what is on these "
                     "images")
    if args.time and cli.typed(parser, ["--epochs", "--epoch-images"]):
        parser.error("--time plans the epochs; leave out --epochs and --epoch-images")
    return cli.to_config(parser, args, TrainConfig, "data")


def resumed(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    """Return the flags of the run that --resume names; only those that are free may be typed otherwise."""
    saves = [path for folder in runs.run_folders(args.project, args.name)
             for path in folder.glob("weights/last*.pt")]
    newest = max(saves, key=lambda p: p.stat().st_mtime, default=None)
    folder = Path(args.resume) if args.resume else newest
    if folder is not None and folder.suffix == ".pt":
        folder = folder.parent.parent
    if folder is None or not (folder / "args.json").is_file():
        parser.error(f"--resume: no run with an args.json in {folder or args.project}; "
                     "give its folder, or start without")
    saved = runs.read_object(folder / "args.json")
    if wrong := misfits(saved):
        raise DataError(f"{folder / 'args.json'}: {wrong[0]} is {str(saved[wrong[0]])[:60]!r}, as no run "
                        "writes it; restore the file, or start a new run")
    if (gone := sorted(set(saved) - set(vars(args)))) and not args.accept:
        parser.error(f"--resume: {folder} was begun by a version whose flags {', '.join(gone)} are no more, "
                     "so its continuation would be another training; add --accept to continue all the same")
    for action in parser._actions:
        action.default = argparse.SUPPRESS         # so that a second parse gives what was typed, and no more
    typed = vars(parser.parse_args())
    for key, value in saved.items():
        if key in NOW or key not in vars(args):
            continue
        if key not in typed or key in AUTO and typed[key] == AUTO[key]:
            setattr(args, key, value)
        elif key not in FREE and typed[key] != value and (
                key == "optimizer" or not args.accept):
            flag, way = key.replace("_", "-"), "" if key == "optimizer" else ", or add --accept to change it"
            parser.error(f"--resume: the run was started with --{flag} {value}, now {typed[key]}; "
                         f"leave it out to continue exactly{way}")
    args.resume = str(folder)
    return args


def main() -> None:
    """Parse, then train; nothing heavy is imported before the flags are known to be good."""
    config = parse()
    from training.prepare import prepare
    from utils import ddp
    run = prepare(config)
    try:
        run.train()
    finally:
        run.close()
        ddp.leave()


if __name__ == "__main__":
    cli.run(main)
