"""Which channels depend on which: the one table every count, pass, check and converter reads.

`layout(net)` lists each learned tensor with the channel groups along its first two axes. A channel group is a
set of channels that live and die together: `conv9` is the output of layer conv9, `conv9.hidden` and
`conv9.squeeze` the inner widths of an MBConv. Concat joins groups; pooling, upsampling and squeeze-excitation
pass them on; depthwise kernels follow their input; a residual add makes its inputs one group, named after the
earliest.
"""
from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from models.layer import WEIGHTED, Layer, Net
from utils.errors import ModelError


class Param(NamedTuple):
    """One tensor of the state dict: the groups concatenated along dim 0 and dim 1, and its other dims."""

    key: str
    rows: tuple[str, ...]
    cols: tuple[str, ...] | None                           # None: vectors and depthwise kernels
    tail: tuple[int, ...]                                  # (), (k, k), or (1, k, k) for depthwise kernels
    grid: str = "output"               # where it is applied: the layer's "output" or "input", or its "mean"


def own_groups(layer: Layer) -> dict[str, str]:
    """Width field of the record -> the channel group it is the width of, before residual adds tie them."""
    out = {"out": layer.name} if layer.op in WEIGHTED else {}
    if layer.op == "mbconv":
        out["hidden"] = f"{layer.name}.hidden"
    if layer.op == "se" or (layer.op == "mbconv" and layer.squeeze):
        out["squeeze"] = f"{layer.name}.squeeze"
    return out


def groups(net: Net) -> dict[str, tuple[str, ...]]:
    """Layer name -> channel groups of its output in order, tied groups under one name.

    Raises ModelError where an add's inputs cannot be tied: different widths, or groups cut at different
    places.
    """
    tied = _ties(net)
    return {name: tuple(_root(tied, g) for g in names) for name, names in _raw_groups(net).items()}


def _raw_groups(net: Net) -> dict[str, tuple[str, ...]]:
    """Layer name -> groups of its output before residual adds tie them."""
    out: dict[str, tuple[str, ...]] = {"image": ("image",)}
    for layer in net:
        passed = out[layer.inputs[0]] if layer.op == "add" else sum((out[i] for i in layer.inputs), ())
        out[layer.name] = (layer.name,) if layer.op in WEIGHTED else passed
    return out


def _ties(net: Net) -> dict[str, str]:
    """Group -> the group it is tied to, a forest whose roots name the tied sets."""
    parent: dict[str, str] = {}
    raw = _raw_groups(net)
    width = {"image": 3, **{layer.name: layer.out for layer in net if layer.op in WEIGHTED}}
    order = {name: at for at, name in enumerate(width)}
    for layer in net:
        if layer.op != "add":
            continue
        first = raw[layer.inputs[0]]
        for other in layer.inputs[1:]:
            if [width[g] for g in first] != [width[g] for g in raw[other]]:
                raise ModelError(f"layer {layer.name!r} (add): inputs {layer.inputs[0]!r} and {other!r} have "
                                 f"widths {[width[g] for g in first]} and {[width[g] for g in raw[other]]}; "
                                 "they must agree")
            for a, b in zip(first, raw[other]):
                low, high = sorted((_root(parent, a), _root(parent, b)), key=order.__getitem__)
                if low != high:
                    parent[high] = low
    return parent


def _root(tied: dict[str, str], group: str) -> str:
    while group in tied:
        group = tied[group]
    return group


def widths(net: Net) -> dict[str, int]:
    """Channel group -> number of channels, "image" included."""
    tied, out = _ties(net), {"image": 3}
    for layer in net:
        own = own_groups(layer)
        out |= {group: getattr(layer, field) for field, group in own.items() if group not in tied}
    return out


def with_widths(net: Net, new: dict[str, int]) -> Net:
    """The network with the given groups' widths replaced; tied layers change together."""
    tied = _ties(net)

    def resized(layer: Layer) -> Layer:
        return replace(layer, **{field: new.get(_root(tied, group), getattr(layer, field))
                                 for field, group in own_groups(layer).items()})
    return tuple(resized(layer) for layer in net)


def frozen_groups(net: Net) -> dict[str, str]:
    """Channel group -> why its channels cannot be cut: the picture's own and those a head's meaning fixes."""
    reached = groups(net)
    out = {"image": "the picture's channels"}
    for layer in net:
        if layer.op == "head":
            out[reached[layer.name][0]] = "a head's outputs are its anchors and classes"
    return out


def layout(net: Net) -> tuple[Param, ...]:
    """Every learned tensor of the network, in the order its modules are built."""
    reached = groups(net)
    table: list[Param] = []
    for layer in net:
        if layer.op in _TABLES:
            cin = sum((reached[i] for i in layer.inputs), ())
            table += _TABLES[layer.op](layer, cin, reached[layer.name])
    return tuple(table)


def _conv(key: str, rows: tuple, cols: tuple | None, kernel: int, bn: bool,
          grid: str = "output") -> list[Param]:
    """A convolution's rows: kernel and batch-norm, or kernel and bias where `bn` is False."""
    tail = (1, kernel, kernel) if cols is None else (kernel, kernel)
    after = [f"bn.{s}" for s in ("weight", "bias", "running_mean", "running_var")] if bn else ["conv.bias"]
    return [Param(f"{key}.conv.weight", rows, cols, tail, grid),
            *(Param(f"{key}.{s}", rows, None, (), grid) for s in after)]


def _se(name: str, rows: tuple) -> list[Param]:
    """Squeeze-excitation's rows: it sees the mean of each channel."""
    squeeze = (f"{name}.squeeze",)
    return [Param(f"{name}.se.{part}.{leaf}", to, of if leaf == "weight" else None,
                  (1, 1) if leaf == "weight" else (), "mean")
            for part, to, of in (("reduce", squeeze, rows), ("expand", rows, squeeze))
            for leaf in ("weight", "bias")]


def _dsconv(layer: Layer, cin: tuple, out: tuple) -> list[Param]:
    return [*_conv(f"{layer.name}.depthwise", cin, None, layer.kernel, layer.bn),
            *_conv(f"{layer.name}.pointwise", out, cin, 1, layer.bn)]


def _mbconv(layer: Layer, cin: tuple, out: tuple) -> list[Param]:
    name, hid = layer.name, (f"{layer.name}.hidden",)
    return [*_conv(f"{name}.expand", hid, cin, 1, layer.bn, "input"),      # it runs before the stride
            *_conv(f"{name}.depthwise", hid, None, layer.kernel, layer.bn),
            *(_se(name, hid) if layer.squeeze else ()),
            *_conv(f"{name}.project", out, hid, 1, layer.bn)]


_TABLES = {"conv": lambda layer, cin, out: _conv(layer.name, out, cin, layer.kernel, layer.bn),
           "head": lambda layer, cin, out: _conv(layer.name, out, cin, 1, False),
           "se": lambda layer, cin, out: _se(layer.name, out),
           "dsconv": _dsconv, "mbconv": _mbconv}


def shape(param: Param, width: dict[str, int]) -> tuple[int, ...]:
    """The tensor's shape under the given group widths."""
    cols = () if param.cols is None else (sum(width[c] for c in param.cols),)
    return (sum(width[r] for r in param.rows), *cols, *param.tail)


def strides(net: Net) -> dict[str, int]:
    """Layer name -> px of the network input a cell of its output. Raises ModelError where inputs disagree."""
    out = {"image": 1}
    for layer in net:
        sources = {out[i] for i in layer.inputs}
        if len(sources) > 1:
            raise ModelError(f"layer {layer.name!r} ({layer.op}): its inputs have strides {sorted(sources)}; "
                             "they must agree (an upsample or a pooling is missing)")
        source = sources.pop()
        if layer.op == "upsample" and source % layer.stride:
            raise ModelError(f"layer {layer.name!r} (upsample): cannot enlarge past the picture "
                             f"(stride {source})")
        out[layer.name] = source // layer.stride if layer.op == "upsample" else source * layer.stride
    return out
