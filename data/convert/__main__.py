"""Pascal VOC and YOLO text labels to COCO layout: `python -m data.convert voc|yolo SRC --out DIR`.

Writes DIR/annotations/instances_{train,val}.json and copies of the pictures; SRC is only read. DIR appears
when it is complete. Archives are not unpacked.
"""
from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import TYPE_CHECKING

from data.coco.write import refuse_taken, write_layout
from utils import cli
from utils.errors import DataError

if TYPE_CHECKING:
    from data.convert.labels import Example, Labelled


def coco_layout(labelled: "Labelled", out: Path) -> dict[str, tuple[int, int]]:
    """(pictures, boxes) of each split of a Labelled set, written in COCO layout below the new folder `out`.

    Raises DataError when a split would be empty or two pictures would get one name, UsageError when `out` is
    taken.
    """
    _check(labelled)
    contents, pictures = {}, {}
    for split, examples in labelled.splits.items():
        contents[split] = _coco(examples, labelled.names, len(pictures) + 1)
        pictures.update((example.name, example.file) for example in examples)
    return write_layout(contents, pictures, out)


def _check(labelled: "Labelled") -> None:
    """Nothing, when the set can be written; DataError otherwise."""
    if len(set(labelled.names)) < len(labelled.names):
        raise DataError(f"class names must differ, got {', '.join(labelled.names)}; rename or merge classes")
    for split, examples in labelled.splits.items():
        if not any(example.boxes for example in examples):
            raise DataError(f"{split}: {len(examples)} pictures and not one box that can be used; "
                            "see the list of what was left out")
    seen: dict[str, Path] = {}
    for example in (example for examples in labelled.splits.values() for example in examples):
        if example.name in seen:
            raise DataError(f"{example.file} and {seen[example.name]} would both become {example.name}: "
                            "a picture must be in one split, once")
        seen[example.name] = example.file


def _coco(examples: "list[Example]", names: tuple[str, ...], first_id: int) -> dict:
    """The COCO content of one split: category ids from 1 in `names` order, top-left xywh boxes."""
    numbers = {name: number for number, name in enumerate(names, 1)}
    images, annotations = [], []
    for image_id, example in enumerate(examples, first_id):
        images.append({"id": image_id, "file_name": example.name, "width": example.width,
                       "height": example.height})
        for box in example.boxes:
            corner_and_size = [round(value, 4) for value in box[1:5]]
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "bbox": corner_and_size,
                                "category_id": numbers[box.name], "iscrowd": int(box.crowd),
                                "area": round(box.width * box.height, 4)})
    return {"info": {}, "images": images, "annotations": annotations,
            "categories": [{"id": number, "name": name} for name, number in numbers.items()]}


def _parser() -> ArgumentParser:
    """The flags of `python -m data.convert`."""
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


def main() -> None:
    """Converts the set named on the command line and prints what was written and what was left out."""
    args = _parser().parse_args()
    if not args.source.is_dir():
        raise DataError(f"{args.source}: is not a folder; give the set's folder (unpack an archive first)")
    refuse_taken(args.out)
    from data.convert.labels import Tally
    tally = Tally()
    try:
        if args.kind == "voc":
            from data.convert.voc import read_voc
            labelled = read_voc(args.source, tally, args.difficult, args.zero_based,
                                {"train": args.train_list, "val": args.val_list})
        else:
            from data.convert.yolo import read_yolo
            labelled = read_yolo(args.source, tally)
        counts = coco_layout(labelled, args.out)
    finally:
        if tally.places:
            print(tally.table())
    for split, (images, boxes) in counts.items():
        print(f"{split:<5}  {images:>7} pictures  {boxes:>8} boxes")
    print(f"{len(labelled.names)} classes: {', '.join(labelled.names)}\nwritten to {args.out}")
    print(f"next: python -m data.doctor {args.out}")


if __name__ == "__main__":
    cli.run(main)
