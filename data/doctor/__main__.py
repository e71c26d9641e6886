"""What is wrong with a data set and what it is made of: `python -m data.doctor SET`; a cleaned copy by --fix.

Only reads the set. Exit 0: usable (faults that are put right in memory are listed); 3: fatal faults.
"""
from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from utils import cli
from utils.errors import DataError

if TYPE_CHECKING:
    from data.doctor.diagnosis import Diagnosis


def examine(data: str, splits: tuple[str, ...], imgsz: int, *, anchors: int = 6, epochs: int = 100,
            seed: int = 0, rate: float | None = None, reading: dict | None = None) -> "Diagnosis":
    """The diagnosis of a data set (`locate` says what `data` may be); `reading` is passed on to `read_coco`.

    Raises DataError only when nothing can be found at all; unreadable annotation files are fatal faults.
    """
    from data.doctor.diagnosis import Diagnosis, compare, read_splits
    from data.doctor.survey import anchor_fits, class_counts, duration, input_sizes, size_summary
    located, sets, faults = read_splits(data, splits, reading or {})
    between, left_out = compare(located, sets)
    found = Diagnosis(located, sets, {**faults, **between}, left_out, imgsz)
    if sets:
        first = next(iter(sets.values()))
        sizes = input_sizes(first.images, imgsz)
        found.counts.update({split: class_counts(coco) for split, coco in sets.items()})
        found.numbers.update(sizes=size_summary(sizes), anchors=anchor_fits(sizes, imgsz, anchors, seed),
                             time=duration(first.images, imgsz, epochs, rate), epochs=epochs)
    return found


def write_copy(found: "Diagnosis", out: Path) -> str:
    """One sentence about the cleaned copy written to `out`. Raises DataError while fatal faults stand."""
    from data.coco.write import write_layout
    from data.doctor.mend import cleaned
    if found.fatal:
        raise DataError(f"{out}: no copy written: {found.fatal} kinds of fatal fault need a decision first; "
                        "see above for the flag that takes it (--drop-unknown, --trust), or correct the file")
    counts = write_layout(*cleaned(found.sets, found.left_out), out)
    dropped = sum(map(len, found.left_out.values()))
    written = ", ".join(f"{split} {n:,} pictures with {m:,} boxes" for split, (n, m) in counts.items())
    repeated = f"; {dropped:,} repeated pictures left out" if dropped else ""
    return f"cleaned copy in {out}: {written}{repeated}"


def _parser() -> ArgumentParser:
    """The flags of `python -m data.doctor`."""
    out = cli.parser("Report every fault of a data set in COCO layout, and what it is made of.", "imgsz",
                     "epochs", "seed", "max-pixels", "drop-unknown", "trust",
                     defaults={"imgsz": 416, "epochs": 100})
    out.prog = "python -m data.doctor"
    out.add_argument("data", metavar="SET", help="a YAML, a folder in COCO layout, or the word scenes")
    out.add_argument("--split", nargs="+", choices=("train", "val"), default=("train", "val"),
                     help="what to read")
    out.add_argument("--anchors", type=int, default=6, help="how many to fit (6 for the tiny networks)")
    out.add_argument("--rate", type=float, help="pictures/s of your training step, for the time estimate")
    out.add_argument("--fix", type=Path, metavar="OUTDIR", help="write a cleaned copy into this new folder")
    out.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON, too")
    return out


def _arguments() -> Namespace:
    """The parsed and checked flags."""
    parser = _parser()
    args = cli.check(parser, parser.parse_args())
    if args.anchors < 1 or (args.rate is not None and args.rate <= 0):
        parser.error(f"--anchors {args.anchors} --rate {args.rate}: need a positive number")
    return args


def main() -> None:
    """Prints the report; ends with exit code 3 when the set cannot be used as it is."""
    args = _arguments()
    from data.coco.write import refuse_inside, refuse_taken
    from data.doctor.report import as_dict, as_text, verdict
    reading = {"max_pixels": args.max_pixels, "drop_unknown": args.drop_unknown, "trust": args.trust}
    if args.fix:
        refuse_taken(args.fix)
    splits = tuple(split for split in ("train", "val") if split in args.split)
    found = examine(args.data, splits, args.imgsz, anchors=args.anchors,
                    epochs=args.epochs, seed=args.seed, rate=args.rate, reading=reading)
    for target in filter(None, (args.fix, args.json)):
        refuse_inside(target, found.folders)
    print(as_text(found))
    if args.json:
        args.json.write_text(json.dumps(as_dict(found), indent=1, ensure_ascii=False), encoding="utf-8")
    if args.fix:
        print("\n" + write_copy(found, args.fix))
    print("\n" + verdict(found, args.fix))
    sys.exit(DataError.exit_code if found.fatal else 0)


if __name__ == "__main__":
    cli.run(main)
