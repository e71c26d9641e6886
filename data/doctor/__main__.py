"""What is wrong with a data set and what it is made of: `python -m data.doctor SET`; a cleaned copy by --fix.

Only reads the set. Exit 0: usable (faults that are put right in memory are listed); 3: fatal faults.
"""
from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from pathlib import Path

from utils import cli
from utils.errors import DataError


def _parser() -> ArgumentParser:
    """Return the parser of `python -m data.doctor`."""
    out = cli.parser("Report every fault of a data set in COCO layout, and what it is made of.", "imgsz",
                     "epochs", "seed", "max-pixels", "drop-unknown", "trust",
                     defaults={"imgsz": 416, "epochs": 100})
    out.prog = "python -m data.doctor"
    out.add_argument("data", metavar="SET", help="as --data: a YAML, a folder, a COCO JSON, or scenes")
    out.add_argument("--split", nargs="+", choices=("train", "val", "test"), help="what to read (all)")
    out.add_argument("--anchors", type=int, default=6, help="how many to fit (6 for the tiny networks)")
    out.add_argument("--rate", type=float, help="images/s of your training step, for the time estimate")
    out.add_argument("--fix", type=Path, metavar="OUTDIR", help="write a cleaned copy into this new folder")
    out.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON, too")
    return out


def main() -> None:
    """Print the report; end with exit code 3 when the set cannot be used as it is."""
    parser = _parser()
    args = cli.check(parser, parser.parse_args())
    if args.anchors < 1 or (args.rate is not None and args.rate <= 0):
        parser.error(f"--anchors {args.anchors} --rate {args.rate}: need a positive number")
    from data.coco.write import refuse_inside, refuse_taken
    from data.doctor.diagnosis import examine, write_copy
    from data.doctor.report import as_dict, as_text, verdict
    reading = {"max_pixels": args.max_pixels, "drop_unknown": args.drop_unknown, "trust": args.trust}
    if args.fix:
        refuse_taken(args.fix)
    splits = tuple(split for split in ("train", "val", "test") if split in (args.split or ()))
    found = examine(args.data, splits, args.imgsz, anchors=args.anchors, epochs=args.epochs, seed=args.seed,
                    rate=args.rate, reading=reading)
    for target in filter(None, (args.fix, args.json)):
        refuse_inside(target, found.folders)
    print(as_text(found))
    if args.json:
        args.json.write_text(json.dumps(as_dict(found), indent=1), encoding="utf-8")
    if args.fix:
        print("\n" + write_copy(found, args.fix))
    print("\n" + verdict(found, args.fix))
    sys.exit(DataError.exit_code if found.fatal else 0)


if __name__ == "__main__":
    cli.run(main)
