"""An ONNX file written straight from the records: no exporter guesses what the network was meant to be."""
from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from compress.fold import fold
from deploy.artifact import ENTRY
from models.graph import INPUT, Step, grids, steps, strides
from models.layer import Net
from utils.errors import ModelError
from utils.optional import needs

if TYPE_CHECKING:
    import onnx

OPSET = 17
IR_VERSION = 8                                             # opset 17's own, so that older runtimes take it
PLAIN = {"relu": ("Relu", {}), "leaky": ("LeakyRelu", {"alpha": 0.1}), "hardswish": ("HardSwish", {}),
         "sigmoid": ("Sigmoid", {}), "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5})}


def to_onnx(net: Net, state: dict[str, Tensor], imgsz: int, card: dict | None = None,
            half: bool = False) -> bytes:
    """Return the ONNX file of a network: `images` uint8 [B, 3, S, S] in, fp32 [B, *shape, G, G] a head out.

    B is free. The division by 255 is inside, decoding and NMS are not. Nodes carry the records' names
    (`conv3.expand`). half: numbers and computation in fp16 between the two casts. card: JSON-able, kept in
    the metadata. Raises ModelError where imgsz does not fit the network's strides.
    """
    onnx = needs("onnx", "to write ONNX files")
    largest = max(strides(net).values())
    if imgsz % largest:
        raise ModelError(f"an input side of {imgsz}: this network needs a multiple of {largest}")
    folded, small = fold(net, state)
    writer = _Writer(onnx, small, half)
    writer.images()
    side = grids(folded, imgsz)
    for step in steps(folded):
        writer.add(step, side[step.value])
    model = onnx.helper.make_model(writer.graph(imgsz), opset_imports=[onnx.helper.make_opsetid("", OPSET)],
                                   ir_version=IR_VERSION, producer_name="micro-yolo")
    if card is not None:
        onnx.helper.set_model_props(model, {ENTRY: json.dumps(card, ensure_ascii=False)})
    return model.SerializeToString()


class _Writer:
    """Nodes and numbers of the graph, appended step by step."""

    def __init__(self, onnx: onnx, state: dict[str, Tensor], half: bool) -> None:
        self.helper, self.numpy, self.types = onnx.helper, onnx.numpy_helper, onnx.TensorProto
        self.state, self.half = state, half
        self.float = np.float16 if half else np.float32
        self.nodes, self.numbers, self.outputs = [], {}, []

    def number(self, name: str, value: np.ndarray) -> str:
        """Return the name of a constant that is in the file."""
        if name not in self.numbers:
            self.numbers[name] = self.numpy.from_array(np.ascontiguousarray(value), name)
        return name

    def node(self, op: str, name: str, inputs: list[str], out: str, **attributes: object) -> str:
        """Append a node; return the name of its value."""
        self.nodes.append(self.helper.make_node(op, inputs, [out], name, **attributes))
        return out

    def images(self) -> None:
        """Append the image as floats 0..1, under the name that the steps know."""
        kind = self.types.FLOAT16 if self.half else self.types.FLOAT
        cast = self.node("Cast", "cast", [INPUT], "cast", to=kind)
        self.node("Mul", "scale", [cast, self.number("scale.by", self.float(1 / 255))], "scaled")

    def add(self, step: Step, grid: int) -> None:
        """Append one step; grid: cells a side of its value."""
        inputs = ["scaled" if i == INPUT else i for i in step.inputs]
        name = f"{step.name}.linear" if step.shape else step.name
        self._operation(step, inputs, name, grid)
        if step.shape:
            self._output(step, name, grid)

    def _operation(self, step: Step, inputs: list[str], out: str, grid: int) -> None:
        """Append what a step computes, under the name `out`."""
        node, kind, name = step.node, step.type, step.name
        window = {"kernel_shape": [node.kernel] * 2, "strides": [node.stride] * 2,
                  "pads": [node.pad] * 2 + [node.pad + node.after] * 2}
        if kind == "conv":
            self._conv(step, inputs, out, window)
        elif kind == "act":
            self._activation(step.act, f"{name}.act", inputs[0], out)
        elif kind == "maxpool":
            self.node("MaxPool", name, inputs, out, ceil_mode=int(node.ceil), **window)
        elif kind == "avgpool":
            self.node("AveragePool", name, inputs, out, ceil_mode=int(node.ceil), count_include_pad=1, **window)
        elif kind == "average":
            self.node("AveragePool", name, inputs, out, kernel_shape=[step.stride] * 2, strides=[step.stride] * 2)
        elif kind == "upsample":
            by = self.number(f"{name}.by", np.float32([1, 1, step.stride, step.stride]))
            self.node("Resize", name, [*inputs, "", by], out, mode="nearest",
                      coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        elif kind == "slice":
            ends = [node.part * node.channels, (node.part + 1) * node.channels, 1]
            limits = [self.number(f"{name}.{at}", np.int64([end])) for at, end in zip(("from", "to", "axis"), ends)]
            self.node("Slice", name, [*inputs, *limits], out)
        elif kind == "shuffle":
            self._shuffle(step, inputs[0], out, grid)
        elif kind == "spread":
            self.node("Expand", name, [inputs[0], self.number(f"{name}.shape", np.int64([1, 1, grid, grid]))], out)
        elif kind == "add" and len(inputs) > 2:
            self.node("Sum", name, inputs, out)
        else:
            op, attributes = {"concat": ("Concat", {"axis": 1}), "add": ("Add", {}), "mul": ("Mul", {}),
                              "mean": ("GlobalAveragePool", {})}[kind]
            self.node(op, name, inputs, out, **attributes)

    def _conv(self, step: Step, inputs: list[str], out: str, window: dict[str, list[int]]) -> None:
        """Append a convolution and its activation."""
        keys = [key for leaf in ("weight", "bias") if (key := f"{step.key}.{leaf}") in self.state]
        parts = [self.number(key, self.state[key].numpy().astype(self.float)) for key in keys]
        plain = step.act == "linear"
        value = self.node("Conv", f"{step.name}.conv" if step.shape else step.name, [*inputs, *parts],
                          out if plain else f"{step.name}.linear", group=step.node.groups,
                          dilations=[step.node.dilation] * 2, **window)
        if not plain:
            self._activation(step.act, f"{step.name}.act", value, out)

    def _shuffle(self, step: Step, value: str, out: str, grid: int) -> None:
        """Append a shuffle: channels as [groups, C / groups], transposed, and back."""
        groups, name = step.node.groups, step.name
        apart, back = (self.number(f"{name}.{at}", np.int64(shape)) for at, shape in (
            ("apart", [0, groups, step.out // groups, grid * grid]), ("back", [0, step.out, grid, grid])))
        value = self.node("Reshape", f"{name}.apart", [value, apart], f"{name}.parts")
        value = self.node("Transpose", f"{name}.turn", [value], f"{name}.turned", perm=[0, 2, 1, 3])
        self.node("Reshape", name, [value, back], out)

    def _activation(self, act: str, name: str, value: str, out: str) -> None:
        if act == "swish":
            gate = self.node("Sigmoid", f"{name}.gate", [value], f"{name}.gate")
            self.node("Mul", name, [value, gate], out)
        elif act == "relu6":
            low, high = (self.number(f"relu6.{end}", self.float(limit)) for end, limit in
                         (("low", 0), ("high", 6)))
            self.node("Clip", name, [value, low, high], out)
        else:
            op, attributes = PLAIN[act]
            self.node(op, name, [value], out, **attributes)

    def _output(self, step: Step, value: str, grid: int) -> None:
        """Append an output of the network in the shape that decoding knows, and in fp32."""
        parts = step.shape if len(step.shape) > 1 else (step.out,)
        shape = [0, *parts, grid, grid]                    # 0: the batch as it comes
        half = f"{step.name}.half" if self.half else step.name
        if len(parts) > 1:
            to = self.number(f"{step.name}.shape", np.int64(shape))
            value = self.node("Reshape", f"{step.name}.reshape" if self.half else step.name, [value, to], half)
        elif not self.half:
            self.node("Identity", step.name, [value], step.name)
        if self.half:
            self.node("Cast", step.name, [value], step.name, to=self.types.FLOAT)
        self.outputs.append((step.name, ["batch", *shape[1:]]))

    def graph(self, imgsz: int) -> onnx.GraphProto:
        """Return the finished graph."""
        info = self.helper.make_tensor_value_info
        return self.helper.make_graph(
            self.nodes, "micro-yolo", [info(INPUT, self.types.UINT8, ["batch", 3, imgsz, imgsz])],
            [info(name, self.types.FLOAT, shape) for name, shape in self.outputs], [*self.numbers.values()])
