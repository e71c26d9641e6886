"""Primitive operations, and the builder that blocks write them with. No block is known here by name."""
from __future__ import annotations

from typing import NamedTuple

from models.layer import Layer
from utils.errors import ModelError

IMAGE = "image"                                            # the value that a network begins with
ACTIVATIONS = ("leaky", "relu", "relu6", "hardswish", "swish", "sigmoid", "hardsigmoid", "linear")


class Node(NamedTuple):
    """One primitive. Its value carries its name, and so do its tensors (`name.weight`, `name.bias`, ...).

    Types: conv, norm, act, add, mul (by a gate [B, C, 1, 1]), concat, slice (the `part`-th of `parts` equal
    pieces), shuffle (`groups` interleaved), mean ([B, C, 1, 1]), maxpool, avgpool, upsample (nearest, or
    bilinear where `smooth`, by `stride`), spread ([B, C, 1, 1] on the grid of its second input).
    """

    name: str
    type: str
    inputs: tuple[str, ...]
    channels: int
    reduction: int                     # px of the network's input that a cell spans; 0: one cell in all
    layer: str
    field: str = ""                    # of the record, counts a conv's outputs; "": depthwise, "~": a gate's
    parts: int = 1                     # ... which so many convolutions make up
    part: int = 0
    kernel: int = 1
    stride: int = 1
    pad: int = 0
    groups: int = 1
    dilation: int = 1
    bias: bool = False
    act: str = ""
    eps: float = 1e-5
    after: int = 0                     # more padding on the right and below
    ceil: bool = False                 # a pooling whose last window may hang over the edge
    fixed: str = ""                    # why the channels it makes cannot be cut
    smooth: bool = False               # an upsampling that is bilinear
    constant: bool = False             # a conv whose numbers are given, not learned


class Builder:
    """What blocks are written with: methods append nodes and return the name of the value they end in."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.width, self.reduction = {IMAGE: 3}, {IMAGE: 1}
        self.layer: Layer = Layer("", "", ())

    def fail(self, problem: str) -> ModelError:
        """Return the error of the current record, raised where widths or grids disagree."""
        return ModelError(f"layer {self.layer.name!r} ({self.layer.op}): {problem}")

    def node(self, type_: str, name: str, *inputs: str, channels: int = 0, reduction: int = -1,
             **more: object) -> str:
        """Append a node, of its first input's channels and grid where nothing else is said."""
        channels = channels or self.width[inputs[0]]
        reduction = self.reduction[inputs[0]] if reduction < 0 else reduction
        self.nodes.append(Node(name, type_, inputs, channels, reduction, self.layer.name, **more))
        self.width[name], self.reduction[name] = channels, reduction
        return name

    def name(self, part: str) -> str:
        """Return the name of a part of the current record."""
        return f"{self.layer.name}.{part}" if part else self.layer.name

    def conv(self, x: str, part: str = "", out: str = "out", kernel: int = 1, stride: int = 1, *,
             parts: int = 1, groups: int = 1, dilation: int = 1, act: str = "", bn: bool | None = None,
             bias: bool = True, fixed: str = "") -> str:
        """Append a convolution counted by field `out` ("": depthwise), batch-norm or `bias`, activation."""
        layer, normed = self.layer, self.layer.bn if bn is None else bn
        wanted = getattr(layer, out) if out else self.width[x]
        groups = groups if out else self.width[x]
        if wanted % parts or wanted // parts % groups or self.width[x] % groups:
            raise self.fail(f"{self.width[x]} channels in and {out or 'out'}={wanted} in {parts} part(s) do "
                            f"not divide into groups={groups}")
        value = self.raw_conv(x, f"{self.name(part)}.conv", wanted // parts, out, kernel, stride, parts=parts,
                              groups=groups, dilation=dilation, bias=bias and not normed, fixed=fixed)
        value = self.norm(value, part) if normed else value
        return self.act(value, part, act or layer.act)

    def _pad(self, kernel: int, stride: int, dilation: int = 1) -> int:
        """Return the padding: the record's `pad`, or what makes the grid the input's / stride."""
        if self.layer.pad >= 0:
            return self.layer.pad
        if kernel % 2 == 0 and stride % 2:
            raise self.fail(f"a kernel of {kernel} at stride {stride} has no middle; give `pad`, or an odd "
                            "kernel")
        return (kernel - stride) // 2 if kernel % 2 == 0 else dilation * (kernel // 2)

    def raw_conv(self, x: str, name: str, channels: int, field: str, kernel: int = 1, stride: int = 1,
                 **more: object) -> str:
        """Append a convolution alone."""
        pad = self._pad(kernel, stride, more.get("dilation", 1)) if kernel > 1 else 0
        return self.node("conv", name, x, channels=channels, reduction=self.reduction[x] * stride,
                         field=field, kernel=kernel, stride=stride, pad=pad, **more)

    def depthwise(self, x: str, part: str, kernel: int, stride: int = 1, **more: object) -> str:
        """Append a depthwise convolution, batch-norm, activation."""
        return self.conv(x, part, "", kernel, stride, **more)

    def norm(self, x: str, part: str = "") -> str:
        """Append a batch-norm."""
        return self.node("norm", f"{self.name(part)}.bn", x, eps=self.layer.eps)

    def act(self, x: str, part: str = "", act: str = "", leaf: str = "act") -> str:
        """Append an activation, the record's where nothing else is said; none where it is linear."""
        act = act or self.layer.act
        return x if act == "linear" else self.node("act", self.name(part) + f".{leaf}", x, act=act)

    def se(self, x: str, part: str = "se") -> str:
        """Append squeeze-excitation (arXiv 1709.01507): each channel times a gate from the means of all."""
        name, mean = self.name(part), self.mean(x, part)
        squeezed = self.raw_conv(mean, f"{name}.reduce", self.layer.squeeze, "squeeze", bias=True)
        squeezed = self.act(squeezed, part, "relu", "relu")
        gate = self.raw_conv(squeezed, f"{name}.expand", self.width[x], "~", bias=True)
        return self.node("mul", name, x, self.act(gate, part, self.layer.gate, "gate"))

    def mean(self, x: str, part: str) -> str:
        """Append the mean of each channel over the grid: [B, C, 1, 1]."""
        return self.node("mean", self.name(part) + ".mean", x, reduction=0)

    def add(self, *xs: str, part: str = "sum") -> str:
        """Append the sum of values of one shape."""
        if len(widths := {self.width[x] for x in xs}) > 1:
            raise self.fail(f"its inputs have widths {[self.width[x] for x in xs]}; they must agree")
        self._same_grid(xs)
        return self.node("add", self.name(part), *xs, channels=widths.pop())

    def concat(self, *xs: str, part: str = "cat") -> str:
        """Append the values side by side along channels."""
        self._same_grid(xs)
        return self.node("concat", self.name(part), *xs, channels=sum(self.width[x] for x in xs))

    def slice(self, x: str, part: int, parts: int, name: str = "") -> str:
        """Append the `part`-th of `parts` equal pieces."""
        if self.width[x] % parts or not 0 <= part < parts:
            raise self.fail(f"{self.width[x]} channels have no part {part} of {parts} equal ones")
        return self.node("slice", self.name(name or f"piece{part}"), x, channels=self.width[x] // parts,
                         part=part, parts=parts)

    def shuffle(self, x: str, groups: int, part: str = "shuffle") -> str:
        """Append the channels of `groups` interleaved."""
        if self.width[x] % groups:
            raise self.fail(f"{self.width[x]} channels do not divide into {groups} groups")
        return self.node("shuffle", self.name(part), x, groups=groups)

    def pool(self, type_: str, x: str, kernel: int, stride: int, part: str = "") -> str:
        """Append "maxpool", 2x2 at stride 1 padded as darknet does, or "avgpool", which counts padding."""
        after = int(type_ == "maxpool" and (kernel, stride, self.layer.pad) == (2, 1, -1))
        return self.node(type_, self.name(part), x, reduction=self.reduction[x] * stride, kernel=kernel,
                         stride=stride, pad=0 if after else self._pad(kernel, stride), after=after,
                         ceil=self.layer.ceil)

    def upsample(self, x: str, factor: int, part: str = "", smooth: bool = False) -> str:
        """Append upsampling by the nearest neighbour or, smooth, bilinear between the cells' middles."""
        if self.reduction[x] % factor:
            raise self.fail(f"cannot enlarge past the image (stride {self.reduction[x]}, by {factor})")
        return self.node("upsample", self.name(part), x, reduction=self.reduction[x] // factor, stride=factor,
                         smooth=smooth)

    def spread(self, x: str, like: str, part: str) -> str:
        """Append a [B, C, 1, 1] copied to every cell of another value's grid."""
        return self.node("spread", self.name(part), x, like, reduction=self.reduction[like])

    def _same_grid(self, xs: tuple[str, ...]) -> None:
        if len({self.reduction[x] for x in xs}) > 1:
            raise self.fail(f"its inputs have strides {sorted({self.reduction[x] for x in xs})}; they must "
                            "agree (an upsample or a pooling is missing)")
