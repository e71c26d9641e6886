"""Batches in an order that depends on (seed, epoch) alone, by processes whose failures are sentences."""
from __future__ import annotations

import signal
import weakref
from collections.abc import Iterator, Sequence
from threading import current_thread, main_thread
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.errors import DataError, EnvironmentFault


class Batch(NamedTuple):
    """Images uint8 [B, 3, S, S] RGB, their targets, and their positions in the data set."""

    images: Tensor
    targets: Tensor                # float32 [M, 6] (image in batch, class, cxcywh normalised); class -1:
    #                                the image has no ground truth
    indices: list[int]


class EpochSampler(Sampler):
    """Batches of one rank as lists of (epoch, index), a function of (seed, epoch) and the global batch alone.

    Rank r takes the r-th block; a last batch that does not divide evenly is filled from the beginning. part:
    images of an epoch, the next ones of passes over the whole set (None: all).
    """

    def __init__(self, length: int, batch_size: int, *, seed: int = 0, shuffle: bool = True, rank: int = 0,
                 world: int = 1, drop_last: bool = False, part: int | None = None) -> None:
        if length < 1 or batch_size < 1 or not 0 <= rank < world:
            raise ValueError(f"{length} images in batches of {batch_size}, rank {rank} of {world}: "
                             "needs 1 or more of each, and a rank below the number of processes")
        self.images, self.batch_size, self.seed, self.shuffle = length, batch_size, seed, shuffle
        self.length = min(length, part or length)
        self.rank, self.world, self.drop_last = rank, world, drop_last
        self.epoch = self.start_batch = 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch that the next pass yields, from batch `start_batch` on (a resumed epoch)."""
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        whole = self.batch_size * self.world
        return max(1, self.length // whole) if self.drop_last else -(-self.length // whole)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = self.epoch, np.arange(self.length)
        if self.shuffle:                           # epochs go on through passes over the whole set
            passed, at = divmod(epoch * self.length, self.images)
            passes = range(passed, passed + -(-(at + self.length) // self.images))
            order = np.concatenate([np.random.default_rng((self.seed, number)).permutation(self.images)
                                    for number in passes])[at:at + self.length]
        whole = self.batch_size * self.world
        for b in range(self.start_batch, len(self)):
            rows = order[b * whole:(b + 1) * whole]
            rows = np.concatenate((rows, np.resize(order, -len(rows) % self.world)))
            share = len(rows) // self.world
            yield [(epoch, int(i)) for i in rows[self.rank * share:(self.rank + 1) * share]]


class Loader(DataLoader):
    """A DataLoader that fails in sentences: EnvironmentFault for a dead worker, DataError for an image."""

    _ending: weakref.finalize | None = None

    def __iter__(self) -> Iterator[Batch]:
        steps = self._start()
        try:
            yield from steps
        except DataError as error:
            raise DataError(str(error).strip().rsplit("DataError: ", 1)[-1]) from None
        except (RuntimeError, OSError, EOFError) as error:     # a dying worker also breaks its pipe
            workers = getattr(steps, "_workers", ())
            for worker in workers:
                worker.join(0.2)           # one that is just dying has no code yet
            codes = [worker.exitcode for worker in workers if worker.exitcode]
            self.close()
            raise worker_fault(error, self.num_workers, codes) or error from None

    def close(self) -> None:
        """End the loader's processes; the next pass starts new ones."""
        if self._ending is not None:
            self._ending()
            self._ending = self._iterator = None

    def _start(self) -> Iterator[Batch]:
        """Start a pass over the batches, by new workers or by those of the last pass."""
        if self._ending is not None or not self.num_workers or current_thread() is not main_thread():
            return super().__iter__()
        # torch's SIGCHLD handler raises wherever the main thread is, amid a checkpoint too; without it a dead
        # worker is found by the next wait for a batch, at most five seconds later
        before = signal.getsignal(signal.SIGCHLD)
        steps = super().__iter__()
        signal.signal(signal.SIGCHLD, before)
        # before multiprocessing's own exit, which waits for ever for workers that leave SIGTERM to the parent
        self._ending = weakref.finalize(self, steps._shutdown_workers)
        return steps

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the epoch, as the sampler does."""
        self.batch_sampler.set_epoch(epoch, start_batch)


def worker_fault(error: Exception, workers: int, codes: Sequence[int] = ()) -> EnvironmentFault | None:
    """Return what the death of a loader process means (codes: -9 for SIGKILL); None for another error."""
    text = str(error)
    full = any(sign in text for sign in ("us error", "shared memory", "</torch_"))
    if not codes and not full and "DataLoader worker (pid" not in text:
        return None
    cause = "it ended without being asked to"
    if -signal.SIGBUS in codes or full:
        cause = "the shared memory in /dev/shm is full"
    elif -signal.SIGKILL in codes or "Killed" in text:
        cause = "it was killed, most often by the kernel for want of memory"
    first = (text.splitlines() or [type(error).__name__])[0]
    return EnvironmentFault(f"a loader process died ({first}): {cause}; run again with fewer "
                            f"--workers (now {workers}; 0 loads in the main process) or --cache off")


def make_loader(dataset: Dataset, batch_size: int, *, seed: int = 0, shuffle: bool = True, workers: int = 0,
                rank: int = 0, world: int = 1, drop_last: bool = False, pin_memory: bool = False,
                part: int | None = None) -> Loader:
    """Return a loader of Batches with an EpochSampler; `batch_size` counts the images of this rank."""
    sampler = EpochSampler(len(dataset), batch_size, seed=seed, shuffle=shuffle, rank=rank, world=world,
                           drop_last=drop_last, part=part)
    extra: dict[str, Any] = {}
    if workers > 0:                # fork: workers share the cached images with this process
        extra = {"persistent_workers": True, "prefetch_factor": 4, "multiprocessing_context": "fork",
                 "worker_init_fn": _start_worker}
    return Loader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate,
                  pin_memory=pin_memory, **extra)


def collate(samples: list[tuple[Tensor, Tensor, int]]) -> Batch:
    """Join samples into one Batch; images lie in memory as channels_last, in which networks run fastest."""
    images = torch.stack([image.permute(1, 2, 0) for image, _, _ in samples]).permute(0, 3, 1, 2)
    counts = torch.tensor([len(boxes) for _, boxes, _ in samples])
    numbers = torch.repeat_interleave(torch.arange(len(samples)), counts)
    targets = torch.cat((numbers[:, None].float(), torch.cat([boxes for _, boxes, _ in samples])), 1)
    return Batch(images, targets, [index for _, _, index in samples])


def _start_worker(_: int) -> None:
    """Set a loader process up: one thread, and signals left to the parent, which finishes its step first."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # the second one ends the worker: Python itself sends it when the parent is leaving
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
