"""The light detectors that Micro-YOLO is compared with, as rows: YOLO-LITE and YOLO Nano."""
from __future__ import annotations

from models.layer import Layer, Net
from models.records import validate
from models.zoo.mobile import Rows
from models.zoo.tiny import Anchors, head_row

# Tiny-YOLOv2's five for VOC, fitted at 416 px and given in cells of 32 px (1.08,1.19 ... 16.62,10.52) there.
# YOLO-LITE's cfgs keep them as they are at 224, where the last three are wider or higher than the image.
TINY_V2: Anchors = ((34.56, 38.08), (109.44, 141.12), (212.16, 364.16), (301.44, 163.52), (531.84, 336.64))
# YOLOv3's nine at 416 px.
COARSE_V3: Anchors = ((116, 90), (156, 198), (373, 326))
MIDDLE_V3: Anchors = ((30, 61), (62, 45), (59, 119))
FINE_V3: Anchors = ((10, 13), (16, 30), (33, 23))
HEADS = ("head13", "head26", "head52")                    # by the side of their grids at 416 px


def yolo_lite(classes: int = 80, anchors: Anchors = TINY_V2, act: str = "leaky",
              xy_scale: float = 1.0) -> Net:
    """YOLO-LITE (arXiv 1811.05588): seven convolutions, no batch-norm, one head; made for 224 px.

    20 classes: trial 3 (VOC), 572,317 parameters, 240,004,352 MACs. 80: trial 6 (COCO), 649,417 and 243.8 M.
    """
    rows, source = [], "image"
    for at, out in zip(range(1, 11, 2), (16, 32, 64, 128, 128)):
        rows += [Layer(f"conv{at}", "conv", (source,), out, act=act, bn=False),
                 Layer(source := f"pool{at + 1}", "maxpool", (f"conv{at}",), kernel=2, stride=2)]
    rows.append(Layer("conv11", "conv", (source,), 256, act=act, bn=False))
    return validate((*rows, head_row("head12", "conv11", anchors, classes, xy_scale)))


class _Modules(Rows):
    """YOLO Nano's modules as rows, each of which returns the name of its output."""

    def __init__(self, act: str) -> None:
        super().__init__()
        self.act = act

    def conv(self, name: str, source: str, out: int, kernel: int = 1, stride: int = 1) -> str:
        return self.add(name, "conv", source, out=out, kernel=kernel, stride=stride, act=self.act)

    def ep(self, name: str, source: str, out: int, stride: int = 1) -> str:
        """Expansion and projection around a depthwise 3x3; the expansion is as wide as its input."""
        return self.add(name, "mbconv", source, out=out, stride=stride, hidden=self.widths[source],
                        act=self.act)

    def pep(self, name: str, source: str, inner: int, out: int = 0) -> str:
        """A projection to `inner` channels, then an EP; the input is added where the widths agree."""
        width = self.widths[source]
        wide = self.ep(name, self.conv(f"{name}_in", source, inner), out or width)
        return wide if out not in (0, width) else self.add(f"{name}_add", "add", source, wide)

    def join(self, up: str, cat: str, source: str, other: str) -> str:
        """`source` twice as large, and `other`, side by side."""
        return self.add(cat, "concat", self.add(up, "upsample", source, stride=2), other)


def yolo_nano(classes: int = 80, coarse: Anchors = COARSE_V3, middle: Anchors = MIDDLE_V3,
              fine: Anchors = FINE_V3, act: str = "relu6", xy_scale: float = 1.0) -> Net:
    """YOLO Nano (arXiv 1910.01271), in the widths that its readers take from its figure.

    2,890,695 parameters and 2.032 GMACs at 416 with 20 classes, 3,024,075 and 2.113 G with 80. The paper has
    no code; its 4.57 G operations are 2.25 times these MACs.
    """
    net = _Modules(act)
    x = net.conv("conv2", net.conv("conv1", "image", 12, kernel=3), 24, kernel=3, stride=2)
    x = net.ep("ep1", net.pep("pep1", x, 7), 70, stride=2)
    x = net.ep("ep2", net.pep("pep3", net.pep("pep2", x, 25), 24), 150, stride=2)
    x = net.conv("conv3", net.pep("pep4", x, 56), 150)
    x = net.add("fca1", "se", squeeze=150 // 8)
    for at, inner in enumerate((73, 71, 75), 5):
        x = net.pep(f"pep{at}", x, inner)
    large, x = x, net.ep("ep3", x, 325, stride=2)
    for at, inner in enumerate((132, 124, 141, 140, 137, 135, 133, 140), 8):
        x = net.pep(f"pep{at}", x, inner)
    medium = x
    x = net.conv("conv4", net.pep("pep16", net.ep("ep4", medium, 545, stride=2), 276), 230)
    small = net.conv("conv5", net.pep("pep17", net.ep("ep5", x, 489), 213, 469), 189)
    x = net.join("up1", "cat1", net.conv("conv6", small, 105), medium)
    middling = net.conv("conv7", net.pep("pep19", net.pep("pep18", x, 113, 325), 99, 207), 98)
    x = net.join("up2", "cat2", net.conv("conv8", middling, 47), large)
    x = net.pep("pep22", net.pep("pep21", net.pep("pep20", x, 58, 122), 52, 87), 47, 93)
    sources = (net.ep("ep7", small, 462), net.ep("ep6", middling, 183), x)
    return validate((*net.rows, *(head_row(name, source, anchors, classes, xy_scale)
                                for name, source, anchors in zip(HEADS, sources, (coarse, middle, fine)))))
