"""`python -m detection.label --weights W --data SET --out DIR`: a network's boxes where no one drew any."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils import cli
from utils.errors import DataError, UsageError

if TYPE_CHECKING:
    from data.coco.read import CocoSet, ImageRecord
    from detection.detector import Detector

SAME = 0.5                         # IoU from which a found box is taken for one that is there


def renamed(coco: "CocoSet", names: Sequence[str]) -> "CocoSet":
    """Return a set under a network's classes; raise DataError for a class that the network does not know."""
    place = {name: number for number, name in enumerate(names)}
    if strange := [name for name in coco.names if name not in place]:
        raise DataError(f"{coco.root}: the network does not know {', '.join(strange[:5])}; it knows "
                        f"{', '.join(names)}: rename these categories or use another network")
    own = np.array([place[name] for name in coco.names], np.float32)

    def under(boxes: np.ndarray) -> np.ndarray:
        return np.column_stack((own[boxes[:, 0].astype(int)], boxes[:, 1:])) if len(boxes) else boxes
    return replace(coco, names=tuple(names), class_map={str(k + 1): k for k in range(len(names))},
                   images=tuple(replace(record, boxes=under(record.boxes), crowd=under(record.crowd))
                                for record in coco.images))


def completed(record: "ImageRecord", known: Sequence[int], found: np.ndarray) -> "ImageRecord":
    """Return an image with those found boxes [N, 6] (xyxy px, score, class) that its own leave room for.

    known: the classes whose boxes its annotations hold already, all of them.
    """
    from models.heads.nms import overlap
    there = np.concatenate((record.boxes, record.crowd))[:, 1:]
    area = (found[:, 2:4] - found[:, :2]).prod(1)
    room = ~overlap(found[:, :4], there, SAME).any(1) & ~np.isin(found[:, 5], known) & (area > 0)
    return replace(record, boxes=np.concatenate((record.boxes, found[room][:, [5, 0, 1, 2, 3]])),
                   areas=np.concatenate((record.areas, area[room])))


def labelled(coco: "CocoSet", detector: "Detector", max_pixels: int) -> "CocoSet":
    """Return a set with boxes of the network's classes that it has none of; raise as `renamed` does."""
    from tqdm import tqdm

    from data.images import decode
    from utils.boxes import scale_back
    names = detector.runtime.names
    known, new = [number for number, name in enumerate(names) if name in coco.names], renamed(coco, names)
    if len(known) == len(names):
        return new
    records = []
    for record in tqdm(new.images, desc=coco.root.name, unit=" images", leave=False, disable=None):
        image = decode(record.path, max_pixels)
        fitted, where = detector.fit(image)
        found = scale_back(detector(fitted.transpose(2, 0, 1)[None])[0], where, *image.shape[:2])
        records.append(completed(record, known, found))
    return replace(new, images=tuple(records))


def bare(folder: Path, max_pixels: int) -> "CocoSet":
    """Return the images of a folder as a set without classes; those that cannot be read are its faults."""
    from data.coco.clean import fault
    from data.coco.read import CocoSet, ImageRecord
    from data.images import SUFFIXES, inspect_all
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    seen, none = inspect_all(paths, max_pixels), np.zeros((0, 5), np.float32)
    if not any(not image.problem for image in seen):
        raise DataError(f"--unlabelled {folder}: holds no image that can be read")
    images = tuple(ImageRecord(number, path, image.width, image.height, none, none, none[:, 0], none[:, 0],
                               np.zeros((0, 7)), image.crc)
                   for number, (path, image) in enumerate(zip(paths, seen)) if not image.problem)
    bad = [f"{path.name} {image.problem}" for path, image in zip(paths, seen) if image.problem]
    return CocoSet((), {}, images, tuple(fault("undecodable-image", bad, "left out")), folder)


def joined(sets: Sequence["CocoSet"]) -> "CocoSet":
    """Return the images of sets of the same classes as one set."""
    return replace(sets[0], images=tuple(image for coco in sets for image in coco.images))


def main() -> None:
    """Write one set: the training images of all given, with the network's boxes where there are none."""
    parser = cli.parser("Complete data sets by the boxes of a network that knows more classes, and label "
                        "images without any.", "weights", "imgsz", "conf-thres", "iou-thres", "device",
                        "threads", "max-pixels", defaults={"conf-thres": 0.35, "iou-thres": 0.65})
    parser.prog = "python -m detection.label"
    parser.add_argument("--data", nargs="*", default=[], metavar="SET", help="sets whose own boxes stay; the "
                        "first one's val split becomes that of the result")
    parser.add_argument("--unlabelled", nargs="*", type=Path, default=[], metavar="FOLDER",
                        help="folders of images without boxes")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the set")
    args = cli.check(parser, parser.parse_args(), "weights")
    if not args.data and not args.unlabelled:
        raise UsageError("nothing to label: give --data SET or --unlabelled FOLDER")
    from data.coco.clean import report_faults
    from data.coco.locate import locate
    from data.coco.read import read_coco
    from data.coco.write import cleaned, refuse_inside, refuse_taken, write_layout
    from detection.detector import NetworkConfig, make_detector
    refuse_taken(args.out)
    places = [locate(data) for data in args.data]
    refuse_inside(args.out, [*args.unlabelled, *(folder for place in places for folder in place.folders)])
    given = [read_coco(*place.train, max_pixels=args.max_pixels) for place in places]
    given += [bare(folder, args.max_pixels) for folder in args.unlabelled]
    for line in (line for coco in given for line in report_faults(coco.faults)):
        print(line)
    config = NetworkConfig(weights=args.weights, imgsz=args.imgsz, device=args.device, half=False, fp32=False,
                           threads=args.threads, conf_thres=args.conf_thres, iou_thres=args.iou_thres,
                           nms="standard", max_det=300, classes=None, max_pixels=args.max_pixels)
    detector = make_detector(config, args.weights)
    splits = {"train": joined([labelled(coco, detector, args.max_pixels) for coco in given])}
    if places and "val" in places[0]:
        val = read_coco(*places[0].val, max_pixels=args.max_pixels)
        splits["val"] = renamed(val, detector.runtime.names)
    before = sum(len(image.boxes) for coco in given for image in coco.images)
    for split, (images, boxes) in write_layout(*cleaned(splits, {}), args.out).items():
        print(f"{split}: {images} images, {boxes} boxes"
              + f", {before} of them from the sets" * (split == "train"))


if __name__ == "__main__":
    cli.run(main)
