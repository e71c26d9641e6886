"""Every block, defined once: a function that writes a record out as primitive nodes, all that others read."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from models.heads import HEADS
from models.layer import Layer
from models.nodes import Builder


class Block(NamedTuple):
    """A block, and what it asks of its record."""

    write: Callable[..., str]
    needs: tuple[str, ...] = ()                            # fields that must be given
    inputs: tuple[int, int] = (1, 1)                       # the least and the greatest number
    strided: bool = False                                  # whether a stride beyond 1 is possible


BLOCKS: dict[str, Block] = {}


def block(*needs: str, inputs: tuple[int, int] = (1, 1), strided: bool = False) -> Callable:
    """Return a decorator that registers a `Block` under its function's name."""
    def register(write: Callable[..., str]) -> Callable[..., str]:
        BLOCKS[write.__name__.removesuffix("_")] = Block(write, needs, inputs, strided)
        return write
    return register


MANY = (2, 10000)                                          # inputs of what joins
ALSO = (1, 2)                                              # inputs of what adds a second where it is named


def _added(b: Builder, y: str, residual: tuple[str, ...]) -> str:
    """Append the residual sum where the record names a second input."""
    return b.add(y, *residual) if residual else y


@block("out", strided=True)
def conv(b: Builder, x: str) -> str:
    """kxk convolution, batch-norm, activation; grouped and dilated where the record says so."""
    return b.conv(x, "", "out", b.layer.kernel, b.layer.stride, groups=b.layer.groups,
                  dilation=b.layer.dilation)


@block(strided=True)
def depthwise(b: Builder, x: str) -> str:
    """Depthwise kxk convolution, batch-norm, activation."""
    return b.depthwise(x, "", b.layer.kernel, b.layer.stride, dilation=b.layer.dilation)


@block("out", strided=True)
def dsconv(b: Builder, x: str) -> str:
    """Depthwise kxk, pointwise 1x1, each with batch-norm and activation (MobileNet, arXiv 1704.04861)."""
    return b.conv(b.depthwise(x, "depthwise", b.layer.kernel, b.layer.stride), "pointwise")


@block("out", strided=True)
def sepconv(b: Builder, x: str) -> str:
    """Depthwise kxk and pointwise 1x1 with one batch-norm behind both (Xception, arXiv 1610.02357)."""
    y = b.depthwise(x, "depthwise", b.layer.kernel, b.layer.stride, act="linear", bn=False, bias=False)
    return b.conv(y, "pointwise")


@block("out", inputs=ALSO, strided=True)
def mbconv(b: Builder, x: str, *residual: str) -> str:
    """Expand 1x1 where `hidden`, depthwise kxk, se, linear 1x1 (MobileNet V2, arXiv 1801.04381)."""
    y = b.conv(x, "expand", "hidden") if b.layer.hidden else x
    y = b.depthwise(y, "depthwise", b.layer.kernel, b.layer.stride)
    y = b.se(y) if b.layer.squeeze else y
    return _added(b, b.conv(y, "project", act="linear"), residual)


@block("out", "hidden", inputs=ALSO, strided=True)
def sandglass(b: Builder, x: str, *residual: str) -> str:
    """Depthwise, reduce, expand, depthwise, around the wide ends (MobileNeXt, arXiv 2007.02269)."""
    keep = bool(residual) or b.layer.full                  # else without the depthwise that is not strided
    y = b.depthwise(x, "dw1", b.layer.kernel) if keep else x
    y = b.conv(b.conv(y, "reduce", "hidden", act="linear"), "expand")
    if keep or b.layer.stride > 1:
        y = b.depthwise(y, "dw2", b.layer.kernel, b.layer.stride, act="linear")
    return _added(b, y, residual)


@block("out", "hidden", inputs=ALSO, strided=True)
def bottleneck(b: Builder, x: str, *residual: str) -> str:
    """1x1, (grouped) kxk, linear 1x1, sum, activation (ResNet, RegNet; arXiv 1512.03385, 2003.13678)."""
    y = b.conv(x, "reduce", "hidden")
    y = b.conv(y, "spatial", "hidden", b.layer.kernel, b.layer.stride, groups=b.layer.groups,
               dilation=b.layer.dilation)
    return b.act(_added(b, b.conv(y, "project", act="linear"), residual))


def _ghost(b: Builder, x: str, part: str, field: str, act: str) -> str:
    """Append a Ghost module of ratio 2: half the channels, and a cheap depthwise copy of them."""
    y = b.conv(x, f"{part}.primary", field, parts=2, act=act)
    return b.concat(y, b.depthwise(y, f"{part}.cheap", 3, act=act), part=part)


@block("out", "hidden", inputs=ALSO, strided=True)
def ghost(b: Builder, x: str, *residual: str) -> str:
    """Two Ghost modules, a strided depthwise kxk and squeeze-excitation between them (arXiv 1911.11907)."""
    y = _ghost(b, x, "ghost1", "hidden", b.layer.act)
    if b.layer.stride > 1:
        y = b.depthwise(y, "depthwise", b.layer.kernel, b.layer.stride, act="linear")
    y = b.se(y) if b.layer.squeeze else y
    return _added(b, _ghost(b, y, "ghost2", "out", "linear"), residual)


@block("out", strided=True)
def ghostconv(b: Builder, x: str) -> str:
    """A Ghost module as a convolution: kxk to half the channels, and a cheap 5x5 depthwise copy of them."""
    y = b.conv(x, "primary", "out", b.layer.kernel, b.layer.stride, parts=2)
    return b.concat(y, b.depthwise(y, "cheap", 5))


@block("out", strided=True)
def shortcut(b: Builder, x: str) -> str:
    """Depthwise kxk, then 1x1, both linear: the side branch of a strided Ghost bottleneck."""
    y = b.depthwise(x, "depthwise", b.layer.kernel, b.layer.stride, act="linear")
    return b.conv(y, "pointwise", act="linear")


@block("out", "hidden", strided=True)
def shufflev1(b: Builder, x: str) -> str:
    """ShuffleNet V1 unit (arXiv 1707.01083); strided its pooled input stands beside `out` channels."""
    y = b.conv(x, "reduce", "hidden", groups=1 if b.layer.full else b.layer.groups)
    y = b.depthwise(b.shuffle(y, b.layer.groups), "depthwise", b.layer.kernel, b.layer.stride, act="linear")
    y = b.conv(y, "expand", groups=b.layer.groups, act="linear")
    if b.layer.stride == 1:
        return b.act(b.add(x, y))
    return b.act(b.concat(b.pool("avgpool", x, 3, b.layer.stride, "pool"), y))


@block("out", "hidden", strided=True)
def shufflev2(b: Builder, x: str) -> str:
    """ShuffleNet V2 unit (arXiv 1807.11164): half the channels pass, half are worked on; strided, all are."""
    size, stride = b.layer.kernel, b.layer.stride
    left, right = x, x
    if stride == 1:
        left, right = b.slice(x, 0, 2), b.slice(x, 1, 2)
    else:
        left = b.conv(b.depthwise(x, "left.depthwise", size, stride, act="linear"), "left.pointwise", parts=2)
    y = b.conv(right, "reduce", "hidden")
    y = b.conv(b.depthwise(y, "depthwise", size, stride, act="linear"), "expand", parts=2)
    return b.shuffle(b.concat(left, y), 2)


@block("out", "squeeze")
def fire(b: Builder, x: str) -> str:
    """SqueezeNet's module (arXiv 1602.07360): a 1x1 waist, then 1x1 and 3x3 side by side."""
    waist = b.conv(x, "squeeze", "squeeze")
    small = b.conv(waist, "expand1", parts=2)
    return b.concat(small, b.conv(waist, "expand3", "out", b.layer.kernel, parts=2))


@block("out", strided=True)
def repconv(b: Builder, x: str) -> str:
    """A 3x3 that trains as 3x3 + 1x1 + identity (RepVGG, arXiv 2101.03697); fused without batch-norm."""
    kernel, stride, groups = b.layer.kernel, b.layer.stride, b.layer.groups
    if kernel % 2 == 0 or b.layer.pad not in (-1, kernel // 2):
        # The 1x1 would lie on no cell of the kernel: neither a sum nor a fusion means anything.
        raise b.fail(f"kernel is {kernel} and pad {b.layer.pad}; needs an odd kernel, padded to fit (-1)")
    if not b.layer.bn:
        return b.conv(x, "", "out", kernel, stride, groups=groups)
    branches = [b.conv(x, part, "out", size, stride, groups=groups, act="linear")
                for part, size in (("large", kernel), ("small", 1))]
    if stride == 1 and b.width[x] == b.layer.out:
        branches.append(b.norm(x, "same"))
    return b.act(b.add(*branches))


@block("out", "hidden")
def sppf(b: Builder, x: str) -> str:
    """Spatial pyramid: three max-poolings one after another beside their input (arXiv 1406.4729)."""
    levels = [b.conv(x, "reduce", "hidden")]
    for at in range(3):
        levels.append(b.pool("maxpool", levels[-1], b.layer.kernel, 1, f"pool{at}"))
    return b.conv(b.concat(*levels), "project")


def _atrous(b: Builder, x: str, level: Callable[[int], str]) -> str:
    """Append an atrous pyramid: 1x1, a `level` per rate, the mean of the map; side by side, projected."""
    levels = [b.conv(x, "rate1", "hidden"), *map(level, b.layer.rates or (6, 12, 18))]
    mean = b.conv(b.mean(x, "image"), "image", "hidden", bn=False)
    return b.conv(b.concat(*levels, b.spread(mean, levels[0], "spread")), "project")


@block("out", "hidden")
def aspp(b: Builder, x: str) -> str:
    """Atrous pyramid (arXiv 1706.05587): 1x1, a dilated 3x3 per rate, the mean; side by side, projected."""
    return _atrous(b, x, lambda rate: b.conv(x, f"rate{rate}", "hidden", 3, dilation=rate))


@block("out", "hidden")
def dwaspp(b: Builder, x: str) -> str:
    """Atrous pyramid whose dilated 3x3 are depthwise, each with a 1x1 behind it (arXiv 1802.02611)."""
    def level(rate: int) -> str:
        return b.conv(b.depthwise(x, f"rate{rate}.depthwise", 3, dilation=rate), f"rate{rate}", "hidden")
    return _atrous(b, x, level)


@block("out", inputs=(2, 2))
def context(b: Builder, x: str, coarse: str) -> str:
    """ThunderNet's context (arXiv 1903.11752): x, a map half as fine and the latter's mean, as one sum."""
    here = b.conv(x, "local", act="linear")
    near = b.upsample(b.conv(coarse, "coarse", act="linear"), 2, "enlarged")
    mean = b.conv(b.mean(coarse, "whole"), "whole", bn=False, act="linear")
    return b.add(here, near, b.spread(mean, here, "spread"))


@block(inputs=(2, 2))
def attend(b: Builder, x: str, guide: str) -> str:
    """ThunderNet's spatial attention (arXiv 1903.11752): x times a gate per cell and channel, of `guide`."""
    gate = b.raw_conv(guide, b.name("gate.conv"), b.width[x], "~", bias=not b.layer.bn)
    gate = b.norm(gate, "gate") if b.layer.bn else gate
    return b.node("mul", b.name(""), x, b.act(gate, "gate", b.layer.gate))


# Blocks that are one primitive or a head, which says itself what it is.
BLOCKS |= {
    "se": Block(lambda b, x: b.se(x), ("squeeze",)),
    "maxpool": Block(lambda b, x: b.pool("maxpool", x, b.layer.kernel, b.layer.stride), strided=True),
    "avgpool": Block(lambda b, x: b.pool("avgpool", x, b.layer.kernel, b.layer.stride), strided=True),
    "upsample": Block(lambda b, x: b.upsample(x, b.layer.stride, smooth=b.layer.full), strided=True),
    "concat": Block(lambda b, *xs: b.concat(*xs, part=""), inputs=MANY),
    "add": Block(lambda b, *xs: b.add(*xs, part=""), inputs=MANY),
    "act": Block(lambda b, x: b.act(x)),
    # Each channel times a constant, plus another: what brings an image to a mean and deviation.
    "affine": Block(lambda b, x: b.raw_conv(x, b.name("conv"), b.width[x], "", groups=b.width[x], bias=True,
                                           constant=True)),
    "split": Block(lambda b, x: b.slice(x, b.layer.part, b.layer.groups, "piece"), ("groups",)),
    "shuffle": Block(lambda b, x: b.shuffle(x, b.layer.groups, ""), ("groups",)),
    "head": Block(lambda b, *xs: HEADS[b.layer.kind].nodes(b, *xs), ("out", "kind"), ALSO)}


@block("out")
def classify(b: Builder, x: str) -> str:
    """A classifier's end: mean, a layer of `hidden` channels where given, scores [B, K, 1, 1]."""
    why = "a classifier's outputs are its classes"
    if b.layer.full:                                       # SqueezeNet's: every cell is scored, then the mean
        return b.mean(b.conv(x, "fc", bn=False, fixed=why), "")
    y = b.mean(x, "")
    y = b.conv(y, "fc1", "hidden", bn=False) if b.layer.hidden else y
    return b.conv(y, "fc", bn=False, act="linear", bias=b.layer.bias, fixed=why)


def of_schema_1(layer: Layer) -> Layer:
    """Return a record of schema 1, whose poolings were 2x2 and heads of one kind, as it was meant there."""
    if layer.op == "head":
        return replace(layer, kind="anchor", assign="best" if layer.xy_scale == 1 else "ratio")
    return replace(layer, kernel=2) if layer.op == "maxpool" else layer
