"""Box geometry: formats, IoU, letterbox and the way back. Imports torch only where tensors are made."""
from __future__ import annotations

import math
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    Values = np.ndarray | Tensor       # either: what is written once for both

PAD_VALUE = 114                    # grey of the letterbox border, the value YOLO networks are trained with


class Geometry(NamedTuple):
    """How an image sits in the network input: resized by `scale` to width x height, corner at (left, top)."""

    scale: float
    left: int
    top: int
    width: int
    height: int


def library(values: Values) -> ModuleType:
    """Return numpy for an array and torch for a tensor: exp, concatenate and others have one name in both."""
    if isinstance(values, np.ndarray):
        return np
    import torch
    return torch


def on_host(values: Values) -> np.ndarray:
    """Return the values as an array; of a tensor on a CPU it is the same memory."""
    return values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()


def letterbox_geometry(height: int, width: int, size: int | tuple[int, int]) -> Geometry:
    """Return where an image of height x width px lies, centred, in an input of `size` px (int or (h, w))."""
    out_h, out_w = (size, size) if isinstance(size, int) else size
    if min(height, width, out_h, out_w) < 1:
        raise ValueError(f"letterbox needs positive sizes, got image {width}x{height} "
                         f"and input {out_w}x{out_h}")
    scale = min(out_h / height, out_w / width)
    new_w, new_h = max(1, round(width * scale)), max(1, round(height * scale))
    return Geometry(scale, (out_w - new_w) // 2, (out_h - new_h) // 2, new_w, new_h)


def scale_back(boxes: Values, geometry: Geometry, height: int, width: int) -> Values:
    """Return boxes [N, >=4] (xyxy px of the input first) in px of the image, clipped."""
    out = boxes.clone() if hasattr(boxes, "clone") else boxes.copy()
    # The rounded sizes, not the ideal scale.
    ratio_x, ratio_y = width / geometry.width, height / geometry.height
    out[:, 0:4:2] = ((boxes[:, 0:4:2] - geometry.left) * ratio_x).clip(0, width)
    out[:, 1:4:2] = ((boxes[:, 1:4:2] - geometry.top) * ratio_y).clip(0, height)
    return out


def cxcywh_to_xyxy(boxes: Values) -> Values:
    """Return corner boxes [..., 4] (xyxy) of centre boxes [..., 4] (cxcywh), same unit."""
    centre, half = boxes[..., :2], boxes[..., 2:4] / 2
    return library(boxes).concatenate((centre - half, centre + half), -1)


def xyxy_to_cxcywh(boxes: Values) -> Values:
    """Return centre boxes [..., 4] (cxcywh) of corner boxes [..., 4] (xyxy), same unit."""
    low, high = boxes[..., :2], boxes[..., 2:4]
    return library(boxes).concatenate(((low + high) / 2, high - low), -1)


def iou_rows(boxes: Tensor, targets: Tensor, eps: float = 1e-7) -> Tensor:
    """Return IoU [N, P] of boxes [N, P, 4] with their row of targets [N, 4] (xyxy, same unit)."""
    import torch
    low = torch.maximum(boxes[..., :2], targets[:, None, :2])
    high = torch.minimum(boxes[..., 2:4], targets[:, None, 2:4])
    inner = (high - low).clamp(min=0).prod(2)
    areas = (boxes[..., 2:4] - boxes[..., :2]).prod(2) + (targets[:, 2:4] - targets[:, :2]).prod(1)[:, None]
    return inner / (areas - inner + eps)


def ciou_pairs(a: Tensor, b: Tensor, eps: float = 1e-7) -> tuple[Tensor, Tensor]:
    """Return CIoU [N] and IoU [N] of boxes a [N, 4] with b [N, 4], row by row (cxcywh, same unit).

    Complete IoU (Zheng et al. 2020, arXiv 1911.08287, eq. 9-11). Finite, with finite gradients, for zero-area
    boxes, where torchvision's complete_box_iou_loss is NaN.
    """
    import torch
    a_low, a_high = a[:, :2] - a[:, 2:4] / 2, a[:, :2] + a[:, 2:4] / 2
    b_low, b_high = b[:, :2] - b[:, 2:4] / 2, b[:, :2] + b[:, 2:4] / 2
    inner = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod(1)
    iou = inner / (a[:, 2:4].prod(1) + b[:, 2:4].prod(1) - inner + eps)
    hull = torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)     # of the smallest box around both
    distance = (a[:, :2] - b[:, :2]).square().sum(1) / (hull.square().sum(1) + eps)
    aspect_a, aspect_b = (torch.atan(x[:, 2] / (x[:, 3] + eps)) for x in (a, b))
    v = (4 / math.pi ** 2) * (aspect_a - aspect_b).square()
    with torch.no_grad():
        alpha = v / (1 - iou + v + eps)
    return iou - distance - alpha * v, iou
