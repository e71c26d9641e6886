"""Raw maps -> boxes: YOLO's parametrisation, score threshold, class-wise NMS. No Python loop over boxes."""
from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from models.channels import strides
from models.layer import Net, heads

MAX_CANDIDATES = 8192                          # a picture; NMS is quadratic and a broken net finds millions
EXP_LIMIT = 8.0                                # exp(8) anchors is wider than any picture; exp(89) is inf


class HeadSpec(NamedTuple):
    """What decoding and loss need of a head.

    Its anchors [A, 2] in px of the input, px a cell, and the reach of centres.
    """

    anchors: Tensor
    stride: int
    xy_scale: float


class Found(NamedTuple):
    """Detections of a batch.

    A tensor [N, 6] (xyxy px of the input, score, class) a picture, best first, and how many cells were
    dropped because their numbers were non-finite or their boxes absurd.
    """

    boxes: list[Tensor]
    dropped: int


def head_specs(net: Net) -> tuple[HeadSpec, ...]:
    """One HeadSpec a head, in the order of the network's maps."""
    stride = strides(net)
    return tuple(HeadSpec(torch.tensor(h.anchors), stride[h.name], h.xy_scale) for h in heads(net))


def decode_boxes(raw: Tensor, cells: Tensor, anchors: Tensor, spec: HeadSpec) -> Tensor:
    """Boxes [n, 4] (cxcywh px of the input) of raw predictions [n, >=4].

    cells: theirs [n, 2] (x, y); anchors: theirs [n, 2].

    YOLOv3 (arXiv 1804.02767, section 2.1); xy_scale lets a centre leave its cell (YOLOv4's scale_x_y).
    """
    shift = (spec.xy_scale - 1) / 2
    centre = (raw[:, :2].sigmoid() * spec.xy_scale - shift + cells) * spec.stride
    return torch.cat((centre, raw[:, 2:4].clamp(max=EXP_LIMIT).exp() * anchors), 1)


def detections(maps: list[Tensor], specs: tuple[HeadSpec, ...], conf_thres: float, iou_thres: float,
               max_det: int, classes: list[int] | None = None, multi_label: bool = False) -> Found:
    """The detections of a batch from its raw maps, a list of [B, A, 5 + K, G, G].

    score = objectness x class probability. multi_label: every class of a cell above the threshold is a
    detection (evaluation, as darknet counts); else its best class only. Boxes are decoded in fp32 for cells
    above the threshold alone.
    """
    from torchvision.ops import nms
    parts = [_candidates(m.float(), s, conf_thres, classes, multi_label) for m, s in zip(maps, specs)]
    image, boxes = (torch.cat([p[i] for p in parts]) for i in (0, 1))
    side = max(m.shape[-1] * s.stride for m, s in zip(maps, specs))
    out = []
    for b in range(maps[0].shape[0]):
        found = boxes[image == b]
        if len(found) > MAX_CANDIDATES:
            found = found[found[:, 4].topk(MAX_CANDIDATES).indices]
        # Classes are moved apart so that one NMS call never compares boxes of different classes.
        apart = found[:, :4].clamp(-2 * side, 3 * side) + found[:, 5:6] * 6 * side
        out.append(found[nms(apart, found[:, 4], iou_thres)[:max_det]])
    return Found(out, sum(p[2] for p in parts))


def _candidates(raw: Tensor, spec: HeadSpec, conf_thres: float, classes: list[int] | None,
                multi_label: bool) -> tuple[Tensor, Tensor, int]:
    """Picture index [n], boxes [n, 6] above the threshold, cells dropped, of a map [B, A, 5 + K, G, G]."""
    floor = -math.inf if conf_thres <= 0 else math.inf
    if 0 < conf_thres < 1:
        floor = math.log(conf_thres / (1 - conf_thres))
    finite = raw.isfinite().all(2) if not torch.isfinite(raw.sum()) else None
    mask = raw[:, :, 4] > floor                            # score <= objectness, so this loses nothing
    dropped = 0
    if finite is not None:
        mask, dropped = mask & finite, int((~finite).sum())
    image, anchor, y, x = mask.nonzero(as_tuple=True)
    vectors = raw[image, anchor, :, y, x]
    anchors = spec.anchors.to(raw.device)[anchor]
    boxes = decode_boxes(vectors, torch.stack((x, y), 1), anchors, spec)
    scores = vectors[:, 5:].sigmoid() * vectors[:, 4:5].sigmoid()
    if classes is not None:
        wanted = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
        wanted[classes] = True
        scores = scores * wanted
    if multi_label:
        row, label = (scores > conf_thres).nonzero(as_tuple=True)
    else:
        label = scores.argmax(1)
        row = (scores.gather(1, label[:, None])[:, 0] > conf_thres).nonzero()[:, 0]
        label = label[row]
    half = boxes[row, 2:] / 2
    found = torch.cat((boxes[row, :2] - half, boxes[row, :2] + half,
                       scores[row, label][:, None], label[:, None]), 1)
    sane = (boxes[row, 2:] < 8 * max(raw.shape[-2:]) * spec.stride).all(1)  # eight pictures wide is no object
    return image[row][sane], found[sane], dropped + int((~sane).sum())
