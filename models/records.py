"""Networks as JSON, checked before anything is built."""
from __future__ import annotations

import difflib
import json
from dataclasses import asdict, fields

from models.blocks import BLOCKS, of_schema_1
from models.graph import classes_of, expand, heads_of, outputs
from models.heads import HEADS
from models.layer import DEFAULTS, MAX_LAYERS, MAX_WIDTH, Layer, Net, heads
from models.nodes import ACTIVATIONS, IMAGE, Builder
from utils.errors import ModelError

SCHEMA = 2                                                 # 1: heads without a kind, poolings always 2x2
TYPES = {field.name: field.type for field in fields(Layer)}
NUMBERS = [name for name, kind in TYPES.items() if kind == "int"]
LARGEST = 4096                                             # px, the side of an image as networks take it
SHAPES = ("hidden", "squeeze", "groups", "part", "dilation", "rates", "ceil", "full")
PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def to_json(net: Net) -> str:
    """Return the JSON text of a network: one record a line, fields at their default left out."""
    rows = [{key: value for key, value in asdict(layer).items() if value != DEFAULTS[key]} for layer in net]
    return f'{{"schema": {SCHEMA}, "layers": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]}\n"


def from_json(text: str) -> Net:
    """Return the network of a JSON text, validated. Raises ModelError naming the record and field."""
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError, TypeError) as error:
        raise ModelError(f"net.json is not JSON: {error}; "
                         f"it needs {{'schema': {SCHEMA}, 'layers': [...]}}") from error
    if not isinstance(data, dict) or not isinstance(data.get("layers"), list):
        raise ModelError(f"net.json needs 'schema': {SCHEMA} and a list 'layers'; "
                         f"it has {sorted(data)[:5] if isinstance(data, dict) else type(data).__name__}")
    schema = data.get("schema")
    if schema not in range(1, SCHEMA + 1) or isinstance(schema, bool):
        newer = isinstance(schema, int) and schema > SCHEMA
        raise ModelError(f"net.json is of schema {schema!r}, this version reads 1 to {SCHEMA}"
                         + ("; a newer version of the project wrote it: update this one" if newer else ""))
    layers = tuple(_record(row, at) for at, row in enumerate(data["layers"]))
    return validate(layers if schema > 1 else tuple(of_schema_1(layer) for layer in layers))


def check_told(net: Net, names: object, imgsz: object, class_map: object) -> None:
    """Raise ModelError where class names, side in px or category map, read with a network, do not fit it."""
    classes = classes_of(net)
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        raise ModelError(f"names must be a list of texts, got {str(names)[:80]}")
    if len(names) != classes:
        raise ModelError(f"{len(names)} class names for {classes} classes")
    if type(imgsz) is not int or not 1 <= imgsz <= LARGEST:
        raise ModelError(f"imgsz must be px, 1 to {LARGEST}, got {str(imgsz)[:40]!r}")
    if not isinstance(class_map, dict) or not all(
            isinstance(key, str) and type(k) is int and 0 <= k < classes for key, k in class_map.items()):
        raise ModelError(f"class_map must lead from category ids to 0..{classes - 1}, "
                         f"got {str(class_map)[:80]}")


def _record(row: object, at: int) -> Layer:
    """Return the record of a JSON object, its types checked."""
    if not isinstance(row, dict) or not {"name", "op", "inputs"} <= set(row):
        raise ModelError(f"layer {at} of net.json needs name, op and inputs, got {str(row)[:80]}")
    where = f"layer {row['name']!r}"
    if extra := sorted(set(row) - set(TYPES)):
        raise ModelError(f"{where}: unknown field {extra[0]!r}{_meant(extra[0], TYPES)}")
    for key, value in row.items():
        kind = PLAIN.get(TYPES[key])
        if kind and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
            raise ModelError(f"{where}: {key} must be {TYPES[key]}, got {value!r}")
    try:
        if isinstance(row["inputs"], str):
            raise TypeError(f"got {row['inputs']!r}")
        inputs = tuple(str(i) for i in row["inputs"])
        anchors = tuple((float(w), float(h)) for w, h in row.get("anchors", ()))
        rates = tuple(int(rate) for rate in row.get("rates", ()))
    except (TypeError, ValueError) as error:
        raise ModelError(f"{where}: inputs must be names, anchors pairs of numbers, rates integers "
                         f"({error})") from error
    return Layer(**{**row, "inputs": inputs, "anchors": anchors, "rates": rates})


def _meant(word: str, known: object) -> str:
    """Return "; did you mean ...?" where a known word is near."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def validate(net: Net) -> Net:
    """Return the same network, or raise ModelError naming the first record that cannot be built and why."""
    if not 1 <= len(net) <= MAX_LAYERS:
        raise ModelError(f"a network needs 1 to {MAX_LAYERS} layers, got {len(net)}")
    seen = {IMAGE}
    for layer in net:
        if problem := _problem(layer, seen):
            raise ModelError(f"layer {layer.name!r} ({layer.op}): {problem}")
        seen.add(layer.name)
    expand(net)
    if not outputs(net):
        raise ModelError("the network has no head; it needs at least one layer with op 'head'")
    if len({layer.kind for layer in heads(net)}) > 1:
        raise ModelError(f"the heads are of several kinds: {sorted({layer.kind for layer in heads(net)})}")
    if len(counts := {head.classes for head in heads_of(net)}) > 1:
        raise ModelError(f"the heads disagree on the number of classes: {sorted(counts)}")
    ends = heads_of(net)
    if ends and (problem := type(ends[0]).disagree(ends)):
        raise ModelError(f"the heads disagree on their {problem}")
    return net


def _problem(layer: Layer, seen: set[str]) -> str:
    """Return what is wrong with one record given the names before it; empty when nothing is."""
    block = BLOCKS.get(layer.op)
    if block is None:
        return f"unknown op; known are {', '.join(BLOCKS)}{_meant(layer.op, BLOCKS)}"
    dangling = [i for i in layer.inputs if i not in seen]
    numbers = [key for key in block.needs if key in NUMBERS]
    bad = [f"{key} is {getattr(layer, key)}" for key in numbers if not 1 <= getattr(layer, key) <= MAX_WIDTH]
    low, high = block.inputs
    wanted = {(1, 1): "one input", (1, 2): "one input, or two", (2, 2): "two inputs"}.get(
        block.inputs, "two or more inputs")
    rules = (
        (not layer.name or "." in layer.name, "a name must be non-empty and without dots"),
        (layer.name in seen, "the name is used twice"),
        (bool(dangling), f"input {dangling and dangling[0]!r} is not an earlier layer"),
        (not low <= len(layer.inputs) <= high, f"needs {wanted}, got {len(layer.inputs)}"),
        (bool(bad), f"{', '.join(bad)}; needs 1 to {MAX_WIDTH}"),
        *((not 0 <= (value := getattr(layer, key)) <= MAX_WIDTH, f"{key} is {value}; needs 0 (none) or more")
          for key in ("out", "hidden", "squeeze")),
        (not 1 <= layer.kernel <= 31, f"kernel is {layer.kernel}; needs 1 to 31"),
        (not 1 <= layer.stride <= 32, f"stride is {layer.stride}; needs 1 to 32"),
        (layer.stride != 1 and not block.strided, f"stride is {layer.stride}; only 1 is possible"),
        (layer.groups < 1 or layer.dilation < 1 or any(rate < 1 for rate in layer.rates),
         f"groups {layer.groups}, dilation {layer.dilation} and rates {layer.rates} need 1 or more"),
        (not -1 <= layer.pad <= 31, f"pad is {layer.pad}; needs cells, or -1 for what fits the stride"),
        *((word not in ACTIVATIONS, f"unknown activation {word!r}; known are {', '.join(ACTIVATIONS)}"
           f"{_meant(word, ACTIVATIONS)}") for word in (layer.act, layer.gate)),
        (not 0 < layer.eps < 1, f"eps is {layer.eps}; needs a small positive number"))
    text = next((text for wrong, text in rules if wrong), "")
    if text or not layer.kind and "kind" not in block.needs:
        return text
    if "kind" not in block.needs:
        return f"kind is {layer.kind!r}; only a head has one"
    if layer.kind not in HEADS:
        return f"unknown kind of head {layer.kind!r}; known are {', '.join(HEADS)}{_meant(layer.kind, HEADS)}"
    if len(layer.inputs) > HEADS[layer.kind].inputs:
        return f"needs one input, got {len(layer.inputs)}"
    return HEADS[layer.kind].problem(layer)


class _Read:
    """A record that remembers which of its fields were asked for."""

    def __init__(self, layer: Layer) -> None:
        self._layer, self.fields = layer, set()

    def __getattr__(self, name: str) -> object:
        self.fields.add(name)
        return getattr(self._layer, name)


def ignored(net: Net) -> list[str]:
    """Return a sentence for each field of SHAPES that is given and that the record's block does not read.

    A network's act, gate, eps and the like stand in all its records, and kernels where a block has a fixed
    one: those say nothing wrong. groups count only where the record filters cells.
    """
    builder, value, found = Builder(), {IMAGE: IMAGE}, []
    for layer in net:
        builder.layer, first = (read := _Read(layer)), len(builder.nodes)
        value[layer.name] = BLOCKS[layer.op].write(builder, *(value[i] for i in layer.inputs))
        filters = any(node.type == "conv" and node.kernel > 1 for node in builder.nodes[first:])
        found += [f"layer {layer.name!r} ({layer.op}): {name} is {getattr(layer, name)}, which this block "
                  "does not read here; leave it out" for name in SHAPES
                  if getattr(layer, name) != DEFAULTS[name] and name not in read.fields
                  and (name != "groups" or filters)]
    return found
