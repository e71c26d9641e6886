"""TorchScript: the writer, and the runtime behind `deploy.runtimes.runtime`."""
from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compress.fold import fold
from deploy.artifact import PROGRAM, own_precision, read_metadata, unreadable
from models.layer import Net
from models.network import from_state

if TYPE_CHECKING:
    from utils.boxes import Values

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class _Whole(nn.Module):
    """A folded network from uint8 images [B, 3, S, S] to fp32 outputs, in its weights' precision between."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        return [out.float() for out in self.model(images.contiguous(memory_format=torch.channels_last))]


def to_torchscript(net: Net, state: dict[str, Tensor], imgsz: int, precision: str = "fp32") -> bytes:
    """Return the TorchScript file of a network, traced; it takes any batch and any side that fits."""
    model = from_state(*fold(net, state)).to(DTYPES[precision]).to(memory_format=torch.channels_last)
    model.requires_grad_(False)
    images, buffer = torch.zeros(2, 3, imgsz, imgsz, dtype=torch.uint8), io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")                    # that tracing is the older of torch's two ways
        traced = torch.jit.trace(_Whole(model).eval(), images, check_trace=False)
        torch.jit.save(traced, buffer)
    return buffer.getvalue()


class ScriptRunner:
    """A TorchScript file on a device, in the precision it was traced in."""

    kind = "torchscript"
    exact = None

    def __init__(self, path: Path, precision: str, threads: int, device: torch.device) -> None:
        self.metadata, self.device = read_metadata(path), device
        self.precision = self.metadata["precision"]
        if PROGRAM not in self.metadata:
            print(f"warning: {path} is TorchScript, a program that is run as it is read, and has no checksum "
                  "of this project's: use it only if you trust where it is from, or export the checkpoint "
                  "again", file=sys.stderr)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.module = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise unreadable(path, "a TorchScript file", error) from error
        torch.set_num_threads(threads or torch.get_num_threads())
        self.note = own_precision(self.precision, precision)

    @torch.inference_mode()
    def __call__(self, images: Values) -> list[Tensor]:
        return self.module(torch.as_tensor(images).to(self.device, non_blocking=True))
