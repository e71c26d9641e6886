"""The accuracy of a network in whatever runs it, on a data set, by val.py's thresholds."""
from __future__ import annotations

from collections.abc import Callable

from data.coco import read_coco
from data.dataset import DetectionSet, make_loader
from data.locate import locate
from loops.trainer import VAL
from models.decode import detections
from models.runtimes import Runtime
from utils.inference import Finder, collect_detections, matching_classes
from utils.metrics import evaluate_detections


def measure(runtime: Runtime, data: str, imgsz: int, split: str = "val", batch: int = 1,
            poll: Callable[[], object] | None = None) -> dict[str, float | int | None]:
    """AP50 and AP50-95 (fractions) of a runtime on one split of --data, and how many pictures it has.

    Raises as read_coco does, and ModelError where the runtime lacks a class of the set.
    """
    where = locate(data)
    coco = read_coco(*where[split], names=where.names)
    finder = Finder(runtime, detections, matching_classes(runtime.names, coco.names), *VAL)
    sizes = [(record.height, record.width) for record in coco.images]
    batches = make_loader(DetectionSet(coco, imgsz, cache="off"), batch, shuffle=False, workers=0)
    found = collect_detections(batches, finder, sizes, progress=False, poll=poll)
    metrics = evaluate_detections(coco.ground_truth(), found, coco.names, max_det=VAL[2])
    return {"map50": metrics.map50, "map50_95": metrics.map50_95, "pictures": metrics.images}
