"""A network's records written out as primitive nodes, and where its values lie. No torch, no op by name."""
from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from models.blocks import BLOCKS
from models.heads import HEADS, Head
from models.layer import Net, heads
from models.nodes import IMAGE, Builder, Node
from utils.errors import ModelError

INPUT = "images"                                           # the input of exported files


class Graph(NamedTuple):
    """The nodes of a network in the order they run, and record -> the value that it ends in."""

    nodes: tuple[Node, ...]
    value: dict[str, str]


@lru_cache(maxsize=256)
def expand(net: Net) -> Graph:
    """Return the graph of a network. Raises ModelError naming the record whose widths or grids do not fit."""
    builder, value = Builder(), {IMAGE: IMAGE}
    for layer in net:
        builder.layer = layer
        value[layer.name] = BLOCKS[layer.op].write(builder, *(value[i] for i in layer.inputs))
    return Graph(tuple(builder.nodes), value)


def strides(net: Net) -> dict[str, int]:
    """Return record -> px of the network's input that a cell of its output spans; 0 for one cell in all."""
    graph = expand(net)
    at = {IMAGE: 1, **{node.name: node.reduction for node in graph.nodes}}
    return {name: at[value] for name, value in graph.value.items()}


def outputs(net: Net) -> tuple[str, ...]:
    """Return the records that a network ends in: its heads, or its classifier."""
    ends = {node.layer for node in expand(net).nodes if node.fixed}
    return tuple(layer.name for layer in net if layer.name in ends)


def heads_of(net: Net) -> tuple[Head, ...]:
    """Return the heads of a network, in the order of its outputs, each as its kind reads it."""
    stride = strides(net)
    return tuple(HEADS[layer.kind](layer, stride[layer.name]) for layer in heads(net))


def classes_of(net: Net) -> int:
    """Return how many classes a network tells apart."""
    ends = heads_of(net)
    return ends[0].classes if ends else next(n.channels for n in reversed(expand(net).nodes) if n.fixed)


def grids(net: Net, imgsz: int) -> dict[str, int]:
    """Return value -> cells a side for one imgsz x imgsz image, as convolutions and poolings count them."""
    side = {IMAGE: imgsz}
    for node in expand(net).nodes:
        given = side[node.inputs[0]]
        if node.type == "mean":
            given = 1
        elif node.type == "spread":
            given = side[node.inputs[1]]
        elif node.type == "upsample":
            given *= node.stride
        elif node.kernel > 1 or node.stride > 1:
            span = given + 2 * node.pad + node.after - node.dilation * (node.kernel - 1) - 1
            given = (span + (node.stride - 1 if node.ceil else 0)) // node.stride + 1
            # A last window must begin inside the map or its left padding.
            given -= node.ceil and (given - 1) * node.stride >= side[node.inputs[0]] + node.pad
        side[node.name] = given
    return side


class Step(NamedTuple):
    """A node of a folded network as file formats see it: a convolution takes its activation along."""

    name: str
    type: str                          # the node's, or "average", of windows `stride` x `stride` side by side
    inputs: tuple[str, ...]
    node: Node
    value: str                         # the node that it ends in
    key: str = ""                      # of a convolution's tensors (`key.weight`)
    act: str = "linear"
    stride: int = 1
    shape: tuple[int, ...] = ()        # of an output, whose [B, C, G, G] becomes [B, *shape, G, G]

    @property
    def out(self) -> int:
        """The number of its channels."""
        return self.node.channels

    @property
    def depthwise(self) -> bool:
        """Whether each channel is filtered for itself."""
        return self.type == "conv" and not self.node.field


def steps(net: Net) -> tuple[Step, ...]:
    """Return the operations of a folded network in the order they run, named after its records.

    A convolution alone and an output carry the record's name, what is inside a block that of its part
    ("conv9.expand"). Raises ValueError where a batch-norm is left.
    """
    graph = expand(net)
    if any(node.type == "norm" for node in graph.nodes):
        raise ValueError("the network has batch-norms: fold it first (compress.fold)")
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    ends = {value: name for name, value in graph.value.items()}
    shapes = {head.layer.name: head.shape for head in heads_of(net)}
    shapes = {graph.value[name]: shapes.get(name) or (1,) for name in outputs(net)}
    reduction = {IMAGE: 1, **{node.name: node.reduction for node in graph.nodes}}
    coarsest = max(reduction.values())
    even = all(layer.pad < 0 and not layer.ceil for layer in net)
    named, found, fused = {IMAGE: INPUT}, [], set()
    for node in graph.nodes:
        if node.name in fused:
            continue
        last, after = node, readers.get(node.name, [])
        if node.type == "conv" and len(after) == 1 and after[0].type == "act" and node.name not in ends:
            last = after[0]
            fused.add(last.name)
        name = node.layer if last.name in shapes else node.name.removesuffix(".act").removesuffix(".conv")
        inputs = tuple(named[i] for i in node.inputs)
        source = reduction[node.inputs[0]]
        if node.type == "mean" and even and 0 < source < coarsest:
            # In two steps: runtimes that add up 43,264 numbers in fp32 one after another are off by enough to
            # move the outputs by 2e-3. The windows divide the side of every image that fits.
            found.append(Step(name.removesuffix(".mean") + ".average", "average", inputs, node, node.name,
                              stride=coarsest // source))
            inputs = (found[-1].name,)
        found.append(Step(name, node.type, inputs, node, last.name, node.name if node.type == "conv" else "",
                          last.act or "linear", node.stride, shapes.get(last.name, ())))
        named[last.name] = name
    return tuple(found)


def require_heads(net: Net, what: str) -> Net:
    """Return the network, or raise ModelError where it is a classifier, with which `what` cannot be done."""
    if not heads(net):
        raise ModelError(f"the network is a classifier without a detection head; {what} needs a detector")
    return net
