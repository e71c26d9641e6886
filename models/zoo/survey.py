"""Detectors that surveys name, as far as the vocabulary has their blocks; docs/zoo.md lists the others."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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


def nanodet_plus_m(classes: int = 80) -> Net:
    """NanoDet-Plus-m: 1.17 M parameters and 0.9 GFLOPs at 320 px, as published; strides 8 to 64.

    ShuffleNet V2, a PAN of one width by Ghost bottlenecks, 5x5 depthwise convolutions between levels and in a
    tower a level. Its authors matched by a helper network in training; here it trains by task alignment.
    """
    back, levels = features(CLASSIFIERS["shufflenet-v2"]())
    rows, width = Neck(tuple(replace(row, act="leaky") for row in back), "csp", "leaky"), 96

    def ghost(name: str, x: str, other: str) -> str:
        both = rows.add(f"{name}_join", "concat", x, other)
        side = rows.add(f"{name}_side", "shortcut", both, out=width, kernel=5)
        return rows.add(name, "ghost", both, side, out=width, hidden=width)

    def coarser(name: str, x: str) -> str:
        return rows.add(name, "dsconv", x, out=width, kernel=5, stride=2)
    reduced = [rows.conv(f"lat{8 << at}", level, width) for at, level in enumerate(levels)]
    top = reduced[-1:]
    for at in (1, 0):
        up = rows.add(f"td{8 << at}_up", "upsample", top[0], stride=2, full=True)
        top.insert(0, ghost(f"td{8 << at}", up, reduced[at]))
    out = top[:1]
    for at in (1, 2):
        out.append(ghost(f"bu{8 << at}", coarser(f"bu{8 << at}_down", out[-1]), top[at]))
    out.append(rows.add("extra", "add", coarser("extra_in", reduced[-1]), coarser("extra_out", out[-1])))
    for at, x in enumerate(out):
        for depth in range(2):
            out[at] = x = rows.add(f"tower{8 << at}_{depth}", "dsconv", x, out=width, kernel=5)
    return with_ends(rows, out, (8, 16, 32, 64), classes, "free")


SURVEYED: dict[str, Callable[..., Net]] = {
    "yolov5n-class": partial(nano, backbone="csp"), "micro-yolo-plus": micro_yolo_plus,
    "ssdlite-mobilenet-v2": ssdlite_mobilenet_v2, "efficientdet-lite": efficientdet_lite,
    "thundernet": thundernet, "nanodet-plus-m": nanodet_plus_m}
