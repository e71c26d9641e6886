"""From frames to boxes in px of the photos; network, decoding and letterbox are given. Time and refuse are
counted."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from detection.video import Frame
from utils.boxes import Geometry, scale_back
from utils.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Batch(NamedTuple):
    """Frames, where each lies in the network's input, and that input, uint8 [B, 3, S, S]."""

    frames: list[Frame]
    places: list[Geometry]
    images: "Tensor"


class Runs(Protocol):
    """What is asked of a runtime (deploy.runtimes.runtime)."""

    device: "torch.device"
    precision: str
    note: str

    def predict(self, images: "Tensor") -> list["Tensor"]:
        """Raw maps of uint8 pictures [B, 3, H, W]."""


class Detector:
    """Pictures in, boxes out. `find(runtime, maps)` decodes raw maps to (boxes, how many cells were dropped).

    Where half precision gives non-finite or absurd numbers, `exact()` makes an fp32 runtime, which repeats
    that batch and stays. `seconds` adds up the network's time, `dropped` the cells left out. The first batch
    takes the whole way once before the clock starts, unless another was given to `warm_up` for that.
    """

    def __init__(self, runtime: Runs, find: Callable[[Runs, list["Tensor"]], tuple[list["Tensor"], int]],
                 exact: Callable[[], Runs]) -> None:
        self.runtime, self._find, self._exact = runtime, find, exact
        self.seconds, self.dropped, self._start = 0.0, 0, 0.0
        self._notes: list[str] = []
        self._tried = self._warm = False

    def warm_up(self, images: "Tensor") -> None:
        """Takes the whole way once, uncounted: a first pass plans its kernels and imports what it needs."""
        self._find(self.runtime, self._timed(images)[0])
        self._warm = True

    def __call__(self, images: "Tensor") -> list[np.ndarray]:
        """Boxes [N, 6] (xyxy px of the input, score, class; best first) of each picture of [B, 3, H, W]
        uint8."""
        if not self._start:
            if not self._warm:                             # a live frame would be a pass old by then
                self.warm_up(images)
            self._start = time.perf_counter()
        maps, seconds = self._timed(images)
        self.seconds += seconds
        boxes, dropped = self._find(self.runtime, maps)
        if dropped and self.runtime.precision != "fp32" and not self._tried:
            self._tried, exact = True, self._exact()
            if exact.precision == "fp32":                  # a file in int8 stays what it is
                self._notes.append(f"{self.runtime.precision} gave {dropped} non-finite or absurd boxes: "
                                   "that batch was repeated, and the rest done, in fp32")
                self.runtime = exact
                return self(images)
        self.dropped += dropped
        return [found.cpu().numpy() for found in boxes]

    def _timed(self, images: "Tensor") -> tuple[list["Tensor"], float]:
        """The raw maps, and the seconds the network alone took for them; a GPU is waited for."""
        start = time.perf_counter()
        maps = self.runtime.predict(images)
        if self.runtime.device.type == "cuda":
            import torch
            torch.cuda.synchronize(self.runtime.device)
        return maps, time.perf_counter() - start

    def since_start(self) -> float:
        """Seconds since the first batch began, after its trial pass; 0 before."""
        return time.perf_counter() - self._start if self._start else 0.0

    @property
    def notes(self) -> list[str]:
        """What the user should know of the precision, in sentences."""
        return [note for note in (*self._notes, self.runtime.note) if note]

    def alone(self, images: "Tensor", seconds: float = 1.0, most: int = 50) -> float:
        """Pictures a second of the bare network while nothing else runs: the median of up to `most`
        passes."""
        times: list[float] = []
        while len(times) < 3 or len(times) < most and sum(times) < seconds:
            times.append(self._timed(images)[1])
        return len(images) / float(np.median(times))


def batches(frames: Iterable[Frame], fit: Callable[[np.ndarray], tuple[np.ndarray, Geometry]],
            count: int) -> Iterator[Batch]:
    """The frames, `count` at a time; `fit` letterboxes a picture [H, W, 3] to [S, S, 3] and says where it
    lies there."""
    held: list[Frame] = []
    fitted: list[tuple[np.ndarray, Geometry]] = []
    for frame in frames:
        held.append(frame)
        fitted.append(fit(frame.image))
        if len(held) == count:
            yield _batch(held, fitted)
            held, fitted = [], []
    if held:
        yield _batch(held, fitted)


def batch_of(frames: list[Frame], fit: Callable[[np.ndarray], tuple[np.ndarray, Geometry]]) -> Batch:
    """One batch of all the frames, which may differ in size; `fit` as in `batches`."""
    return _batch(frames, [fit(frame.image) for frame in frames])


def _batch(frames: list[Frame], fitted: list[tuple[np.ndarray, Geometry]]) -> Batch:
    import torch
    images = torch.from_numpy(np.stack([image for image, _ in fitted])).permute(0, 3, 1, 2)
    return Batch(frames, [place for _, place in fitted], images)       # channels_last without a copy


def follow(reader: Iterable[Batch], detector: Detector,
           put: Callable[[tuple[Frame, np.ndarray, float]], None],
           go_on: Callable[[], bool]) -> "Tensor | None":
    """The first batch's images (None: there was none), once every frame went to `put` with its boxes [N, 6]
    (xyxy px of the photo, score, class) and the network's ms for it; ends early when `go_on()` is false."""
    first = None
    for batch in reader:
        first = batch.images if first is None else first
        before = detector.seconds
        found = detector(batch.images)
        ms = 1000 * (detector.seconds - before) / len(found)
        for frame, place, boxes in zip(batch.frames, batch.places, found):
            put((frame, scale_back(boxes, place, *frame.image.shape[:2]), ms))
        if not go_on():
            break
    return first


def class_indices(wanted: Sequence[str] | None, names: Sequence[str]) -> list[int] | None:
    """The class numbers of names or numbers, ascending; None for None. Raises UsageError with the list of
    classes."""
    if wanted is None:
        return None
    number = {str(index): index for index in range(len(names))}
    number |= {name: index for index, name in enumerate(names)}        # a name that is a number goes first
    unknown = [word for word in wanted if word not in number]
    if unknown:
        known = ", ".join(f"{index} {name}" for index, name in enumerate(names))
        raise UsageError(f"--classes {' '.join(unknown)}: this network does not know "
                         f"{'it' if len(unknown) == 1 else 'them'}; give names or numbers of: {known}")
    return sorted({number[word] for word in wanted})
