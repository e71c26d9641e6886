"""An ONNX file written straight from the records: no exporter guesses what the network was meant to be."""
from __future__ import annotations

from types import ModuleType

import numpy as np
from torch import Tensor

from compress.fold import fold
from models.graph import INPUT, Step, grids, steps, strides
from models.layer import Net
from utils.errors import ModelError
from utils.optional import needs

OPSET = 17
IR_VERSION = 8                                             # opset 17's own, so that older runtimes take it
ACTIVATIONS = {"relu": ("Relu", {}), "leaky": ("LeakyRelu", {"alpha": 0.1}), "hardswish": ("HardSwish", {}),
               "sigmoid": ("Sigmoid", {}), "hardsigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5})}


def to_onnx(net: Net, state: dict[str, Tensor], imgsz: int, half: bool = False) -> bytes:
    """Return the ONNX file of a network: `images` uint8 [B, 3, S, S] in, fp32 [B, *shape, G, G] per head out.

    B is free. Nodes carry the records' names (`conv3.expand`). half: numbers and computation in fp16. Raises
    ModelError where imgsz does not fit the network's strides.
    """
    largest = max(strides(net).values())
    if imgsz % largest:
        raise ModelError(f"an input side of {imgsz}: this network needs a multiple of {largest}")
    folded, small = fold(net, state)
    writer, side = _Writer(needs("onnx", "to write ONNX files"), small, half), grids(folded, imgsz)
    for step in steps(folded):
        writer.add(step, side[step.value])
    return writer.model(imgsz)


class _Writer:
    """Nodes and numbers of the graph, appended step by step."""

    def __init__(self, onnx: ModuleType, state: dict[str, Tensor], half: bool) -> None:
        self.helper, self.numpy, self.types = onnx.helper, onnx.numpy_helper, onnx.TensorProto
        self.info = onnx.helper.make_tensor_value_info
        self.state, self.float = state, np.float16 if half else np.float32
        self.nodes, self.numbers, self.outputs = [], {}, []
        kind = self.types.FLOAT16 if half else self.types.FLOAT
        cast = self.node("Cast", "cast", [INPUT], "cast", to=kind)
        self.node("Mul", "scale", [cast, self.number("scale.by", self.float(1 / 255))], "scaled")

    def number(self, name: str, value: np.ndarray | None) -> str:
        """Return the name of a constant that is in the file; "" for one that is left out."""
        if value is None:
            return ""
        if name not in self.numbers:
            self.numbers[name] = self.numpy.from_array(np.ascontiguousarray(value), name)
        return name

    def node(self, op: str, name: str, inputs: list[str], out: str = "", **attributes: object) -> str:
        """Append a node; return the name of its value, the node's own where none is given."""
        self.nodes.append(self.helper.make_node(op, inputs, [out or name], name, **attributes))
        return out or name

    def add(self, step: Step, grid: int) -> None:
        """Append one step; grid: cells a side of its value."""
        inputs = ["scaled" if i == INPUT else i for i in step.inputs]
        out = f"{step.name}.linear" if step.shape else step.name
        self._operation(step, inputs, out, grid)
        if step.shape:                                     # an output: fp32, in the shape that decoding knows
            shape = [*(step.shape if len(step.shape) > 1 else (step.out,)), grid, grid]
            if self.float is np.float16:
                out = self.node("Cast", f"{step.name}.cast", [out], to=self.types.FLOAT)
            batched = self.number(f"{step.name}.shape", np.int64([0, *shape]))     # 0: the batch as it comes
            self.node("Reshape", step.name, [out, batched])
            self.outputs.append(self.info(step.name, self.types.FLOAT, ["batch", *shape]))

    def _operation(self, step: Step, inputs: list[str], out: str, grid: int) -> None:
        """Append what a step computes, under the name `out`."""
        node, kind, name = step.node, step.type, step.name
        window = {"kernel_shape": [node.kernel] * 2, "strides": [node.stride] * 2,
                  "pads": [node.pad] * 2 + [node.pad + node.after] * 2}
        if kind == "conv":
            return self._conv(step, inputs, out, window)
        if kind == "act":
            return self._activation(step.act, f"{name}.act", inputs[0], out)
        if kind == "shuffle":
            return self._shuffle(step, inputs[0], out, grid)
        pooling, first = {**window, "ceil_mode": int(node.ceil)}, node.part * node.channels
        op, numbers, attributes = {
            "maxpool": ("MaxPool", {}, pooling),
            "avgpool": ("AveragePool", {}, {**pooling, "count_include_pad": 1}),
            "average": ("AveragePool", {}, dict.fromkeys(("kernel_shape", "strides"), [step.stride] * 2)),
            "upsample": ("Resize", {"roi": None, "by": np.float32([1, 1, step.stride, step.stride])}, {
                "mode": "linear", "coordinate_transformation_mode": "half_pixel"} if node.smooth else {
                "mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
            "slice": ("Slice", {"from": np.int64([first]), "to": np.int64([first + node.channels]),
                                "axis": np.int64([1])}, {}),
            "spread": ("Expand", {"to": np.int64([1, 1, grid, grid])}, {}),
            "concat": ("Concat", {}, {"axis": 1}), "mul": ("Mul", {}, {}),
            "add": ("Sum" if len(inputs) > 2 else "Add", {}, {}), "mean": ("GlobalAveragePool", {}, {})}[kind]
        inputs = inputs[:1] if kind == "spread" else inputs
        inputs = [*inputs, *(self.number(f"{name}.{at}", value) for at, value in numbers.items())]
        self.node(op, out, inputs, out, **attributes)

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
        value = self.node("Transpose", f"{name}.turn", [value], perm=[0, 2, 1, 3])
        self.node("Reshape", out, [value, back], out)

    def _activation(self, act: str, name: str, value: str, out: str) -> None:
        if act == "swish":
            self.node("Mul", name, [value, self.node("Sigmoid", f"{name}.gate", [value])], out)
        elif act == "relu6":
            limits = [self.number(f"relu6.{end}", self.float(end)) for end in (0, 6)]
            self.node("Clip", name, [value, *limits], out)
        else:
            op, attributes = ACTIVATIONS[act]
            self.node(op, name, [value], out, **attributes)

    def model(self, imgsz: int) -> bytes:
        """Return the finished file."""
        images = self.info(INPUT, self.types.UINT8, ["batch", 3, imgsz, imgsz])
        numbers = list(self.numbers.values())
        graph = self.helper.make_graph(self.nodes, "micro-yolo", [images], self.outputs, numbers)
        return self.helper.make_model(graph, opset_imports=[self.helper.make_opsetid("", OPSET)],
                                      ir_version=IR_VERSION, producer_name="micro-yolo").SerializeToString()
