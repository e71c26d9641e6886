"""Batch-norm statistics measured again, after channels or kernels were taken away."""
from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from models.layer import Net
from models.network import Network


@torch.no_grad()
def recalibrate(net: Net, state: dict[str, Tensor], batches: Iterable[Tensor],
                device: torch.device | str = "cpu", half: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return the state with running means and variances that are plain averages over the batches.

    batches: images uint8 [B, 3, S, S]. Post-training statistics of Yu and Huang 2019 (US-Net, arXiv
    1903.05134, section 3.4): a sub-network's activations are not distributed as the whole network's were.
    """
    model = Network(net)
    model.load_state_dict(state)
    model = model.to(device).to(memory_format=torch.channels_last).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None                         # a cumulative average
    for images in batches:
        images = images.to(device).float() / 255
        with torch.autocast(torch.device(device).type, half, enabled=half is not None):
            model(images.contiguous(memory_format=torch.channels_last))
    fresh = model.state_dict()
    return {key: fresh[key].to("cpu").contiguous() if "running_" in key else value
            for key, value in state.items()}
