"""Small networks and states that several tests share."""
from __future__ import annotations

import random

import torch

from models.channels import channels, widths
from models.layer import Layer, Net, heads
from models.network import Network, initialise
from models.records import validate
from models.zoo.build import DETECTORS
from models.zoo.tiny import micro_yolo, substitute, yolov3_tiny

ANCHORS = ((20.0, 20.0), (40.0, 40.0))


def residual_net(classes: int = 3) -> Net:
    """A network with every op: residual adds (one across an MBConv), concat, both poolings, upsample.

    Squeeze-excitation of one group, of a concat and inside a block; strides of a convolution and of an MBConv
    without batch-norm.
    """
    return validate((
        Layer("conv1", "conv", ("image",), 8, act="relu"),
        Layer("pool2", "maxpool", ("conv1",), kernel=2, stride=2),
        Layer("mb3", "mbconv", ("pool2",), 12, kernel=5, hidden=20, squeeze=3, act="hardswish"),
        Layer("mb4", "mbconv", ("mb3",), 12, hidden=24, squeeze=0, act="swish"),
        Layer("add5", "add", ("mb3", "mb4")),
        Layer("ds6", "dsconv", ("add5",), 12),
        Layer("add7", "add", ("add5", "ds6")),
        Layer("pool8", "maxpool", ("add7",), kernel=2),
        Layer("se8", "se", ("pool8",), squeeze=4),
        Layer("conv9", "conv", ("se8",), 16, stride=2),
        Layer("mb9", "mbconv", ("se8",), 6, stride=2, hidden=10, squeeze=2, act="relu6", bn=False),
        Layer("cat9", "concat", ("conv9", "mb9")),
        Layer("up10", "upsample", ("cat9",), stride=2),
        Layer("cat11", "concat", ("up10", "add7")),
        Layer("se11", "se", ("cat11",), squeeze=3),
        Layer("ds12", "dsconv", ("se11",), 14, kernel=5),
        Layer("head13", "head", ("ds12",), 2 * (5 + classes), 1, act="linear", kind="anchor",
              anchors=ANCHORS, xy_scale=2.0, assign="ratio"),
        Layer("head14", "head", ("cat9",), 2 * (5 + classes), 1, act="linear", kind="anchor",
              anchors=ANCHORS, assign="best"),
    ))


def small_net(classes: int = 3) -> Net:
    """A detector that trains in seconds: stride 8, 5 k parameters, an MBConv with a 5x5 kernel."""
    return validate((
        Layer("conv1", "conv", ("image",), 8, stride=2),
        Layer("pool2", "maxpool", ("conv1",), kernel=2, stride=2),
        Layer("mb3", "mbconv", ("pool2",), 16, kernel=5, hidden=16, squeeze=2),
        Layer("pool4", "maxpool", ("mb3",), kernel=2, stride=2), Layer("ds5", "dsconv", ("pool4",), 32),
        Layer("head6", "head", ("ds5",), 2 * (5 + classes), 1, act="linear", kind="anchor",
              anchors=ANCHORS, xy_scale=2.0, assign="ratio")))


MIXED = substitute(yolov3_tiny(2), {"conv3": "mbconv", "conv5": "mbconv", "conv7": "dsconv",
                                    "conv13": "dsconv", "conv22": "dsconv"},
                   {"conv5": 5, "conv9": 7, "conv22": 5})
NETS = {**{name: make(4) for name, make in DETECTORS.items()}, "mixed": MIXED,
        "no squeeze": micro_yolo(4, se=False), "residual": residual_net()}


def randomised(net: Net, seed: int = 0) -> Network:
    """A network in eval mode, batch-norms and biases far from identity, so that a wrong channel shows."""
    generator = torch.Generator().manual_seed(seed)
    model = initialise(Network(net), seed).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in ((module.weight.data, .5, 1.5), (module.bias.data, -1, 1),
                                      (module.running_mean, -1, 1), (module.running_var, .5, 2)):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    ends = {layer.name for layer in heads(net)}
    for key, bias in model.named_parameters():             # without batch-norm, and squeeze-excitation's
        if key.endswith(("conv.bias", "reduce.bias", "expand.bias")) and key.split(".")[0] not in ends:
            bias.data.uniform_(-1, 1, generator=generator)
    return model


def random_keep(net: Net, frozen: dict[str, str], seed: int) -> dict[str, list[int]]:
    """A random share of the channels of every group that may be cut."""
    rng = random.Random(seed)
    return {g: sorted(rng.sample(range(n), max(1, int(n * rng.uniform(.2, 1)))))
            for g, n in widths(net).items() if g not in frozen}


def hooked_macs(model: Network, side: int) -> int:
    """Multiply-adds of all convolutions as hooks see them, for one picture."""
    seen, handles = [], []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            handles.append(module.register_forward_hook(
                lambda m, i, o: seen.append(o[0].numel() * m.weight[0].numel())))
    with torch.no_grad():
        model(torch.rand(1, 3, side, side, dtype=next(model.parameters()).dtype))
    for handle in handles:
        handle.remove()
    return sum(seen)


def silenced(net: Net, state: dict[str, torch.Tensor], keep: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """The state with the outputs of every dropped channel at zero: convolutions and batch-norms."""
    table, out = channels(net), {k: v.clone() for k, v in state.items()}
    gone = {int(ids[i]) for unit, ids in table.units.items() if unit in keep
            for i in range(len(ids)) if i not in set(keep[unit])}
    for param in table.params:
        if param.trained:
            out[param.key][[i for i, number in enumerate(param.rows.tolist()) if number in gone]] = 0
    return out
