"""The layers a record can ask for, as modules whose parameter names are those of `models.channels`."""
from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.depthwise import DepthwiseConv2d
from models.layer import Layer

ACTIVATIONS = {"leaky": lambda: nn.LeakyReLU(0.1, inplace=True), "relu": lambda: nn.ReLU(inplace=True),
               "relu6": lambda: nn.ReLU6(inplace=True), "hardswish": nn.Hardswish, "swish": nn.SiLU,
               "linear": nn.Identity}


class ConvBN(nn.Module):
    """Convolution, batch-norm, activation: [B, cin, H, W] -> [B, out, H/stride, W/stride].

    With bn=False (a folded network) the convolution has a bias and no batch-norm follows.
    """

    def __init__(self, layer: Layer, cin: int, out: int, kernel: int = 1, stride: int = 1, *,
                 depthwise: bool = False, act: str | None = None) -> None:
        super().__init__()
        convolution = DepthwiseConv2d if depthwise else nn.Conv2d
        self.conv = convolution(cin, out, kernel, stride, kernel // 2, groups=cin if depthwise else 1,
                                bias=not layer.bn)
        if layer.bn:
            # A momentum of 0.03 follows the statistics of small batches without their noise.
            self.bn = nn.BatchNorm2d(out, eps=layer.eps, momentum=0.03)
        self.act = ACTIVATIONS[layer.act if act is None else act]()
        self.normed = layer.bn

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.act(self.bn(x) if self.normed else x)


class DSConv(nn.Sequential):
    """Depth-wise separable convolution: depthwise kxk, pointwise 1x1 (MobileNet, arXiv 1704.04861)."""

    def __init__(self, cin: int, layer: Layer) -> None:
        super().__init__()
        self.depthwise = ConvBN(layer, cin, cin, layer.kernel, layer.stride, depthwise=True)
        self.pointwise = ConvBN(layer, cin, layer.out)


class SE(nn.Module):
    """Squeeze-excitation (arXiv 1709.01507): each channel of x [B, C, H, W] times a gate from its mean."""

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, squeeze, 1), nn.Conv2d(squeeze, channels, 1)

    def gate(self, x: Tensor) -> Tensor:
        """What each channel of a picture is multiplied by: [B, C, H, W] -> [B, C, 1, 1], 0..1."""
        return self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class MBConv(nn.Sequential):
    """Inverted bottleneck (arXiv 1801.04381, 1807.11626).

    Expand 1x1, depthwise kxk, squeeze-excitation, project 1x1.
    """

    def __init__(self, cin: int, layer: Layer) -> None:
        super().__init__()
        self.expand = ConvBN(layer, cin, layer.hidden)
        self.depthwise = ConvBN(layer, layer.hidden, layer.hidden, layer.kernel, layer.stride, depthwise=True)
        if layer.squeeze:
            self.se = SE(layer.hidden, layer.squeeze)
        self.project = ConvBN(layer, layer.hidden, layer.out, act="linear")


class Head(nn.Module):
    """1x1 convolution to raw maps: [B, cin, G, G] -> [B, A, 5 + K, G, G].

    The 5 + K are x, y, w, h, objectness, classes.
    """

    def __init__(self, cin: int, layer: Layer) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, layer.out, 1)
        self.anchors = len(layer.anchors)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x.view(x.shape[0], self.anchors, -1, x.shape[2], x.shape[3])


class SamePool(nn.Module):
    """2x2 max-pooling at stride 1 with darknet's padding: [B, C, H, W] -> [B, C, H, W].

    Darknet ignores what lies right and below the picture; repeating the last row and column gives the same
    maxima.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2, 1)


class Concat(nn.Module):
    """Inputs [B, Ci, H, W] joined along channels: [B, sum Ci, H, W]."""

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.cat(xs, 1)


class Add(nn.Module):
    """Element-wise sum of inputs of one shape (a residual connection)."""

    def forward(self, *xs: Tensor) -> Tensor:
        out = xs[0] + xs[1]
        for x in xs[2:]:
            out = out + x
        return out


BLOCKS = {
    "conv": lambda cin, layer: ConvBN(layer, cin, layer.out, layer.kernel, layer.stride),
    "dsconv": DSConv, "mbconv": MBConv, "head": Head,
    "se": lambda cin, layer: nn.Sequential(OrderedDict(se=SE(cin, layer.squeeze))),
    "maxpool": lambda cin, layer: nn.MaxPool2d(2, 2) if layer.stride == 2 else SamePool(),
    "upsample": lambda cin, layer: nn.Upsample(scale_factor=layer.stride, mode="nearest"),
    "concat": lambda cin, layer: Concat(), "add": lambda cin, layer: Add(),
}
