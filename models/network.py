"""Records -> module. Picture in, raw head maps out, always one structure."""
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.blocks import BLOCKS
from models.channels import groups, layout, strides, widths
from models.layer import Net


class Network(nn.Module):
    """The network of a tuple of records.

    forward: pictures [B, 3, H, W], uint8 0..255 or float 0..1, sides a multiple of the largest stride, to a
    list of raw maps [B, A, 5 + K, G, G], one a head in the order of the records. uint8 is scaled on the
    device.
    """

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        self.stride = max(strides(net).values())
        width, reached = widths(net), groups(net)
        for layer in net:
            cin = sum(width[g] for i in layer.inputs for g in reached[i])
            self.add_module(layer.name, BLOCKS[layer.op](cin, layer))
        last = {name: at for at, layer in enumerate(net) for name in layer.inputs}
        # Outputs nobody reads later are let go, so that a forward pass holds only what it still needs.
        self.plan = tuple((layer.name, layer.inputs, layer.op == "head",
                           tuple(i for i in layer.inputs if last[i] == at)) for at, layer in enumerate(net))

    def forward(self, image: Tensor) -> list[Tensor]:
        if image.dtype == torch.uint8:
            weight = next(self.parameters())
            image = image.to(weight.dtype) / 255
        values, maps = {"image": image}, []
        for name, inputs, head, done in self.plan:
            value = getattr(self, name)(*(values[i] for i in inputs))
            if head:
                maps.append(value)
            else:
                values[name] = value
            for i in done:
                del values[i]
        return maps


def initialise(model: Network, seed: int, prior: float = 0.01) -> Network:
    """The same model with fresh weights, a function of `seed` alone.

    He-normal convolutions, and heads that start by predicting objects with probability `prior` (Lin et al.
    2017, arXiv 1708.02002, 4.1), so that the first steps are not spent on background.
    """
    generator = torch.Generator().manual_seed(seed)
    for param in layout(model.net):
        if ".bn." in param.key:
            continue
        tensor = model.get_parameter(param.key)
        with torch.no_grad():
            if param.key.endswith("bias"):
                tensor.zero_()
            else:
                tensor.normal_(0, math.sqrt(2 / tensor[0].numel()), generator=generator)
    for layer in model.net:
        if layer.op != "head":
            continue
        conv = getattr(model, layer.name).conv
        with torch.no_grad():
            conv.weight.normal_(0, 0.01, generator=generator)
            conv.bias.zero_()
            conv.bias.view(len(layer.anchors), -1)[:, 4:].fill_(-math.log((1 - prior) / prior))
    return model


def from_state(net: Net, state: dict[str, Tensor]) -> Network:
    """A network with the given weights, in eval mode."""
    model = Network(net)
    model.load_state_dict(state)
    return model.eval()
