"""Channel pruning as a function: (net, state, kept channels) -> (smaller net, smaller state)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.channels import frozen_groups, layout, widths, with_widths
from models.layer import Net
from utils.errors import ModelError


def prune(net: Net, state: dict[str, Tensor],
          keep: Mapping[str, Sequence[int]]) -> tuple[Net, dict[str, Tensor]]:
    """The network and state with only the listed channels of each group; neither argument is changed.

    keep: channel group -> sorted indices to keep; groups not listed stay whole. Tensors that lose nothing are
    shared with `state`. Raises ModelError for an unknown or frozen group, an empty or unsorted list, or an
    index out of range.
    """
    width = widths(net)
    _check(net, width, keep)
    kept = {g: torch.as_tensor(list(i), dtype=torch.long) for g, i in keep.items() if len(i) < width[g]}

    def index(names: tuple[str, ...]) -> Tensor | None:
        """Positions that stay along an axis made of the named groups, None when all do."""
        if not any(g in kept for g in names):
            return None
        at, out = 0, []
        for g in names:
            out.append(at + kept.get(g, torch.arange(width[g])))
            at += width[g]
        return torch.cat(out)
    small, cache = dict(state), {}
    for param in layout(net):
        tensor = state[param.key]
        for axis, names in enumerate((param.rows, param.cols)):
            if names is None:
                continue
            if names not in cache:
                cache[names] = index(names)
            if cache[names] is not None:
                tensor = tensor.index_select(axis, cache[names].to(tensor.device))
        small[param.key] = tensor
    return with_widths(net, {g: len(i) for g, i in kept.items()}), small


def _check(net: Net, width: dict[str, int], keep: Mapping[str, Sequence[int]]) -> None:
    frozen = frozen_groups(net)
    for group, indices in keep.items():
        indices = list(indices)
        if group not in width:
            known = ", ".join(g for g in width if g != "image")
            raise ModelError(f"no channel group {group!r}; known are {known}")
        if group in frozen and len(indices) < width[group]:
            raise ModelError(f"channel group {group!r} cannot be cut: {frozen[group]}")
        if not indices:
            raise ModelError(f"channel group {group!r} would lose all its {width[group]} channels; "
                             "keep at least one")
        if indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= width[group]:
            raise ModelError(f"keep for {group!r} must be sorted, unique indices in 0..{width[group] - 1}, "
                             f"got {str(indices)[:60]}")
