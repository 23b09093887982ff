"""Batch norm over all processes, so that two of them compute what one does with the whole batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; what one process's part does to the losses of all is summed on the way
    back.
    """

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total


class JointBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with the statistics of all processes' batches (of one size), on any backend:
    ``nn.SyncBatchNorm`` knows no CPU.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and torch.distributed.is_initialized()):
            return super().forward(input)
        processes = torch.distributed.get_world_size()
        shape = (1, -1, 1, 1)
        mean = _SumOverProcesses.apply(input.mean((0, 2, 3))) / processes
        centred = input - mean.view(shape)
        var = _SumOverProcesses.apply(centred.square().mean((0, 2, 3))) / processes
        if (
            self.running_mean is not None
            and self.running_var is not None
            and self.num_batches_tracked is not None
        ):
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            n = processes * input.numel() / input.shape[1]
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * (n / (n - 1)), momentum)
        normed = centred * (var + self.eps).rsqrt().view(shape)
        if self.weight is None:
            return normed
        return normed * self.weight.view(shape) + self.bias.view(shape)


def join_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Makes every batch norm of ``model`` one over all processes (``nn.SyncBatchNorm`` on a GPU). Returns the
    model.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = JointBatchNorm2d
    return model
