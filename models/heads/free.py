"""A head without anchors: class scores, and a distribution over the distance to each side of the box."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from models.heads.assign import RULES, Predictions, Truth
from models.heads.base import Head, cells_of, logit, numbers, sigmoid, softmax
from models.layer import Layer
from utils.boxes import ciou_pairs, cxcywh_to_xyxy, library, xyxy_to_cxcywh
from utils.optional import Lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import functional as F

    from utils.boxes import Values
else:
    torch, F = Lazy("torch"), Lazy("torch.nn.functional")

MAX_BINS = 64


class FreeHead(Head):
    """Predictions [B, K + 4 bins, G, G]: classes of a cell; left, top, right and bottom from its middle.

    A side's distance in cells is the expectation of a distribution over 0..bins-1 (Generalised Focal Loss,
    arXiv 2006.04388). `assign` is the rule that matches predictions to ground truth: see `heads.assign`.
    """

    kind = "free"
    terms = {"box": 2.5, "cls": 1.0, "dfl": 0.5}           # 1 - CIoU, cross-entropy, of the distributions
    why_frozen = "a head's outputs are its classes and sides"

    @classmethod
    def problem(cls, layer: Layer) -> str:
        if not 2 <= layer.bins <= MAX_BINS:
            return f"bins is {layer.bins}; needs 2 to {MAX_BINS}"
        if layer.out <= 4 * layer.bins:
            return f"out {layer.out} is not classes + 4 x bins ({layer.bins})"
        if not 0 <= layer.centre < 1:
            return f"centre is {layer.centre}; needs 0 (a cell's corner) to 1, 0.5 is its middle"
        return "" if layer.assign in RULES else f"assign is {layer.assign!r}; needs {' or '.join(RULES)}"

    @classmethod
    def disagree(cls, heads: Sequence[Head]) -> str:
        rules = sorted({head.layer.assign for head in heads})
        return f"rules of matching: {rules}, which look at all heads together" if len(rules) > 1 else ""

    @classmethod
    def in_place_of(cls, layer: Layer, classes: int) -> Layer:
        return Layer(layer.name, layer.op, layer.inputs, classes + 4 * 8, 1, act=layer.act, kind=cls.kind,
                     bins=8, assign="tal")

    @property
    def classes(self) -> int:
        return self.layer.out - 4 * self.layer.bins

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.layer.out,)

    def for_classes(self, classes: int) -> Layer:
        return replace(self.layer, out=classes + 4 * self.layer.bins)

    def set_bias(self, bias: Tensor, prior: float) -> None:
        """Set the classes to the logit of `prior`; all distances are as likely."""
        bias.zero_()
        bias[:self.classes] = -math.log((1 - prior) / prior)

    def boxes(self, sides: Values, points: Values) -> Values:
        """Return boxes [n, 4] (xyxy px) of raw sides [n, 4 bins] and their cells' middles [n, 2], px."""
        chances = softmax(sides.reshape(-1, 4, self.layer.bins))
        away = (chances * numbers(tuple(map(float, range(self.layer.bins))), sides)).sum(-1) * self.stride
        return library(sides).concatenate((points - away[:, :2], points + away[:, 2:]), 1)

    def points(self, cells: Values) -> Values:
        """Return the middles [n, 2] (x, y), px, of cells [n, 2] (y, x)."""
        return (library(cells).stack((cells[:, 1], cells[:, 0]), 1) + self.layer.centre) * self.stride

    @classmethod
    def losses(cls, heads: Sequence[FreeHead], outputs: Sequence[Tensor],
               targets: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        raw = [output.flatten(2).transpose(1, 2) for output in outputs]             # [B, P, C] a head
        side = targets.new_tensor(outputs[0].shape[:1:-1]) * heads[0].stride
        truth = Truth(targets[:, 0].long(), targets[:, 1].long(),
                      cxcywh_to_xyxy(targets[:, 2:6] * torch.cat((side, side))))
        with torch.no_grad():
            found = RULES[heads[0].layer.assign](cls.predictions(heads, outputs), truth)
        logits = torch.cat([of_head[..., :head.classes] for head, of_head in zip(heads, raw)], 1)
        wanted = torch.zeros_like(logits)
        wanted[found.image, found.at, truth.label[found.row]] = found.quality.to(wanted.dtype)
        terms = {"box": logits.sum() * 0, "dfl": logits.sum() * 0,
                 "cls": F.binary_cross_entropy_with_logits(logits, wanted, heads[0].class_weights,
                                                         reduction="sum")}
        first = 0
        for head, of_head, output in zip(heads, raw, outputs):
            own = (found.at >= first) & (found.at < first + of_head.shape[1])
            at, first = found.at[own] - first, first + of_head.shape[1]
            parts = head.terms_of(of_head[found.image[own], at, head.classes:],
                                  head.points(cells_of(tuple(output.shape[2:]), output.device)[at]),
                                  truth.boxes[found.row[own]])
            terms |= {name: terms[name] + (part * found.quality[own]).sum() for name, part in parts.items()}
        return {name: terms[name] for name in cls.terms}, found.quality.sum()

    @classmethod
    def predictions(cls, heads: Sequence[FreeHead], outputs: Sequence[Tensor]) -> Predictions:
        """Return all that the heads' outputs [B, C, G, G] predict, decoded."""
        parts = []
        for head, output in zip(heads, outputs):
            boxes, scores = head.everything(output)
            points = head.points(cells_of(tuple(output.shape[2:]), output.device))
            stride = points.new_full(points.shape[:1], head.stride)
            parts.append((scores, boxes, points, stride, stride * (head.layer.bins - 1)))
        return Predictions(*(torch.cat(part, int(at < 2)) for at, part in enumerate(zip(*parts))))

    def terms_of(self, sides: Tensor, points: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Return the box and distribution losses [n] of raw sides [n, 4 bins] matched to boxes (xyxy px)."""
        predicted = self.boxes(sides, points)
        ciou, _ = ciou_pairs(xyxy_to_cxcywh(predicted), xyxy_to_cxcywh(boxes))
        # A side that no bin reaches, or that lies on the cell's other side, asks for the nearest it can say.
        away = torch.cat((points - boxes[:, :2], boxes[:, 2:] - points), 1) / self.stride
        away = away.clamp(0, self.layer.bins - 1 - 1e-3)
        low = away.long()
        chances = sides.unflatten(-1, (4, self.layer.bins)).log_softmax(-1)
        below, above = (chances.gather(2, (low + step)[..., None])[..., 0] for step in (0, 1))
        return {"box": 1 - ciou, "dfl": -(below * (low + 1 - away) + above * (away - low)).mean(1)}

    def promising(self, output: Values, conf_thres: float) -> Values:
        return (output[:, :self.classes] > logit(conf_thres)).any(1)

    def decoded(self, vectors: Values, cells: Values) -> tuple[Values, Values]:
        return (self.boxes(vectors[:, self.classes:], self.points(cells)),
                sigmoid(vectors[:, :self.classes]))

    def distance(self, mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the divergence of the scores, and of the sides by the teacher's best score."""
        seen = theirs[:, :self.classes].amax(1).sigmoid()
        soft = theirs[:, :self.classes].sigmoid()
        scores = (F.binary_cross_entropy_with_logits(mine[:, :self.classes], soft, reduction="sum")
                  - F.binary_cross_entropy_with_logits(theirs[:, :self.classes], soft, reduction="sum"))
        mine, theirs = (x[:, self.classes:].unflatten(1, (4, self.layer.bins)).log_softmax(2)
                        for x in (mine, theirs))
        sides = (theirs.exp() * (theirs - mine)).sum(2).mean(1)
        return scores + (seen * sides).sum(), seen.sum()

    def differs(self, other: Head) -> str:
        same = (self.layer.bins, self.layer.centre) == (other.layer.bins, other.layer.centre)
        return "" if same else "other bins or another middle of its cells"

    def rows(self, names: Sequence[str], other_names: Sequence[str]) -> tuple[list[int], list[int]]:
        there = {name.lower(): at for at, name in enumerate(other_names)}
        pairs = [(at, there[name.lower()]) for at, name in enumerate(names) if name.lower() in there]
        pairs += [(len(names) + at, len(other_names) + at) for at in range(4 * self.layer.bins)]
        return [here for here, _ in pairs], [back for _, back in pairs]

    def in_graph(self, add: Callable[..., str], output: str, grid: int) -> tuple[str, str]:
        places = np.stack(np.divmod(np.arange(grid * grid), grid), 1)
        points, bins = self.points(places).astype(np.float32)[None], self.layer.bins
        flat = add("Reshape", output, np.int64([1, self.layer.out, grid * grid]))
        flat = add("Transpose", flat, perm=[0, 2, 1])                   # [1, P, C]
        classes, sides = (add("Slice", flat, *np.int64([[first], [last], [2]])) for first, last in (
            (0, self.classes), (self.classes, self.layer.out)))
        chances = add("Softmax", add("Reshape", sides, np.int64([1, -1, 4, bins])), axis=3)
        away = add("MatMul", chances, np.arange(bins, dtype=np.float32) * self.stride)
        low, high = (add("Slice", away, *np.int64([[first], [first + 2], [2]])) for first in (0, 2))
        return (add("Concat", add("Sub", points, low), add("Add", points, high), axis=2),
                add("Sigmoid", classes))

    def metadata(self) -> dict[str, object]:
        return {"bins": self.layer.bins, "centre": self.layer.centre}
