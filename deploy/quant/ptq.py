"""ONNX files in eight bits by static calibration on the user's own pictures (QDQ, run by ONNX Runtime).

Decoding is no part of the graph, so it is in float by construction; so are the heads and squeeze-excitation's
gates. Best after `deploy.quant.equalise`, which gives the channels of a value like ranges.
"""
from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploy.quant.correct import correct
from deploy.quant.graph import DEQUANTISED, MONOTONE, Graph, read, taps
from deploy.quant.ranges import Grid, measured_grids
from deploy.quant.sqnr import layers_sqnr
from utils.errors import DataError
from utils.optional import needs

if TYPE_CHECKING:
    import onnx

OPS = ("Conv", "LeakyRelu", "Relu", "Clip", "Sigmoid", "MaxPool", "Resize", "Concat", "Mul", "Add")
FEWEST = 8                                                 # pictures; fewer say nothing of ranges
COMPARED = 4                                               # pictures that SQNR is taken on
UNIT = Grid(1 / 255, 0)                                    # 0..1: what comes out of a sigmoid
WHY = {"head": "8 bits there move boxes and scores, and its share of the time is small",
       "gate": "squeeze-excitation works on one number a channel",
       "entrance": "8-bit convolutions of a picture's three channels are slower than those in float",
       "op": "the runtime has no 8-bit kernel for it"}


def quantise_onnx(source: Path, target: Path, pictures: Iterable[np.ndarray],
                  narrow: bool | None = None) -> dict:
    """What was done, once `target` is the 8-bit version of the fp32 file `source`, metadata and all.

    pictures: letterboxed, uint8 [1, 3, S, S], 8 or more; 128 are good. narrow: weights of 7 bits, for x86
    CPUs without VNNI, whose 8-bit products overflow; None asks this CPU. The same pictures give the same
    bytes. The dict: layers (a row {"layer", "sqnr_db"} each, fp32 against 8 bits), calibration (how many
    pictures), left_float (rows {"layer", "why"}), weight_bits, method. Raises DataError for the pictures,
    ModelError for the file, EnvironmentFault for a missing library.
    """
    needs("onnxruntime", "to quantise ONNX files")
    exact = read(source)
    pictures = usable(pictures, _side(exact))
    narrow = lacks_vnni() if narrow is None else narrow
    kept = {"entrance": [node.name for node in exact.entrance()], "gate": exact.gates(),
            "head": exact.heads(), "op": [node.name for node in exact.nodes if node.op_type not in OPS]}
    names = {name for names in kept.values() for name in names}
    model = _quantised(exact, _grids(exact, names, pictures), sorted(names), narrow, pictures[0])
    changed = [n.name for n in exact.convolutions() if n.name not in kept["gate"] + kept["entrance"]]
    correct(exact, model, changed, pictures)
    del model.metadata_props[:]
    model.metadata_props.extend(exact.model.metadata_props)
    target.write_bytes(model.SerializeToString(deterministic=True))
    layers = [name.removesuffix(".conv") for name in changed]
    return {"layers": _onnx_sqnr(exact, Graph(model), layers, pictures), "calibration": len(pictures),
            "left_float": _reasons(exact, kept), "weight_bits": 7 if narrow else 8,
            "method": "ONNX Runtime QDQ, U8S8, weights by channel, ranges by least squared error behind the "
                      "activation, gain and mean of each channel corrected"}


def usable(pictures: Iterable[np.ndarray], side: int) -> list[np.ndarray]:
    """The pictures as a list. Raises DataError where they are too few or of another shape."""
    pictures = pictures if isinstance(pictures, list) else list(pictures)
    if len(pictures) < FEWEST:
        raise DataError(f"calibration needs {FEWEST} pictures or more (128 are good), got {len(pictures)}; "
                        "give a larger data set or --calibration")
    for picture in pictures:
        if picture.dtype != np.uint8 or picture.shape != (1, 3, side, side):
            raise DataError(f"calibration pictures must be uint8 [1, 3, {side}, {side}], letterboxed, got "
                            f"{picture.dtype} {list(picture.shape)}")
    return pictures


def lacks_vnni(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether this is an x86 CPU whose 8-bit products are added in 16 bits, where they overflow."""
    try:
        lines = Path(cpuinfo).read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return "sse2" in flags and "vnni" not in flags and "amx_int8" not in flags


def _side(graph: Graph) -> int:
    return graph.model.graph.input[0].type.tensor_type.shape.dim[-1].dim_value


def _grids(graph: Graph, kept: set[str], pictures: Sequence[np.ndarray]) -> dict[str, Grid]:
    """The grid of every value that 8-bit nodes make or read; kept: nodes that stay in float."""
    nodes = [node for node in graph.nodes if node.name not in kept]
    values = dict.fromkeys(v for node in nodes for v in (*node.input, *node.output) if v in graph.maker)
    grids = measured_grids(graph, list(values), pictures)
    return grids | {v: UNIT for v in values if graph.maker[v].op_type == "Sigmoid"}


class _One:
    """Calibration data as the library asks for it: one picture, because every range is known already."""

    def __init__(self, picture: np.ndarray) -> None:
        self.left = [{"images": picture}]

    def get_next(self) -> dict | None:
        """The next batch, None at the end."""
        return self.left.pop() if self.left else None


def _quantised(graph: Graph, grids: dict[str, Grid], kept: list[str], narrow: bool,
               picture: np.ndarray) -> onnx.ModelProto:
    """The model with the library's pairs of QuantizeLinear and DequantizeLinear."""
    onnx = needs("onnx", "to quantise ONNX files")
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    given = {name: [{"scale": np.array(g.step, np.float32), "zero_point": np.array(g.zero, np.uint8)}]
             for name, g in grids.items()}
    plain = pooled_first(graph)
    # The library's own preparation would change nothing here.
    onnx.helper.set_model_props(plain, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "exact.onnx", Path(folder) / "quantised.onnx"
        onnx.save(plain, before)
        quantize_static(before, after, _One(picture), quant_format=QuantFormat.QDQ,
                        op_types_to_quantize=list(OPS), per_channel=True, reduce_range=narrow,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                        nodes_to_exclude=kept, extra_options={"TensorQuantOverrides": given})
        return onnx.load(after)


def pooled_first(graph: Graph) -> onnx.ModelProto:
    """A copy of the model with the first pooling before its activation, which computes the same.

    ONNX Runtime moves the rounding to bytes up through a pooling, whose 8-bit kernel is slow behind a
    convolution in float; it moves it up through no activation.
    """
    model, last = type(graph.model)(), graph.entrance()[-2:]
    model.CopyFrom(graph.model)
    if last[0].op_type not in MONOTONE or last[1].op_type != "MaxPool":
        return model
    act, pool = (type(node)() for node in last)
    act.CopyFrom(last[0])
    pool.CopyFrom(last[1])
    pool.input[0], pool.output[0], act.input[0], act.output[0] = (
        act.input[0], act.output[0], act.output[0], pool.output[0])
    places = [at for at, node in enumerate(model.graph.node) if node.name in (act.name, pool.name)]
    for at, node in zip(places, (pool, act), strict=True):
        model.graph.node[at].CopyFrom(node)
    return model


def _reasons(graph: Graph, kept: dict[str, list[str]]) -> list[dict]:
    """What stays in float and why: convolutions, and activations and sums that have no 8-bit kernel."""
    shown = {node.name for node in graph.nodes if node.op_type in ("Conv", "HardSwish", "Sum")}
    return [{"layer": name.removesuffix(".conv"), "why": WHY[why]}
            for why, names in kept.items() for name in names if name in shown]


def _onnx_sqnr(exact: Graph, quantised: Graph, layers: list[str], pictures: list[np.ndarray]) -> list[dict]:
    """SQNR of the layers, whose values are named after them; of 8-bit values what their readers get."""
    twins = {name: name + DEQUANTISED if name + DEQUANTISED in quantised.maker else name for name in layers}
    run = taps(quantised.model, list(dict.fromkeys(twins.values())))

    def other(picture: np.ndarray) -> dict[str, np.ndarray]:
        found = run(picture)
        return {name: found[twin] for name, twin in twins.items()}
    return layers_sqnr(taps(exact.model, layers), other, layers, pictures[:COMPARED])
