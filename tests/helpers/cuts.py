"""Random networks' states, what hooks count, and the check that a pruned network is its parent masked."""
from __future__ import annotations

import random
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from compress.fold import fold
from models.channels import channels, shapes, without
from models.graph import expand, grids
from models.layer import Net
from models.network import Network
from models.nodes import IMAGE

State = dict[str, Tensor]
Keep = dict[str, list[int]]
COUNTER = "num_batches_tracked"


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the same model in eval mode, its batch-norms as training leaves them, no bias zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(.5, 1.5, generator=generator)
                module.bias.normal_(0, .2, generator=generator)
                module.running_mean.normal_(0, .1, generator=generator)
                module.running_var.uniform_(.5, 1.5, generator=generator)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                # He's deviation keeps every depth at one scale, or the depths' faults would not be seen.
                fan = module.weight[0].numel()
                module.weight.normal_(0, (2 / fan) ** .5, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, .1, generator=generator)
    return model.eval()


def state_of(model: nn.Module) -> State:
    """Return the tensors of a model without batch-norm's counters, in the order of its modules."""
    return {key: value for key, value in model.state_dict().items() if not key.endswith(COUNTER)}


def hooked(model: nn.Module, imgsz: int) -> int:
    """Return the multiply-adds of all convolutions and linear layers that a forward pass runs through."""
    seen = []

    def count(module: nn.Module, _: object, out: Tensor) -> None:
        seen.append(out.numel() * module.weight[0].numel())
    hooks = [module.register_forward_hook(count) for module in model.modules()
             if isinstance(module, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        model(torch.rand(1, 3, imgsz, imgsz, dtype=next(model.parameters()).dtype))
    for hook in hooks:
        hook.remove()
    return sum(seen)


def check_graph(net: Net, imgsz: int) -> None:
    """Fail where the table of tensors or a node's shape is not what the module has."""
    model, side, seen = Network(net).eval(), grids(net, imgsz), {}
    assert {key: tuple(value.shape) for key, value in state_of(model).items()} == shapes(net)
    assert list(state_of(model)) == list(shapes(net))
    model.watch = lambda node, value: seen.update({node.name: tuple(value.shape)})
    with torch.no_grad():
        model(torch.rand(2, 3, imgsz, imgsz))
    seen.pop(IMAGE, None)
    assert seen == {node.name: (2, node.channels, *(side[node.name],) * 2) for node in expand(net).nodes}


def random_keep(net: Net, rng: random.Random) -> Keep:
    """Return kept indices of about half the units that can be cut, at least one of each."""
    table, keep = channels(net), {}
    for name, ids in table.units.items():
        if name not in table.frozen and rng.random() < .6:
            keep[name] = sorted(rng.sample(range(len(ids)), rng.randint(1, len(ids))))
    return keep


def pruned(net: Net, state: State, keep: Keep) -> tuple[Net, State]:
    """Return the smaller network and its state."""
    small, stays = without(net, keep)
    out = {}
    for param in channels(net).params:
        value = state[param.key]
        for axis, ids in enumerate((param.rows,) if param.cols is None else (param.rows, param.cols)):
            if not stays[ids].all():
                value = value.index_select(axis, torch.from_numpy(np.flatnonzero(stays[ids])))
        out[param.key] = value
    return small, out


def masked(net: Net, state: State, keep: Keep) -> State:
    """Return the parent's state with the lost channels silenced: no weight, no bias, no batch-norm's gain."""
    stays, out = without(net, keep)[1], dict(state)
    for param in channels(net).params:
        if param.trained and not stays[param.rows].all():
            value, left = state[param.key], torch.from_numpy(stays[param.rows])
            out[param.key] = value * left.to(value.dtype).view(-1, *[1] * (value.dim() - 1))
    return out


def run(net: Net, state: State, image: Tensor) -> list[Tensor]:
    """Return the outputs of a network with the given tensors; on `meta` it draws none of its own."""
    def nothing(module: nn.Module) -> None:
        """Initialise no tensor: filling them is a third of the time."""
    with mock.patch.object(nn.Conv2d, "reset_parameters", nothing), torch.device("meta"):
        model = Network(net).eval()
    with torch.no_grad():
        return torch.func.functional_call(model, state, image, strict=False)


def check_pruned_is_masked(net: Net, imgsz: int, keeps: int = 20,
                           dtype: torch.dtype = torch.float32) -> float:
    """Return the largest relative difference between a network pruned at random and its parent masked.

    Fails above 1e-5.
    """
    model = randomise(Network(net).to(dtype))
    state, worst, moved = state_of(model), 0.0, 0
    image = torch.rand(1, 3, imgsz, imgsz, dtype=dtype, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(image)
    for seed in range(keeps):
        keep = random_keep(net, random.Random(seed))
        small, cut = pruned(net, state, keep)
        assert shapes(small) == {key: tuple(value.shape) for key, value in cut.items()}
        with torch.no_grad():
            theirs = torch.func.functional_call(model, masked(net, state, keep), image)
            ours = run(small, cut, image)
            moved += not all(torch.equal(a, b) for a, b in zip(theirs, whole))
        for a, b in zip(theirs, ours):
            worst = max(worst, float((a - b).abs().max() / a.abs().max()))
            assert worst <= 1e-5, f"{worst:.1e} with the keep of seed {seed}"
    assert moved or set(channels(net).units) == set(channels(net).frozen), "nothing was cut"
    return worst


def check_folded_is_same(net: Net, imgsz: int, tolerance: float = 1e-5) -> None:
    """Fail where folding batch-norms moves the outputs of a network, or leaves one."""
    model = randomise(Network(net).double())
    small, state = fold(net, state_of(model))
    assert not any(node.type == "norm" for node in expand(small).nodes)
    image = torch.rand(2, 3, imgsz, imgsz, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        expected = model(image)
    found = run(small, {key: value.double() for key, value in state.items()}, image)
    for a, b in zip(expected, found):
        assert (a - b).abs().max() <= tolerance * a.abs().max()
