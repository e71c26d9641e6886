"""One pass of a detector over a data set, its boxes brought back to the photos."""
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from utils.boxes import letterbox_geometry, scale_back
from utils.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from detection.detector import Runs


def collect_detections(batches: Iterable, predict: Callable[[Tensor], list[Tensor]],
                       sizes: Sequence[tuple[int, int]], progress: bool = True,
                       poll: Callable[[], object] | None = None) -> np.ndarray:
    """Detections float64 [D, 7] (image position, xyxy px of the photo, score, class) of all `batches`.

    A batch has images (uint8 [B, 3, H, W], letterboxed) and indices (positions in the data set); predict
    gives a tensor [N, 6] (xyxy px of the input, score, class) a picture; sizes is (height, width) px of
    each photo by position. `poll` is called after each batch: it ends the pass by raising.
    """
    parts = [np.zeros((0, 7))]
    bar = _Bar(len(sizes), progress)
    for batch in batches:
        found = predict(batch.images)
        for position, boxes in zip(batch.indices, found, strict=True):
            rows = boxes.detach().cpu().double().numpy().reshape(-1, 6)
            height, width = sizes[position]
            geometry = letterbox_geometry(height, width, tuple(batch.images.shape[-2:]))
            rows = scale_back(rows, geometry, height, width)
            parts.append(np.concatenate((np.full((len(rows), 1), float(position)), rows), 1))
        bar.step(len(found))
        if poll is not None:
            poll()
    bar.close()
    return np.concatenate(parts)


def matching_classes(model: Sequence[str], data: Sequence[str]) -> list[int]:
    """The model's class for each class of the data set, by name; case does not matter.

    Raises ModelError with both lists where a name is unknown to the model or fits two classes of the data
    set.
    """
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

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time of a `with` block under `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def waits(self, name: str, items: Iterable) -> Iterator:
        """The same items, the time until each is there counted under `name`."""
        iterator = iter(items)
        while True:
            with self.stage(name):
                item = next(iterator, self)
            if item is self:
                return
            yield item


class Finder:
    """What collect_detections calls: the network, then boxes and NMS, in the data set's classes, each timed.

    `runtime` has predict, heads, names and device; `decode` is `detections`; `wanted` is the
    model's class for each of the data set's. `dropped` counts the boxes the decoder refused as absurd or
    non-finite.
    """

    def __init__(self, runtime: Runs, decode: Callable, wanted: Sequence[int], conf_thres: float,
                 iou_thres: float, max_det: int) -> None:
        self.runtime, self.decode, self.wanted = runtime, decode, list(wanted)
        self.thresholds = conf_thres, iou_thres, max_det
        self.watch, self.dropped = Stopwatch(), 0

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Boxes [N, 6] (xyxy px of the input, score, class) of each picture in uint8 [B, 3, H, W]."""
        import torch
        with self.watch.stage("network"):
            maps = self.runtime.predict(images)
            if self.runtime.device.type == "cuda":
                torch.cuda.synchronize()
        with self.watch.stage("boxes and NMS"):
            found = self.decode(maps, self.runtime.heads, *self.thresholds, classes=self.wanted,
                                multi_label=True)
            self.dropped += found.dropped
            own = torch.full((max(self.wanted) + 1,), -1.0)
            own[self.wanted] = torch.arange(len(self.wanted), dtype=torch.float32)
            boxes = [b.cpu() for b in found.boxes]
            return [torch.cat((b[:, :5], own[b[:, 5].long()][:, None]), 1) for b in boxes]


class _Bar:
    """Pictures done, rate and time left on stderr: in place on a terminal, silent elsewhere."""

    def __init__(self, total: int, wanted: bool) -> None:
        self.total, self.done, self.start = total, 0, time.monotonic()
        self.wanted = wanted and sys.stderr.isatty()

    def step(self, count: int) -> None:
        """Counts `count` more pictures."""
        self.done += count
        if self.wanted:
            rate = self.done / max(time.monotonic() - self.start, 1e-9)
            left = max(0, self.total - self.done) / rate
            clock = f"{int(left) // 60}:{int(left) % 60:02}"
            text = f"\r  {self.done}/{self.total} pictures  {rate:.1f}/s  {clock} left "
            print(text, end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clears the line."""
        if self.wanted:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
