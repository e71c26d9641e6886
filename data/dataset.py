"""Clean records to training batches: cached letterboxed pictures, samples that depend on (seed, epoch, index) alone."""
from __future__ import annotations

import os
import signal
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data.augment import Augment, Pipeline, letterbox, letterbox_boxes, mosaic
from data.coco import CocoSet
from data.images import MAX_PIXELS, decode
from utils.boxes import Geometry, letterbox_geometry
from utils.errors import DataError, EnvironmentFault


class Batch(NamedTuple):
    """images uint8 [B, 3, S, S] RGB; targets float32 [N, 6] (image in batch, class, cxcywh normalised); dataset positions."""

    images: Tensor
    targets: Tensor
    indices: list[int]


class DetectionSet(Dataset):
    """Training or evaluation pictures of a CocoSet at one input size.

    `dataset[(epoch, index)]` is (image uint8 [3, S, S], boxes float32 [M, 5] (class, cxcywh normalised), index).
    `augment=None` only letterboxes. Crowd boxes are no targets.
    """

    def __init__(self, coco: CocoSet, imgsz: int, augment: Augment | None = None, seed: int = 0, cache: str = "auto",
                 max_pixels: int = MAX_PIXELS, plain_from: int | None = None) -> None:
        if cache not in ("auto", "ram", "off"):
            raise ValueError(f"cache {cache!r}: needs auto, ram or off")
        self.coco, self.imgsz, self.augment, self.seed, self.cache = coco, imgsz, augment, seed, cache
        self.max_pixels, self.plain_from = max_pixels, plain_from    # epochs from plain_from on have no mosaic
        self.geometry: list[Geometry] = [letterbox_geometry(r.height, r.width, imgsz) for r in coco.images]
        self.boxes = [letterbox_boxes(r.boxes, g, r.height, r.width) for r, g in zip(coco.images, self.geometry)]
        self._pixels: np.ndarray | None = None      # uint8 [N, S, S, 3]; workers inherit it by fork, without a copy
        self._pipeline = Pipeline(augment) if augment is not None and augment != Augment() else None

    def __len__(self) -> int:
        return len(self.coco.images)

    @property
    def cached(self) -> bool:
        """Whether every picture is in RAM."""
        return self._pixels is not None

    def fill_cache(self, progress: bool = True, poll: Callable[[], object] | None = None) -> bool:
        """Whether the pictures are in RAM now. Call it before the loader's workers start.

        "auto" takes at most half of the free RAM, else leaves the cache off; "ram" insists and raises EnvironmentFault
        when it cannot fit. `poll` is called between pictures and may raise to stop.
        """
        need, free = len(self) * self.imgsz ** 2 * 3, available_ram()
        if self.cache == "off" or self.cached or (self.cache == "auto" and need > free / 2):
            return self.cached
        if need > free:
            raise EnvironmentFault(f"--cache ram: {len(self):,} pictures of {self.imgsz} px need {need / 2 ** 30:.1f} GiB, "
                                   f"{free / 2 ** 30:.1f} GiB are free; pass --cache auto or a smaller --imgsz")
        pixels = np.empty((len(self), self.imgsz, self.imgsz, 3), np.uint8)

        def fill(index: int) -> None:
            pixels[index] = self._letterboxed(index)

        pool = ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1)))
        try:
            for _ in _bar(pool.map(fill, range(len(self))), len(self), progress):
                if poll is not None:
                    poll()
        finally:
            pool.shutdown(cancel_futures=True)
        self._pixels = pixels
        return True

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        epoch, index = key
        image, boxes = self.sample(epoch, index)
        low, high = boxes[:, 1:3], boxes[:, 3:5]
        rows = np.concatenate((boxes[:, :1], (low + high) / (2 * self.imgsz), (high - low) / self.imgsz), 1)
        # a view: memory stays [S, S, 3], which collate joins to channels_last without touching a pixel twice
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(rows.astype(np.float32)), index

    def sample(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The picture uint8 [S, S, 3] RGB and its boxes [M, 5] (class, xyxy px), a function of (seed, epoch, index)."""
        if self._pipeline is None:
            return self._letterboxed(index), self.boxes[index]
        rng = np.random.default_rng((self.seed, epoch, index))
        whole = self.plain_from is not None and epoch >= self.plain_from
        if rng.random() < self.augment.mosaic and not whole:
            others = rng.integers(0, len(self), 3)
            image, boxes = mosaic([self._content(int(i)) for i in (index, *others)], self.imgsz, rng)
        else:
            image, boxes = self._letterboxed(index), self.boxes[index]
        return self._pipeline(image, boxes, rng)

    def _letterboxed(self, index: int) -> np.ndarray:
        """The letterboxed picture uint8 [S, S, 3], from RAM or from its file."""
        if self._pixels is not None:
            return self._pixels[index]
        record = self.coco.images[index]
        picture = decode(record.path, self.max_pixels)
        if picture.shape[:2] != (record.height, record.width):
            raise DataError(f"{record.path}: is {picture.shape[1]}x{picture.shape[0]} now, was {record.width}x"
                            f"{record.height} when the data set was read; start again with the files at rest")
        return letterbox(picture, self.imgsz)[0]

    def _content(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The letterboxed picture without its padding [h, w, 3], and its boxes [M, 5] in px of that."""
        _, left, top, width, height = self.geometry[index]
        boxes = self.boxes[index] - np.array((0, left, top, left, top), np.float32)
        return self._letterboxed(index)[top:top + height, left:left + width], boxes


class EpochSampler(Sampler):
    """Lists of (epoch, index): the batches of one rank, a function of (seed, epoch) and the global batch alone.

    Global batch b is the same for every number of ranks; rank r takes the r-th block of it. A last batch that does not
    divide evenly is filled from the epoch's beginning, so that every rank takes the same number of steps of the same size.
    """

    def __init__(self, length: int, batch_size: int, *, seed: int = 0, shuffle: bool = True, rank: int = 0,
                 world: int = 1, drop_last: bool = False) -> None:
        if length < 1 or batch_size < 1 or not 0 <= rank < world:
            raise ValueError(f"{length} pictures in batches of {batch_size}, rank {rank} of {world}: "
                             "needs 1 or more of each, and a rank below the number of processes")
        self.length, self.batch_size, self.seed, self.shuffle = length, batch_size, seed, shuffle
        self.rank, self.world, self.drop_last = rank, world, drop_last
        self.epoch = self.start_batch = 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Chooses the epoch that the next pass yields, from batch `start_batch` on (a resumed epoch)."""
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        whole = self.batch_size * self.world
        return max(1, self.length // whole) if self.drop_last else -(-self.length // whole)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, first = self.epoch, self.start_batch
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        whole = self.batch_size * self.world
        for b in range(first, len(self)):
            rows = order[b * whole:(b + 1) * whole]
            missing = -len(rows) % self.world
            rows = np.concatenate((rows, np.resize(order, missing)))
            share = len(rows) // self.world
            yield [(epoch, int(i)) for i in rows[self.rank * share:(self.rank + 1) * share]]


class Loader(DataLoader):
    """A DataLoader whose failures are sentences: a dead worker is an EnvironmentFault, a bad picture a DataError."""

    _ending: weakref.finalize | None = None

    def __iter__(self) -> Iterator[Batch]:
        try:
            steps = super().__iter__()
            if self.num_workers and self._ending is None:
                # before multiprocessing's own exit, which would wait for ever for workers that ignore SIGTERM
                self._ending = weakref.finalize(self, steps._shutdown_workers)
            yield from steps
        except DataError as error:
            raise DataError(str(error).strip().rsplit("DataError: ", 1)[-1]) from None
        except RuntimeError as error:
            raise worker_fault(error, self.num_workers) or error from None

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """See EpochSampler.set_epoch."""
        self.batch_sampler.set_epoch(epoch, start_batch)


def worker_fault(error: RuntimeError, workers: int) -> EnvironmentFault | None:
    """What the death of a loader process means, or None when the error is another one."""
    text = str(error)
    if "DataLoader worker" not in text and "shared memory" not in text:
        return None
    cause = "the shared memory in /dev/shm is full" if "us error" in text or "shared memory" in text else \
        "it was killed, most often by the kernel for want of memory" if "Killed" in text or "exited unexpectedly" in text \
        else "it ended without being asked to"
    return EnvironmentFault(f"a loader process died ({text.splitlines()[0]}): {cause}; "
                            f"run again with fewer --workers (now {workers}; 0 loads in the main process) or --cache off")


def make_loader(dataset: DetectionSet, batch_size: int, *, seed: int = 0, shuffle: bool = True, workers: int = 0,
                rank: int = 0, world: int = 1, drop_last: bool = False, pin_memory: bool = False) -> Loader:
    """A loader of Batches with an EpochSampler; `batch_size` counts the pictures of this rank."""
    sampler = EpochSampler(len(dataset), batch_size, seed=seed, shuffle=shuffle, rank=rank, world=world, drop_last=drop_last)
    extra: dict[str, Any] = {}
    if workers > 0:                # fork: workers share the cached pictures with this process
        extra = {"persistent_workers": True, "prefetch_factor": 4, "multiprocessing_context": "fork",
                 "worker_init_fn": _start_worker}
    return Loader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate, pin_memory=pin_memory, **extra)


def collate(samples: list[tuple[Tensor, Tensor, int]]) -> Batch:
    """The samples as one Batch; images lie in memory as channels_last, the layout networks run fastest in."""
    images = torch.stack([image.permute(1, 2, 0) for image, _, _ in samples]).permute(0, 3, 1, 2)
    numbers = torch.repeat_interleave(torch.arange(len(samples)), torch.tensor([len(boxes) for _, boxes, _ in samples]))
    targets = torch.cat((numbers[:, None].float(), torch.cat([boxes for _, boxes, _ in samples])), 1)
    return Batch(images, targets, [index for _, _, index in samples])


def _start_worker(_: int) -> None:
    """Sets a loader process up: one thread, and signals left to the parent, which finishes its step first.

    A second SIGTERM ends the worker: Python itself sends one when the parent is leaving.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def available_ram() -> int:
    """Bytes of RAM free for this process, a container's limit included; 2 GiB where the system does not say."""
    free = [2 ** 31]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")] or free
        limit, used = (Path("/sys/fs/cgroup", name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit != "max":
            free.append(int(limit) - int(used))
    except (OSError, ValueError):
        pass
    return max(0, min(free))


def _bar(steps: Iterator, total: int, progress: bool) -> Iterator:
    """The steps, with a progress bar when wanted."""
    if not progress:
        return steps
    from tqdm import tqdm
    return tqdm(steps, total=total, desc="caching pictures", unit="img", leave=False)
