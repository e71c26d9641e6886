"""`python -m data.doctor SET`: what is wrong with a data set, which is only read (exit 0: usable, 3: not)."""
from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from utils import cli
from utils.errors import DataError


def main() -> None:
    """Print the report; end with exit code 3 when the set cannot be used as it is."""
    parser = cli.parser("Report every fault of a data set in COCO layout, and what it is made of.", "imgsz",
                        "epochs", "seed", "max-pixels", "drop-unknown", "trust",
                        defaults={"imgsz": 416, "epochs": 100})
    parser.prog = "python -m data.doctor"
    parser.add_argument("data", metavar="SET", help="as --data: a YAML, a folder, a COCO JSON, or scenes")
    parser.add_argument("--split", nargs="+", choices=("train", "val", "test"), help="what to read (all)")
    parser.add_argument("--anchors", type=int, default=6, help="how many to fit (6 for the tiny networks)")
    parser.add_argument("--rate", type=float, help="images/s of your training step, for the time estimate")
    parser.add_argument("--fix", type=Path, metavar="OUTDIR", help="write a cleaned copy into a new folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON, too")
    args = cli.check(parser, parser.parse_args())
    if args.anchors < 1 or not (args.rate is None or 0 < args.rate < math.inf):
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
