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
        wrong = [] if size >= 1 else [f"size is 1 or more, got {size}"]
        if not 0 < positive_fraction <= 1:
            wrong.append(f"positive_fraction lies between 0 and 1 and is more than 0, got {positive_fraction:g}")
        if wrong:
            raise ValueError("\n".join(wrong))
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
