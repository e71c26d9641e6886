"""YOLOX's head: one box a cell, as an offset and a size in cells, with objectness (arXiv 2107.08430)."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from models.heads.anchor import CLASSES, EXP_LIMIT, OBJECTNESS, AnchorHead
from models.heads.assign import Predictions, Truth, simota
from models.heads.base import cells_of, numbers
from models.layer import Layer
from models.nodes import Builder
from utils.boxes import ciou_pairs, cxcywh_to_xyxy, library, xyxy_to_cxcywh
from utils.optional import Lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional as F

    from utils.boxes import Values
else:
    torch, F = Lazy("torch"), Lazy("torch.nn.functional")


class YoloxHead(AnchorHead):
    """Predictions [B, 1, 5 + K, G, G]: x, y, w, h, objectness, classes; the anchor is the cell itself.

    It reads one record, or two: boxes and objectness from the first, classes from the second. Training
    matches by SimOTA; the class that is learned is the IoU's, objectness is 1.
    """

    kind, inputs = "yolox", 2
    terms = {"box": 5.0, "obj": 1.0, "cls": 1.0}           # 1 - IoU squared, cross-entropy, cross-entropy
    why_frozen = "a head's outputs are its box and classes"

    @classmethod
    def nodes(cls, b: Builder, x: str, scored: str = "") -> str:
        """Write the 1x1 convolutions of box, objectness and classes, side by side."""
        parts = (("box", x, 4), ("obj", x, 1), ("cls", scored or x, b.layer.out - 5))
        return b.concat(*(b.raw_conv(source, b.name(f"{part}.conv"), width, "~", bias=True,
                                     fixed=cls.why_frozen) for part, source, width in parts), part="")

    @classmethod
    def problem(cls, layer: Layer) -> str:
        return "" if layer.out > 5 else f"out {layer.out} is not 5 + classes"

    @classmethod
    def in_place_of(cls, layer: Layer, classes: int) -> Layer:
        return Layer(layer.name, layer.op, layer.inputs, 5 + classes, 1, act=layer.act, kind=cls.kind)

    @property
    def shape(self) -> tuple[int, ...]:
        return 1, self.layer.out

    def for_classes(self, classes: int) -> Layer:
        return replace(self.layer, out=5 + classes)

    def with_anchors(self, anchors: Sequence[tuple[float, float]]) -> Layer:
        return replace(self.layer)

    def anchors(self, like: Values) -> Values:
        return numbers(((float(self.stride),) * 2,), like)

    def boxes(self, raw: Values, cells: Values, anchors: Values) -> Values:
        xp = library(raw)
        return xp.concatenate(((raw[:, :2] + cells) * self.stride,
                               xp.exp(raw[:, 2:4].clip(max=EXP_LIMIT)) * anchors), 1)

    @classmethod
    def losses(cls, heads: Sequence[YoloxHead], outputs: Sequence[Tensor],
               targets: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        parts = []
        for head, output in zip(heads, outputs):
            middles = (cells_of(tuple(output.shape[3:]), output.device).flip(1) + 0.5) * head.stride
            parts.append((output[:, 0].flatten(2).transpose(1, 2), *head.everything(output), middles,
                          middles.new_full(middles.shape[:1], head.stride)))
        raw, boxes, scores, points, strides = (torch.cat(part, int(at < 3))
                                               for at, part in enumerate(zip(*parts)))
        side = targets.new_tensor(outputs[0].shape[:2:-1]) * heads[0].stride
        wanted = targets[:, 2:6] * torch.cat((side, side))
        truth = Truth(targets[:, 0].long(), targets[:, 1].long(), cxcywh_to_xyxy(wanted))
        with torch.no_grad():
            found = simota(Predictions(scores.sqrt(), boxes, points, strides,
                                       torch.full_like(strides, float("inf"))), truth)
        mine = raw[found.image, found.at]
        iou = ciou_pairs(xyxy_to_cxcywh(boxes[found.image, found.at]), wanted[found.row])[1]
        label = F.one_hot(truth.label[found.row], heads[0].classes) * found.quality[:, None]
        seen = torch.zeros_like(raw[..., OBJECTNESS])
        seen[found.image, found.at] = 1
        entropy = F.binary_cross_entropy_with_logits
        return {"box": (1 - iou.square()).sum(),
                "obj": entropy(raw[..., OBJECTNESS], seen, reduction="sum"),
                "cls": entropy(mine[:, CLASSES], label, reduction="sum")}, seen.sum()

    def distance(self, mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objectness-scaled distance (Mehta and Ozturk 2018, arXiv 1805.06361, 3.2)."""
        seen, soft = theirs[:, :, OBJECTNESS].sigmoid(), theirs[:, :, OBJECTNESS:].sigmoid()
        box = (mine[:, :, :OBJECTNESS] - theirs[:, :, :OBJECTNESS]).square().sum(2)
        off, least = (F.binary_cross_entropy_with_logits(raw[:, :, OBJECTNESS:], soft, reduction="none")
                      for raw in (mine, theirs))
        away = off - least
        return (seen * (box + away[:, :, 1:].sum(2)) + away[:, :, 0]).sum(), seen.sum()

    def differs(self, other: YoloxHead) -> str:
        return ""

    def places_in_graph(self, add: Callable[..., str], xy: str, cells: np.ndarray) -> str:
        return add("Add", xy, cells)

    def metadata(self) -> dict[str, object]:
        return {}
