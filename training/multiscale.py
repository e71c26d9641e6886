"""Training at varying input sides."""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def multiscale_sides(imgsz: int, stride: int) -> tuple[int, ...]:
    """Multiples of the network's stride from half to one and a half of imgsz px."""
    lowest = max(stride, imgsz // 2 // stride * stride)
    return tuple(range(lowest, imgsz * 3 // 2 + 1, stride))


def resized(images: "Tensor", sides: tuple[int, ...], key: tuple[int, ...]) -> "Tensor":
    """Pictures [B, 3, S, S] at one of the sides, chosen by `key` (seed, epoch, batch) alone."""
    import numpy as np
    from torch.nn import functional as F
    side = sides[int(np.random.default_rng(key).integers(len(sides)))]
    if side == images.shape[-1]:
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=side < images.shape[-1])
