"""Processes that train together: set up by torchrun's environment, one process otherwise."""
from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist


class World(NamedTuple):
    """This process's place: rank of size; rank 0 decides, logs and writes."""

    rank: int
    size: int

    @property
    def main(self) -> bool:
        """Return whether this is the process that writes."""
        return self.rank == 0


def join(device: torch.device) -> World:
    """Return the world torchrun's environment describes, joined by nccl on CUDA, gloo on CPU."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    world = World(int(os.environ.get("RANK", "0")), size)
    if (size > 1 or "TORCHELASTIC_RUN_ID" in os.environ) and not dist.is_initialized():
        # A rank that fails or stalls must end the others, not leave them waiting for ever.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
    return world


def joined() -> bool:
    """Return whether this process is one of torchrun's."""
    return dist.is_available() and dist.is_initialized()


def leave() -> None:
    """Leave the world, if one was joined."""
    if joined():
        dist.destroy_process_group()


def on_all_ranks(flag: Tensor) -> Tensor:
    """Return whether the flag (bool scalar) is up on every rank; it stays on the device."""
    if not joined():
        return flag
    value = flag.float()
    dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return value.bool()


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return whether the flag is up on any rank: the same answer on all of them."""
    if not joined():
        return flag
    return not on_all_ranks(torch.tensor(not flag, device=device))


def mean_over_ranks(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Return the values averaged over ranks: the same on all of them."""
    if not joined() or not values:
        return values
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return dict(zip(values, (tensor / dist.get_world_size()).tolist()))


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return a tensor's sum over all ranks, without a gradient; the tensor itself may be changed."""
    if joined():
        dist.all_reduce(values)
    return values


def mean_gradients(parameters: Iterable[Tensor]) -> None:
    """Average the gradients of parameters that no DDP wrapper knows over all ranks."""
    for parameter in parameters if joined() else ():
        parameter.grad = sum_over_ranks(parameter.grad) / dist.get_world_size()


def from_main(value: object) -> object:
    """Return the value that rank 0 holds."""
    if not joined():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def same_on_all(value: int) -> bool:
    """Return whether every rank holds the same number."""
    found: list[object] = [value]
    if joined():
        found *= dist.get_world_size()
        dist.all_gather_object(found, value)
    return len(set(found)) == 1


def wait() -> None:
    """Return when every rank has come here."""
    if joined():
        dist.barrier()
