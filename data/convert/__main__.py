"""`python -m data.convert voc|yolo|labelme|via SRC --out DIR`: other tools' labels copied in COCO layout."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from utils import cli
from utils.errors import DataError

if TYPE_CHECKING:
    from data.convert.labels import Labels, Layout


def recognised(kind: str, source: Path, difficult: str = "crowd", zero_based: bool = False,
               lists: dict[str, str | None] | None = None) -> "Layout":
    """Return the layout of a set of that kind; raise DataError when it has none."""
    from data.convert.labelme import labelme_layout
    from data.convert.via import via_layout
    from data.convert.voc import voc_layout
    from data.convert.yolo import yolo_layout
    if not source.is_dir() and not (kind in ("yolo", "via") and source.is_file()):
        raise DataError(f"{source}: is not a folder; give the set's folder (unpack an archive first)")
    found = voc_layout(source, difficult, zero_based, lists) if kind == "voc" else \
        {"yolo": yolo_layout, "labelme": labelme_layout, "via": via_layout}[kind](source)
    if found is None:
        needed = {"voc": "XML file", "labelme": "JSON file with `shapes`", "via": "VIA file",
                  "yolo": "class names"}[kind]
        raise DataError(f"{source}: no {needed} here; VOC needs Annotations and JPEGImages, YOLO a YAML with "
                        "`names` (0: cat) or classes.txt and images, labelme a JSON file per image")
    return found


def write_converted(labels: "Labels", layout: "Layout", out: Path) -> dict[str, tuple[int, int]]:
    """Read a layout into `labels`, write it to the new folder `out`; return (images, boxes) by split."""
    from data.coco.read import read_coco
    from data.coco.write import cleaned, refuse_inside, write_layout
    root = layout.source if layout.source.is_dir() else layout.source.parent
    sets, contents = {}, labels.contents(layout.read(labels))
    refuse_inside(out, {file.parent for images in labels.splits.values() for file in images})
    for split, content in contents.items():
        coco = read_coco(root, root, lambda _, made=content: (made, []), max_pixels=labels.max_pixels)
        sets["train" if split == "all" else split] = coco
        for found in coco.faults:
            labels.notes.setdefault((split, found.rule, found.advice), []).extend(
                found.examples + ("",) * (found.count - len(found.examples)))
    return write_layout(*cleaned(sets, {}), out)


def main() -> None:
    """Convert the set named on the command line; print what was written and what was left out."""
    parser = cli.parser("Make a data set in COCO layout from Pascal VOC, YOLO, labelme, Supervisely or VIA "
                        "labels.", "max-pixels")
    parser.prog = "python -m data.convert"
    parser.add_argument("kind", choices=("voc", "yolo", "labelme", "via"), help="format of SRC")
    parser.add_argument("source", type=Path, metavar="SRC",
                        help="folder of the set, or its YAML or JSON; only read")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the result")
    parser.add_argument("--difficult", choices=("crowd", "keep", "drop"), default="crowd",
                        help="VOC objects marked difficult: ignored like crowds, kept, or left out")
    parser.add_argument("--zero-based", action="store_true",
                        help="VOC corners are xyxy px from 0, not pixel numbers from 1, both ends included")
    for split in ("train", "val"):
        parser.add_argument(f"--{split}-list", metavar="NAME",
                            help=f"VOC list below ImageSets/Main that makes the {split} split")
    args = cli.check(parser, parser.parse_args())
    from data.coco.clean import printable, report_faults
    from data.coco.write import refuse_inside, refuse_taken
    from data.convert.labels import Labels
    layout = recognised(args.kind, args.source, args.difficult, args.zero_based,
                        {"train": args.train_list, "val": args.val_list})
    refuse_taken(args.out)
    refuse_inside(args.out, [args.source if args.source.is_dir() else args.source.parent])
    labels = Labels(args.max_pixels)
    try:
        counts = write_converted(labels, layout, args.out)
    finally:
        for line in report_faults(labels.faults()):
            print(line)
    for split, (images, boxes) in counts.items():          # "pictures" is what scripts look for in this line
        print(f"{split:<5}  {images:>7} pictures  {boxes:>8} boxes")
    names = labels.names
    print(f"{len(names)} classes: {printable(', '.join(names))}\nwritten to {args.out}")
    print(f"next: python -m data.doctor {args.out}")


if __name__ == "__main__":
    cli.run(main)
