"""The networks of the paper's tables that have no name of their own."""
from __future__ import annotations

from collections.abc import Iterator

from models.layer import Layer, Net
from models.zoo.tiny import MICRO_OPS, SEARCHED, SWAPPED, head_row, micro_yolo, substitute, yolov3_tiny

# Rows of Table 2: the name of the row, and what it is.
TABLE2 = {"conv": "all Conv (YOLOv3-tiny)", "dsconv": "all DSConv, layer 1 Conv",
          "mbconv": "all MBConv, layer 1 Conv", "mixed-3": "MBConv, DSConv at 13, kernels 3",
          "micro-yolo": "the same, kernels 3,5,3,5,3 (Micro-YOLO)"}
FACTORISED = tuple(TABLE2)[1:]                             # rows that start as factors of the first one's


def table2_nets() -> dict[str, Net]:
    """Return the network of 80 classes of each row of Table 2, at one xy_scale: only layers differ."""
    base = yolov3_tiny(xy_scale=2.0)
    pure = {op: substitute(base, dict.fromkeys(MICRO_OPS, op)) for op in SWAPPED[1:]}
    return {"conv": base, **pure, "mixed-3": substitute(micro_yolo(), kernels=dict.fromkeys(SEARCHED, 3)),
            "micro-yolo": micro_yolo()}


def block_nets(cin: int) -> Iterator[tuple[str, Net]]:
    """Yield the layer types of Table 1, each in a network whose record "block" doubles `cin` channels."""
    for kind, op in zip(("Conv", "DSConv", "MBConv"), SWAPPED):
        inner = {"hidden": 2 * cin, "squeeze": max(1, cin // 16)} if op == SWAPPED[-1] else {}
        block = Layer("block", op, ("stem",), 2 * cin, **inner)
        yield kind, (Layer("stem", "conv", ("image",), cin, 1), block,
                     head_row("head", "block", ((16.0, 16.0),), 1, 1.0))
