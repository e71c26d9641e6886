"""One `predict(batch)` over every way to run a network.

Torch eager today; other runtimes join by file suffix.
"""
from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.checkpoint import load
from models.decode import HeadSpec, head_specs
from models.fold import fold
from models.network import Network, from_state
from models.spec import Net

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OFF_LIMIT = 0.5                                # share of the raw maps' spread half precision may be off by


@dataclass
class Runtime:
    """A network ready to predict: batch-norm folded, channels_last, in the precision asked for.

    The first batch in half precision is compared with fp32; non-finite or far-off maps make the runtime fall
    back to fp32 and say so in `note`.
    """

    model: Network
    net: Net
    names: tuple[str, ...]
    imgsz: int
    precision: str
    device: torch.device
    heads: tuple[HeadSpec, ...]
    class_map: dict[str, int] = field(default_factory=dict)
    note: str = ""
    exact_state: dict[str, Tensor] | None = None   # fp32 weights, kept until half precision has proved itself

    @torch.inference_mode()
    def predict(self, images: Tensor) -> list[Tensor]:
        """Raw maps, a list of fp32 [B, A, 5 + K, G, G], of uint8 pictures [B, 3, H, W] on any device."""
        images = images.to(self.device, non_blocking=True)
        if self.exact_state is not None:
            self._check(images)
        return [m.float() for m in self._run(self.model, images)]

    def _run(self, model: Network, images: Tensor) -> list[Tensor]:
        dtype = next(model.parameters()).dtype
        return model((images.to(dtype) / 255).contiguous(memory_format=torch.channels_last))

    def _check(self, images: Tensor) -> None:
        """Compares half precision with fp32 on the first batch, once."""
        exact = from_state(self.net, self.exact_state).to(self.device).to(memory_format=torch.channels_last)
        self.exact_state = None
        if fault := half_fault(self._run(self.model, images), self._run(exact, images)):
            self.note = f"{self.precision} is {fault} on this network's first batch; going on in fp32"
            self.model, self.precision = exact, "fp32"


def half_fault(half: list[Tensor], exact: list[Tensor]) -> str:
    """What is wrong with raw maps of half precision beside those of fp32; empty when nothing is."""
    if not all(m.isfinite().all() for m in half):
        return "non-finite"
    off = any((a.float() - b).abs().mean() > OFF_LIMIT * b.std() for a, b in zip(half, exact))
    return "far off fp32" if off else ""


def load_runtime(weights: str, device: torch.device | str = "cpu", precision: str = "fp32") -> Runtime:
    """The runtime of a checkpoint or of darknet weights. Raises ModelError as `checkpoint.load` does."""
    checkpoint = load(weights)
    return torch_runtime(checkpoint.net, checkpoint.state, checkpoint.names, checkpoint.imgsz, device,
                         precision, checkpoint.class_map)


def torch_runtime(net: Net, state: dict[str, Tensor], names: tuple[str, ...], imgsz: int,
                  device: torch.device | str = "cpu", precision: str = "fp32",
                  class_map: dict[str, int] | None = None) -> Runtime:
    """The eager torch runtime of a network and its state (used by validation during training as well)."""
    device = torch.device(device)
    folded, small = fold(net, state)
    model = from_state(folded, small).to(device, DTYPES[precision]).to(memory_format=torch.channels_last)
    return Runtime(model, folded, tuple(names), imgsz, precision, device, head_specs(net),
                   dict(class_map or {}), exact_state=None if precision == "fp32" else small)
