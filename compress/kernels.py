"""Kernels of another size, cut from the same tensors: (net, state, kernels) -> (net, state).

A network with 5x5 kernels holds every choice of 3x3, their centres, and 5x5; gradients reach what is shared.
"""
from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.channels import channels
from models.layer import Net
from models.network import Network
from models.sync_bn import synchronise
from models.zoo.tiny import substitute
from utils.errors import ModelError


def with_kernels(net: Net, state: Mapping[str, Tensor],
                 kernels: Mapping[str, int]) -> tuple[Net, dict[str, Tensor]]:
    """Return the network with other kernels (layer -> side): centres, or the old ones within zeros."""
    new = _substituted(net, tuple(kernels.items()))
    out = dict(state)
    for old, param in zip(channels(net).params, channels(new).params, strict=True):
        if old.tail != param.tail:
            margin = (param.tail[-1] - old.tail[-1]) // 2
            out[param.key] = F.pad(state[param.key], (margin,) * 4)        # less than 0 takes a border away
    return new, out


def crop_kernels(net: Net, state: Mapping[str, Tensor],
                 kernels: Mapping[str, int]) -> tuple[Net, dict[str, Tensor]]:
    """Return what `with_kernels` does; raise ModelError where a kernel would have to grow."""
    new = _substituted(net, tuple(kernels.items()))
    larger = [f"{old.name} has {old.kernel}x{old.kernel}, {layer.kernel} is wanted"
              for old, layer in zip(net, new) if layer.kernel > old.kernel]
    if larger:
        raise ModelError(f"kernels can be cut out of larger ones only: {'; '.join(larger)}")
    return with_kernels(net, state, kernels)


def forward(net: Net, state: Mapping[str, Tensor], images: Tensor, training: bool = False) -> list[Tensor]:
    """Return the head outputs of images [B, 3, S, S]; gradients flow into the tensors of `state`.

    In training batch-norm writes its running statistics there: hand in clones where they are another's.
    """
    skeleton = _skeleton(net, torch.distributed.is_available() and torch.distributed.is_initialized())
    return torch.func.functional_call(skeleton.train(training), dict(state), (images,))


@lru_cache(maxsize=128)
def _substituted(net: Net, kernels: tuple[tuple[str, int], ...]) -> Net:
    return substitute(net, kernels=dict(kernels))


@lru_cache(maxsize=128)
def _skeleton(net: Net, several: bool) -> nn.Module:
    """Return the network's modules without any memory; batch-norm over all ranks where there are several."""
    with torch.device("meta"):
        model = Network(net)
    return synchronise(model) if several else model
