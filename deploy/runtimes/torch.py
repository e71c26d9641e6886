"""Torch itself behind `deploy.runtimes.runtime`: checkpoints, eager or compiled."""
from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compress.fold import fold
from deploy.runtimes.torchscript import DTYPES
from models.layer import Net
from models.network import from_state
from utils.errors import EnvironmentFault

if TYPE_CHECKING:
    from utils.boxes import Values


class Pointwise(nn.Conv2d):
    """A 1x1 convolution by oneDNN whatever the threads: on one, torch takes a slower way below 16 images."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:                                    # packing the kernel costs as much as it gains
            return super().forward(x)
        return torch.mkldnn_convolution(x, self.weight, self.bias, self.padding, self.stride, self.dilation,
                                        self.groups)


class TorchRunner:
    """A network in torch: batch-norm folded, channels_last; torch.compile compiles it at the first batch."""

    note = ""

    def __init__(self, net: Net, state: dict[str, Tensor], precision: str, device: torch.device,
                 compiled: bool = False) -> None:
        folded, small = fold(net, state)
        model = from_state(folded, small).to(device, DTYPES[precision])
        self.model = model.to(memory_format=torch.channels_last)
        if device.type == "cpu" and not compiled and torch.backends.mkldnn.is_available():
            for module in model.modules():
                if type(module) is nn.Conv2d and module.kernel_size == (1, 1):
                    module.__class__ = Pointwise           # the same tensors and settings
        self.kind = "torch-compile" if compiled else "torch"
        self.precision, self.device = precision, device
        # Eager: a check that may be thrown away is not worth another compilation.
        self.exact = None if precision == "fp32" else partial(TorchRunner, folded, small, "fp32", device)
        self._run = torch.compile(self.model) if compiled else self.model

    @torch.inference_mode()
    def __call__(self, images: Values) -> list[Tensor]:
        x = torch.as_tensor(images).to(self.device, non_blocking=True).to(DTYPES[self.precision]) / 255
        x = x.contiguous(memory_format=torch.channels_last)
        if self._run is self.model:
            return self.model(x)
        try:
            return self._run(x)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise EnvironmentFault("torch.compile cannot compile this network here: "
                                   f"{str(error).strip().splitlines()[0]}; it needs a C++ compiler (Debian: "
                                   "apt install g++), or --runtimes torch, which compiles nothing") from error
