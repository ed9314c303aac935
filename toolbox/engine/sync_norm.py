"""Batch norm over the images of all processes: torch's on a GPU, and the same on the CPU, where torch has none."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class HostSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """On the CPU: the sums go round by gloo, in float32 at least; without any values the statistics stay."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (N, C, …), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, …) → the same shape."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        over, shape = [0, *range(2, input.ndim)], (1, -1, *(1,) * (input.ndim - 2))
        wide = input.to(torch.promote_types(input.dtype, torch.float32))  # under autocast it may be bfloat16
        count = _SumOverRanks.apply(wide.new_tensor(input.numel() / input.shape[1]))
        if count == 0:  # a head on regions where no process has one
            return super().forward(input)
        if count == 1:  # as torch's batch norm of one process says it: there is no variance of one value
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.shape}")
        mean = _SumOverRanks.apply(wide.sum(over)) / count
        centred = wide - mean.view(shape)
        variance = _SumOverRanks.apply(centred.square().sum(over)) / count
        self._follow(mean.detach(), (variance * count / (count - 1)).detach())
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        scaled = normal * self.weight.view(shape) + self.bias.view(shape) if self.affine else normal
        return scaled.to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards this step's, (C,) each."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        rate = self.momentum if self.momentum is not None else 1.0 / self.num_batches_tracked.item()
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance, rate)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every process's loss depends on every process's share of the sum.
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def synchronise(model: nn.Module, device: torch.device) -> None:
    """Replace a model's live batch norms; parameters, buffers and state-dict names stay, and frozen ones as well.

    Args:
        model: whose norms are replaced, in place.
        device: that it will be on.

    Raises:
        ValueError: it has batch norms that do more than normalise, as some of timm's networks.
    """
    kind = HostSyncBatchNorm if device.type == "cpu" else nn.SyncBatchNorm
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or isinstance(norm, kind):
                continue
            if type(norm) not in _BATCH_NORMS:
                name = type(norm).__name__
                raise ValueError(f"sync_bn cannot take {name}'s place; use a network of other norms, or sync_bn: false")
            together = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
            together.weight, together.bias = norm.weight, norm.bias
            together.running_mean, together.running_var = norm.running_mean, norm.running_var
            together.num_batches_tracked = norm.num_batches_tracked
            together.train(norm.training)
            setattr(parent, name, together)
