"""Detectors that surveys name, as far as the vocabulary has their blocks; docs/zoo.md lists the others."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

from models.layer import Net
from models.zoo.classifiers import CLASSIFIERS, features
from models.zoo.nano import Neck, nano, with_ends
from models.zoo.tiny import micro_yolo_plus


def ssdlite_mobilenet_v2(classes: int = 80) -> Net:
    """SSDLite (arXiv 1801.04381) at strides 16, 32 and 64; its authors go on to a grid of one cell."""
    back, levels = features(CLASSIFIERS["mobilenet-v2"](), (16, 32))
    rows = Neck(back, "csp", "relu6")
    extra = rows.add("extra", "mbconv", levels[-1], out=512, hidden=256, stride=2)
    ends = [rows.conv(f"predict{at}", source, width, 3, groups=width)
            for at, source in enumerate((*levels, extra)) if (width := rows.widths[source])]
    return with_ends(rows, ends, (16, 32, 64), classes)


def efficientdet_lite(classes: int = 80) -> Net:
    """EfficientDet's BiFPN and towers (arXiv 1911.09070) on EfficientNet-Lite0, at strides 8 to 64.

    All inputs of a sum weigh the same, and each level has a tower of its own, for boxes and classes at once.
    """
    def tower(rows: Neck, source: str, at: int) -> str:
        for depth in range(3):
            source = rows.add(f"tower{at}_{depth}", "sepconv", source, out=rows.widths[source])
        return source
    return nano(classes, "efficientnet-lite0", neck="bifpn", pyramid="flat", act="relu6",
                reductions=(8, 16, 32, 64), tower=tower)


def thundernet(classes: int = 80) -> Net:
    """ThunderNet's context and attention (arXiv 1903.11752) on ShuffleNet V2, one stage in place of two."""
    back, levels = features(CLASSIFIERS["shufflenet-v2"](), (16, 32))
    rows = Neck(back, "csp", "relu")
    x = rows.add("context", "context", *levels, out=245)
    guide = rows.add("guide", "dsconv", x, out=256, kernel=5)
    x = rows.add("attend", "attend", x, guide)
    return with_ends(rows, [x], (16,), classes, spread=2)


SURVEYED: dict[str, Callable[..., Net]] = {
    "yolov5n-class": partial(nano, backbone="csp"), "micro-yolo-plus": micro_yolo_plus,
    "ssdlite-mobilenet-v2": ssdlite_mobilenet_v2, "efficientdet-lite": efficientdet_lite,
    "thundernet": thundernet}
