"""Parameters and MACs from records alone, in two conventions that are named and never mixed.

`macs`: multiply-adds of convolutions only, one multiply-add = 1 (FLOPs = 2 x MACs). This is what torch's
FlopCounterMode counts, halved. `loose_macs`: ptflops-style, the paper's count, by the rules of ptflops of
July 2020: convolutions and their biases, batch-norm 2 per element, activation 1 per element (a sigmoid none),
pooling 1 per input element, upsampling 1 per output element.
"""
from __future__ import annotations

from math import prod

from models.channels import channels
from models.graph import expand, grids
from models.layer import Net
from models.nodes import IMAGE

FREE = ("sigmoid", "hardsigmoid")                          # activations that ptflops did not count


def parameters(net: Net, statistics: bool = False) -> int:
    """Return the trainable parameters; with `statistics` also batch-norm's mean and variance."""
    return sum(prod(p.shape) for p in channels(net).params if statistics or p.trained)


def macs(net: Net, imgsz: int) -> int:
    """Return the multiply-adds of all convolutions for one imgsz x imgsz image."""
    return sum(layer_macs(net, imgsz).values())


def layer_macs(net: Net, imgsz: int) -> dict[str, int]:
    """Return record -> multiply-adds of its convolutions for one imgsz x imgsz image."""
    side, out = grids(net, imgsz), {}
    for param in channels(net).params:
        if len(param.shape) == 4:
            layer = param.node.layer
            out[layer] = out.get(layer, 0) + prod(param.shape) * side[param.node.name] ** 2
    return out


def loose_macs(net: Net, imgsz: int) -> int:
    """Return the ptflops-style count for one imgsz x imgsz image."""
    side, total = grids(net, imgsz), macs(net, imgsz)
    width = {IMAGE: 3, **{node.name: node.channels for node in expand(net).nodes}}
    for node in expand(net).nodes:
        source, elements = node.inputs[0], node.channels * side[node.name] ** 2
        if node.type in ("maxpool", "avgpool", "mean"):
            total += width[source] * side[source] ** 2
        else:
            total += elements * {"conv": int(node.bias), "norm": 2, "act": int(node.act not in FREE),
                                 "upsample": 1}.get(node.type, 0)
    return total
