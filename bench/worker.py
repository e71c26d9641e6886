"""A benchmark's process: one case loaded and warmed up, then timed for a slice whenever it is told to.

It answers a JSON line with one: {"do": "load" or "layers", ...a case, images, thresholds}; {"do": "slice",
"scope", "seconds", "calls"}; {"do": "accuracy", "data": what locate takes}.
"""
from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from bench.machine import peak_memory
from bench.profile.timing import torch_threads, warm_up
from utils.errors import UsageError
from utils.optional import needs

if TYPE_CHECKING:
    import torch

    from deploy.runtimes.runtime import Runtime
    from utils.boxes import Values

WARM_ROUNDS, WARM_SECONDS = 100, 10.0


def serve() -> None:
    """Answer lines of standard input until it ends; an error of the user's is an answer too."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)                                  # what libraries print is no answer
    ready = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if message["do"] == "load":
                ready = Ready(message)
                answer = ready.facts()
            elif message["do"] == "layers":
                answer = layers(message)
            else:
                answer = getattr(ready, message["do"])(message)
        except Exception as error:
            if (code := getattr(error, "exit_code", None)) is None:
                raise                              # a fault of its own: the traceback is in the log
            answer = {"error": str(error), "exit_code": code}
        print(json.dumps({**answer, "cpu_seconds": time.process_time()}), file=answers, flush=True)


class Ready:
    """A case in its runtime, warmed up on its images."""

    def __init__(self, spec: dict) -> None:
        self.spec, began = spec, time.perf_counter()
        from models.heads.nms import detections
        self._decode, imported = detections, time.perf_counter()
        self.runtime = load(spec)
        loaded = time.perf_counter()
        self.images, count = read_images(spec), spec["batch"]
        images = [next(self.images) for _ in range(spec["pictures"])]
        self.batches = cycle([_fit([images[(start + i) % len(images)] for i in range(count)], spec)
                              for start in range(0, len(images), count)])   # before the network's clock runs
        first = self.network()
        self.times = {"import_seconds": imported - began, "load_seconds": loaded - imported,
                      "first_ms": first}
        self.calls = {"network": self.network, "end-to-end": self.whole}
        limit, began = max(WARM_SECONDS, 8e-3 * first), time.perf_counter()
        calls = {scope: lambda _, call=self.calls[scope]: call() for scope in spec["scopes"]}
        rounds = warm_up(calls, WARM_ROUNDS, limit)
        spent = time.perf_counter() - began
        self.times |= {"warm_up_rounds": rounds, "warm_up_seconds": spent,
                       "steady": rounds < WARM_ROUNDS and spent < limit}

    def facts(self) -> dict:
        """Return what the runtime says of itself, how long it took to get here, what the network costs."""
        from models.count import loose_macs, macs, parameters
        runtime, size = self.runtime, self.spec["imgsz"]
        return {"kind": runtime.kind, "precision": runtime.precision, "device": str(runtime.device),
                "note": runtime.note, "parameters": parameters(runtime.net), "macs": macs(runtime.net, size),
                "loose_macs": loose_macs(runtime.net, size), "classes": len(runtime.names), **self.times,
                "variables": {k: v for k, v in os.environ.items() if k.startswith("OMP_")}}

    def slice(self, message: dict) -> dict:
        """Return milliseconds of calls of a scope, at least `calls` and for at least `seconds`."""
        call, times = self.calls[message["scope"]], []
        call()                                     # brings back the caches that other processes have filled
        gc.collect()
        gc.disable()
        try:
            began = time.perf_counter()
            while len(times) < message["calls"] or time.perf_counter() - began < message["seconds"]:
                times.append(call())
            seconds = time.perf_counter() - began
        finally:
            gc.enable()
        return {"times": times, "seconds": seconds, **peak_memory()}

    def network(self) -> float:
        """Return milliseconds from the next uint8 batch in memory to its predictions; a GPU is waited for."""
        images = next(self.batches)
        start = time.perf_counter()
        self._predict(images)
        return 1e3 * (time.perf_counter() - start)

    def whole(self) -> list[float]:
        """Return milliseconds of each of bench.cases.STAGES, from the next files to drawn images."""
        from detection.draw import draw
        from utils.boxes import letterbox_geometry, scale_back
        size, clock = self.spec["imgsz"], time.perf_counter
        stamps = [clock()]
        images = [next(self.images) for _ in range(self.spec["batch"])]
        stamps.append(clock())
        batch = _fit(images, self.spec)
        stamps.append(clock())
        predictions = self._predict(batch)
        stamps.append(clock())
        limits = (self.spec[name] for name in ("conf_thres", "iou_thres", "max_det"))
        found = self._decode(predictions, self.runtime.heads, *limits).boxes
        boxes = [scale_back(b, letterbox_geometry(*image.shape[:2], size), *image.shape[:2])
                 for b, image in zip(found, images)]
        stamps.append(clock())
        for image, drawn in zip(images, boxes):
            draw(image, drawn, self.runtime.names)
        stamps.append(clock())
        return [1e3 * (b - a) for a, b in zip(stamps, stamps[1:])]

    def accuracy(self, message: dict) -> dict:
        """Return the AP of what is timed here, by val.py's thresholds."""
        from data.coco.locate import locate
        from evaluation.evaluate import measure
        return measure(self.runtime, locate(*message["data"]), self.spec["imgsz"])

    def _predict(self, images: np.ndarray) -> list[Values]:
        predictions = self.runtime.predict(images)
        if self.runtime.device.type == "cuda":
            import torch
            torch.cuda.synchronize(self.runtime.device)
        return predictions


def _fit(images: list[np.ndarray], spec: dict) -> np.ndarray:
    """uint8 [B, 3, S, S] of letterboxed images [H, W, 3], in their memory's order: channels last."""
    from data.augment import letterbox
    fitted = [letterbox(image, spec["imgsz"])[0] for image in images]
    return np.stack(fitted).transpose(0, 3, 1, 2)


def load(spec: dict) -> Runtime:
    """Return a case's runtime. Raises UsageError for a precision that is pointless on this CPU."""
    from deploy.artifact import needs_torch
    from deploy.runtimes.runtime import load_runtime
    from utils.runs import pick_device, tune_cpu
    runtime, device = spec["runtime"], pick_device(spec["device"], needs_torch(spec["weights"]))
    if runtime.startswith("torch") and device.type == "cpu":
        from bench.profile.latency import refusal  # loads torch
        if why := refusal(spec["precision"]):
            raise UsageError(f"{runtime} in {spec['precision']}: {why}")
    if runtime == "torch-plain":
        return plain(spec["weights"], device, spec["threads"])
    tune_cpu()
    return load_runtime(spec["weights"], device, spec["precision"], spec["threads"],
                        compiled=runtime == "torch-compile")


class Plain(SimpleNamespace):
    """A module run as eager PyTorch does when nobody helps: batch-norm apart, NCHW, fp32."""

    def __call__(self, images: Values) -> list[torch.Tensor]:
        """Return the predictions for uint8 images [B, 3, H, W]."""
        import torch
        with torch.inference_mode():
            return self.model(torch.as_tensor(images).to(self.device).contiguous().float() / 255)


def plain(weights: str, device: torch.device, threads: int) -> Runtime:
    """Return the runtime of a checkpoint without any of the fast path."""
    import torch

    from deploy.runtimes.runtime import Runtime
    from models.checkpoint import load as read
    from models.network import from_state
    torch.set_num_threads(threads)
    found = read(weights)
    runner = Plain(kind="torch-plain", precision="fp32", note="", exact=None, device=device,
                   model=from_state(found.net, found.state).to(device))
    return Runtime(runner, found.net, tuple(found.names), found.imgsz, dict(found.class_map))


def layers(spec: dict) -> dict:
    """Return the layers of a case in torch, ONNX Runtime or OpenVINO, beside this machine's peak."""
    needs("torch", "for --layers, which measures this machine's peak by it")
    from bench.profile.latency import layer_table, measure_peak
    from bench.profile.nodes import node_table
    from models.checkpoint import load as read
    precision, threads = spec["precision"], spec["threads"]
    image = _fit([next(read_images(spec))], spec)[0]
    with torch_threads(threads):
        peak = measure_peak(precision, threads)
        if spec["runtime"] == "torch":
            found = read(spec["weights"])
            rows = layer_table(found.net, found.state, spec["imgsz"], image, precision, peak)
        else:
            rows = node_table(spec["weights"], precision, threads, image, peak)
    return {"peak": peak, "rows": rows}


def read_images(spec: dict) -> Iterator[np.ndarray]:
    """Yield the images uint8 [H, W, 3] RGB over and over, decoded each time again; the frames of a video."""
    from data.images import decode
    from detection.video import read
    from detection.yuv import rgb
    for path in cycle(map(Path, spec["files"])):
        yield from (rgb(image) for image, _ in read(path)) if spec["video"] else (decode(path),)
