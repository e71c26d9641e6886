"""Head outputs -> detections: score threshold and class-wise NMS, for heads of any kind. No torch."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from models.heads.base import Head

if TYPE_CHECKING:
    from utils.boxes import Values

MAX_CANDIDATES = 8192                          # per image; NMS is quadratic and a broken net finds millions
BLOCK = 128                                    # boxes compared at once: enough for most images


class Found(NamedTuple):
    """Detections of a batch."""

    boxes: list[np.ndarray]                    # [N, 6] each (xyxy px of the input, score, class), by score
    dropped: int                               # predictions not finite or absurdly large
    cut: int = 0                               # boxes that NMS did not look at, beyond MAX_CANDIDATES


def detections(outputs: Sequence[Values], heads: Sequence[Head], conf_thres: float, iou_thres: float,
               max_det: int, classes: Sequence[int] | None = None, multi_label: bool = False,
               nms: str = "standard") -> Found:
    """Return the detections of a batch from its head outputs [B, *shape, G, G]: see `Head.candidates`.

    The outputs are arrays or tensors, on whatever device; the detections are arrays. nms: a key of NMS.
    """
    parts = [head.candidates(_plain(output), conf_thres, classes, multi_label)
             for output, head in zip(outputs, heads)]
    image, boxes = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    order = np.lexsort((-boxes[:, 4], image))
    boxes, bounds = boxes[order], np.searchsorted(image[order], np.arange(len(outputs[0]) + 1))
    side = max(output.shape[-1] * head.stride for output, head in zip(outputs, heads))
    out, cut = [], 0
    for first, end in zip(bounds, bounds[1:]):
        cut += max(0, int(end - first) - MAX_CANDIDATES)
        found = boxes[first:min(end, first + MAX_CANDIDATES)]
        # Classes are moved apart so that boxes of different classes never overlap.
        apart = found[:, :4].clip(-2 * side, 3 * side) + found[:, 5:6] * np.float32(6 * side)
        out.append(found[NMS[nms](apart, iou_thres, max_det)])
    return Found(out, sum(part.dropped for part in parts), cut)


def suppress(boxes: np.ndarray, iou_thres: float, most: int, diou: bool = False) -> list[int]:
    """Return the first `most` rows of boxes [N, 4] (xyxy, best first) that overlap no better one kept.

    Greedy, as torchvision's nms: a box goes when its IoU with a kept one is above the threshold. diou: its
    DIoU (arXiv 1911.08287), so that of two objects side by side, whose middles are apart, both stay.
    """
    kept: list[int] = []
    for start in range(0, len(boxes), BLOCK):
        rest = np.arange(start, min(start + BLOCK, len(boxes)))
        if kept:
            rest = rest[~overlap(boxes[kept], boxes[rest], iou_thres, diou).any(0)]
        hidden = overlap(boxes[rest], boxes[rest], iou_thres, diou)
        gone = np.zeros(len(rest), bool)
        for at, row in enumerate(rest.tolist()):
            if not gone[at]:
                kept.append(row)
                if len(kept) == most:
                    return kept
                gone |= hidden[at]
    return kept


def cluster(boxes: np.ndarray, iou_thres: float, most: int) -> list[int]:
    """Return what `suppress` does, by Cluster-NMS (arXiv 2005.03572): one matrix until nothing changes."""
    hides = np.zeros((len(boxes), len(boxes)), bool)       # by a row the columns behind it
    for start in range(0, len(boxes), BLOCK):
        hides[start:start + BLOCK] = overlap(boxes[start:start + BLOCK], boxes, iou_thres)
    hides, before, kept = np.triu(hides, 1), None, np.ones(len(boxes), bool)
    while before is None or (before != kept).any():
        before, kept = kept, ~hides[kept].any(0)
    return np.nonzero(kept)[0][:most].tolist()


NMS: dict[str, Callable[[np.ndarray, float, int], list[int]]] = {
    "standard": suppress, "diou": partial(suppress, diou=True), "cluster": cluster}


def overlap(a: np.ndarray, b: np.ndarray, iou_thres: float, diou: bool = False) -> np.ndarray:
    """Return whether [A, B] the IoU, or DIoU, of boxes a [A, 4] and b [B, 4] is above the threshold."""
    (ax, ay, ar, ab), (bx, by, br, bb) = a.T[:, :, None], b.T[:, None]
    width, height = np.minimum(ar, br) - np.maximum(ax, bx), np.minimum(ab, bb) - np.maximum(ay, by)
    inner = width.clip(0) * height.clip(0)
    with np.errstate(all="ignore"):                        # 0 / 0 of boxes without an area: no overlap
        found = inner / ((ar - ax) * (ab - ay) + (br - bx) * (bb - by) - inner)
        if diou:                                           # less the distance of the middles, by their hull's
            width, height = np.maximum(ar, br) - np.minimum(ax, bx), np.maximum(ab, bb) - np.minimum(ay, by)
            apart = (ax + ar - bx - br) ** 2 + (ay + ab - by - bb) ** 2
            found = found - apart / 4 / (width ** 2 + height ** 2)
        return found > iou_thres


def _plain(output: Values) -> Values:
    """Return outputs in fp32: an array, but on a GPU the tensor, of which few cells will leave it."""
    if isinstance(output, np.ndarray):
        return output.astype(np.float32, copy=False)
    output = output.detach().float()
    return output.numpy() if output.device.type == "cpu" else output
