"""The accuracy of a network in whatever runs it: one pass over a data set, measured by pycocotools."""
from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from data.coco.locate import locate
from data.coco.read import read_coco
from data.dataset import DetectionSet, make_loader
from deploy.runtimes.runtime import Runtime
from evaluation.inference import Finder, collect_detections, matching_classes
from evaluation.metrics import Metrics, evaluate_detections
from models.heads.nms import detections

VAL = (0.001, 0.6, 100)                            # score floor, NMS IoU, boxes a picture, as val.py's


def evaluate(finder: Finder, dataset: DetectionSet, batches: Iterable, progress: bool = True,
             poll: Callable[[], object] | None = None) -> tuple[Metrics, np.ndarray]:
    """The metrics of a pass, and its detections [D, 7] (as collect_detections gives them).

    batches: of the data set's pictures; poll: called between them, ends the pass by raising.
    """
    coco = dataset.coco
    sizes = [(record.height, record.width) for record in coco.images]
    found = collect_detections(batches, finder, sizes, progress, poll)
    return evaluate_detections(coco.ground_truth(), found, coco.names, max_det=finder.thresholds[2]), found


def measure(runtime: Runtime, data: str, imgsz: int, split: str = "val", batch: int = 1,
            poll: Callable[[], object] | None = None) -> dict[str, float | int | None]:
    """AP50 and AP50-95 (fractions) of a runtime on one split of --data, and how many pictures it has.

    Raises as read_coco does, and ModelError where the runtime lacks a class of the set.
    """
    where = locate(data)
    coco = read_coco(*where[split], names=where.names)
    finder = Finder(runtime, detections, matching_classes(runtime.names, coco.names), *VAL)
    dataset = DetectionSet(coco, imgsz, cache="off")
    batches = make_loader(dataset, batch, shuffle=False, workers=0)
    metrics, _ = evaluate(finder, dataset, batches, progress=False, poll=poll)
    return {"map50": metrics.map50, "map50_95": metrics.map50_95, "pictures": metrics.images}
