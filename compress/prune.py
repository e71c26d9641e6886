"""Channel pruning as a pass: (net, state, kept channels) -> (smaller net, smaller state)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from models.channels import channels, without
from models.layer import Net


def prune(net: Net, state: Mapping[str, Tensor],
          keep: Mapping[str, Sequence[int]]) -> tuple[Net, dict[str, Tensor]]:
    """Return the network and state with only the channels in `keep`: unit -> sorted indices.

    Tensors that lose nothing are shared with `state`; the cut is differentiable. Raises ModelError as
    `channels.without` does.
    """
    small, stays = without(net, keep)
    out, cache = dict(state), {}

    def kept(ids: np.ndarray | None) -> Tensor | None:
        """Return the positions that stay along an axis, None when all do."""
        if ids is None:
            return None
        if (key := ids.tobytes()) not in cache:
            stay = stays[ids]
            cache[key] = None if stay.all() else torch.from_numpy(np.flatnonzero(stay))
        return cache[key]
    for param in channels(net).params:
        tensor = state[param.key]
        for axis, ids in enumerate((param.rows, param.cols)):
            if (index := kept(ids)) is not None:
                tensor = tensor.index_select(axis, index.to(tensor.device))
        out[param.key] = tensor
    return small, out
