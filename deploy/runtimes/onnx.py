"""ONNX Runtime behind `deploy.runtimes.runtime`."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploy.artifact import CUDA, onnx_metadata, onnx_session, own_precision
from models.graph import INPUT
from utils.boxes import on_host
from utils.errors import ModelError
from utils.runs import Device

if TYPE_CHECKING:
    from utils.boxes import Values


class OnnxRunner:
    """An ONNX Runtime session that computes in the file's own precision."""

    kind = "onnxruntime"
    exact = None                                           # a file has one precision

    def __init__(self, path: Path, precision: str, threads: int, device: Device) -> None:
        self.session = onnx_session(path, threads, device.type == "cuda")
        self.metadata, self.device = onnx_metadata(self.session, path), Device("cpu")
        self.precision = self.metadata["precision"]
        if ends := self.metadata.get("nms"):
            raise ModelError(f"{path} has decoding and NMS inside (export.py --nms), for programs that have "
                             f"neither: session.run({ends['outputs']}, {{'images': image}}), the image uint8 "
                             "[1, 3, S, S], letterboxed. Here give the checkpoint or a file without --nms")
        self.note = own_precision(self.precision, precision)
        if device.type == "cuda" and CUDA not in self.session.get_providers():
            self.note = "this ONNX Runtime has no CUDA (pip install onnxruntime-gpu): continuing on the CPU"

    def __call__(self, images: Values) -> list[np.ndarray]:
        return self.session.run(self.metadata["outputs"], {INPUT: np.ascontiguousarray(on_host(images))})
