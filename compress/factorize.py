"""Trained convolutions -> factorised blocks of the same place, so that Micro-YOLO need not start from zero.

A kxk kernel [O, I, k, k] is, input channel by input channel, a matrix [O, k*k]. Its best rank-r approximation
(SVD) is r depthwise kernels followed by a pointwise layer: r = 1 where the block is depthwise and pointwise,
r = hidden / input where an expansion comes first, which then copies each input r times (cf. Jaderberg et al.
2014, arXiv 1405.3866; Guo et al. 2018, arXiv 1812.02766).
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.channels import shapes
from models.graph import expand
from models.layer import Net
from models.network import Network
from models.nodes import Node

LIFT = 2.5                                     # standard deviations above zero, where leaky ReLU is linear
GATE = 3.0                                     # sigmoid(3) = 0.95: squeeze-excitation starts almost open


class _Path(NamedTuple):
    """The convolutions from a record's input to its output, their batch-norms, and its gate's last one."""

    convs: list[Node]
    norms: list[Node]
    gate: Node | None


def _paths(net: Net) -> dict[str, _Path]:
    """Return the path of every record that is a chain of convolutions with batch-norm."""
    found: dict[str, _Path] = {}
    for layer in net:
        nodes = [node for node in expand(net).nodes if node.layer == layer.name]
        convs = [node for node in nodes if node.type == "conv" and node.reduction]
        norms = [node for node in nodes if node.type == "norm"]
        if convs and [norm.inputs[0] for norm in norms] == [conv.name for conv in convs]:
            found[layer.name] = _Path(convs, norms, next((n for n in nodes if n.field == "~"), None))
    return found


def separate(source: Net, weights: dict[str, Tensor], net: Net,
             state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return a new state for `net`, its factorised blocks from the source's convolutions of the same name.

    Also record -> share of the kernel's energy that is kept. Records of other widths in the source, and those
    without batch-norm here or there, stay as in `state`. Run `calibrate` afterwards.
    """
    out, kept, sizes = dict(state), {}, shapes(net)
    before = _paths(source)
    for name, path in _paths(net).items():
        origin = before.get(name)
        if origin is None or len(origin.convs) != 1 or len(path.convs) < 2:
            continue
        *first, deep, last = path.convs
        if deep.field or last.kernel > 1 or len(first) > 1 or any(node.kernel > 1 for node in first):
            continue                               # not (expand,) depthwise, pointwise
        kernel = weights[f"{origin.convs[0].name}.weight"].float()
        inputs, hidden = sizes[f"{(first or [last])[0].name}.weight"][1], deep.channels
        same = kernel.shape[:2] == (last.channels, inputs) and deep.stride == origin.convs[0].stride
        rank = hidden // inputs if first else 1
        if not same or kernel.shape[2] > deep.kernel or rank < 1:      # 0: too narrow to copy its input
            continue
        scale = weights[f"{origin.norms[0].name}.weight"] / (
            weights[f"{origin.norms[0].name}.running_var"] + origin.norms[0].eps).sqrt()
        # Errors are weighed where they are seen: behind batch-norm.
        kept[name] = _factors(path, kernel * scale.view(-1, 1, 1, 1).float(), rank, hidden, out)
        for leaf in ("weight", "bias"):
            out[f"{path.norms[-1].name}.{leaf}"] = weights[f"{origin.norms[0].name}.{leaf}"].clone()
    return out, kept


def _factors(path: _Path, kernel: Tensor, rank: int, hidden: int, out: dict[str, Tensor]) -> float:
    """Write the factors of kernel [O, I, k, k] into `out`; return the share of energy they keep."""
    *first, deep, last = path.convs
    outputs, inputs, k, _ = kernel.shape
    matrices = kernel.permute(1, 0, 2, 3).reshape(inputs, outputs, k * k)
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    rank = min(rank, s.shape[1])
    margin = (deep.kernel - k) // 2
    kernels = torch.zeros(hidden, 1, deep.kernel, deep.kernel)
    place = slice(margin, margin + k)
    kernels[:inputs * rank, :, place, place] = v[:, :rank].reshape(inputs * rank, 1, k, k)
    pointwise = torch.zeros(outputs, hidden)
    pointwise[:, :inputs * rank] = (u[:, :, :rank] * s[:, None, :rank]).permute(1, 0, 2).reshape(outputs, -1)
    out[f"{deep.name}.weight"] = kernels
    out[f"{last.name}.weight"] = pointwise[:, :, None, None]
    for expand_ in first:
        copies = torch.zeros(hidden, inputs)
        copies[torch.arange(inputs * rank), torch.arange(inputs).repeat_interleave(rank)] = 1.0
        out[f"{expand_.name}.weight"] = copies[:, :, None, None]
    if path.gate is not None:
        for leaf, value in (("weight", 0.0), ("bias", GATE)):
            out[f"{path.gate.name}.{leaf}"] = torch.full_like(out[f"{path.gate.name}.{leaf}"], value)
    return float(s[:, :rank].square().sum() / s.square().sum())


@torch.no_grad()
def calibrate(model: Network, images: Tensor, separated: dict[str, float]) -> Network:
    """Return the same model, its batch-norm statistics those of the images [B, 3, S, S] (float 0..1).

    Inside separated blocks expansion becomes an identity; the depthwise stage is lifted by LIFT deviations.
    """
    paths = _paths(model.net)
    identity = {norm.name for name in separated for norm in paths[name].norms[:-2]}
    lifted = {paths[name].norms[-2].name for name in separated}

    def settle(bn: torch.nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        x, name = inputs[0].float(), names[bn]
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3)).clamp(min=1e-8)
        bn.running_mean.copy_(mean)
        bn.running_var.copy_(var)
        if name in identity | lifted:
            bn.weight.copy_((var + bn.eps).sqrt())
            bn.bias.copy_(mean if name in identity else torch.maximum(mean, LIFT * var.sqrt()))
    training = model.training
    names = {module: name for name, module in model.named_modules()
             if isinstance(module, torch.nn.BatchNorm2d)}
    handles = [module.register_forward_pre_hook(settle) for module in names]
    model.eval()(images)
    for handle in handles:
        handle.remove()
    return model.train(training)
