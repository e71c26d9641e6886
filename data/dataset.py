"""Clean records to samples: letterboxed images, cached, a function of (seed, epoch, index) alone."""
from __future__ import annotations

import copy
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.augment import Augment, Pipeline, letterbox, letterbox_boxes, mix, mosaic
from data.coco.read import CocoSet
from data.images import MAX_PIXELS, decode_small
from utils.boxes import Geometry, letterbox_geometry
from utils.errors import DataError, EnvironmentFault

if TYPE_CHECKING:
    from torch import Tensor


class DetectionSet:
    """Training or evaluation images of a CocoSet at one input size. Torch is loaded for its tensors alone.

    `dataset[(epoch, index)]` is (image uint8 [3, S, S], boxes float32 [M, 5] (class, cxcywh normalised),
    index). Epochs from `plain_from` on have no mosaic; crowds are no target. An image without ground truth
    has one row of class -1, and is joined by mosaic and mixup with others of its kind alone.
    """

    def __init__(self, coco: CocoSet, imgsz: int, augment: Augment | None = None, seed: int = 0,
                 cache: str = "auto", max_pixels: int = MAX_PIXELS, plain_from: int | None = None,
                 fast_jpeg: bool = False) -> None:
        if cache not in ("auto", "ram", "off"):
            raise ValueError(f"cache {cache!r}: needs auto, ram or off")
        self.coco, self.imgsz, self.augment, self.seed, self.cache = coco, imgsz, augment, seed, cache
        self.max_pixels, self.plain_from, self.fast_jpeg = max_pixels, plain_from, fast_jpeg
        records = coco.records
        self.geometry: list[Geometry] = [letterbox_geometry(r.height, r.width, imgsz) for r in records]
        self.boxes = [letterbox_boxes(r.boxes, g, r.height, r.width) for r, g in zip(records, self.geometry)]
        self._pixels: np.ndarray | None = None      # uint8 [N, S, S, 3], inherited by workers without a copy
        self._pipeline = Pipeline(augment) if augment is not None and augment != Augment() else None

    def __len__(self) -> int:
        return len(self.geometry)

    @property
    def cached(self) -> bool:
        """Return whether every image is in RAM."""
        return self._pixels is not None

    def for_run(self, seed: int, plain_from: int | None) -> DetectionSet:
        """Return the same images, sharing what is in RAM, in another run's order and variety."""
        other = copy.copy(self)
        other.seed, other.plain_from = seed, plain_from
        return other

    def fill_cache(self, progress: bool = True, poll: Callable[[], object] | None = None) -> bool:
        """Load images into RAM before workers start ("auto": half of it at most); return whether they fit."""
        if self._pipeline is not None:
            self._pipeline.build()
        need, free = len(self) * self.imgsz ** 2 * 3, available_ram()
        if self.cache == "off" or self.cached or (self.cache == "auto" and need > free / 2):
            return self.cached
        if need > free:
            raise EnvironmentFault(
                f"--cache ram: {len(self):,} images of {self.imgsz} px need {need / 2 ** 30:.1f} GiB, "
                f"{free / 2 ** 30:.1f} GiB are free; pass --cache auto or a smaller --imgsz")
        pixels = np.empty((len(self), self.imgsz, self.imgsz, 3), np.uint8)

        def fill(index: int) -> None:
            pixels[index] = self.plain(index)

        pool = ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1)))
        try:
            steps = pool.map(fill, range(len(self)))
            if progress:
                from tqdm import tqdm
                steps = tqdm(steps, total=len(self), desc="caching images", unit="img", leave=False)
            for _ in steps:
                if poll is not None:
                    poll()
        finally:
            pool.shutdown(cancel_futures=True)
        self._pixels = pixels
        return True

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        epoch, index = key
        return self._tensors(*self.sample(epoch, index), index)

    def unvaried(self, index: int) -> tuple[Tensor, Tensor, int]:
        """Return a sample as indexing gives it, of the image as it is."""
        return self._tensors(self.plain(index), self.boxes[index], index)

    def _tensors(self, image: np.ndarray, boxes: np.ndarray, index: int) -> tuple[Tensor, Tensor, int]:
        import torch
        low, high = boxes[:, 1:3], boxes[:, 3:5]
        rows = np.concatenate((boxes[:, :1], (low + high) / (2 * self.imgsz), (high - low) / self.imgsz), 1)
        if index >= len(self.coco.images):
            rows = np.array(((-1, 0, 0, 0, 0),))
        # a view: memory stays [S, S, 3], which collate joins to channels_last without touching a pixel twice
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(rows.astype(np.float32)), index

    def sample(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the image uint8 [S, S, 3] RGB and its boxes [M, 5] (class, xyxy px) in this epoch."""
        if self._pipeline is None:
            return self.plain(index), self.boxes[index]
        rng = np.random.default_rng((self.seed, epoch, index))
        whole = self.plain_from is not None and epoch >= self.plain_from
        if rng.random() < self.augment.mosaic and not whole:
            others = rng.integers(*self._kin(index), 3)
            image, boxes = mosaic([self._content(int(i)) for i in (index, *others)], self.imgsz, rng)
        else:
            image, boxes = self.plain(index), self.boxes[index]
        if self.augment.mixup and not whole and rng.random() < self.augment.mixup:
            other = int(rng.integers(*self._kin(index)))
            image = mix(image, self.plain(other), rng.beta(8, 8))
            boxes = np.concatenate((boxes, self.boxes[other]))
        return self._pipeline(image, boxes, rng)

    def plain(self, index: int) -> np.ndarray:
        """Return the letterboxed image uint8 [S, S, 3], from RAM or from its file."""
        if self._pixels is not None:
            return self._pixels[index]
        record = self.coco.records[index]
        image, (height, width) = decode_small(record.path, self.imgsz * self.fast_jpeg, self.max_pixels)
        if (height, width) != (record.height, record.width):
            raise DataError(f"{record.path}: is {width}x{height} now, was {record.width}x"
                            f"{record.height} when the data set was read; start again with the files at rest")
        return letterbox(image, self.imgsz)[0]

    def _kin(self, index: int) -> tuple[int, int]:
        """Return the first and the end of the images that have ground truth, or none, as this one."""
        labelled = len(self.coco.images)
        return (0, labelled) if index < labelled else (labelled, len(self))

    def _content(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the letterboxed image without its padding [h, w, 3], and its boxes [M, 5] in px of that."""
        _, left, top, width, height = self.geometry[index]
        boxes = self.boxes[index] - np.array((0, left, top, left, top), np.float32)
        return self.plain(index)[top:top + height, left:left + width], boxes


def available_ram() -> int:
    """Return the bytes of RAM free here, minding a container's limit; 2 GiB where the system is silent."""
    free = [2 ** 31]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")] or free
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            files = int(used["active_file"]) + int(used["inactive_file"])   # given back when memory is wanted
            free.append(int(limit) + files - int((group / "memory.current").read_text()))
    except (OSError, ValueError, KeyError):
        pass
    return max(0, min(free))
