"""Parameters and MACs from records alone, in two conventions that are named and never mixed.

`macs`: multiply-adds of convolutions only, one multiply-add = 1 (FLOPs = 2 x MACs). This is what torch's
FlopCounterMode counts, halved. `loose_macs`: the paper's looser count, the rules of ptflops of July 2020:
convolutions and their biases, batch-norm 2 per element, activation 1 per element, pooling 1 per input
element, upsampling 1 per output element.
"""
from __future__ import annotations

from math import prod

from models.channels import groups, layout, shape, strides, widths
from models.layer import Net

TRAINED = ("weight", "bias")                               # running statistics are state, not parameters


def parameters(net: Net, statistics: bool = False) -> int:
    """Trainable parameters.

    With `statistics` also batch-norm's running mean and variance (darknet's file size).
    """
    width = widths(net)
    return sum(prod(shape(p, width)) for p in layout(net) if statistics or p.key.rsplit(".", 1)[1] in TRAINED)


def macs(net: Net, imgsz: int) -> int:
    """Multiply-adds of all convolutions for one imgsz x imgsz picture."""
    return sum(layer_macs(net, imgsz).values())


def layer_macs(net: Net, imgsz: int) -> dict[str, int]:
    """Layer name -> multiply-adds of its convolutions for one imgsz x imgsz picture."""
    width, cells, out = widths(net), _cells(net, imgsz), {}
    for param in layout(net):
        size, name = shape(param, width), param.key.split(".")[0]
        if len(size) == 4:
            out[name] = out.get(name, 0) + prod(size) * cells[name, param.grid]
    return out


def loose_macs(net: Net, imgsz: int) -> int:
    """The paper's looser count for one imgsz x imgsz picture (rules of ptflops, July 2020)."""
    width, cells, reached = widths(net), _cells(net, imgsz), groups(net)
    total = macs(net, imgsz)
    where = {layer.name: layer for layer in net}
    for param in layout(net):
        name, part = param.key.split(".")[0], param.key.split(".", 1)[1]
        elements = shape(param, width)[0] * cells[name, param.grid]
        if part.endswith("bn.weight"):
            active = where[name].act != "linear" and not part.startswith("project")
            total += elements * (2 + active)
        # Convolution biases: heads, squeeze-excitation, folded nets.
        elif part.endswith("bias") and "bn" not in part:
            total += elements * (1 + part.endswith("reduce.bias"))         # an activation follows
    for layer in net:
        channels = sum(width[g] for i in layer.inputs for g in reached[i])
        before, after = cells[layer.name, "input"], cells[layer.name, "output"]
        total += {"maxpool": channels * before, "upsample": channels * after, "se": channels * after,
                  "mbconv": layer.hidden * after if layer.squeeze else 0}.get(layer.op, 0)
    return total


def _cells(net: Net, imgsz: int) -> dict[tuple[str, str], int]:
    """(Layer name, grid of a Param) -> how many cells that grid has."""
    side = {name: imgsz // stride for name, stride in strides(net).items()}
    return {(layer.name, grid): n ** 2 for layer in net
            for grid, n in (("output", side[layer.name]), ("input", side[layer.inputs[0]]), ("mean", 1))}


def table(net: Net, imgsz: int) -> list[dict[str, object]]:
    """One row a layer: name, op, widths, kernel, parameters, MACs; for printing."""
    width, cost, reached = widths(net), layer_macs(net, imgsz), groups(net)
    sizes: dict[str, int] = {}
    for p in layout(net):
        if p.key.rsplit(".", 1)[1] in TRAINED:
            name = p.key.split(".")[0]
            sizes[name] = sizes.get(name, 0) + prod(shape(p, width))
    return [{"layer": layer.name, "op": layer.op, "out": sum(width[g] for g in reached[layer.name]),
             "kernel": layer.kernel, "hidden": layer.hidden, "squeeze": layer.squeeze,
             "parameters": sizes[layer.name], "macs": cost[layer.name]}
            for layer in net if layer.name in sizes]
