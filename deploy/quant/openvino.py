"""OpenVINO models in eight bits by NNCF: symmetric weights by channel, asymmetric activations."""
from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploy.quant.graph import Taps, read
from deploy.quant.ptq import COMPARED, layers_of, layers_sqnr, left_float, side_of, usable
from deploy.runtimes.openvino import core, read_model
from utils.optional import needs

if TYPE_CHECKING:
    import openvino as ov


def quantise_openvino(source: Path, target: Path, images: Iterable[np.ndarray]) -> dict:
    """Write `target` (.xml, with its .bin), the 8-bit version of the fp32 ONNX file `source`.

    Return what was done; images, the dict and the errors are those of `deploy.quant.ptq.quantise_onnx`.
    """
    ov, nncf = (needs(name, "to quantise OpenVINO models") for name in ("openvino", "nncf"))
    from openvino.passes import ConstantFolding, Manager
    graph = read(source)
    images, exact = usable(images, side_of(graph)), read_model(source)
    folding = Manager()                                    # else biases are formulas nncf does not correct
    folding.register_pass(ConstantFolding())
    folding.run_passes(exact)
    convolutions = {node.name for node in graph.convolutions()}
    kept = {"head": graph.heads(), "vector": [name for name in graph.from_means() if name in convolutions]}
    floats = {name for names in kept.values() for name in names}
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):        # its progress bars
        quantised = nncf.quantize(
            exact, nncf.Dataset(images), preset=nncf.QuantizationPreset.MIXED, subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=[
                op.get_friendly_name() for op in exact.get_ordered_ops()
                if "Convolution" in op.get_type_name()     # its bias is a node of its own here
                and op.get_friendly_name().removesuffix("/WithoutBiases") in floats]))
    layers = layers_of(n.name for n in graph.convolutions() if n.name not in kept["vector"])
    rows = layers_sqnr(_taps(exact, layers), _taps(quantised, layers), layers, images[:COMPARED])
    ov.save_model(quantised, target, compress_to_fp16=False)
    return {"layers": rows, "calibration": len(images), "left_float": left_float(graph, kept),
            "weight_bits": 8, "method": "NNCF, preset mixed, fast bias correction"}


def _taps(model: ov.Model, layers: list[str]) -> Taps:
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
