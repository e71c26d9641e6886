"""ONNX Runtime behind `deploy.runtimes.runtime`."""
from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from deploy.artifact import onnx_card, onnx_session, suits
from models.graph import INPUT
from utils.optional import needs

CUDA = "CUDAExecutionProvider"


class OnnxRunner:
    """A session that takes uint8 [B, 3, S, S] to the raw maps. It computes in the file's own precision."""

    kind = "onnxruntime"
    exact = None                                           # a file has one precision

    def __init__(self, path: Path, precision: str, threads: int, device: torch.device) -> None:
        ort = needs("onnxruntime", "to run ONNX files")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE":
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        cuda = device.type == "cuda" and CUDA in ort.get_available_providers()
        self.session = onnx_session(path, options, (CUDA,) * cuda + ("CPUExecutionProvider",))
        self.card = onnx_card(self.session, path)
        self.device, self.precision = torch.device("cpu"), self.card["precision"]
        self.outputs, self.note = self.card["outputs"], ""
        if device.type == "cuda" and CUDA not in self.session.get_providers():
            self.note = "this ONNX Runtime has no CUDA (pip install onnxruntime-gpu): going on on the CPU"
        elif not suits(self.precision, precision):
            self.note = f"ONNX Runtime computes in the file's own precision, {self.precision}"

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Raw maps of the pictures."""
        found = self.session.run(self.outputs, {INPUT: images.cpu().contiguous().numpy()})
        return [torch.from_numpy(value) for value in found]
