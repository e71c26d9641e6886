"""A folded network as primitive operations, the one list that every writer of a file format walks.

No torch here: a writer takes the numbers from the state by the operations' keys.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from models.channels import groups, strides, widths
from models.layer import Layer, Net

IMAGE = "images"                                           # the name of the picture's value


class Step(NamedTuple):
    """One operation; its value carries its name, and `inputs` are names of earlier values.

    conv: convolution with bias, same padding, then `act`; its numbers are state[key + ".weight"] and ".bias".
    head: a 1x1 convolution without activation whose `out` channels are `anchors` x (5 + K). average: of
    windows `stride` x `stride` side by side. mean: of each channel, [B, C, 1, 1]. mul, add: element-wise, mul
    with a [B, C, 1, 1]. concat: along channels. maxpool: 2x2, with stride 1 one more row below and column
    right that never win. upsample: nearest, by `stride`.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    out: int                                               # channels
    key: str = ""
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    act: str = "linear"                                    # spec.ACTIVATIONS, and sigmoid
    anchors: int = 0


class _Size(NamedTuple):
    """Of a layer: channels in and out, and its grid's side in sides of the network's coarsest grid."""

    cin: int
    out: int
    rest: int


def steps(net: Net) -> tuple[Step, ...]:
    """The operations of a network in the order they run. Raises ValueError unless it is folded."""
    if any(layer.bn for layer in net if layer.op in ("conv", "dsconv", "mbconv")):
        raise ValueError("the network has batch-norms: fold it first (compress.fold)")
    width, reached, stride = widths(net), groups(net), strides(net)
    value, found = {"image": IMAGE}, []
    for layer in net:
        inputs = tuple(value[i] for i in layer.inputs)
        cin = sum(width[g] for i in layer.inputs for g in reached[i])
        out = sum(width[g] for g in reached[layer.name])
        rest = max(stride.values()) // stride[layer.name]  # divides the side of every picture that fits
        found += _STEPS[layer.op](layer, inputs, _Size(cin, out, rest))
        value[layer.name] = found[-1].name
    return tuple(found)


def _conv(layer: Layer, inputs: tuple[str, ...], size: _Size) -> list[Step]:
    return [Step(layer.name, "conv", inputs, size.out, f"{layer.name}.conv", layer.kernel, layer.stride,
                 act=layer.act)]


def _chain(layer: Layer, inputs: tuple[str, ...], parts: list[tuple[str, Step]]) -> Iterator[Step]:
    """The parts of a block one after another, each named and keyed after the block."""
    for part, step in parts:
        name = f"{layer.name}.{part}"
        yield step._replace(name=name, inputs=inputs, key=f"{name}.conv")
        inputs = (name,)


def _dsconv(layer: Layer, inputs: tuple[str, ...], size: _Size) -> list[Step]:
    one = Step("", "conv", (), size.out, act=layer.act)
    return [*_chain(layer, inputs, [("depthwise", _deep(one, layer, size.cin)), ("pointwise", one)])]


def _deep(step: Step, layer: Layer, channels: int) -> Step:
    return step._replace(out=channels, kernel=layer.kernel, stride=layer.stride, depthwise=True)


def _mbconv(layer: Layer, inputs: tuple[str, ...], size: _Size) -> list[Step]:
    one = Step("", "conv", (), layer.hidden, act=layer.act)
    found = [*_chain(layer, inputs, [("expand", one), ("depthwise", _deep(one, layer, layer.hidden))])]
    if layer.squeeze:
        found += _se(layer, (found[-1].name,), size._replace(out=layer.hidden))
    last = (found[-1].name,)
    return found + [*_chain(layer, last, [("project", one._replace(out=size.out, act="linear"))])]


def _se(layer: Layer, inputs: tuple[str, ...], size: _Size) -> list[Step]:
    """Squeeze-excitation. Its mean is taken in two steps: runtimes that add up 43,264 numbers in fp32 one
    after another are off by enough to move the raw maps by 2e-3."""
    at, source, first = f"{layer.name}.se", inputs, []
    if size.rest > 1:
        first = [Step(f"{at}.average", "average", inputs, size.out, stride=size.rest)]
        source = (first[0].name,)
    return [*first, Step(f"{at}.mean", "mean", source, size.out),
            Step(f"{at}.reduce", "conv", (f"{at}.mean",), layer.squeeze, f"{at}.reduce", act="relu"),
            Step(f"{at}.expand", "conv", (f"{at}.reduce",), size.out, f"{at}.expand", act="sigmoid"),
            Step(at, "mul", (*inputs, f"{at}.expand"), size.out)]


def _head(layer: Layer, inputs: tuple[str, ...], size: _Size) -> list[Step]:
    return [Step(layer.name, "head", inputs, size.out, f"{layer.name}.conv", anchors=len(layer.anchors))]


def _plain(layer: Layer, inputs: tuple[str, ...], size: _Size) -> list[Step]:
    return [Step(layer.name, layer.op, inputs, size.out, stride=layer.stride)]


_STEPS = {"conv": _conv, "dsconv": _dsconv, "mbconv": _mbconv, "se": _se, "head": _head,
          **dict.fromkeys(("maxpool", "upsample", "concat", "add"), _plain)}

