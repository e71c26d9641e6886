"""From frames to boxes in px of the images; the network's time and the cells it left out are counted."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from threading import RLock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data.augment import letterbox
from detection.threads import side_by_side
from detection.video import Frame
from detection.yuv import Yuv
from utils.boxes import Geometry, scale_back
from utils.errors import UsageError

if TYPE_CHECKING:
    from deploy.runtimes.runtime import Runtime as Runs
    from models.heads.nms import Found
    from utils.boxes import Values

LANED = ("onnx", "openvino")                  # formats whose runtime takes calls side by side
Fit = Callable[["np.ndarray | Yuv"], tuple[np.ndarray, Geometry]]      # as Detector.fit


@dataclass(frozen=True)
class NetworkConfig:
    """The network to run and how: detect.py's flags of these names."""

    weights: str
    imgsz: int | None
    device: str
    half: bool
    fp32: bool
    threads: int
    conf_thres: float
    iou_thres: float
    max_det: int
    classes: Sequence[str] | None
    max_pixels: int
    nms: str
    model_cache: str | None = field(default=None, kw_only=True)


class Batch(NamedTuple):
    """Frames, where each lies in the network's input, and that input, uint8 [B, 3, S, S]."""

    frames: list[Frame]
    places: Sequence[Geometry]
    images: np.ndarray


class Detector:
    """Images in, boxes out. `find(runtime, outputs)` decodes head outputs.

    Where half precision gives non-finite or absurd numbers, `exact()` makes an fp32 runtime, which repeats
    that batch and stays. `seconds` adds up the network's time, `dropped` the cells left out. `size` is the
    input's side in px; the thresholds "conf" and "iou" in `limits` may change between calls. `lanes`: calls
    that `through` makes at a time, each on its share of the threads; `whole()`: a runtime on all of them.
    """

    def __init__(self, runtime: "Runs", find: "Callable[[Runs, list[Values]], Found]",
                 exact: "Callable[[], Runs]", size: int = 0, limits: dict[str, float] | None = None,
                 lanes: int = 1, whole: "Callable[[], Runs] | None" = None) -> None:
        self.runtime, self._find, self.size, self.limits = runtime, find, size, limits
        self.lanes, self._whole, self._lock = lanes, whole, RLock()
        self._exact: Callable[[], Runs] | None = exact     # None: it was tried
        self.seconds, self.dropped, self.cut, self._start = 0.0, 0, 0, 0.0
        self._note, self._warm = "", False

    def fit(self, image: np.ndarray | Yuv) -> tuple[np.ndarray, Geometry]:
        """Letterbox an image [H, W, 3] to [S, S, 3] RGB, and say where it lies there."""
        return image.letterbox(self.size) if isinstance(image, Yuv) else letterbox(image, self.size)

    def warm_up(self, images: np.ndarray) -> None:
        """Take the whole way once, uncounted: a first pass plans its kernels and imports what it needs."""
        self._find(self.runtime, self._timed(images)[0])
        self._warm = True

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Return boxes [N, 6] (xyxy px of the input, score, class; best first) of each of [B, 3, H, W]."""
        return self._call(images)[0]

    def through(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, list[np.ndarray], float]]:
        """Yield each batch with its boxes and the network's seconds, in order; lanes work side by side."""
        done = side_by_side(batches, lambda batch: self._call(batch.images), self.lanes, lambda: self._start)
        yield from ((batch, *found) for batch, found in done)

    def _call(self, images: np.ndarray) -> tuple[list[np.ndarray], float]:
        """Return the boxes of a call and the network's seconds, a lane's share."""
        if not self._start:
            if not self._warm:                             # a live frame would be a pass old by then
                self.warm_up(images)
            self._start = time.perf_counter()
        outputs, seconds = self._timed(images)
        boxes, dropped, cut = self._find(self.runtime, outputs)
        with self._lock:
            self.seconds += seconds / self.lanes
            if dropped and self.runtime.precision != "fp32" and self._exact is not None:
                exact, self._exact = self._exact(), None
                if exact.precision == "fp32":              # a file in int8 stays what it is
                    self._note = (f"{self.runtime.precision} gave {dropped} non-finite or absurd boxes: "
                                  "that batch was repeated, and the rest done, in fp32")
                    self.runtime = exact
                    return self._call(images)
            self.dropped, self.cut = self.dropped + dropped, self.cut + cut
        return boxes, seconds / self.lanes

    def _timed(self, images: np.ndarray) -> "tuple[list[Values], float]":
        """Return the head outputs and the seconds the network alone took for them; a GPU is waited for."""
        start, runtime = time.perf_counter(), self.runtime
        outputs = runtime.predict(images)
        if runtime.device.type == "cuda":
            import torch
            torch.cuda.synchronize(runtime.device)
        return outputs, time.perf_counter() - start

    def since_start(self) -> float:
        """Return the seconds since the first batch began, after its trial pass; 0 before."""
        return time.perf_counter() - self._start if self._start else 0.0

    @property
    def notes(self) -> list[str]:
        """What the user should know of precision and NMS, in sentences."""
        cut = f"{self.cut} boxes were too many for NMS and left out: raise --conf-thres" if self.cut else ""
        return [note for note in (self._note, self.runtime.note, cut) if note]

    def alone(self, images: np.ndarray, seconds: float = 0.3, most: int = 50) -> float:
        """Return the images per second of the bare network on all threads, one pass after another.

        Of up to `most` passes the median counts. Nothing is detected behind it: the lanes' network is let go.
        """
        if self._whole:
            self.runtime = None                            # two at a time would be the peak of a run's memory
            self.runtime, self.lanes, self._whole = self._whole(), 1, None
        times: list[float] = []
        while len(times) < 3 or len(times) < most and sum(times) < seconds:
            times.append(self._timed(images)[1])
        return len(images) / float(np.median(times))


def make_detector(config: NetworkConfig, weights: str, many: bool = False) -> Detector:
    """Return the network of `weights` on the device and in the precision that `config` asks for.

    many: images are not waited for one by one, so each thread may take its own where the runtime allows it.
    """
    from deploy.artifact import format_of, needs_torch
    from deploy.runtimes.runtime import load_runtime
    from models.heads.nms import detections
    from utils.runs import pick_device
    device = pick_device(config.device, needs_torch(weights))
    precision = "half" if config.half else "fp32" if config.fp32 else "auto"
    lanes = config.threads if many and format_of(weights) in LANED and device.type == "cpu" else 1

    def load(precision: str = precision, threads: int = config.threads) -> "Runs":
        return load_runtime(weights, device, precision, threads, kept=config.model_cache)
    runtime = load(threads=config.threads // lanes)
    size = config.imgsz or runtime.imgsz
    runtime.check_side(size, weights)
    classes = class_indices(config.classes, runtime.names)
    limits = {"conf": config.conf_thres, "iou": config.iou_thres}
    return Detector(runtime, lambda runtime, maps: detections(
        maps, runtime.heads, limits["conf"], limits["iou"], config.max_det, classes, nms=config.nms),
        lambda: load("fp32"), size, limits, lanes, load if lanes > 1 else None)


def batches(frames: Iterable[Frame], fit: Fit, count: int) -> Iterator[Batch]:
    """Yield the frames letterboxed, `count` at a time."""
    frames = iter(frames)
    while some := list(islice(frames, count)):
        yield batch_of(some, fit)


def batch_of(frames: list[Frame], fit: Fit) -> Batch:
    """Return one batch of all the frames, which may differ in size."""
    images, places = zip(*(fit(frame.pixels) for frame in frames))
    return Batch(frames, places, np.stack(images).transpose(0, 3, 1, 2))       # in memory channels last


def follow(reader: Iterable[Batch], detector: Detector,
           put: Callable[[tuple[Frame, np.ndarray, float]], None],
           go_on: Callable[[], bool]) -> np.ndarray | None:
    """Give `put` each frame, its boxes [N, 6] (xyxy px of the image, score, class) and the network's ms.

    Returns the first batch's images (None: there was none). Ends early when `go_on()` is false.
    """
    first = None
    for batch, found, seconds in detector.through(reader):
        first = batch.images if first is None else first
        ms = 1000 * seconds / len(found)
        for frame, place, boxes in zip(batch.frames, batch.places, found):
            put((frame, scale_back(boxes, place, *frame.size), ms))
        if not go_on():
            break
    return first


def class_indices(wanted: Sequence[str] | None, names: Sequence[str]) -> list[int] | None:
    """Return the class numbers of names or numbers, ascending; None for None. Raises UsageError."""
    if wanted is None:
        return None
    number = {str(k): k for k in range(len(names))} | {name: k for k, name in enumerate(names)}
    if unknown := [word for word in wanted if word not in number]:
        known = ", ".join(f"{index} {name}" for index, name in enumerate(names))
        raise UsageError(f"--classes {' '.join(unknown)}: this network does not know "
                         f"{'it' if len(unknown) == 1 else 'them'}; give names or numbers of: {known}")
    return sorted({number[word] for word in wanted})
