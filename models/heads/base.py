"""What every kind of detection head brings: the one place to look when a new one is written."""
from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models.layer import Layer
from models.nodes import Builder
from utils.boxes import on_host
from utils.errors import ModelError
from utils.optional import Lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from utils.boxes import Values
else:
    torch = Lazy("torch")

ABSURD = 8                                                 # images wide: what is larger is no object


class Candidates(NamedTuple):
    """Boxes of one head above a score threshold, n in a whole batch; arrays."""

    image: np.ndarray                                      # [n] image in the batch, ascending
    boxes: np.ndarray                                      # [n, 6] xyxy px of the input, score, class; fp32
    dropped: int                                           # predictions not finite or absurdly large


HEADS: dict[str, type[Head]] = {}                          # kind -> its class


class Head(ABC):
    """A head record as its kind reads it. `stride`: px of the network's input that its cells span."""

    kind: str                                              # what the record's `kind` says
    terms: Mapping[str, float]                             # loss term -> its weight by default
    why_frozen: str                                        # why its outputs cannot be pruned
    inputs: int = 1                                        # ... at most
    class_weights: Tensor | None = None                    # [K] in the class term; DetectionLoss sets them

    def __init_subclass__(cls) -> None:
        HEADS[cls.kind] = cls

    def __init__(self, layer: Layer, stride: int) -> None:
        self.layer, self.stride = layer, stride

    @classmethod
    def nodes(cls, b: Builder, x: str) -> str:
        """Write the head's nodes: a 1x1 convolution with bias, where a kind does not say otherwise."""
        return b.conv(x, bn=False, act="linear", fixed=cls.why_frozen)

    @classmethod
    @abstractmethod
    def problem(cls, layer: Layer) -> str:
        """Return what is wrong with a record of this kind; empty when nothing is."""

    @classmethod
    def disagree(cls, heads: Sequence[Head]) -> str:
        """Return what heads of one network must have in common and have not; empty when nothing is."""
        return ""

    @classmethod
    def in_place_of(cls, layer: Layer, classes: int) -> Layer:
        """Return a fresh record of this kind for another head's place. Raises ModelError where it cannot."""
        raise ModelError(f"a head of kind {cls.kind} needs numbers that the record in its place has not; "
                         "write it as rows of a net.json")

    @property
    @abstractmethod
    def classes(self) -> int:
        """The number of classes it predicts."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """How its channels are split in its predictions [B, *shape, G, G]: (C,) where they are not."""

    @abstractmethod
    def for_classes(self, classes: int) -> Layer:
        """Return the record of this head for another number of classes."""

    def with_anchors(self, anchors: Sequence[tuple[float, float]]) -> Layer:
        """Return the record with other anchors, in px; a kind without anchors returns it unchanged."""
        return replace(self.layer)

    @abstractmethod
    def set_bias(self, bias: Tensor, prior: float) -> None:
        """Set the bias [C] of a fresh head, so that it starts by seeing objects with probability `prior`."""

    @classmethod
    @abstractmethod
    def losses(cls, heads: Sequence[Head], outputs: Sequence[Tensor],
               targets: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return {term: sum over the batch} and the count to divide them by, which ranks add up.

        outputs: [B, *shape, G, G] a head, fp32. targets: [N, 6] (image, class, cxcywh normalised).
        """

    @abstractmethod
    def promising(self, output: Values, conf_thres: float) -> Values:
        """Return where [B, *cells, G, G] a score may be above the threshold: all such, and better few others.

        output: predictions [B, *shape, G, G], an array or, on a GPU, a tensor: operators that both have.
        `cells` is `shape` without its last number, the channels.
        """

    @abstractmethod
    def decoded(self, vectors: Values, cells: Values) -> tuple[Values, Values]:
        """Return boxes [n, 4] (xyxy px of the input) and scores [n, K] of predictions, of tensors as tensors.

        vectors: their channels [n, C]; cells: where they stand, whole numbers [n, ...] (*cells, y, x).
        """

    def everything(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return all boxes [B, P, 4] (xyxy px of the input) and scores [B, P, K] of predictions, decoded."""
        cells = cells_of((*self.shape[:-1], *output.shape[-2:]), output.device)
        vectors = output.movedim(-3, -1).reshape(-1, output.shape[-3])
        boxes, scores = self.decoded(vectors, cells.repeat(len(output), 1))
        return tuple(x.view(len(output), len(cells), x.shape[1]) for x in (boxes, scores))

    def candidates(self, output: Values, conf_thres: float, classes: Sequence[int] | None,
                   multi_label: bool) -> Candidates:
        """Return the boxes above a score threshold, of predictions [B, *shape, G, G] in fp32.

        classes: the wanted, None for all. multi_label: a box for every class above the threshold, as COCO
        counts; else for the best of a prediction. Of a GPU's tensor only what is promising leaves it.
        """
        with np.errstate(all="ignore"):                    # what is not finite is counted instead
            mask, dropped, total = self.promising(output, conf_thres), 0, output.sum()
            if not total - total == 0:
                finite = (output - output == 0).all(-3)
                mask, dropped = mask & finite, int((~finite).sum())
            vectors = on_host(output.swapaxes(-3, -2).swapaxes(-2, -1)[mask])
            image, *cells = np.nonzero(on_host(mask))
            boxes, scores = self.decoded(vectors, np.stack(cells, 1))
        if classes is not None:
            asked = np.zeros(scores.shape[1], np.float32)
            asked[list(classes)] = 1
            scores = scores * asked
        wanted = scores > conf_thres
        if not multi_label:
            wanted &= np.arange(scores.shape[1]) == scores.argmax(1)[:, None]
        row, label = np.nonzero(wanted)
        found = np.column_stack((boxes[row], scores[row, label], label)).astype(np.float32)
        sane = (found[:, 2:4] - found[:, :2] < ABSURD * max(output.shape[-2:]) * self.stride).all(1)
        return Candidates(image[row][sane], found[sane], dropped + int((~sane).sum()))

    @abstractmethod
    def distance(self, mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        """Return a student's distance from a teacher's predictions, summed, and the weight to divide by."""

    @abstractmethod
    def differs(self, other: Head) -> str:
        """Return why another head of this kind does not mean the same, "" if it does; classes aside."""

    @abstractmethod
    def rows(self, names: Sequence[str], other_names: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return the channels here and there that mean the same, in heads with these classes."""

    def in_graph(self, add: Callable[..., str], output: str, grid: int) -> tuple[str, str]:
        """Append `decoded` as ONNX nodes; return the values of all boxes [1, P, 4] and scores [1, P, K].

        add(op, *inputs, **attributes) appends a node, its inputs values by name or arrays, and returns its
        value. output: that of the predictions of one image; grid: cells a side. Raises ModelError where a
        kind has no such nodes.
        """
        raise ModelError(f"heads of kind {self.kind} have no decoding as ONNX nodes: export without --nms")

    @abstractmethod
    def metadata(self) -> dict[str, object]:
        """Return what an exported file must tell a decoder that has no records: JSON-able, by name."""


def logit(share: float) -> float:
    """Return the number whose sigmoid is `share`; infinite outside 0..1."""
    return math.log(share / (1 - share)) if 0 < share < 1 else -math.inf if share <= 0 else math.inf


def softmax(values: Values) -> Values:
    """Return the softmax of an array or a tensor over its last axis."""
    if not isinstance(values, np.ndarray):
        return values.softmax(-1)
    shares = np.exp(values - values.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def sigmoid(values: Values) -> Values:
    """Return the sigmoid of an array or a tensor."""
    return 1 / (1 + np.exp(-values)) if isinstance(values, np.ndarray) else values.sigmoid()


def numbers(values: tuple, like: Values) -> Values:
    """Return numbers in fp32 as what `like` is: an array, or a tensor kept on each device."""
    return np.array(values, np.float32) if isinstance(like, np.ndarray) else _kept(values, like.device)


@lru_cache(maxsize=64)
def _kept(values: tuple, device: torch.device) -> Tensor:
    with torch.inference_mode(False):                      # for training too
        return torch.tensor(values, device=device)


@lru_cache(maxsize=64)
def cells_of(sides: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the places [P, n] of a block of these sides, the last counting fastest; kept on each device."""
    with torch.inference_mode(False):
        return torch.cartesian_prod(*(torch.arange(side, device=device) for side in sides))
