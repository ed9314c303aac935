"""Element-wise losses; the stage that uses one sums and normalises."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from toolbox.registry import LOSSES


@LOSSES.register
class CrossEntropy(nn.Module):
    """Softmax cross-entropy: logits (R, K + 1, …) and labels (R, …) → (R, …)."""

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.weight * F.cross_entropy(prediction.float(), target, reduction="none")


@LOSSES.register
class BinaryCrossEntropy(nn.Module):
    """Sigmoid cross-entropy: logits and targets in 0 … 1, any equal shape → the same shape."""

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.weight * F.binary_cross_entropy_with_logits(prediction.float(), target, reduction="none")


@LOSSES.register
class SmoothL1(nn.Module):
    """Quadratic below `beta`, linear above (Fast R-CNN, arXiv:1504.08083, equation 3): equal shapes → that shape."""

    def __init__(self, *, beta: float = 1.0, weight: float = 1.0) -> None:
        super().__init__()
        if beta < 0:
            raise ValueError(f"beta is 0 (then L1) or more, got {beta}")
        self.beta = beta
        self.weight = weight

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return self.weight * F.smooth_l1_loss(prediction.float(), target, beta=self.beta, reduction="none")
