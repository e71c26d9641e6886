"""Networks by name, the zoo's and net.json files; for other classes and anchors."""
from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from models.graph import heads_of, outputs, require_heads
from models.heads import HEADS
from models.layer import Net, heads
from models.records import from_json, ignored, validate
from models.zoo.classifiers import CLASSIFIERS
from models.zoo.light import yolo_lite, yolo_nano
from models.zoo.nano import PREFIX, nano, parse
from models.zoo.official import OFFICIAL
from models.zoo.survey import SURVEYED
from models.zoo.tiny import STEMS, Anchors, micro_yolo, micro_yolo_fast, micro_yolo_pruned, yolov3_tiny
from utils.errors import ModelError

DETECTORS: dict[str, Callable[..., Net]] = {
    "yolov3-tiny": yolov3_tiny, "micro-yolo": micro_yolo, "micro-yolo-pruned": micro_yolo_pruned,
    "micro-yolo-fast": micro_yolo_fast, "yolo-lite": yolo_lite, "yolo-nano": yolo_nano}
ZOO = {**DETECTORS, **STEMS, **SURVEYED, **{known.name: known.build for known in OFFICIAL}, **CLASSIFIERS}
SIDE = 416                                         # px of the input where nothing says another
DEFAULT = "yolox-nano"                             # of train.py: comes furthest in the same minutes
# Trained weights that come with the project, by network: one's own training starts from the first there is.
SHIPPED = {"micro-yolo": ("weights/micro-yolo-coco80.pt", "weights/micro-yolo-voc5.pt"),
           "micro-yolo-fast": ("weights/micro-yolo-fast-voc5.pt",),
           "micro-yolo-fast-s4": ("weights/micro-yolo-fast-s4-voc5-320.pt",),
           "yolox-nano": ("weights/yolox-nano-coco80.pt",)}


def shipped(name: str) -> str | None:
    """Return the path of the checkpoint that comes with the project for a zoo network, None without one.

    "micro-yolo+free" has micro-yolo's: all but the heads is the same.
    """
    root = Path(__file__).resolve().parents[2]
    files = SHIPPED.get(name.partition("+")[0], ())
    places = [place for file in files for place in (Path(file), root / file)]
    return next((str(place) for place in places if place.is_file()), None)


def with_heads(net: Net, classes: int, anchors: tuple[Anchors, ...] | None = None) -> Net:
    """Return the network for `classes` classes and, where given, other anchors (px), or raise ModelError."""
    found = heads_of(require_heads(net, "another number of classes"))
    if anchors and len(anchors) != len(found):
        raise ModelError(f"{len(anchors)} anchor sets for {len(found)} heads; one a head is needed")
    new = {head.layer.name: head.for_classes(classes) for head in found}
    if anchors:
        new = {head.layer.name: type(head)(new[head.layer.name], head.stride).with_anchors(own)
               for head, own in zip(found, anchors)}
    return validate(tuple(new.get(layer.name, layer) for layer in net))


def with_head_kind(net: Net, kind: str) -> Net:
    """Return the detector with fresh heads of another kind in the place of its own, or raise ModelError."""
    if kind not in HEADS:
        hint = difflib.get_close_matches(kind, HEADS, 1)
        raise ModelError(f"unknown kind of head {kind!r}" + (f"; did you mean {hint[0]!r}?" if hint else "")
                         + f" Known: {', '.join(HEADS)}")
    found = {head.layer.name: head for head in heads_of(require_heads(net, "another kind of head"))}
    return validate(tuple(
        HEADS[kind].in_place_of(layer, found[layer.name].classes)
        if layer.name in found and layer.kind != kind else layer for layer in net))


def build(name: str, classes: int | None = None) -> Net:
    """Return the network of a zoo name or a net.json path, for `classes` classes, or raise ModelError.

    A name is one of ZOO, or "nano:BACKBONE+PART+..." as models/zoo/nano.py reads it. A detector's name may
    end in a kind of head, "micro-yolo+free": its heads are then of that kind.
    """
    if name.startswith(PREFIX):
        return nano(classes or 80, **parse(name))
    base, plus, kind = name.rpartition("+")
    if plus and not Path(name).is_file():
        return with_head_kind(build(base, classes), kind)
    if name in ZOO:
        return ZOO[name](classes) if classes else ZOO[name]()
    path = Path(name)
    if path.suffix != ".json" or not path.is_file():
        hint = difflib.get_close_matches(name, ZOO, 1)
        raise ModelError(f"unknown network {name!r}" + (f"; did you mean {hint[0]!r}?" if hint else "")
                         + f" Known: {', '.join(ZOO)}, {PREFIX}BACKBONE+PART+..., or the path of a net.json")
    try:
        net = from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8 text: {error}") from error
    if faults := ignored(net):                             # of a checkpoint's records it is too late to ask
        raise ModelError(f"{path}: {faults[0]}")
    if not classes:
        return net
    if heads(net):
        return with_heads(net, classes)
    return validate(tuple(replace(row, out=classes) if row.name in outputs(net) else row for row in net))
