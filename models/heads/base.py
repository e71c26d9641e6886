"""What every kind of detection head brings: the one place to look when a new one is written."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from models.layer import Layer
from models.nodes import Builder
from utils.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


class Candidates(NamedTuple):
    """Boxes of one head above a score threshold, n in a whole batch."""

    image: Tensor                                          # [n] image in the batch
    boxes: Tensor                                          # [n, 6] xyxy px of the input, score, class
    dropped: int                                           # predictions not finite or absurdly large


HEADS: dict[str, type[Head]] = {}                          # kind -> its class


class Head(ABC):
    """A head record as its kind reads it. `stride`: px of the network's input that its cells span."""

    kind: str                                              # what the record's `kind` says
    terms: Mapping[str, float]                             # loss term -> its weight by default
    why_frozen: str                                        # why its outputs cannot be pruned

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
    def candidates(self, output: Tensor, conf_thres: float, classes: Sequence[int] | None,
                   multi_label: bool) -> Candidates:
        """Return the decoded boxes above a score threshold, of predictions [B, *shape, G, G] in fp32.

        classes: the wanted, None for all. multi_label: a box for every class above the threshold, as COCO
        counts; else for the best of a prediction.
        """

    @abstractmethod
    def distance(self, mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        """Return a student's distance from a teacher's predictions, summed, and the weight to divide by."""

    @abstractmethod
    def differs(self, other: Head) -> str:
        """Return why another head of this kind does not mean the same, "" if it does; classes aside."""

    @abstractmethod
    def rows(self, names: Sequence[str], other_names: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return the channels here and there that mean the same, in heads with these classes."""

    @abstractmethod
    def metadata(self) -> dict[str, object]:
        """Return what an exported file must tell a decoder that has no records: JSON-able, by name."""
