"""Records -> torch module: an image in, head outputs out. Knows primitives, no blocks."""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.channels import channels
from models.convolutions import DepthwiseConv2d, SkippingConv2d
from models.graph import expand, heads_of, outputs
from models.layer import Net
from models.nodes import IMAGE, Node

MOMENTUM = 0.03                                # follows the statistics of small batches without their noise
Step = tuple[Node, Callable[..., Tensor], tuple[str, ...], tuple[str, ...]]    # runs, reads, lets go
START = Node(IMAGE, IMAGE, (), 3, 1, "")
RISING = ("leaky", "relu", "relu6", "sigmoid", "hardsigmoid")     # the largest number stays the largest
IN_PLACE = ("leaky", "relu", "relu6")          # activations whose gradient is told from their output
ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "leaky": partial(F.leaky_relu, negative_slope=0.1), "relu": F.relu, "relu6": F.relu6,
    "hardswish": F.hardswish, "swish": F.silu, "sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid}


class Network(nn.Module):
    """The network of a tuple of records.

    forward: images [B, 3, H, W], uint8 0..255 or float 0..1, sides a multiple of the largest stride, to head
    outputs [B, *shape, G, G], of a classifier scores [B, K, 1, 1], or to the values of the records `ends`.
    """

    def __init__(self, net: Net, ends: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.net, graph = net, expand(net)
        self.stride = max(node.reduction for node in graph.nodes)
        # Called with every value, the image's first.
        self.watch: Callable[[Node, Tensor], None] | None = None
        shapes = {head.layer.name: head.shape for head in heads_of(net)}
        self.ends = tuple((graph.value[name], shapes.get(name, ())) for name in ends or outputs(net))
        readers: dict[str, list[int]] = {}
        for at, node in enumerate(graph.nodes):
            for name in node.inputs:
                readers.setdefault(name, []).append(at)
        kept = {value for value, _ in self.ends}
        maker = {IMAGE: START, **{node.name: node for node in graph.nodes}}
        plan = []
        for at, node in enumerate(graph.nodes):
            source = node.inputs[0]
            # In place where nothing else needs the value: neither a later node nor its maker's own gradient.
            alone = readers[source] == [at] and source not in kept
            alone = alone and maker[source].type in ("conv", "norm", "add")
            run = _module(node, maker[source].channels) or _function(node, alone)
            if isinstance(run, nn.Module):
                self._place(node.name, run)
            # Values nobody reads later are let go, so that a forward pass holds only what it still needs.
            done = tuple(dict.fromkeys(i for i in node.inputs if readers[i][-1] == at and i not in kept))
            plan.append((node, run, node.inputs, done))
        self.plan, self.fast = tuple(plan), _pooled_first(plan, kept)

    def _place(self, path: str, module: nn.Module) -> None:
        """Register a module under a dotted path, in containers made on the way."""
        *containers, leaf = path.split(".")
        at = self
        for name in containers:
            at = at._modules.setdefault(name, nn.Module())
        at.add_module(leaf, module)

    def forward(self, image: Tensor) -> list[Tensor]:
        if image.dtype == torch.uint8:
            image = image.to(next(self.parameters()).dtype) / 255
        values = {IMAGE: image}
        if self.watch is not None:
            self.watch(START, image)
        for node, run, inputs, done in self.fast if self.watch is None else self.plan:
            value = values[node.name] = run(*[values[i] for i in inputs])
            if self.watch is not None:
                self.watch(node, value)
            for i in done:
                del values[i]
        return [values[name].view(-1, *shape, *values[name].shape[2:]) if len(shape) > 1 else values[name]
                for name, shape in self.ends]


def _pooled_first(plan: Sequence[Step], kept: set[str]) -> tuple[Step, ...]:
    """Return the plan with maxima taken before a rising activation, of fewer numbers and the same.

    Only what the pooling alone reads is moved; a value between the two is another one then.
    """
    plan, readers = list(plan), Counter(name for _, _, inputs, _ in plan for name in inputs)
    for at, (act, pool) in enumerate(zip(plan, plan[1:])):
        (node, rises, *_), (pooling, takes, reads, done) = act, pool
        alone = reads == (node.name,) and readers[node.name] == 1 and node.name not in kept
        if node.act in RISING and pooling.type == "maxpool" and alone:
            plan[at] = (node, takes, *act[2:])
            plan[at + 1] = (pooling, rises, reads, done)
    return tuple(plan)


def _module(node: Node, cin: int) -> nn.Module | None:
    """Return the module of a node that learns, None of others."""
    if node.type == "norm":
        return nn.BatchNorm2d(node.channels, eps=node.eps, momentum=MOMENTUM)
    if node.type != "conv":
        return None
    same = node.dilation == 1 and node.pad == node.kernel // 2
    own = DepthwiseConv2d if 1 < node.groups == cin == node.channels and same else nn.Conv2d
    if node.kernel == 1 < node.stride and node.pad == 0:
        own = SkippingConv2d
    made = own(cin, node.channels, node.kernel, node.stride, node.pad, node.dilation, node.groups, node.bias)
    for leaf, start in (("weight", torch.ones), ("bias", torch.zeros)) if node.constant else ():
        shape = getattr(made, leaf).shape
        delattr(made, leaf)
        made.register_buffer(leaf, start(shape))           # of the state, and not learned
    return made


def _function(node: Node, alone: bool) -> Callable[..., Tensor]:
    """Return what a node without tensors computes. alone: its input may be overwritten."""
    if node.type == "act":
        inplace = {"inplace": True} if alone and node.act in IN_PLACE else {}
        return partial(ACTIVATIONS[node.act], **inplace)
    return {
        "add": lambda first, *rest: sum(rest, first),
        "mul": torch.mul,
        "concat": lambda *xs: torch.cat(xs, 1),
        "slice": partial(torch.narrow, dim=1, start=node.part * node.channels, length=node.channels),
        "shuffle": partial(F.channel_shuffle, groups=node.groups),
        "mean": _mean,
        "maxpool": partial(_maxpool, node=node),
        "avgpool": partial(F.avg_pool2d, kernel_size=node.kernel, stride=node.stride, padding=node.pad,
                           ceil_mode=node.ceil),
        "upsample": partial(F.interpolate, scale_factor=float(node.stride),
                            mode="bilinear" if node.smooth else "nearest"),
        "spread": lambda x, like: x.expand(-1, -1, *like.shape[2:])}[node.type]


class _Mean(torch.autograd.Function):
    """The mean [B, C, 1, 1] of each channel of x [B, C, H, W] on a CPU.

    torch's own writes its gradient out in another memory order than x has; adding that to the others of x
    takes as long as a convolution. And of half precision it makes a copy first.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        rows = F.avg_pool2d(x, (1, x.shape[3]))            # in two steps: fewer roundings
        return F.avg_pool2d(rows, (x.shape[2], 1))

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        return (grad / (ctx.shape[2] * ctx.shape[3])).expand(ctx.shape)


def _mean(x: Tensor) -> Tensor:
    return _Mean.apply(x) if x.device.type == "cpu" and x.requires_grad else x.mean((2, 3), keepdim=True)


def _maxpool(x: Tensor, node: Node) -> Tensor:
    # What darknet ignores beyond the right and lower edge repeats the last row and column: the same maxima.
    if node.after:
        x = F.pad(x, (0, node.after, 0, node.after), mode="replicate")
    return F.max_pool2d(x, node.kernel, node.stride, node.pad, ceil_mode=node.ceil)


def initialise(model: Network, seed: int, prior: float = 0.01) -> Network:
    """Return the same model with He-normal weights of `seed` alone; heads see objects with chance `prior`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in channels(model.net).params:
            if param.node.type == "norm" or param.node.constant:
                continue
            tensor = model.get_parameter(param.key)
            if param.key.endswith("bias"):
                tensor.zero_()
            else:
                tensor.normal_(0, math.sqrt(2 / tensor[0].numel()), generator=generator)
        for head in heads_of(model.net):
            ends = [model.get_submodule(node.name) for node in expand(model.net).nodes
                    if node.layer == head.layer.name and node.fixed]
            bias = torch.cat([conv.bias for conv in ends])
            head.set_bias(bias, prior)
            for conv, own in zip(ends, bias.split([len(conv.bias) for conv in ends])):
                conv.weight.normal_(0, 0.01, generator=generator)
                conv.bias.copy_(own)
    return model


def from_state(net: Net, state: dict[str, Tensor], ends: tuple[str, ...] = ()) -> Network:
    """Return a network with the given weights, in eval mode; ends: as Network takes them."""
    model = Network(net, ends)
    model.load_state_dict(state)
    return model.eval()
