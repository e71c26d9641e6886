"""The networks that the page of `detect.py --serve` may choose from: loaded when chosen, run in a thread."""
from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data.images import decode_bytes
from detection.detector import Detector, NetworkConfig, make_detector
from utils.boxes import scale_back
from utils.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
EXPORTED = ("*.onnx", "*.torchscript", "*/model.xml", "*/model.param")     # a folder goes by its main file
SHIPPED, TRAINED = ("*.pt", "*.weights", *EXPORTED), ("best.pt", *EXPORTED)
KEPT = 2                                       # networks in memory at a time
MOST = 200                                     # lines of the page's list


def found_weights(*roots: Path) -> list[Path]:
    """Return checkpoints and exported networks in `weights` and `runs` of the roots, newest runs first."""
    def every(folder: Path, patterns: Sequence[str]) -> list[Path]:
        return [path for pattern in patterns for path in folder.glob(pattern)]

    found = [path for root in roots for path in sorted(every(root / "weights", SHIPPED))]
    trained = {path: path.stat().st_mtime for root in roots
               for pattern, names in (("**/weights", TRAINED), ("export/*", EXPORTED))
               for folder in (root / "runs").glob(pattern) for path in every(folder, names)}
    ordered = [*found, *sorted(trained, key=lambda path: -trained[path])]
    ordered = [path.parent if path.suffix in (".xml", ".param") else path for path in ordered]
    return [path for path in dict.fromkeys(ordered) if not path.name.endswith(".prev.pt")][:MOST]


class Networks:
    """The networks of `config` (its key: `first`) and of `find()`; `images` counts what was detected in."""

    def __init__(self, config: NetworkConfig, find: Callable[[], Sequence[Path]]) -> None:
        self.images, self._config, self._find = 0, config, find
        self.first = key_of(Path(config.weights))
        self._paths = {self.first: Path(config.weights)}
        self._open: dict[str, Detector] = {}
        # One thread: a lock around the network, and one pool of OpenMP threads instead of one a connection
        self._worker = ThreadPoolExecutor(1, "network")

    def listing(self) -> list[dict[str, str]]:
        """Return key and label of every network there is now; the one of the flags comes first."""
        given = {self.first: Path(self._config.weights)}
        self._paths = given | {key_of(path): path for path in self._find()} | given
        return [{"id": key, "label": label_of(path)} for key, path in self._paths.items()]

    def open(self, key: str) -> dict[str, Any]:
        """Return what the page must know of the network `key`, loading it. Raises as loading does."""
        return self._worker.submit(self._describe, key).result()

    def detect(self, key: str, data: np.ndarray, conf: float, iou: float) -> dict[str, Any]:
        """Return the boxes in px of an image's file (bytes as uint8 [n]), its size, and times in ms."""
        return self._worker.submit(self._detect, key, data, conf, iou).result()

    def _take(self, key: str) -> Detector:
        if key not in self._paths:
            raise UsageError("this network is not in the list any more: load the page again")
        if key not in self._open:
            detector = make_detector(self._config, str(self._paths[key]))
            detector.warm_up(np.zeros((1, 3, detector.size, detector.size), np.uint8))
            self._open[key] = detector
        taken = self._open[key] = self._open.pop(key)          # used last, dropped last
        if len(self._open) > KEPT:
            del self._open[next(iter(self._open))]
        return taken

    def _describe(self, key: str) -> dict[str, Any]:
        detector = self._take(key)
        runtime = detector.runtime
        where = f"{runtime.kind} {runtime.precision}, {runtime.device}"
        return {"names": list(runtime.names), "imgsz": detector.size, "where": where, "notes": detector.notes}

    def _detect(self, key: str, data: np.ndarray, conf: float, iou: float) -> dict[str, Any]:
        start = time.perf_counter()
        detector = self._take(key)
        image = decode_bytes(data, "the image sent", self._config.max_pixels)
        height, width = image.shape[:2]
        fitted, place = detector.fit(image)
        detector.limits.update(conf=conf, iou=iou)
        before = detector.seconds
        found = detector(fitted.transpose(2, 0, 1)[None])[0]
        self.images += 1
        boxes = scale_back(found.astype("float64"), place, height, width).round(5).tolist()
        ms = {"network": 1000 * (detector.seconds - before), "total": 1000 * (time.perf_counter() - start)}
        return {"boxes": boxes, "width": width, "height": height, "ms": ms}


def key_of(path: Path) -> str:
    """Return a short name of a file that says nothing of its path."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]


def label_of(path: Path) -> str:
    """Return how the list calls a file: its path below the working folder or project, or its last parts."""
    for root in (Path.cwd(), ROOT):
        if path.resolve().is_relative_to(root):
            return path.resolve().relative_to(root).as_posix()
    return "/".join(path.parts[-2:])
