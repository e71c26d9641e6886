"""Small COCO sets on disk, sound until a test changes them, and pycocotools as their judge."""
import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from data.coco.read import CocoSet, read_coco

SIZE = (100, 80)                   # width, height of every made image
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
Change = Callable[[dict], object]


def content(images: int = 3, boxes: int = 8) -> dict:
    """A sound COCO dict: boxes an image, cats and dogs in turn, all well inside."""
    return {"images": [{"id": 10 + i, "file_name": f"{i}.png", "width": SIZE[0], "height": SIZE[1]}
                       for i in range(images)],
            "annotations": [{"id": 1 + n, "image_id": 10 + n % images, "category_id": 1 + n % 2, "iscrowd": 0,
                             "bbox": [5 + n % 50, 6, 20, 10], "area": 150} for n in range(images * boxes)],
            "categories": [dict(c) for c in CATEGORIES]}


def write(folder: Path, coco: dict | bytes, images: int = 3) -> tuple[Path, Path]:
    """The annotation file and image folder of a set written to disk."""
    (folder / "images").mkdir(exist_ok=True)
    for i in range(images):
        Image.new("RGB", SIZE, (i, 50, 90)).save(folder / "images" / f"{i}.png")
    path = folder / "set.json"
    path.write_bytes(coco if isinstance(coco, bytes) else json.dumps(coco).encode())
    return path, folder / "images"


def read(folder: Path, change: Change = lambda c: None, **options: object) -> CocoSet:
    """The data set read after a change to the sound dict."""
    coco = content()
    change(coco)
    return read_coco(*write(folder, coco), **options)


def rules(data: CocoSet) -> dict[str, int]:
    """Fault rules and counts."""
    return {f.rule: f.count for f in data.faults}


def count(data: CocoSet) -> int:
    """All target boxes."""
    return sum(len(r.boxes) for r in data.images)


def with_boxes(*boxes: object) -> Change:
    """A change that puts these boxes in the first annotations."""
    def change(c: dict) -> None:
        for annotation, box in zip(c["annotations"], boxes):
            annotation["bbox"] = box
    return change


def perfect_ap(content: dict) -> float:
    """pycocotools' AP of a detector that returns the ground truth."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = content
        gt.createIndex()
        found = gt.loadRes([{**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9}
                            for a in content["annotations"] if not a["iscrowd"]])
        run = COCOeval(gt, found, "bbox")
        run.evaluate(), run.accumulate(), run.summarize()
    return float(run.stats[0])
