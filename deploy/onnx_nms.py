"""Decoding and NMS as nodes behind the heads of a finished ONNX file, for programs that have neither."""
from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deploy.artifact import onnx_session
from models.graph import INPUT
from models.heads import Head
from utils.optional import needs

OUTPUTS = ("boxes", "scores", "classes")       # [n, 4] xyxy px of the input, [n], [n]; best first


class Thresholds(NamedTuple):
    """What a box must pass, as detect.py's flags."""

    conf_thres: float
    iou_thres: float
    max_det: int


class _Nodes:
    """Nodes appended to a graph; arrays among the inputs become constants of the file."""

    def __init__(self, graph: object) -> None:
        onnx = needs("onnx", "to write ONNX files")
        self.graph, self.helper, self.numpy, self.number = graph, onnx.helper, onnx.numpy_helper, count()

    def __call__(self, op: str, *inputs: str | np.ndarray, outs: int = 1, out: str = "",
                 **attributes: object) -> str:
        """Append a node and return the name of its last output."""
        name, given = f"nms.{next(self.number)}", []
        for at, value in enumerate(inputs):
            if not isinstance(value, str):
                self.graph.initializer.append(self.numpy.from_array(np.asarray(value), f"{name}.{at}"))
                value = f"{name}.{at}"
            given.append(value)
        found = [f"{name}.out{at}" for at in range(outs - 1)] + [out or f"{name}.out"]
        self.graph.node.append(self.helper.make_node(op, given, found, name, **attributes))
        return found[-1]


def add_nms(source: Path, target: Path, heads: Sequence[Head], given: Thresholds) -> None:
    """Write an ONNX file with the OUTPUTS in the place of its heads' outputs, for one image at a time."""
    onnx = needs("onnx", "to write ONNX files")
    model = onnx.load(source)
    graph, names = model.graph, [head.layer.name for head in heads]
    grids = {output.name: output.type.tensor_type.shape.dim[-1].dim_value for output in graph.output}
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    del graph.output[:]
    add, types = _Nodes(graph), onnx.TensorProto
    parts = [head.in_graph(add, name, grids[name]) for head, name in zip(heads, names)]
    boxes, scores = add("Concat", *(b for b, _ in parts), axis=1), \
        add("Transpose", add("Concat", *(s for _, s in parts), axis=1), perm=[0, 2, 1])        # [1, K, N]
    # As detect.py does it, a prediction is a box of its best class alone.
    best = add("Equal", scores, add("ReduceMax", scores, axes=[1]))
    scores = add("Where", best, scores, np.float32(0))
    chosen = add("NonMaxSuppression", boxes, scores, np.int64([given.max_det]),
                 np.float32([given.iou_thres]), np.float32([given.conf_thres]))
    score = add("GatherND", scores, chosen)
    most = add("Min", add("Shape", score), np.int64([given.max_det]))
    order = add("TopK", score, most, outs=2)
    kept = add("Gather", chosen, order)                    # [n, 3]: image, class, prediction
    add("GatherND", scores, kept, out="scores")
    add("Gather", kept, np.int64(1), axis=1, out="classes")
    add("Gather", add("Squeeze", boxes, np.int64([0])), add("Gather", kept, np.int64(2), axis=1), out="boxes")
    for name, kind, shape in (("boxes", types.FLOAT, ["n", 4]), ("scores", types.FLOAT, ["n"]),
                              ("classes", types.INT64, ["n"])):
        graph.output.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    onnx.checker.check_model(model)
    onnx.save(model, target)


class BoxFile:
    """A file that `add_nms` wrote, as a program runs it: images in, boxes out."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        self.session = onnx_session(path, threads)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return boxes [n, 6] (xyxy px of the input, score, class; best first) of an image [3, S, S]."""
        boxes, scores, classes = self.session.run(list(OUTPUTS), {INPUT: image[None]})
        return np.column_stack((boxes, scores, classes)).astype(np.float32)
