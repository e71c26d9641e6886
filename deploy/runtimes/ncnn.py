"""ncnn behind `deploy.runtimes.runtime`."""
from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deploy.artifact import metadata_beside, unreadable
from models.graph import INPUT, heads_of
from models.records import from_json
from utils.optional import needs
from utils.runs import pick_precision


class NcnnRunner:
    """A net that takes images one by one: divided by 255 and shaped here, for its file does neither."""

    kind = "ncnn"

    def __init__(self, path: Path, precision: str, threads: int, device: torch.device) -> None:
        self.ncnn = needs("ncnn", "to run ncnn models")
        self.metadata = metadata_beside(path)              # with checksums: ncnn runs past a short file's end
        self.net, self.note, self.device = self.ncnn.Net(), "", torch.device("cpu")
        # Unasked only where torch would take half precision too: there it is known to be worth it.
        wanted = pick_precision(device)[0] if precision == "auto" else precision
        half = wanted != "fp32" and self.ncnn.cpu_support_arm_asimdhp()
        self.precision = "fp16" if half else "fp32"
        self.exact = partial(NcnnRunner, path, "fp32", threads, device) if half else None
        if not half and precision not in ("fp32", "auto"):
            # On x86 with AVX512-BF16 its bf16 was slower than its fp32, and in one network far off.
            self.note = "ncnn's half precision is fast on Arm CPUs with fp16 alone: continuing in fp32"
        options = self.net.opt
        options.num_threads, options.use_vulkan_compute = threads, False
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = half
        options.use_bf16_packed = options.use_bf16_storage = False
        if self.net.load_param(str(path)) or self.net.load_model(str(path.with_suffix(".bin"))):
            raise unreadable(path, "an ncnn model", ValueError("the library refuses it"))
        self.shapes = {head.layer.name: head.shape for head in heads_of(from_json(self.metadata["net"]))}

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return the head outputs of uint8 images [B, 3, H, W]."""
        scaled = np.ascontiguousarray(images.cpu().numpy()) * np.float32(1 / 255)
        found = [self._one(image) for image in scaled]
        return [torch.from_numpy(np.stack(values)) for values in zip(*found)]

    def _one(self, image: np.ndarray) -> list[np.ndarray]:
        extractor = self.net.create_extractor()
        held = self.ncnn.Mat(image)                        # it points into the array
        extractor.input(INPUT, held)
        names = self.metadata["outputs"]
        found = [np.array(extractor.extract(name)[1]) for name in names]
        return [value.reshape(*self.shapes.get(name, (value.shape[0],)), *(value.shape[1:] or (1, 1)))
                for name, value in zip(names, found)]
