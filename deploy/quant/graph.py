"""An ONNX graph as quantisers see it: who makes and reads each value; what stays in float, by its place."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from deploy.artifact import onnx_session, unreadable
from models.graph import INPUT
from utils.errors import ModelError
from utils.optional import needs

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

DEQUANTISED = "_DequantizeLinear_Output"                   # how ONNX Runtime's quantiser names a value's twin
MONOTONE = ("LeakyRelu", "Relu", "Clip")                   # activations that never turn an order round
JOINS = ("Mul", "Expand", "Concat")                        # where what a mean led to meets a map again
SHAPES = ("Reshape", "Transpose", "Cast", "Identity", "Concat")  # may stand between a head and its output
Taps = Callable[[np.ndarray], dict[str, np.ndarray]]       # an image batch uint8 -> values by name


class Graph:
    """A model with its nodes by name, the maker and the readers of each value, and its constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.numpy = model, needs("onnx", "to quantise ONNX files").numpy_helper
        self.nodes = list(model.graph.node)
        self.maker = {value: node for node in self.nodes for value in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for value in node.input:
                self.readers.setdefault(value, []).append(node)
        self.convolutions = [node for node in self.nodes if node.op_type == "Conv"]        # in running order
        self.constants = {c.name: c for c in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}

    def side(self) -> int:
        """Return the side in px of the images that the model takes."""
        return self.model.graph.input[0].type.tensor_type.shape.dim[-1].dim_value

    def heads(self) -> list[str]:
        """Return the names of the convolutions that nothing but outputs of the model reads."""
        return [node.name for node in self.convolutions if self._leads_out(node.output[0])]

    def _leads_out(self, value: str) -> bool:
        readers = self.readers.get(value, [])
        if value in self.outputs:
            return not readers
        return bool(readers) and all(r.op_type in SHAPES and self._leads_out(r.output[0]) for r in readers)

    def from_means(self) -> list[str]:
        """Return the names of squeeze-excitation's nodes, from behind a mean to where a map is met again."""
        found, values = [], set()
        for node in self.nodes:
            if node.op_type == "GlobalAveragePool":
                values |= set(node.output)
            elif values & set(node.input) and node.op_type not in JOINS:
                found.append(node.name)
                values |= set(node.output)
        return found

    def entrance(self) -> list[onnx.NodeProto]:
        """Return the nodes from the image to the first convolution, its activation and pooling."""
        found = [self.convolutions[0]]
        while found[0].input[0] in self.maker:
            found.insert(0, self.maker[found[0].input[0]])
        for ops in (MONOTONE, ("MaxPool",)):
            readers = self.readers.get(found[-1].output[0], [])
            if len(readers) == 1 and readers[0].op_type in ops:
                found += readers
        return found

    def array(self, name: str) -> np.ndarray:
        """Return the numbers of a constant."""
        return self.numpy.to_array(self.constants[name])

    def put(self, name: str, value: np.ndarray) -> None:
        """Give a constant other numbers."""
        self.constants[name].CopyFrom(self.numpy.from_array(np.ascontiguousarray(value), name))


def read(path: Path) -> Graph:
    """Return the graph of an ONNX file in fp32. Raises ModelError for a file that cannot be quantised."""
    onnx = needs("onnx", "to quantise ONNX files")
    try:
        model = onnx.load(path)
    except Exception as error:                             # protobuf's own classes share no base but this
        raise unreadable(path, "an ONNX file", error) from error
    graph = Graph(model)
    if not graph.convolutions:
        raise ModelError(f"{path} has no convolutions: there is nothing to quantise")
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv") for node in graph.nodes):
        raise ModelError(f"{path} is quantised already; quantise the fp32 export of the checkpoint")
    weights = {graph.constants[node.input[1]].data_type for node in graph.convolutions}
    if weights != {onnx.TensorProto.FLOAT}:
        raise ModelError(f"{path} is not in fp32; quantise the export without --half")
    return graph


def taps(graph: Graph, values: Sequence[str]) -> Taps:
    """Return a function from an image batch uint8 to the named values, which runs nothing behind them."""
    helper, left, wanted = needs("onnx.helper", "to quantise ONNX files"), list(values), set()
    while left:
        node = graph.maker.get(left.pop())
        if node is not None and node.name not in wanted:
            wanted.add(node.name)
            left += node.input
    nodes = [node for node in graph.nodes if node.name in wanted]
    used = {value for node in nodes for value in node.input}
    part = helper.make_graph(nodes, "part", graph.model.graph.input,
                             [helper.make_empty_tensor_value_info(value) for value in values],
                             [constant for name, constant in graph.constants.items() if name in used])
    cut = helper.make_model(part, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)
    session = onnx_session(cut.SerializeToString(), torch.get_num_threads())
    return lambda image: dict(zip(values, session.run(values, {INPUT: image}), strict=True))
