"""Exports in eight bits by static calibration on the user's own images: ONNX files, and OpenVINO's by NNCF.

In float stay decoding, which is not in the graph, the heads and squeeze-excitation. Best after `equalise`.
"""
from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from deploy.quant.graph import DEQUANTISED, MONOTONE, Graph, Taps, read, taps
from deploy.quant.ranges import Grid, correct, measured_grids
from deploy.runtimes.openvino import core, read_model
from models.graph import INPUT
from utils.errors import DataError
from utils.optional import needs

if TYPE_CHECKING:
    import onnx
    import openvino as ov

OPS = ("Conv", "LeakyRelu", "Relu", "Clip", "Sigmoid", "MaxPool", "GlobalAveragePool", "Resize", "Concat",
       "Mul", "Add")
SHOWN = ("Conv", "HardSwish", "Sum")                       # convolutions, and what has no 8-bit kernel
FEWEST = 8                                                 # images; fewer say nothing of ranges
COMPARED = 4                                               # images that SQNR is taken on
MOST = 100.0                                               # dB; equal to the last bit of fp32 and beyond
UNIT = Grid(1 / 255, 0)                                    # 0..1: what comes out of a sigmoid
WHY = {"entrance": "8-bit convolutions of an image's three channels are slower than those in float",
       "vector": "squeeze-excitation works on one number per channel",
       "output": "8 bits there move boxes and scores, and its share of the time is small",
       "op": "the runtime has no 8-bit kernel for it"}


def quantise_onnx(source: Path, target: Path, images: Iterable[np.ndarray],
                  narrow: bool | None = None) -> dict:
    """Write `target`, the 8-bit version of the fp32 file `source`, metadata and all; return what was done.

    images: letterboxed, uint8 [1, 3, S, S], 8 or more; the same give the same bytes. narrow: weights of 7
    bits, for x86 CPUs without VNNI, whose 8-bit products overflow; None asks this CPU. Raises DataError for
    the images, ModelError for the file, EnvironmentFault for a missing library.
    """
    needs("onnxruntime", "to quantise ONNX files")
    exact = whole_means(read(source))
    images = usable(images, exact.side())
    narrow = lacks_vnni() if narrow is None else narrow
    kept = {"entrance": [node.name for node in exact.entrance()], "vector": exact.from_means(),
            "output": exact.heads(), "op": [node.name for node in exact.nodes if node.op_type not in OPS]}
    model = _quantised(exact, {name for names in kept.values() for name in names}, narrow, images)
    quantised = Graph(model)
    changed = [n.name for n in exact.convolutions if n.name not in kept["vector"] + kept["entrance"]]
    correct(exact, quantised, changed, images)
    del model.metadata_props[:]
    model.metadata_props.extend(exact.model.metadata_props)
    target.write_bytes(model.SerializeToString(deterministic=True))
    layers = [name.removesuffix(".conv") for name in changed]              # values are named after layers
    twins = {name: name + DEQUANTISED if name + DEQUANTISED in quantised.maker else name for name in layers}
    run = taps(quantised, list(twins.values()))            # of 8-bit values what their readers get
    rows = layers_sqnr(taps(exact, layers), lambda image: dict(zip(twins, run(image).values())), layers,
                       images[:COMPARED])
    return {"layers": rows, "calibration": len(images), "left_float": left_float(exact, kept),
            "weight_bits": 7 if narrow else 8,
            "method": "ONNX Runtime QDQ, U8S8, weights by channel, ranges by least squared error behind the "
                      "activation, gain and mean of each channel corrected"}


def usable(images: Iterable[np.ndarray], side: int) -> list[np.ndarray]:
    """Return the images as a list. Raises DataError where they are too few or of another shape."""
    images = images if isinstance(images, list) else list(images)
    if len(images) < FEWEST:
        raise DataError(f"calibration needs {FEWEST} images or more (128 are good), got {len(images)}; "
                        "give a larger data set or --calibration")
    for image in images:
        if image.dtype != np.uint8 or image.shape != (1, 3, side, side):
            raise DataError(f"calibration images must be uint8 [1, 3, {side}, {side}], letterboxed, got "
                            f"{image.dtype} {list(image.shape)}")
    return images


def lacks_vnni(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Return whether this is an x86 CPU whose 8-bit products are added in 16 bits, where they overflow."""
    try:
        lines = Path(cpuinfo).read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return "sse2" in flags and "vnni" not in flags and "amx_int8" not in flags


def left_float(graph: Graph, kept: dict[str, list[str]]) -> list[dict]:
    """Return rows {"layer", "why"} of what stays in float: key of WHY -> names of nodes."""
    shown = {node.name for node in graph.nodes if node.op_type in SHOWN}
    return [{"layer": name.removesuffix(".conv"), "why": WHY[why]}
            for why, names in kept.items() for name in names if name in shown]


def layers_sqnr(exact: Taps, other: Taps, names: Sequence[str], images: Iterable[np.ndarray]) -> list[dict]:
    """Return rows {"layer", "sqnr_db"}: 10 log10 of the power of exact values over the error's, up to 100."""
    powers = np.zeros((len(names), 2))
    for image in images:
        a, b = exact(image), other(image)
        wanted = [a[name].astype(np.float64) for name in names]
        powers += [((value ** 2).sum(), ((b[name] - value) ** 2).sum()) for name, value in zip(names, wanted)]
    found = [10 * np.log10(max(signal, 1e-300) / noise) if noise else MOST for signal, noise in powers]
    return [{"layer": name, "sqnr_db": round(float(min(MOST, db)), 2)} for name, db in zip(names, found)]


def _quantised(graph: Graph, kept: set[str], narrow: bool, images: Sequence[np.ndarray]) -> onnx.ModelProto:
    """Return the model with the library's QuantizeLinear and DequantizeLinear; kept: nodes in float."""
    onnx = needs("onnx", "to quantise ONNX files")
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    nodes = [node for node in graph.nodes if node.name not in kept]
    values = dict.fromkeys(v for node in nodes for v in (*node.input, *node.output) if v in graph.maker)
    grids = measured_grids(graph, list(values), images)
    grids |= {v: UNIT for v in values if graph.maker[v].op_type == "Sigmoid"}
    given = {name: [{"scale": np.array(g.step, np.float32), "zero_point": np.array(g.zero, np.uint8)}]
             for name, g in grids.items()}
    plain = pooled_first(graph)
    # The library's own preparation would change nothing here.
    onnx.helper.set_model_props(plain, {"onnx.quant.pre_process": "onnxruntime.quant"})
    one = SimpleNamespace(get_next=partial(next, iter([{INPUT: images[0]}]), None))    # every range is known
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "exact.onnx", Path(folder) / "quantised.onnx"
        onnx.save(plain, before)
        quantize_static(before, after, one, quant_format=QuantFormat.QDQ,
                        op_types_to_quantize=list(OPS), per_channel=True, reduce_range=narrow,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                        nodes_to_exclude=sorted(kept), extra_options={"TensorQuantOverrides": given})
        return onnx.load(after)


def whole_means(graph: Graph) -> Graph:
    """Return the graph, changed so that each mean of a map is taken at once, which is done in 8 bits.

    In fp32 it is taken in two steps for the sake of digits that bytes do not have; there ONNX Runtime
    would read the whole map as floats again, or average windows of bytes, which is slower still.
    """
    nodes = graph.model.graph.node
    for node in graph.nodes:
        first = graph.maker.get(node.input[0])
        if node.op_type == "GlobalAveragePool" and first is not None and first.name.endswith(".average"):
            node.input[0] = first.input[0]
            nodes.remove(first)
    return Graph(graph.model)


def pooled_first(graph: Graph) -> onnx.ModelProto:
    """Return a copy of the model with the first pooling before its activation, which computes the same.

    ONNX Runtime moves the rounding to bytes up through a pooling, whose 8-bit kernel is slow behind a
    convolution in float; it moves it up through no activation.
    """
    model = type(graph.model)()
    model.CopyFrom(graph.model)
    first, second = Graph(model).entrance()[-2:]
    if first.op_type in MONOTONE and second.op_type == "MaxPool":
        ends, act = (first.input[0], first.output[0], second.output[0]), type(first)()
        act.CopyFrom(first)
        first.CopyFrom(second)
        second.CopyFrom(act)
        first.input[0], first.output[0], second.input[0], second.output[0] = ends[0], ends[1], *ends[1:]
    return model


def quantise_openvino(source: Path, target: Path, images: Iterable[np.ndarray]) -> dict:
    """Write `target` (.xml, with its .bin), the 8-bit version of an fp32 ONNX file, like `quantise_onnx`."""
    ov, nncf = (needs(name, "to quantise OpenVINO models") for name in ("openvino", "nncf"))
    from openvino.passes import ConstantFolding, Manager
    graph = read(source)
    images, exact = usable(images, graph.side()), read_model(source)
    folding = Manager()                                    # else biases are formulas nncf does not correct
    folding.register_pass(ConstantFolding())
    folding.run_passes(exact)
    convolutions = {node.name for node in graph.convolutions}
    kept = {"output": graph.heads(), "vector": [name for name in graph.from_means() if name in convolutions]}
    floats = {name for names in kept.values() for name in names}
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):        # its progress bars
        quantised = nncf.quantize(
            exact, nncf.Dataset(images), subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,          # symmetric weights, asymmetric activations
            ignored_scope=nncf.IgnoredScope(names=[
                op.get_friendly_name() for op in exact.get_ordered_ops()
                if "Convolution" in op.get_type_name()     # its bias is a node of its own here
                and op.get_friendly_name().removesuffix("/WithoutBiases") in floats]))
    layers = [n.name.removesuffix(".conv") for n in graph.convolutions if n.name not in kept["vector"]]
    rows = layers_sqnr(*(_openvino_taps(m, layers) for m in (exact, quantised)), layers, images[:COMPARED])
    ov.save_model(quantised, target, compress_to_fp16=False)
    return {"layers": rows, "calibration": len(images), "left_float": left_float(graph, kept),
            "weight_bits": 8, "method": "NNCF, preset mixed, fast bias correction"}


def _openvino_taps(model: ov.Model, layers: list[str]) -> Taps:
    """Return a function from an image to the layers' values; of 8-bit values what their readers get."""
    model = model.clone()
    values = {name: value for op in model.get_ops() for value in op.outputs() for name in value.get_names()}
    ports = []
    for layer in layers:
        behind = [t.get_node() for t in values[layer].get_target_inputs()]
        rounded = [node for node in behind if node.get_type_name() == "FakeQuantize"]
        ports += model.add_outputs([rounded[0].output(0) if rounded else values[layer]])
    plan = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    order = [model.outputs.index(port) for port in ports]
    return lambda image: {layer: found for found, layer in zip(
        (plan([image])[at] for at in order), layers, strict=True)}
