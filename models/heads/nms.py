"""Head outputs -> detections: score threshold and class-wise NMS, for heads of any kind."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.heads.base import Head

MAX_CANDIDATES = 8192                          # per image; NMS is quadratic and a broken net finds millions


class Found(NamedTuple):
    """Detections of a batch."""

    boxes: list[Tensor]                        # [N, 6] each (xyxy px of the input, score, class), by score
    dropped: int                               # predictions not finite or absurdly large


def detections(outputs: Sequence[Tensor], heads: Sequence[Head], conf_thres: float, iou_thres: float,
               max_det: int, classes: Sequence[int] | None = None, multi_label: bool = False) -> Found:
    """Return the detections of a batch from its head outputs [B, *shape, G, G]: see `Head.candidates`."""
    from torchvision.ops import nms
    parts = [head.candidates(output.float(), conf_thres, classes, multi_label)
             for output, head in zip(outputs, heads)]
    image, boxes = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    side = max(output.shape[-1] * head.stride for output, head in zip(outputs, heads))
    out = []
    for at in range(outputs[0].shape[0]):
        found = boxes[image == at]
        if len(found) > MAX_CANDIDATES:
            found = found[found[:, 4].topk(MAX_CANDIDATES).indices]
        # Classes are moved apart so that one NMS call never compares boxes of different classes.
        apart = found[:, :4].clamp(-2 * side, 3 * side) + found[:, 5:6] * 6 * side
        out.append(found[nms(apart, found[:, 4], iou_thres)[:max_det]])
    return Found(out, sum(part.dropped for part in parts))
