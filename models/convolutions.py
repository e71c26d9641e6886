"""Convolutions whose weight gradient, on CPUs, is slow or wrong in the library.

Depthwise kxk, k > 3: the library has a fast weight gradient for 3x3 kernels only. A 5x5 gradient is put
together from the 3x3 gradients of four shifted views of the input: at most 40 ms instead of 217 (bf16) or
84 (fp32) for [16, 64, 104, 104] on 2 cores, equal to the library's within 1e-5.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_backward = torch.ops.aten.convolution_backward


class _Depthwise(torch.autograd.Function):
    """A depthwise conv2d of x [B, C, H, W] and weight [C, 1, k, k], stride 1, same padding."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[2] // 2, groups=weight.shape[0])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx,
                 grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        channels, _, k, _ = weight.shape
        grad_x = grad_w = None
        if ctx.needs_input_grad[0]:
            # the same as the library's own, and 1.4 times as fast
            grad_x = F.conv2d(grad, weight.flip(2, 3), padding=k // 2, groups=channels)
        if ctx.needs_input_grad[1]:
            grad_w = _windowed(x, grad, channels, k).to(weight.dtype)
        return grad_x, grad_w


def _windowed(x: Tensor, grad: Tensor, channels: int, k: int) -> Tensor:
    """Return the weight gradient [C, 1, k, k], fp32, from 3x3 gradients at offsets that cover the kernel."""
    batch, _, height, width = grad.shape
    rows, columns = height + k - 1, width + k - 1
    offsets = sorted({*range(0, k - 3, 3), k - 3})
    # All windows are views of one padded copy, each from its first pixel on and of the same strides; what
    # they see beyond a row's or an image's end meets the zeros that the gradient is padded with.
    cells = batch * rows * columns
    flat = torch.zeros(cells + offsets[-1] * (columns + 1), channels)
    whole = flat[:cells].view(batch, rows, columns, channels)
    whole[:, k // 2:k // 2 + height, k // 2:k // 2 + width] = x.permute(0, 2, 3, 1)
    seen = torch.zeros(batch, rows - 2, columns - 2, channels)
    seen[:, :height, :width] = grad.permute(0, 2, 3, 1)
    seen = seen.permute(0, 3, 1, 2)
    out, small = torch.empty(channels, 1, k, k), torch.empty(channels, 1, 3, 3)
    for top in offsets:
        for left in offsets:
            view = flat[top * columns + left:][:cells].view_as(whole).permute(0, 3, 1, 2)
            out[:, :, top:top + 3, left:left + 3] = _backward(
                seen, view, small, None, (1, 1), (0, 0), (1, 1), False, (0, 0), channels,
                (False, True, False))[1]
    return out


class DepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d with groups = channels; in training on a CPU kernels above 3x3 take the windowed gradient."""

    def forward(self, x: Tensor) -> Tensor:
        windowed = self.training and self.kernel_size[0] > 3 and self.stride == (1, 1)
        if not windowed or x.device.type != "cpu" or self.bias is not None or not torch.is_grad_enabled():
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        return _Depthwise.apply(x.to(dtype), self.weight.to(dtype))


class SkippingConv2d(nn.Conv2d):
    """nn.Conv2d of a strided 1x1 kernel; where it learns on a CPU the cells it skips are left out first.

    The library's weight gradient of a strided 1x1 with fewer than 16 input channels writes past its buffer in
    channels_last: a crash, a hang or wrong numbers (oneDNN issue 6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled() or not self.weight.requires_grad:
            return super().forward(x)
        rows, columns = self.stride
        return F.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias, groups=self.groups)
