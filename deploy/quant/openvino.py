"""OpenVINO models in eight bits by NNCF: symmetric weights by channel, asymmetric activations."""
from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploy.artifact import unreadable
from deploy.quant.ptq import COMPARED, WHY, usable
from deploy.quant.sqnr import layers_sqnr
from deploy.runtimes.openvino import core
from utils.errors import ModelError
from utils.optional import needs

if TYPE_CHECKING:
    import openvino as ov

CONVOLUTIONS = ("Convolution", "GroupConvolution")
OUTWARD = ("Add", "Reshape", "Transpose", "Convert", "Result")     # what may stand behind a head


def quantise_openvino(source: Path, target: Path, pictures: Iterable[np.ndarray]) -> dict:
    """What was done, once `target` (.xml, with its .bin) is the 8-bit version of the fp32 model `source`.

    pictures, the dict and the errors are those of `deploy.quant.ptq.quantise_onnx`.
    """
    ov, nncf = (needs(name, "to quantise OpenVINO models") for name in ("openvino", "nncf"))
    from openvino.passes import ConstantFolding, Manager
    try:
        exact = core().read_model(source)
    except RuntimeError as error:
        raise unreadable(source, "an OpenVINO model", error) from error
    _check(exact, source)
    folding = Manager()                                    # else biases are formulas nncf does not correct
    folding.register_pass(ConstantFolding())
    folding.run_passes(exact)
    pictures = usable(pictures, int(exact.input(0).get_partial_shape()[3].get_length()))
    heads, gates = _heads(exact), _gates(exact)
    scope = nncf.IgnoredScope(names=heads + gates)
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):        # its progress bars
        quantised = nncf.quantize(exact, nncf.Dataset(pictures), preset=nncf.QuantizationPreset.MIXED,
                                  subset_size=len(pictures), ignored_scope=scope)
    layers = _layers(exact, gates)
    rows = layers_sqnr(_taps(exact, layers), _taps(quantised, layers), layers, pictures[:COMPARED])
    ov.save_model(quantised, target, compress_to_fp16=False)
    return {"layers": rows, "calibration": len(pictures),
            "left_float": [{"layer": _layer(name), "why": WHY[why]}
                           for why, names in (("head", heads), ("gate", gates)) for name in names],
            "weight_bits": 8, "method": "NNCF, preset mixed, fast bias correction"}


def _check(model: ov.Model, source: Path) -> None:
    """Raises ModelError for a model that cannot be quantised."""
    kinds = [op.get_type_name() for op in model.get_ops()]
    if not set(kinds) & set(CONVOLUTIONS):
        raise ModelError(f"{source} has no convolutions: there is nothing to quantise")
    if "FakeQuantize" in kinds:
        raise ModelError(f"{source} is quantised already; quantise the fp32 export of the checkpoint")


def _readers(op: ov.Node) -> list[ov.Node]:
    """The nodes that read an operation's numbers (others read its shape alone)."""
    found = [target.get_node() for target in op.output(0).get_target_inputs()]
    return [node for node in found if node.get_type_name() != "ShapeOf"]


def _convolutions(model: ov.Model) -> list[ov.Node]:
    return [op for op in model.get_ordered_ops() if op.get_type_name() in CONVOLUTIONS]


def _heads(model: ov.Model) -> list[str]:
    """Names of the convolutions that nothing but outputs of the model reads."""
    def leads_out(op: ov.Node) -> bool:
        return op.get_type_name() == "Result" or (readers := _readers(op)) != [] and all(
            r.get_type_name() in OUTWARD and leads_out(r) for r in readers)
    return [op.get_friendly_name() for op in _convolutions(model) if leads_out(op)]


def _gates(model: ov.Model) -> list[str]:
    """Names of the convolutions that work on one cell, as squeeze-excitation's do on each channel's mean."""
    def one_cell(value: ov.Output) -> bool:
        shape = value.get_partial_shape()
        return [str(shape[axis]) for axis in (2, 3)] == ["1", "1"]
    heads = _heads(model)
    return [op.get_friendly_name() for op in _convolutions(model) if op.get_friendly_name() not in heads
            and one_cell(op.input_value(0)) and one_cell(op.output(0))]


def _layer(name: str) -> str:
    """The layer that a convolution's name speaks of."""
    return name.removesuffix("/WithoutBiases").removesuffix(".conv")


def _layers(model: ov.Model, without: list[str]) -> list[str]:
    """The layers whose values can be compared: each convolution's, named after it."""
    names = [op.get_friendly_name() for op in _convolutions(model) if op.get_friendly_name() not in without]
    known = {name for op in model.get_ops() for value in op.outputs() for name in value.get_names()}
    return [layer for layer in map(_layer, names) if layer in known]


def _taps(model: ov.Model, layers: list[str]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from a picture to the layers' values; of 8-bit values what their readers get."""
    model = model.clone()
    values = {name: value for op in model.get_ops() for value in op.outputs() for name in value.get_names()}
    ports = []
    for layer in layers:
        behind = [t.get_node() for t in values[layer].get_target_inputs()]
        rounded = [node for node in behind if node.get_type_name() == "FakeQuantize"]
        ports += model.add_outputs([rounded[0].output(0) if rounded else values[layer]])
    plan = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    order = [model.outputs.index(port) for port in ports]
    return lambda picture: {layer: found for found, layer in zip(
        (plan([picture])[at] for at in order), layers, strict=True)}
