"""Mobile classifiers as rows: the papers' widths times `width`, and counts at 224 px with 1,000 classes."""
from __future__ import annotations

from functools import partial
from math import ceil

from models.layer import Layer, Net
from models.nodes import IMAGE
from models.records import validate


class Rows:
    """Rows in running order; each reads the one before where it names no input. shared: fields of all."""

    def __init__(self, **shared: object) -> None:
        self.rows: list[Layer] = []
        self.shared, self.x, self.widths, self.blocks = shared, IMAGE, {IMAGE: 3}, 0

    @property
    def width(self) -> int:
        """The channels of the last row."""
        return self.widths[self.x]

    def add(self, name: str, op: str, *inputs: str, **fields: object) -> str:
        """Append a row and return its name."""
        inputs = inputs or (self.x,)
        self.rows.append(Layer(name, op, inputs, **{**self.shared, **fields}))
        passed = inputs if op == "concat" else inputs[:1]
        self.x, self.widths[name] = name, fields.get("out") or sum(self.widths[i] for i in passed)
        return name

    def block(self, op: str, out: int, stride: int = 1, short: str = "", short_kernel: int = 1,
              **fields: object) -> str:
        """Append a block, added to its input or, where width or grid change, through `short`, if any."""
        x, at, self.blocks = self.x, self.blocks, self.blocks + 1
        inputs = (x, x) if stride == 1 and self.width == out else (x,)
        if short and len(inputs) == 1:
            inputs = (x, self.add(f"short{at}", short, x, out=out, kernel=short_kernel, stride=stride,
                                  act="linear"))
        return self.add(f"block{at}", op, *inputs, out=out, stride=stride, **fields)

    def end(self, classes: int, **fields: object) -> Net:
        """Return the network, ended by a classifier."""
        self.add("end", "classify", out=classes, **fields)
        return validate(tuple(self.rows))


def rounded(width: float, by: int = 8) -> int:
    """Return the multiple of `by` that is nearest to a width, at least nine tenths of it."""
    near = max(by, int(width + by / 2) // by * by)
    return near if near >= 0.9 * width else near + by


def mobilenet_v1(classes: int = 1000, width: float = 1.0) -> Net:
    """Return MobileNet V1 (arXiv 1704.04861), with TF-slim's ReLU6: 4,231,976 parameters, 568.7 MMACs."""
    rows = Rows(act="relu6")
    rows.add("stem", "conv", out=int(32 * width), stride=2)
    for at, (out, stride) in enumerate(((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
                                        *((512, 1),) * 5, (1024, 2), (1024, 1))):
        rows.add(f"block{at}", "dsconv", out=int(out * width), stride=stride)
    return rows.end(classes)


def _inverted(classes: int = 1000, width: float = 1.0, *, stages: tuple[tuple[int, int, int, int, int], ...],
              act: str, widened: bool = False) -> Net:
    """Return inverted residuals as a network. stages: expansion, width, blocks, first stride, kernel."""
    rows = Rows(act=act)
    rows.add("stem", "conv", out=rounded(32 * width), stride=2)
    for expansion, out, blocks, stride, kernel in stages:
        for at in range(blocks):
            rows.block("mbconv", rounded(out * width), 1 if at else stride, kernel=kernel,
                       hidden=rows.width * expansion if expansion > 1 else 0)
    rows.add("last", "conv", out=rounded(1280 * max(1.0, width)) if widened else 1280, kernel=1)
    return rows.end(classes)


# MobileNet V2 (arXiv 1801.04381): 3,504,872 parameters, 300.8 MMACs. Its last layer is never narrowed.
mobilenet_v2 = partial(_inverted, act="relu6", widened=True, stages=(
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3),
    (6, 160, 3, 2, 3), (6, 320, 1, 1, 3)))
# MnasNet-B1 (arXiv 1807.11626): 4,383,312 parameters, 314.4 MMACs.
mnasnet_b1 = partial(_inverted, act="relu", stages=(
    (1, 16, 1, 1, 3), (3, 24, 3, 2, 3), (3, 40, 3, 2, 5), (6, 80, 3, 2, 5), (6, 96, 2, 1, 3),
    (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)))
# EfficientNet-Lite0, which has no squeeze-excitation: 4,652,008 parameters, 385.2 MMACs; its authors quote
# 407 M. Every grid is its input's divided by the stride, padded alike on all sides.
efficientnet_lite0 = partial(_inverted, act="relu6", stages=(
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)))


def _mobilenet_v3(classes: int = 1000, *, stages: tuple[tuple[int, int, int, int, bool, str], ...],
                  hidden: int) -> Net:
    """Return a MobileNet V3 (arXiv 1905.02244). stages: hidden, width, kernel, stride, squeeze, act."""
    rows = Rows(act="hardswish", gate="hardsigmoid", eps=1e-3)
    rows.add("stem", "conv", out=16, stride=2)
    for inner, out, kernel, stride, squeeze, act in stages:
        rows.block("mbconv", out, stride, kernel=kernel, hidden=inner if inner != rows.width else 0,
                   squeeze=rounded(inner / 4) if squeeze else 0, act=act)
    rows.add("last", "conv", out=stages[-1][0], kernel=1)
    return rows.end(classes, hidden=hidden)


RELU, SWISH = "relu", "hardswish"
# MobileNet V3-Small: 2,542,856 parameters, 56.5 MMACs.
mobilenet_v3_small = partial(_mobilenet_v3, hidden=1024, stages=(
    (16, 16, 3, 2, True, RELU), (72, 24, 3, 2, False, RELU), (88, 24, 3, 1, False, RELU),
    (96, 40, 5, 2, True, SWISH), (240, 40, 5, 1, True, SWISH), (240, 40, 5, 1, True, SWISH),
    (120, 48, 5, 1, True, SWISH), (144, 48, 5, 1, True, SWISH), (288, 96, 5, 2, True, SWISH),
    (576, 96, 5, 1, True, SWISH), (576, 96, 5, 1, True, SWISH)))
# MobileNet V3-Large: 5,483,032 parameters, 216.6 MMACs.
mobilenet_v3_large = partial(_mobilenet_v3, hidden=1280, stages=(
    (16, 16, 3, 1, False, RELU), (64, 24, 3, 2, False, RELU), (72, 24, 3, 1, False, RELU),
    (72, 40, 5, 2, True, RELU), (120, 40, 5, 1, True, RELU), (120, 40, 5, 1, True, RELU),
    (240, 80, 3, 2, False, SWISH), (200, 80, 3, 1, False, SWISH), (184, 80, 3, 1, False, SWISH),
    (184, 80, 3, 1, False, SWISH), (480, 112, 3, 1, True, SWISH), (672, 112, 3, 1, True, SWISH),
    (672, 160, 5, 2, True, SWISH), (960, 160, 5, 1, True, SWISH), (960, 160, 5, 1, True, SWISH)))


def mobilenext(classes: int = 1000, width: float = 1.0) -> Net:
    """Return MobileNeXt (arXiv 2007.02269): 3,535,416 parameters, 311.3 MMACs; its authors quote 300 M."""
    rows = Rows(act="relu6")
    rows.add("stem", "conv", out=rounded(32 * width), stride=2)
    for reduction, out, blocks, stride in ((2, 96, 1, 2), (6, 144, 1, 1), (6, 192, 3, 2), (6, 288, 3, 2),
                                           (6, 384, 4, 1), (6, 576, 4, 2), (6, 960, 3, 1), (6, 1280, 1, 1)):
        out = max(1280, int(1280 * width)) if out == 1280 else rounded(out * width)
        for at in range(blocks):
            hidden = rows.width // reduction
            hidden = hidden if hidden >= out / 6 else rounded(ceil(out / 6), 16)
            rows.block("sandglass", out, 1 if at else stride, hidden=hidden,
                       full=reduction == 2 or blocks == stride == 1)
    return rows.end(classes)


def ghostnet(classes: int = 1000, width: float = 1.0) -> Net:
    """Return GhostNet (arXiv 1911.11907): 5,182,508 parameters, 141.2 MMACs."""
    rows = Rows(act="relu", gate="hardsigmoid")
    rows.add("stem", "conv", out=rounded(16 * width, 4), stride=2)
    for hidden, out, kernel, stride, squeeze in (
            (16, 16, 3, 1, False), (48, 24, 3, 2, False), (72, 24, 3, 1, False), (72, 40, 5, 2, True),
            (120, 40, 5, 1, True), (240, 80, 3, 2, False), (200, 80, 3, 1, False), (184, 80, 3, 1, False),
            (184, 80, 3, 1, False), (480, 112, 3, 1, True), (672, 112, 3, 1, True), (672, 160, 5, 2, True),
            (960, 160, 5, 1, False), (960, 160, 5, 1, True), (960, 160, 5, 1, False), (960, 160, 5, 1, True)):
        hidden, out = rounded(hidden * width, 4), rounded(out * width, 4)
        rows.block("ghost", out, stride, "shortcut", kernel, kernel=kernel, hidden=hidden,
                   squeeze=rounded(hidden / 4, 4) if squeeze else 0)
    rows.add("last", "conv", out=rounded(960 * width, 4), kernel=1)
    return rows.end(classes, hidden=1280)
