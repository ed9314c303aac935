"""Boxes as deltas from reference boxes (Girshick et al., *Rich feature hierarchies*, arXiv:1311.2524, appendix C)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BoxCoder:
    """Encode boxes as (dx, dy, log dw, log dh) of reference boxes, and back.

    Args:
        weights: the deltas are multiplied by these, so that they have about unit variance.
        clamp: largest log dw and log dh that decode, against overflow.
    """

    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    clamp: float = math.log(1000 / 16)

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """(…, 4) boxes and references, in pixels → (…, 4) deltas; finite also for references without area."""
        source, target = _centres(references), _centres(boxes)
        size = [side.clamp(min=1e-6) for side in source[2:]]
        deltas = (
            (target[0] - source[0]) / size[0],
            (target[1] - source[1]) / size[1],
            torch.log(target[2].clamp(min=1e-6) / size[0]),
            torch.log(target[3].clamp(min=1e-6) / size[1]),
        )
        return torch.stack([delta * weight for delta, weight in zip(deltas, self.weights, strict=True)], dim=-1)

    def decode(self, deltas: Tensor, references: Tensor) -> Tensor:
        """(…, 4) deltas and references, in pixels → (…, 4) boxes."""
        x, y, width, height = _centres(references)
        dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas.unbind(-1), self.weights, strict=True))
        x, y = x + dx * width, y + dy * height
        half_width = 0.5 * width * torch.exp(dw.clamp(max=self.clamp))
        half_height = 0.5 * height * torch.exp(dh.clamp(max=self.clamp))
        return torch.stack((x - half_width, y - half_height, x + half_width, y + half_height), dim=-1)


def _centres(boxes: Tensor) -> list[Tensor]:
    """(…, 4) corners → centre x, centre y, width, height, each (…)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    width, height = x2 - x1, y2 - y1
    return [x1 + 0.5 * width, y1 + 0.5 * height, width, height]
