"""Batch-norm over the global batch on any device; torch's own SyncBatchNorm runs on accelerators only."""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch import distributed as dist


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all ranks; its gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of all ranks' inputs [B, C, H, W] together, in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            values = x.float()
            count = torch.tensor([float(values.numel() // values.shape[1])], device=x.device)
            dist.all_reduce(count)
            mean = _Sum.apply(values.sum((0, 2, 3))) / count
            centred = values - mean[:, None, None]
            variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
            with torch.no_grad():
                self.num_batches_tracked += 1
                unbiased = variance * count / (count - 1).clamp(min=1)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(unbiased, self.momentum)
            scale = self.weight * (variance + self.eps).rsqrt()
            return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def synchronise(model: nn.Module) -> nn.Module:
    """Return the same model, every batch-norm synchronised over ranks (torch's on CUDA, ours elsewhere)."""
    cuda = next(model.parameters()).is_cuda
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:                 # same object, parameters, buffers and state dict
            module.__class__ = nn.SyncBatchNorm if cuda else SyncBatchNorm2d
            module.process_group = None                    # all ranks
    return model
