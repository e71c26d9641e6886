"""Trained convolutions -> DSConv and MBConv of the same place, so that Micro-YOLO need not start from zero.

A kxk kernel [O, I, k, k] is, input channel by input channel, a matrix [O, k*k]. Its best rank-r approximation
(SVD) is r depthwise kernels followed by a pointwise layer: r = 1 for a DSConv, r = hidden / input for an
MBConv, whose expansion then copies each input r times (cf. Jaderberg et al. 2014, arXiv 1405.3866; Guo et al.
2018, arXiv 1812.02766). Batch-norms inside the block start as identities, lifted so that the activation
between the factors is mostly linear; `calibrate` sets them from pictures, with no look at what the original
network answers.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from models.channels import layout, shape, widths
from models.layer import Layer, Net
from models.network import Network

LIFT = 2.5                                     # standard deviations above zero, where leaky ReLU is linear
GATE = 3.0                                     # sigmoid(3) = 0.95: squeeze-excitation starts almost open


def separate(source: Net, weights: dict[str, Tensor], net: Net,
             state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A new state for `net`, its DSConv and MBConv layers factorised from the source's convolutions.

    A layer takes the convolution of the same name. Also layer name -> share of the kernel's energy that the
    factors keep. Layers whose inputs or outputs have another width in the source, and those without
    batch-norm here or there, stay as they are in `state`. Arguments are not changed. Run `calibrate`
    afterwards.
    """
    out, kept, width = dict(state), {}, widths(net)
    before = {layer.name: layer for layer in source}
    sizes = {p.key: shape(p, width) for p in layout(net)}
    for layer in net:
        origin = before.get(layer.name)
        if layer.op not in ("dsconv", "mbconv") or origin is None:
            continue
        if origin.op != "conv" or layer.stride != origin.stride or not (layer.bn and origin.bn):
            continue
        kernel = weights[f"{layer.name}.conv.weight"].float()
        last = "pointwise" if layer.op == "dsconv" else "project"
        inputs = sizes[f"{layer.name}.{'pointwise' if layer.op == 'dsconv' else 'expand'}.conv.weight"][1]
        if kernel.shape[:2] != (layer.out, inputs) or kernel.shape[2] > layer.kernel:
            continue
        rank = 1 if layer.op == "dsconv" else layer.hidden // inputs
        if rank < 1:                               # a pruned block, too narrow to copy its input
            continue
        kept[layer.name] = _factors(layer, kernel * _scale(origin, weights), rank, last, out)
        for part in ("weight", "bias"):
            out[f"{layer.name}.{last}.bn.{part}"] = weights[f"{layer.name}.bn.{part}"].clone()
    return out, kept


def _scale(layer: Layer, weights: dict[str, Tensor]) -> Tensor:
    """What batch-norm multiplies each output with [O, 1, 1, 1]: errors are weighed where they are seen."""
    gamma, var = weights[f"{layer.name}.bn.weight"], weights[f"{layer.name}.bn.running_var"]
    return (gamma / (var + layer.eps).sqrt()).view(-1, 1, 1, 1).float()


def _factors(layer: Layer, kernel: Tensor, rank: int, last: str, out: dict[str, Tensor]) -> float:
    """Writes the factors of kernel [O, I, k, k] into `out`; the share of energy they keep."""
    outputs, inputs, k, _ = kernel.shape
    matrices = kernel.permute(1, 0, 2, 3).reshape(inputs, outputs, k * k)
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    rank = min(rank, s.shape[1])
    depthwise = v[:, :rank].reshape(inputs * rank, 1, k, k)
    margin = (layer.kernel - k) // 2
    hidden = layer.hidden if layer.op == "mbconv" else inputs
    kernels = torch.zeros(hidden, 1, layer.kernel, layer.kernel)
    kernels[:inputs * rank, :, margin:margin + k, margin:margin + k] = depthwise
    pointwise = torch.zeros(outputs, hidden)
    pointwise[:, :inputs * rank] = (u[:, :, :rank] * s[:, None, :rank]).permute(1, 0, 2).reshape(outputs, -1)
    name = layer.name
    out[f"{name}.depthwise.conv.weight"] = kernels
    out[f"{name}.{last}.conv.weight"] = pointwise[:, :, None, None]
    if layer.op == "mbconv":
        copies = torch.zeros(hidden, inputs)
        copies[torch.arange(inputs * rank), torch.arange(inputs).repeat_interleave(rank)] = 1.0
        out[f"{name}.expand.conv.weight"] = copies[:, :, None, None]
        if layer.squeeze:
            out[f"{name}.se.expand.weight"] = torch.zeros_like(out[f"{name}.se.expand.weight"])
            out[f"{name}.se.expand.bias"] = torch.full_like(out[f"{name}.se.expand.bias"], GATE)
    return float(s[:, :rank].square().sum() / s.square().sum())


@torch.no_grad()
def calibrate(model: Network, images: Tensor, separated: dict[str, float]) -> Network:
    """The same model, its batch-norm statistics those of the pictures [B, 3, S, S] (float 0..1).

    They are set layer by layer.

    Inside separated blocks expansion becomes an identity and the depthwise stage is lifted by LIFT
    deviations.
    """
    def settle(name: str) -> object:
        layer, stage = name.split(".")[0], name.split(".")[1]

        def hook(bn: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
            x = inputs[0].float()
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3)).clamp(min=1e-8)
            bn.running_mean.copy_(mean)
            bn.running_var.copy_(var)
            if layer in separated and stage in ("expand", "depthwise"):
                bn.weight.copy_((var + bn.eps).sqrt())
                bn.bias.copy_(mean if stage == "expand" else torch.maximum(mean, LIFT * var.sqrt()))
        return hook
    training = model.training
    handles = [m.register_forward_pre_hook(settle(name)) for name, m in model.named_modules()
               if isinstance(m, nn.BatchNorm2d)]
    model.eval()(images)
    for handle in handles:
        handle.remove()
    return model.train(training)
