"""Which channels depend on which: every channel has a number, an axis of a tensor is a list of numbers.

A convolution makes new numbers; what follows passes them on, joins, picks or ties them (tied channels live
and die together). A *unit* is what a pruning step cuts: the numbers that a record's field counts, named after
it ("conv9", "conv9.hidden"). Cutting channels is then a filter on every axis, whatever the blocks were.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from models.graph import expand
from models.layer import Net
from models.nodes import IMAGE, Node
from utils.errors import ModelError


class Param(NamedTuple):
    """A tensor of the state, and the numbers of its channels."""

    key: str
    rows: np.ndarray                                       # along its first axis
    cols: np.ndarray | None                                # along its second where that is channels
    tail: tuple[int, ...]                                  # its other sides
    node: Node

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return (len(self.rows), *(() if self.cols is None else (len(self.cols),)), *self.tail)

    @property
    def trained(self) -> bool:
        """Whether it is a parameter; batch-norm's running statistics and given constants are state."""
        return not self.node.constant and not self.key.endswith(("running_mean", "running_var"))


class Channels(NamedTuple):
    """The channels of a network. Numbers are those of the first channel that each is tied to."""

    params: tuple[Param, ...]                              # every tensor, in the order its modules are built
    units: dict[str, np.ndarray]                           # unit -> its numbers in order
    frozen: dict[str, str]                                 # unit -> why its channels cannot be cut
    fields: dict[tuple[str, str], tuple[np.ndarray, int]]  # (record, field) -> numbers, times each is counted
    outputs: dict[str, np.ndarray]                         # record -> numbers of its output
    makers: dict[str, tuple[Node, ...]]                    # unit -> convolutions that make it, tied ones too
    count: int


class _Numbers:
    """Numbers handed out, and which of them are tied."""

    def __init__(self) -> None:
        self.count, self.pairs = 0, []

    def new(self, count: int) -> np.ndarray:
        self.count += count
        return np.arange(self.count - count, self.count)

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        self.pairs.append((a, b))

    def tie_parts(self, ids: np.ndarray, parts: int) -> None:
        """Keep a grouped or sliced axis regular: the i-th channel of each part lives with the others'."""
        first, *rest = ids.reshape(parts, -1)
        for piece in rest:
            self.tie(first, piece)

    def roots(self) -> np.ndarray:
        """Return number -> the least number that it is tied to."""
        root = np.arange(self.count)
        if not self.pairs:
            return root
        a, b = (np.concatenate([pair[side] for pair in self.pairs]) for side in (0, 1))
        while True:
            low, before = np.minimum(root[a], root[b]), root.copy()
            np.minimum.at(root, a, low)
            np.minimum.at(root, b, low)
            np.minimum.at(root, before[a], low)            # and for all that were tied to them
            np.minimum.at(root, before[b], low)
            root = root[root]
            if (root == before).all():
                return root


@lru_cache(maxsize=128)
def channels(net: Net) -> Channels:
    """Return the channels of a network. Raises ModelError where its widths do not fit."""
    graph, numbers = expand(net), _Numbers()
    values, made, makers = {IMAGE: numbers.new(3)}, {}, {}
    axes: list[tuple[Node, np.ndarray, np.ndarray | None]] = []
    for node in graph.nodes:
        xs = [values[i] for i in node.inputs]
        out = xs[0]
        if node.type == "conv" and node.field:
            out = numbers.new(node.channels)
            if node.groups > 1:
                numbers.tie_parts(xs[0], node.groups)
                numbers.tie_parts(out, node.groups)
            if node.field != "~":
                where = (node.layer, node.field)
                if where in made:                          # what is counted by one field is cut together
                    numbers.tie(made[where][0], out)
                made.setdefault(where, (out, node.parts))
                makers.setdefault(where, []).append(node)
            axes.append((node, out, xs[0].reshape(node.groups, -1)[0]))
        elif node.type in ("conv", "norm"):
            axes.append((node, out, None))
        elif node.type in ("add", "mul"):
            for x in xs[1:]:
                numbers.tie(out, x)
        elif node.type == "concat":
            out = np.concatenate(xs)
        elif node.type == "slice":
            numbers.tie_parts(out, node.parts)
            out = np.split(out, node.parts)[node.part]
        elif node.type == "shuffle":
            numbers.tie_parts(out, node.groups)
            out = out.reshape(node.groups, -1).T.reshape(-1)
        values[node.name] = out
    root = numbers.roots()
    fields = {where: (root[ids], parts) for where, (ids, parts) in made.items()}
    units, frozen, made_by = _units(fields, makers, root)
    outputs = {name: root[values[value]] for name, value in graph.value.items()}
    params = tuple(_params(axes, root))
    return Channels(params, units, frozen, fields, outputs, made_by, numbers.count)


def _units(fields: dict, makers: dict, root: np.ndarray
           ) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, tuple[Node, ...]]]:
    """Return the units, why some are frozen, their makers. A number is of the first field that counts it."""
    why, made_by = {IMAGE: "the image's channels"}, {}
    units, frozen, owner = {IMAGE: root[:3]}, dict(why), dict.fromkeys(root[:3].tolist(), IMAGE)
    for (layer, field), (ids, _) in fields.items():
        name = layer if field == "out" else f"{layer}.{field}"
        why[name] = next((node.fixed for node in makers[layer, field] if node.fixed), "")
        fresh = [i for i in dict.fromkeys(ids.tolist()) if i not in owner]
        owner.update(dict.fromkeys(fresh, name))
        if fresh:
            units[name] = np.array(fresh)
        for tied in {owner[i] for i in ids.tolist()}:      # a frozen field freezes whatever it is tied to
            made_by[tied] = made_by.get(tied, ()) + tuple(makers[layer, field])
            if why[name] and tied != name:
                frozen[tied] = f"tied to {name}: {why[name]}"
            elif why[tied] and tied != name:
                frozen[name] = f"tied to {tied}: {why[tied]}"
        if len(fresh) == 1 < len(ids):                     # nothing could be cut without cutting all of it
            why[name] = why[name] or f"shuffles and equal parts tie its {len(ids)} channels into one"
        if why[name] and fresh:
            frozen[name] = why[name]
    return (units, {name: reason for name, reason in frozen.items() if name in units},
            {name: made_by.get(name, ()) for name in units})


def _params(axes: list[tuple[Node, np.ndarray, np.ndarray | None]], root: np.ndarray) -> Iterable[Param]:
    """Yield the tensors of the nodes."""
    for node, rows, cols in axes:
        rows, cols = root[rows], None if cols is None else root[cols]
        learned = ("weight", "bias") if node.bias or node.type == "norm" else ("weight",)
        for leaf in (*learned, *(("running_mean", "running_var") if node.type == "norm" else ())):
            kernel = leaf == "weight" and node.type == "conv"
            tail = ((1,) if cols is None else ()) + (node.kernel,) * 2 if kernel else ()
            yield Param(f"{node.name}.{leaf}", rows, cols if kernel else None, tail, node)


def widths(net: Net) -> dict[str, int]:
    """Return unit -> how many channels can be cut from it one by one, the image's included."""
    return {name: len(ids) for name, ids in channels(net).units.items()}


def shapes(net: Net) -> dict[str, tuple[int, ...]]:
    """Return key -> shape of every tensor of the state, in the order its modules are built."""
    return {param.key: param.shape for param in channels(net).params}


def sizes(net: Net) -> dict[str, int]:
    """Return record -> parameters that it trains; records without any are left out."""
    out: dict[str, int] = {}
    for param in channels(net).params:
        if param.trained:
            out[param.node.layer] = out.get(param.node.layer, 0) + prod(param.shape)
    return out


def without(net: Net, keep: Mapping[str, Sequence[int]]) -> tuple[Net, np.ndarray]:
    """Return the network with only the listed channels of each unit, and number -> whether it stays [count].

    keep: unit -> sorted indices; units that are not listed stay whole. Raises ModelError for an unknown or
    frozen unit, an empty or unsorted list, an index out of range, or a tensor that would lose all channels.
    """
    table = channels(net)
    stays = np.ones(table.count, dtype=bool)
    for name, indices in keep.items():
        indices = _checked(table, name, list(indices))
        stays[table.units[name]] = False
        stays[table.units[name][indices]] = True
    new: dict[str, dict[str, int]] = {}
    for (layer, field), (ids, parts) in table.fields.items():
        left = int(np.count_nonzero(stays[ids]))
        if not left:
            raise ModelError(f"layer {layer!r} would lose all channels of {field}; keep at least one")
        if left < len(ids):
            new.setdefault(layer, {})[field] = parts * left
    return tuple(replace(layer, **new[layer.name]) if layer.name in new else layer for layer in net), stays


def _checked(table: Channels, name: str, indices: list[int]) -> list[int]:
    """Return the kept indices of a unit, or raise ModelError saying what is wrong with them."""
    if name not in table.units:
        raise ModelError(f"no unit {name!r}; known are {', '.join(table.units)}")
    width = len(table.units[name])
    if name in table.frozen and len(indices) < width:
        raise ModelError(f"unit {name!r} cannot be cut: {table.frozen[name]}")
    if not indices:
        raise ModelError(f"unit {name!r} would lose all its {width} channels; keep at least one")
    if indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= width:
        raise ModelError(f"keep for {name!r} must be sorted, unique indices in 0..{width - 1}, "
                         f"got {str(indices)[:60]}")
    return indices


def with_widths(net: Net, new: Mapping[str, int]) -> Net:
    """Return the network with only the first channels of the given units: unit -> how many."""
    return without(net, {name: range(count) for name, count in new.items()})[0]
