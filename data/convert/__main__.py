"""Pascal VOC and YOLO text labels to COCO layout: `python -m data.convert voc|yolo SRC --out DIR`.

Writes DIR/annotations/instances_{train,val}.json and copies of the images; SRC is only read. DIR appears
when it is complete. Archives are not unpacked.
"""
from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import TYPE_CHECKING

from utils import cli
from utils.errors import DataError

if TYPE_CHECKING:
    from data.convert.labels import Labels


def _parser() -> ArgumentParser:
    """Return the parser of `python -m data.convert`."""
    out = cli.parser("Make a data set in COCO layout from Pascal VOC or YOLO text labels.")
    out.prog = "python -m data.convert"
    out.add_argument("kind", choices=("voc", "yolo"), help="format of SRC")
    out.add_argument("source", type=Path, metavar="SRC", help="folder of the set; it is only read")
    out.add_argument("--out", type=Path, required=True, help="new folder for the result")
    out.add_argument("--difficult", choices=("crowd", "keep", "drop"), default="crowd",
                     help="VOC objects marked difficult: ignored like crowds, kept, or left out")
    out.add_argument("--zero-based", action="store_true",
                     help="VOC corners are xyxy px from 0, not pixel numbers from 1 with both ends included")
    for split in ("train", "val"):
        out.add_argument(f"--{split}-list", metavar="NAME",
                         help=f"VOC list below ImageSets/Main that makes the {split} split")
    return out


def write_converted(labels: "Labels", names: list[str] | None, source: Path,
                    out: Path) -> dict[str, tuple[int, int]]:
    """Write what a converter has read in COCO layout below the new folder `out`; return (images, boxes).

    Raises DataError for a split without boxes, UsageError when `out` is taken.
    """
    from data.coco.read import read_coco
    from data.coco.write import cleaned, write_layout
    contents = labels.contents(names)
    sets = {split: read_coco(source, source, content) for split, content in contents.items()}
    classes = next(iter(sets.values())).names
    print(f"{len(classes)} classes: {', '.join(classes)}")
    return write_layout(*cleaned(sets, {}), out)


def main() -> None:
    """Convert the set named on the command line; print what was written and what was left out."""
    args = _parser().parse_args()
    if not args.source.is_dir():
        raise DataError(f"{args.source}: is not a folder; give the set's folder (unpack an archive first)")
    from data.coco.clean import report_faults
    from data.coco.write import refuse_taken
    from data.convert.labels import Labels
    from data.convert.voc import read_voc
    from data.convert.yolo import read_yolo
    refuse_taken(args.out)
    labels, names = Labels(), None
    try:
        if args.kind == "voc":
            read_voc(args.source, labels, difficult=args.difficult, zero_based=args.zero_based,
                     lists={"train": args.train_list, "val": args.val_list})
        else:
            names = read_yolo(args.source, labels)
        counts = write_converted(labels, names, args.source, args.out)
    finally:
        for line in report_faults(labels.faults):
            print(line)
    for split, (images, boxes) in counts.items():          # "pictures" is what scripts look for in this line
        print(f"{split:<5}  {images:>7} pictures  {boxes:>8} boxes")
    print(f"written to {args.out}\nnext: python -m data.doctor {args.out}")


if __name__ == "__main__":
    cli.run(main)
