"""An ONNX file written straight from the records: no exporter guesses what the network was meant to be."""
from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from compress.fold import fold
from deploy.artifact import ENTRY
from models.channels import strides
from models.graph import IMAGE, Step, steps
from models.layer import Net
from utils.errors import ModelError
from utils.optional import needs

if TYPE_CHECKING:
    import onnx

OPSET = 17
IR_VERSION = 8                                             # opset 17's own, so that older runtimes take it
PLAIN = {"relu": ("Relu", {}), "leaky": ("LeakyRelu", {"alpha": 0.1}), "hardswish": ("HardSwish", {}),
         "sigmoid": ("Sigmoid", {})}


def to_onnx(net: Net, state: dict[str, Tensor], imgsz: int, card: dict | None = None,
            half: bool = False) -> bytes:
    """The ONNX file of a network: `images` uint8 [B, 3, S, S] in, fp32 [B, A, 5 + K, G, G] a head out.

    B is free. The division by 255 is inside, decoding and NMS are not. Nodes carry the layers' names
    (`conv3.expand`). half: numbers and computation in fp16 between the two casts. card: JSON-able, kept in
    the metadata. Raises ModelError where imgsz does not fit the network's strides.
    """
    onnx = needs("onnx", "to write ONNX files")
    stride = strides(net)
    largest = max(stride.values())
    if imgsz % largest:
        raise ModelError(f"an input side of {imgsz}: this network needs a multiple of {largest}")
    folded, small = fold(net, state)
    writer = _Writer(onnx, small, half)
    writer.images()
    for step in steps(folded):
        writer.add(step, imgsz // stride.get(step.name, 1))
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
        """The name of a constant that is in the file."""
        if name not in self.numbers:
            self.numbers[name] = self.numpy.from_array(np.ascontiguousarray(value), name)
        return name

    def node(self, op: str, name: str, inputs: list[str], out: str, **attributes: object) -> str:
        """The name of the value of a node that is appended."""
        self.nodes.append(self.helper.make_node(op, inputs, [out], name, **attributes))
        return out

    def images(self) -> None:
        """The picture as floats 0..1, under the name that the steps know."""
        kind = self.types.FLOAT16 if self.half else self.types.FLOAT
        cast = self.node("Cast", "cast", [IMAGE], "cast", to=kind)
        self.node("Mul", "scale", [cast, self.number("scale.by", self.float(1 / 255))], "scaled")

    def add(self, step: Step, grid: int) -> None:
        """Appends one step; grid: cells a side of its value."""
        inputs = ["scaled" if i == IMAGE else i for i in step.inputs]
        if step.op in ("conv", "head"):
            self._conv(step, inputs, grid)
        elif step.op == "maxpool":
            self.node("MaxPool", step.name, inputs, step.name, kernel_shape=[2, 2], strides=[step.stride] * 2,
                      pads=[0, 0, 1, 1] if step.stride == 1 else [0, 0, 0, 0])
        elif step.op == "average":
            self.node("AveragePool", step.name, inputs, step.name, kernel_shape=[step.stride] * 2,
                      strides=[step.stride] * 2)
        elif step.op == "upsample":
            by = self.number(f"{step.name}.by", np.float32([1, 1, step.stride, step.stride]))
            self.node("Resize", step.name, [*inputs, "", by], step.name, mode="nearest",
                      coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        elif step.op == "add" and len(inputs) > 2:
            self.node("Sum", step.name, inputs, step.name)
        else:
            op, attributes = {"concat": ("Concat", {"axis": 1}), "add": ("Add", {}), "mul": ("Mul", {}),
                              "mean": ("GlobalAveragePool", {})}[step.op]
            self.node(op, step.name, inputs, step.name, **attributes)

    def _conv(self, step: Step, inputs: list[str], grid: int) -> None:
        """A convolution and what follows it: its activation, or a head's shape."""
        keys = [f"{step.key}.{leaf}" for leaf in ("weight", "bias")]
        parts = [self.number(key, self.state[key].numpy().astype(self.float)) for key in keys]
        pad, plain = step.kernel // 2, step.op == "conv" and step.act == "linear"
        out = step.name if plain else f"{step.name}.linear"
        self.node("Conv", f"{step.name}.conv" if step.op == "head" else step.name, [*inputs, *parts], out,
                  kernel_shape=[step.kernel] * 2, strides=[step.stride] * 2, pads=[pad] * 4,
                  group=step.out if step.depthwise else 1)
        if step.op == "head":
            self._shaped(step, out, grid)
        elif not plain:
            self._activation(step, out)

    def _activation(self, step: Step, value: str) -> None:
        name = f"{step.name}.act"
        if step.act == "swish":
            gate = self.node("Sigmoid", f"{name}.gate", [value], f"{name}.gate")
            self.node("Mul", name, [value, gate], step.name)
        elif step.act == "relu6":
            low, high = (self.number(f"relu6.{end}", self.float(limit)) for end, limit in
                         (("low", 0), ("high", 6)))
            self.node("Clip", name, [value, low, high], step.name)
        else:
            op, attributes = PLAIN[step.act]
            self.node(op, name, [value], step.name, **attributes)

    def _shaped(self, step: Step, value: str, grid: int) -> None:
        shape = [0, step.anchors, step.out // step.anchors, grid, grid]     # 0: the batch as it comes
        to = self.number(f"{step.name}.shape", np.int64(shape))
        if self.half:
            half = self.node("Reshape", f"{step.name}.reshape", [value, to], f"{step.name}.half")
            self.node("Cast", step.name, [half], step.name, to=self.types.FLOAT)
        else:
            self.node("Reshape", step.name, [value, to], step.name)
        self.outputs.append((step.name, ["batch", *shape[1:]]))

    def graph(self, imgsz: int) -> onnx.GraphProto:
        """The finished graph."""
        info = self.helper.make_tensor_value_info
        return self.helper.make_graph(
            self.nodes, "micro-yolo", [info(IMAGE, self.types.UINT8, ["batch", 3, imgsz, imgsz])],
            [info(name, self.types.FLOAT, shape) for name, shape in self.outputs], [*self.numbers.values()])
