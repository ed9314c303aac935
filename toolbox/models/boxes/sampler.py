"""Which of the matched boxes to train on."""

from __future__ import annotations

import torch
from torch import Tensor

from toolbox.registry import SAMPLERS


@SAMPLERS.register
class RandomSampler:
    """A random sample of foreground and background (Fast R-CNN, arXiv:1504.08083, section 2.3).

    Args:
        size: regions per image.
        positive_fraction: largest share of foreground among them; 0.25 is the ratio 1:3 of the paper.
    """

    def __init__(self, *, size: int = 512, positive_fraction: float = 0.25) -> None:
        if size < 1 or not 0 < positive_fraction <= 1:
            raise ValueError(f"needs size ≥ 1 and 0 < positive_fraction ≤ 1, got {size} and {positive_fraction}")
        self.size = size
        self.capacity = max(1, int(size * positive_fraction))

    def sample(self, foreground: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw without replacement.

        Args:
            foreground: (N, R) bool.
            background: (N, R) bool.

        Returns:
            index (N, S), valid (N, S), foreground (N, S), S = `size`; foreground rows come first and lie within
            the first `capacity`.
        """
        images, regions = foreground.shape
        draw = torch.rand(images, regions, device=foreground.device)
        best, rows = torch.where(foreground, draw, -1.0).topk(min(self.capacity, regions), dim=1)
        drawn = torch.zeros_like(foreground).scatter(1, rows, best >= 0)
        # Foreground that was drawn sorts first, then background; what is left sorts last and is not valid.
        key = torch.where(drawn, draw + 2.0, torch.where(background, draw, -1.0))
        value, index = key.topk(min(self.size, regions), dim=1)
        return index, value >= 0, value >= 2
