"""One pass of a detector over a data set, its boxes brought back to the photos."""
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from utils.boxes import letterbox_geometry, scale_back

if TYPE_CHECKING:
    from torch import Tensor


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


class Stopwatch:
    """Seconds spent in named stages, added up over many calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, stage: str, work: Callable) -> Callable:
        """The same function, its time counted under `stage`. A GPU's work must be waited for inside it."""
        def wrapped(*arguments: object) -> object:
            start = time.perf_counter()
            try:
                return work(*arguments)
            finally:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
        return wrapped

    def waits(self, stage: str, items: Iterable) -> Iterable:
        """The same items, the time until each is there counted under `stage`."""
        iterator = iter(items)
        step = self.timed(stage, lambda: next(iterator, self))
        while (item := step()) is not self:
            yield item


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
