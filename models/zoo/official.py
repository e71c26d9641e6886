"""Light detectors whose official weights are read, by their own design, and what their inputs must be."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from models.layer import Layer, Net
from models.nodes import IMAGE
from models.records import validate
from models.zoo.classifiers import shufflenet_v2, squeezenet
from models.zoo.mobile import Rows

INPUT = "input"                                            # the record that brings an image to the rule
Colour = tuple[float, float, float]


class Official(NamedTuple):
    """A network whose published weights are read, and what an image must be for them."""

    name: str
    build: Callable[[int], Net]
    mean: Colour                                           # of red, green, blue, 0..255
    deviation: Colour
    bgr: bool                                              # whether its first convolution reads blue first
    imgsz: int                                             # px

    def folded(self, classes: int) -> Net:
        """Return the records without batch-norm, behind the record of the input's rule."""
        rows = [replace(row, bn=False, inputs=tuple(INPUT if i == IMAGE else i for i in row.inputs))
                for row in self.build(classes)]
        return validate((Layer(INPUT, "affine", (IMAGE,)), *rows))

    def rule(self) -> dict[str, np.ndarray]:
        """Return the tensors of that record, for images 0..1: (255 x - mean) / deviation."""
        mean, deviation = (np.float32(colour) for colour in (self.mean, self.deviation))
        return {f"{INPUT}.conv.weight": 255 / deviation, f"{INPUT}.conv.bias": -mean / deviation}


class _Csp(Rows):
    """YOLOX's modules as rows, each of which returns the name of its output."""

    def conv(self, name: str, source: str, out: int, kernel: int = 1, stride: int = 1) -> str:
        """Append a convolution, batch-norm, SiLU."""
        return self.add(name, "conv", source, out=out, kernel=kernel, stride=stride)

    def light(self, name: str, source: str, out: int, stride: int = 1) -> str:
        """Append a depthwise and a pointwise convolution."""
        return self.add(name, "dsconv", source, out=out, stride=stride)

    def csp(self, name: str, source: str, out: int, blocks: int = 1, add: bool = True) -> str:
        """Append a cross-stage partial layer (arXiv 1911.11929): bottlenecks beside a 1x1, joined."""
        x, side = self.conv(f"{name}_in", source, out // 2), self.conv(f"{name}_side", source, out // 2)
        for at in range(blocks):
            y = self.light(f"{name}_dw{at}", self.conv(f"{name}_pw{at}", x, out // 2), out // 2)
            x = self.add(f"{name}_add{at}", "add", y, x) if add else y
        return self.conv(name, self.add(f"{name}_cat", "concat", x, side), out)

    def up(self, name: str, source: str, other: str) -> str:
        """Append `source` twice as large beside `other`."""
        return self.add(f"{name}_join", "concat", self.add(f"{name}_up", "upsample", source, stride=2), other)


def yolox_nano(classes: int = 80) -> Net:
    """Return YOLOX-Nano (arXiv 2107.08430): 0.91 M parameters, 1.08 GFLOPs at 416 px with 80 classes.

    Its focus layer, four pixels side by side as channels for a 3x3, is the 6x6 of stride 2 that it equals.
    """
    net = _Csp(act="swish", eps=1e-3)
    x, stages = net.conv("stem", IMAGE, 16, kernel=6, stride=2), []
    for at, (out, blocks) in enumerate(((32, 1), (64, 3), (128, 3)), 2):
        x = net.csp(f"dark{at}", net.light(f"dark{at}_down", x, out, stride=2), out, blocks)
        stages.append(x)
    _, fine, middle = stages
    x = net.add("spp", "sppf", net.light("dark5_down", x, 256, stride=2), out=256, hidden=128, kernel=5)
    top = net.conv("lateral5", net.csp("dark5", x, 256, add=False), 128)
    mid = net.conv("lateral4", net.csp("td4", net.up("td4", top, middle), 128, add=False), 64)
    ends = [net.csp("td3", net.up("td3", mid, fine), 64, add=False)]
    for name, other in (("bu4", mid), ("bu5", top)):
        out = net.widths[ends[-1]]
        cat = net.add(f"{name}_join", "concat", net.light(f"{name}_down", ends[-1], out, stride=2), other)
        ends.append(net.csp(name, cat, 2 * out, add=False))
    for stride, end in zip((8, 16, 32), ends):
        stem = net.conv(f"stem{stride}", end, 64)
        towers = {}
        for kind in ("cls", "box"):
            towers[kind] = net.light(f"{kind}{stride}_2", net.light(f"{kind}{stride}_1", stem, 64), 64)
        net.add(f"head{stride}", "head", towers["box"], towers["cls"], out=5 + classes, kernel=1,
                act="linear", kind="yolox")
    return validate(tuple(net.rows))


def nanodet_m(classes: int = 80) -> Net:
    """Return NanoDet-m (github.com/RangiLyu/nanodet, Apache-2.0): 0.95 M parameters, 0.72 GFLOPs at 320 px.

    ShuffleNet V2, a pyramid of sums without convolutions, and per level one tower for classes and sides. Its
    authors matched by ATSS; here it trains by task alignment.
    """
    net = Rows(act="leaky")
    net.rows = [replace(row, act="leaky") for row in shufflenet_v2(1) if row.name not in ("last", "end")]
    fine, middle, coarse = (
        net.add(f"lat{stride}", "conv", f"stage{end}", out=96, kernel=1, bn=False, act="linear")
        for stride, end in ((8, "2_3"), (16, "3_7"), (32, "4_3")))
    middle = net.add("td16", "add", middle, net.add("td16_up", "upsample", coarse, stride=2, full=True))
    fine = net.add("td8", "add", fine, net.add("td8_up", "upsample", middle, stride=2, full=True))
    middle = net.add("bu16", "add", middle, net.add("bu16_down", "avgpool", fine, kernel=2, stride=2))
    coarse = net.add("bu32", "add", coarse, net.add("bu32_down", "avgpool", middle, kernel=2, stride=2))
    for stride, x in zip((8, 16, 32), (fine, middle, coarse)):
        for at in (1, 2):
            x = net.add(f"tower{stride}_{at}", "dsconv", x, out=96)
        net.add(f"head{stride}", "head", x, out=classes + 4 * 8, kernel=1, act="linear", kind="free", bins=8,
                assign="tal")
    return validate(tuple(net.rows))


# torchvision's statistics of ImageNet, times 255.
IMAGENET = {"mean": (123.675, 116.28, 103.53), "deviation": (58.395, 57.12, 57.375)}
OFFICIAL = (Official("yolox-nano", yolox_nano, **IMAGENET, bgr=False, imgsz=416),
            Official("nanodet-m", nanodet_m, **IMAGENET, bgr=True, imgsz=320))
# Classifiers, which a backbone may start from: Caffe's scale.
CLASSIFIED = (Official("squeezenet-1.1", squeezenet, (123.0, 117.0, 104.0), (1.0, 1.0, 1.0), bgr=True,
                       imgsz=227),)
