"""A network as data: a tuple of frozen `Layer` records.

JSON there and back, checked before anything is built.
"""
from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass, fields

from utils.errors import ModelError

SCHEMA = 1
WEIGHTED = ("conv", "dsconv", "mbconv", "head")           # ops with an `out` width of their own
OPS = (*WEIGHTED, "se", "maxpool", "upsample", "concat", "add")
STRIDED = ("conv", "dsconv", "mbconv", "maxpool", "upsample")
ACTIVATIONS = ("leaky", "relu", "relu6", "hardswish", "swish", "linear")
MAX_WIDTH, MAX_LAYERS = 65536, 10000                       # a typo must not ask for terabytes


@dataclass(frozen=True)
class Layer:
    """One record. `inputs` name earlier layers ("image" is the picture); unused fields keep their defaults.

    conv: kxk convolution, batch-norm, activation. dsconv: depthwise kxk, pointwise 1x1, each with batch-norm
    and activation (MobileNet's depthwise-separable convolution). mbconv: expand 1x1, depthwise kxk,
    squeeze-excitation, project 1x1 without activation (MobileNetV2/MnasNet). head: 1x1 convolution with bias,
    no batch-norm, out = len(anchors) * (5 + classes). se: squeeze-excitation of a whole map, which keeps its
    channels. maxpool: 2x2; stride 1 pads right and bottom as darknet does. upsample: nearest, by `stride`.
    concat: along channels. add: element-wise, ties the channels of its inputs.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    out: int = 0
    kernel: int = 3
    stride: int = 1
    hidden: int = 0                                    # mbconv: expanded channels
    squeeze: int = 0                                   # mbconv (0 = none), se: squeeze-excitation channels
    act: str = "leaky"
    bn: bool = True                                    # False: a bias in place of batch-norm (folded nets)
    eps: float = 1e-5                                  # batch-norm's epsilon
    anchors: tuple[tuple[float, float], ...] = ()      # head: width, height in px of the network input
    xy_scale: float = 1.0                              # head: centre = (sigmoid*s - (s-1)/2 + cell) * stride


Net = tuple[Layer, ...]


def to_json(net: Net) -> str:
    """JSON text of a network: one record a line, fields at their default left out."""
    default = {f.name: f.default for f in fields(Layer)}
    rows = [{k: v for k, v in asdict(layer).items() if k in ("name", "op", "inputs") or v != default[k]}
            for layer in net]
    return f'{{"schema": {SCHEMA}, "layers": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]}\n"


def from_json(text: str) -> Net:
    """The network of a JSON text, validated. Raises ModelError naming the offending layer and field."""
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ModelError(f"net.json is not JSON: {error}; "
                         "it needs {'schema': 1, 'layers': [...]}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("layers"), list):
        raise ModelError(f"net.json needs 'schema': {SCHEMA} and a list 'layers'; "
                         f"it has {sorted(data)[:5] if isinstance(data, dict) else type(data).__name__}")
    return validate(tuple(_record(row, i) for i, row in enumerate(data["layers"])))


def _record(row: dict, at: int) -> Layer:
    """One Layer of a JSON object, its types checked."""
    known = {f.name: f.type for f in fields(Layer)}
    if not isinstance(row, dict) or not {"name", "op", "inputs"} <= set(row):
        raise ModelError(f"layer {at} of net.json needs name, op and inputs, got {str(row)[:80]}")
    where = f"layer {row['name']!r}"
    if extra := sorted(set(row) - set(known)):
        hint = difflib.get_close_matches(extra[0], known, 1)
        meant = f"; did you mean {hint[0]!r}?" if hint else ""
        raise ModelError(f"{where}: unknown field {extra[0]!r}{meant}")
    kinds = {"str": str, "int": int, "bool": bool, "float": (int, float)}
    for key, value in row.items():
        kind = kinds.get(known[key])
        if kind and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
            raise ModelError(f"{where}: {key} must be {known[key]}, got {value!r}")
    try:
        inputs = tuple(str(i) for i in row["inputs"])
        anchors = tuple((float(w), float(h)) for w, h in row.get("anchors", ()))
    except (TypeError, ValueError) as error:
        raise ModelError(f"{where}: inputs must be names and anchors pairs of numbers ({error})") from error
    return Layer(**{**row, "inputs": inputs, "anchors": anchors})


def validate(net: Net) -> Net:
    """The same network, or ModelError naming the first layer that cannot be built and why."""
    if not 1 <= len(net) <= MAX_LAYERS:
        raise ModelError(f"a network needs 1 to {MAX_LAYERS} layers, got {len(net)}")
    seen = {"image"}
    for layer in net:
        if problem := _problem(layer, seen):
            raise ModelError(f"layer {layer.name!r} ({layer.op}): {problem}")
        seen.add(layer.name)
    if not any(layer.op == "head" for layer in net):
        raise ModelError("the network has no head; it needs at least one layer with op 'head'")
    if len(counts := {classes_of(layer) for layer in net if layer.op == "head"}) > 1:
        raise ModelError(f"the heads disagree on the number of classes: {sorted(counts)}")
    return net


def _problem(layer: Layer, seen: set[str]) -> str:
    """What is wrong with one record given the names before it; empty when nothing is."""
    hint = difflib.get_close_matches(layer.op, OPS, 1)
    dangling = [i for i in layer.inputs if i not in seen]
    needed = {"mbconv": ("hidden",), "se": ("squeeze",)}.get(layer.op, ())
    needed += ("out",) * (layer.op in WEIGHTED)
    bad = [f"{k} is {getattr(layer, k)}" for k in needed if not 1 <= getattr(layer, k) <= MAX_WIDTH]
    several = layer.op in ("concat", "add")
    rules = (
        (layer.op not in OPS, f"unknown op; known are {', '.join(OPS)}"
         + (f"; did you mean {hint[0]!r}?" if hint else "")),
        (not layer.name or "." in layer.name, "a name must be non-empty and without dots"),
        (layer.name in seen, "the name is used twice"),
        (bool(dangling), f"input {dangling and dangling[0]!r} is not an earlier layer"),
        ((len(layer.inputs) < 2) if several else (len(layer.inputs) != 1),
         f"needs {'two or more inputs' if several else 'one input'}, got {len(layer.inputs)}"),
        (bool(bad), f"{', '.join(bad)}; needs 1 to {MAX_WIDTH}"),
        (not 0 <= layer.squeeze <= MAX_WIDTH, f"squeeze is {layer.squeeze}; needs 0 (none) or more"),
        (layer.kernel not in (1, 3, 5, 7, 9), f"kernel is {layer.kernel}; needs 1, 3, 5, 7 or 9"),
        (layer.stride not in (1, 2), f"stride is {layer.stride}; needs 1 or 2"),
        (layer.stride != 1 and layer.op not in STRIDED, f"stride is {layer.stride}; only 1 is possible"),
        (layer.act not in ACTIVATIONS,
         f"unknown activation {layer.act!r}; known are {', '.join(ACTIVATIONS)}"),
        (not 0 < layer.eps < 1, f"eps is {layer.eps}; needs a small positive number"),
        (layer.op == "head" and (not layer.anchors or layer.out % len(layer.anchors)
                                 or classes_of(layer) < 1),
         f"out {layer.out} is not anchors ({len(layer.anchors)}) x (5 + classes)"),
        (any(not 0 < side < 1e5 for a in layer.anchors for side in a),
         f"anchors must be positive px: {layer.anchors}"),
        (not 1 <= layer.xy_scale <= 2, f"xy_scale is {layer.xy_scale}; needs 1 to 2"),
    )
    return next((text for wrong, text in rules if wrong), "")


def classes_of(head: Layer) -> int:
    """The number of classes a head predicts."""
    return head.out // len(head.anchors) - 5


def heads(net: Net) -> Net:
    """The head records in order."""
    return tuple(layer for layer in net if layer.op == "head")
