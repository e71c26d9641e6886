"""Networks by name: the zoo's, and net.json files; their heads for other classes and anchors."""
from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from models.graph import heads_of, require_heads
from models.layer import Net
from models.records import from_json, validate
from models.zoo.light import yolo_lite, yolo_nano
from models.zoo.tiny import Anchors, micro_yolo, micro_yolo_fast, micro_yolo_pruned, yolov3_tiny
from utils.errors import ModelError

DETECTORS: dict[str, Callable[..., Net]] = {
    "yolov3-tiny": yolov3_tiny, "micro-yolo": micro_yolo, "micro-yolo-pruned": micro_yolo_pruned,
    "micro-yolo-fast": micro_yolo_fast, "yolo-lite": yolo_lite, "yolo-nano": yolo_nano}
ZOO = DETECTORS


def with_heads(net: Net, classes: int, anchors: tuple[Anchors, ...] | None = None) -> Net:
    """Return the network with its heads for `classes` classes and, where given, new anchors in px.

    anchors: one tuple a head, in order. Raises ModelError where their number is not that of the heads.
    """
    found = heads_of(require_heads(net, "another number of classes"))
    if anchors and len(anchors) != len(found):
        raise ModelError(f"{len(anchors)} anchor sets for {len(found)} heads; one a head is needed")
    new = {head.layer.name: head.for_classes(classes) for head in found}
    if anchors:
        new = {head.layer.name: type(head)(new[head.layer.name], head.stride).with_anchors(own)
               for head, own in zip(found, anchors)}
    return validate(tuple(new.get(layer.name, layer) for layer in net))


def build(name: str, classes: int | None = None) -> Net:
    """Return the network of a zoo name or a net.json path, its heads for `classes` where given.

    Raises ModelError for an unknown name (with the nearest known one) or a description that cannot be built.
    """
    if name in ZOO:
        return ZOO[name](classes) if classes else ZOO[name]()
    path = Path(name)
    if path.suffix != ".json" or not path.is_file():
        hint = difflib.get_close_matches(name, ZOO, 1)
        raise ModelError(f"unknown network {name!r}" + (f"; did you mean {hint[0]!r}?" if hint else "")
                         + f" Known: {', '.join(ZOO)}, or the path of a net.json")
    try:
        net = from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8 text: {error}") from error
    return with_heads(net, classes) if classes else net
