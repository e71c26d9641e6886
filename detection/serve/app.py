"""`detect.py --serve`: the networks that a page may choose from, and the server's life until Ctrl-C."""
from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection.serve.port import listen
from utils.errors import Interrupted, UsageError

if TYPE_CHECKING:
    import numpy as np

    from detection.detector import Detector

ROOT = Path(__file__).resolve().parents[2]
EXPORTED = ("*.onnx", "*.torchscript", "*/model.xml", "*/model.param")     # a folder goes by its main file
SHIPPED, TRAINED = ("*.pt", "*.weights", *EXPORTED), ("best.pt", *EXPORTED)
KEPT = 2                                       # networks in memory at a time
MOST = 200                                     # lines of the page's list


def serve(args: argparse.Namespace) -> None:
    """Shows the page until a signal comes, then raises Interrupted.

    Raises EnvironmentFault when the port is taken, and what loading the first network raises.
    """
    from utils.runs import Interrupt, tune_cpu
    server = listen(args.host, args.port)
    try:
        tune_cpu(args.threads)
        networks = Networks(args.weights, Loader(args), lambda: found_weights(ROOT, Path.cwd()),
                            args.max_pixels)
        networks.open(networks.first)
        interrupt = Interrupt()
        server.begin(networks, {"conf": args.conf_thres, "iou": args.iou_thres})
        print(f"page: {server.address}   Ctrl-C ends", flush=True)
        while not interrupt.poll():
            server.handle_request()
    finally:
        server.server_close()
    raise Interrupted(f"stopped by a signal after {networks.pictures} pictures", interrupt.code)


def found_weights(*roots: Path) -> list[Path]:
    """Checkpoints and exported networks in `weights` and `runs` of the roots, newest runs first."""
    found = [path for root in roots for path in sorted(_all(root / "weights", SHIPPED))]
    trained = {path: path.stat().st_mtime for root in roots
               for pattern, names in (("**/weights", TRAINED), ("export/*", EXPORTED))
               for folder in (root / "runs").glob(pattern) for path in _all(folder, names)}
    ordered = [*found, *sorted(trained, key=lambda path: -trained[path])]
    ordered = [path.parent if path.suffix in (".xml", ".param") else path for path in ordered]
    return [path for path in dict.fromkeys(ordered) if not path.name.endswith(".prev.pt")][:MOST]


def _all(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return [path for pattern in patterns for path in folder.glob(pattern)]


class Loader:
    """What the flags say of a network: called with its path and its limits, it gives (detector, input side).

    `limits` holds the score and IoU thresholds of the request at hand, which `serve` changes between calls.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args

    def __call__(self, path: str, limits: dict[str, float]) -> tuple["Detector", int]:
        """The detector of the weights at `path`, and the side of its input in px."""
        from detection.run import make_detector
        detector = make_detector(self._args, path, limits)
        return detector, self._args.imgsz or detector.runtime.imgsz


class Networks:
    """The networks of the page's list: loaded when chosen, run one picture at a time in one thread.

    `first` is the key of the weights that the flags name. `load(path, limits)` gives a detector and the side
    of its input; `find()` lists further weights. `pictures` counts what was detected.
    """

    def __init__(self, weights: str, load: Callable[[str, dict[str, float]], tuple["Detector", int]],
                 find: Callable[[], Sequence[Path]], max_pixels: int = 100_000_000) -> None:
        self.pictures, self._load, self._find, self._max_pixels = 0, load, find, max_pixels
        self._given = Path(weights)
        self.first = key_of(self._given)
        self._paths = {self.first: self._given}
        self._open: dict[str, tuple[Detector, int, dict[str, float]]] = {}
        # One thread: a lock around the network, and one pool of OpenMP threads instead of one a connection
        self._worker = ThreadPoolExecutor(1, "network")

    def listing(self) -> list[dict[str, str]]:
        """Key and label of every network there is now; the one of the flags comes first."""
        self._paths = {self.first: self._given} | {key_of(path): path for path in self._find()}
        self._paths[self.first] = self._given
        return [{"id": key, "label": label_of(path)} for key, path in self._paths.items()]

    def open(self, key: str) -> dict[str, Any]:
        """What the page must know of the network `key`, which is loaded. Raises as `load` does."""
        return self._worker.submit(self._describe, key).result()

    def detect(self, key: str, data: "np.ndarray", conf: float, iou: float) -> dict[str, Any]:
        """Boxes of a picture's file (bytes as uint8 [n]) in px of the picture, its size, and times in ms.

        Raises DataError for bytes that are no picture, and what loading the network raises.
        """
        return self._worker.submit(self._detect, key, data, conf, iou).result()

    def _take(self, key: str) -> tuple["Detector", int, dict[str, float]]:
        if key not in self._paths:
            raise UsageError("this network is not in the list any more: load the page again")
        if key not in self._open:
            limits = {"conf": 0.25, "iou": 0.45}
            detector, size = self._load(str(self._paths[key]), limits)
            _warm_up(detector, size)
            self._open[key] = detector, size, limits
        taken = self._open[key] = self._open.pop(key)          # used last, dropped last
        while len(self._open) > KEPT:
            del self._open[next(iter(self._open))]
        return taken

    def _describe(self, key: str) -> dict[str, Any]:
        detector, size, _ = self._take(key)
        runtime = detector.runtime
        where = f"{runtime.kind} {runtime.precision}, {runtime.device}"
        return {"names": list(runtime.names), "imgsz": size, "where": where, "notes": detector.notes}

    def _detect(self, key: str, data: "np.ndarray", conf: float, iou: float) -> dict[str, Any]:
        import torch

        from data.augment import letterbox
        from data.images import decode_bytes
        from utils.boxes import scale_back
        start = time.perf_counter()
        detector, size, limits = self._take(key)
        image = decode_bytes(data, "the picture sent", self._max_pixels)
        height, width = image.shape[:2]
        fitted, place = letterbox(image, size)
        limits.update(conf=conf, iou=iou)
        before = detector.seconds
        found = detector(torch.from_numpy(fitted).permute(2, 0, 1)[None])[0]
        self.pictures += 1
        boxes = scale_back(found.astype("float64"), place, height, width).round(5).tolist()
        ms = {"network": 1000 * (detector.seconds - before), "total": 1000 * (time.perf_counter() - start)}
        return {"boxes": boxes, "width": width, "height": height, "ms": ms}


def _warm_up(detector: "Detector", size: int) -> None:
    """Takes noise the whole way, so that the first picture waits for no import and no planning."""
    import torch

    import data.augment  # noqa: F401
    import data.images  # noqa: F401
    noise = torch.Generator().manual_seed(0)
    detector(torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=noise))


def key_of(path: Path) -> str:
    """A short name of a file that says nothing of its path."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]


def label_of(path: Path) -> str:
    """How the list calls a file: below the working folder or the project, else by its last two parts."""
    for root in (Path.cwd(), ROOT):
        if path.resolve().is_relative_to(root):
            return path.resolve().relative_to(root).as_posix()
    return "/".join(path.parts[-2:])
