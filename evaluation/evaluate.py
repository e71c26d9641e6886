"""The accuracy of a network in whatever runs it: one pass over a data set, measured by pycocotools."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tqdm import tqdm

from data.coco.locate import Located
from data.coco.read import CocoSet, read_coco
from data.dataset import DetectionSet
from detection.threads import prefetch, side_by_side
from evaluation.metrics import Metrics, evaluate_detections
from models.heads.nms import detections
from utils.boxes import letterbox_geometry, on_host, scale_back
from utils.errors import DataError, ModelError

if TYPE_CHECKING:
    from deploy.runtimes.runtime import Runtime
    from detection.detector import Runs
    from utils.boxes import Values

VAL = (0.001, 0.6, 100)                            # val.py's score floor, NMS IoU, boxes per image


def matching_classes(model: Sequence[str], data: Sequence[str]) -> list[int]:
    """Return the model's class for each of the data set's, by name. Raises ModelError where there is none."""
    exact = {name: k for k, name in enumerate(model)}
    folded = {name.strip().casefold(): k for k, name in enumerate(model)}
    found = [exact.get(name, folded.get(name.strip().casefold(), -1)) for name in data]
    unknown = [name for name, k in zip(data, found, strict=True) if k < 0 or found.count(k) > 1]
    if unknown:
        raise ModelError(f"the model has no class of its own for {', '.join(unknown)}. It knows: "
                         f"{', '.join(model)}. The data set has: {', '.join(data)}. Evaluate on a set with "
                         "the model's classes, or fine-tune on this one with train.py")
    return found


class Stopwatch:
    """Seconds spent in named stages, added up over many calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = Lock()

    @contextmanager
    def stage(self, name: str, lanes: int = 1) -> Iterator[None]:
        """Count the time of a `with` block under `name`, of one of so many lanes its share."""
        start = time.perf_counter()
        try:
            yield
        finally:
            taken = (time.perf_counter() - start) / lanes
            with self._lock:
                self.seconds[name] = self.seconds.get(name, 0.0) + taken

    def waits(self, name: str, items: Iterable) -> Iterator:
        """Yield the same items, counting the time until each is there under `name`."""
        iterator = iter(items)
        while True:
            with self.stage(name):
                item = next(iterator, self)
            if item is self:
                return
            yield item


class Images(NamedTuple):
    """Images uint8 [B, 3, S, S] RGB, letterboxed, and their positions in the data set."""

    images: np.ndarray
    indices: list[int]


def image_batches(dataset: DetectionSet, count: int, workers: int) -> Iterator[Images]:
    """Yield the images of a data set in order, read by `workers` threads ahead (0: none, when asked for)."""
    def read() -> Iterator[Images]:
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for start in range(0, len(dataset), count):
                indices = list(range(start, min(start + count, len(dataset))))
                images = np.stack(list(pool.map(dataset.plain, indices)))
                yield Images(images.transpose(0, 3, 1, 2), indices)    # in memory channels last
    return prefetch(read(), 2) if workers else read()


class Finder:
    """The network, then NMS, in the data set's classes (`wanted` of the model's); drops non-finite boxes."""

    def __init__(self, runtime: Runs, wanted: Sequence[int], conf_thres: float, iou_thres: float,
                 max_det: int, nms: str = "standard") -> None:
        self.runtime, self.wanted, self.thresholds = runtime, list(wanted), (conf_thres, iou_thres, max_det)
        self.watch, self.nms, self.dropped, self.cut = Stopwatch(), nms, 0, 0
        self.lanes, self._lock = runtime.lanes, Lock()

    def __call__(self, images: Values) -> list[np.ndarray]:
        """Return boxes [N, 6] (xyxy px of the input, score, class) per image of uint8 [B, 3, H, W]."""
        with self.watch.stage("network", self.lanes):
            predictions = self.runtime.predict(images)
            if self.runtime.device.type == "cuda":
                import torch
                torch.cuda.synchronize()
        with self.watch.stage("boxes and NMS", self.lanes):
            found = detections(predictions, self.runtime.heads, *self.thresholds, classes=self.wanted,
                               multi_label=True, nms=self.nms)
            with self._lock:
                self.dropped, self.cut = self.dropped + found.dropped, self.cut + found.cut
            own = np.full(max(self.wanted) + 1, -1)
            own[self.wanted] = np.arange(len(self.wanted))
            return [np.column_stack((b[:, :5], own[b[:, 5].astype(int)])) for b in found.boxes]


def shares(batches: Iterable, lanes: int) -> Iterator[Images]:
    """Yield each batch in a part for every lane: no more images are computed at a time than without lanes."""
    for batch in batches:
        size = -(-len(batch.indices) // lanes)
        for at in range(0, len(batch.indices), size):
            yield Images(batch.images[at:at + size], batch.indices[at:at + size])


@contextmanager
def one_thread_each(lanes: int) -> Iterator[None]:
    """Let torch compute on one thread in each thread that begins within the block, if there are lanes."""
    if lanes == 1:
        yield
        return
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def collect_detections(batches: Iterable, predict: Callable[[Values], list[Values]],
                       sizes: Sequence[tuple[int, int]], progress: bool = True,
                       poll: Callable[[], object] | None = None, lanes: int = 1,
                       tried: Callable[[], object] = lambda: True) -> np.ndarray:
    """Return detections float64 [D, 7] (image position, xyxy px of the image, score, class) of all batches.

    A batch has images (uint8 [B, 3, H, W], letterboxed) and indices (positions in the data set); predict
    gives [N, 6] (xyxy px of the input, score, class) per image; sizes are (height, width) px by position.
    lanes, tried: batches predicted at a time, and whether the first was, as `side_by_side` takes them.
    """
    parts = [np.zeros((0, 7))]
    with tqdm(total=len(sizes), unit=" images", leave=False, disable=None if progress else True) as bar:
        for batch, found in side_by_side(batches, lambda batch: predict(batch.images), lanes, tried):
            for position, boxes in zip(batch.indices, found, strict=True):
                rows = on_host(boxes).astype(np.float64).reshape(-1, 6)
                geometry = letterbox_geometry(*sizes[position], tuple(batch.images.shape[-2:]))
                rows = scale_back(rows, geometry, *sizes[position])
                parts.append(np.insert(rows, 0, position, axis=1))
            bar.update(len(found))
            if poll is not None:
                poll()
    return np.concatenate(parts)


def evaluate(finder: Finder, dataset: DetectionSet, batches: Iterable, progress: bool = True,
             poll: Callable[[], object] | None = None) -> tuple[Metrics, np.ndarray]:
    """Return the metrics of a pass over the data set's batches, and its detections [D, 7]."""
    coco = dataset.coco
    sizes = [(record.height, record.width) for record in coco.images]
    with one_thread_each(finder.lanes):
        found = collect_detections(shares(batches, finder.lanes), finder, sizes, progress, poll, finder.lanes,
                                   lambda: finder.runtime.proven)
    truth, rows = written(coco, found)
    return evaluate_detections(truth, rows, coco.names, max_det=finder.thresholds[2]), found


def written(coco: CocoSet, found: np.ndarray) -> tuple[dict, np.ndarray]:
    """Return the set's COCO dict as its file has it, and detections [D, 7] at the positions of its images."""
    truth, places = coco.as_written()
    return truth, np.column_stack((places[found[:, 0].astype(int)], found[:, 1:]))


def measure(runtime: Runtime, where: Located, imgsz: int,
            poll: Callable[[], object] | None = None) -> dict[str, float | int]:
    """Return map50, map50_95 and images of a runtime on a set's val split. Raises ModelError, DataError."""
    coco = read_coco(*where.val, names=where.names)
    finder = Finder(runtime, matching_classes(runtime.names, coco.names), *VAL)
    dataset = DetectionSet(coco, imgsz, cache="off")
    metrics, _ = evaluate(finder, dataset, image_batches(dataset, 1, workers=0), progress=False, poll=poll)
    if metrics.map50 is None:
        raise DataError(f"--data {where.source}: its val split has no box, so there is no AP to compare")
    return {"map50": metrics.map50, "map50_95": metrics.map50_95, "pictures": metrics.images}
