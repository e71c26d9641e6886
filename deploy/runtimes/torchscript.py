"""TorchScript: the writer, and the runtime behind `deploy.runtimes.runtime`."""
from __future__ import annotations

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from compress.fold import fold
from deploy.artifact import FILE, own_precision, parse_metadata, unreadable
from models.layer import Net
from models.network import from_state

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class _Whole(nn.Module):
    """A folded network between uint8 images [B, 3, S, S] and fp32 outputs, in its weights' precision."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, images: Tensor) -> list[Tensor]:
        x = (images.to(self.dtype) / 255).contiguous(memory_format=torch.channels_last)
        return [output.float() for output in self.model(x)]


def to_torchscript(net: Net, state: dict[str, Tensor], imgsz: int, precision: str = "fp32") -> bytes:
    """Return the TorchScript file of a network, traced; it takes any batch and any side that fits."""
    model = from_state(*fold(net, state)).to(DTYPES[precision]).to(memory_format=torch.channels_last)
    images, buffer = torch.zeros(2, 3, imgsz, imgsz, dtype=torch.uint8), io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")                    # that tracing is the older of torch's two ways
        traced = torch.jit.trace(_Whole(model, DTYPES[precision]).eval(), images, check_trace=False)
        torch.jit.save(traced, buffer)
    return buffer.getvalue()


class ScriptRunner:
    """A TorchScript file on a device, in the precision it was traced in."""

    kind = "torchscript"
    exact = None

    def __init__(self, path: Path, precision: str, threads: int, device: torch.device) -> None:
        extra = {FILE: ""}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = torch.jit.load(str(path), map_location=device, _extra_files=extra)
        except (RuntimeError, ValueError, OSError) as error:
            raise unreadable(path, "a TorchScript file", error) from error
        self.metadata = parse_metadata(extra[FILE], path)
        torch.set_num_threads(threads)
        self.module, self.device, self.precision = module.eval(), device, self.metadata["precision"]
        self.note = own_precision(self.precision, precision)

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return the head outputs of uint8 images [B, 3, H, W]."""
        return self.module(images.to(self.device, non_blocking=True))
