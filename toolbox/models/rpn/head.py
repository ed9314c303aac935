"""RPN heads: objectness and deltas of every anchor."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from toolbox.models.heads.layers import check_at_least
from toolbox.models.rpn.cells import Cells, surroundings
from toolbox.registry import RPN_HEADS


@RPN_HEADS.register
class ConvRPNHead(nn.Module):
    """3×3 convolutions shared by the levels, then one 1×1 for objectness and one for deltas (arXiv:1506.01497, 3.1).

    Args:
        in_channels: C of every level.
        num_anchors: A.
        convolutions: 3×3 convolutions before the two predictors.
        channels: their width; C if None.
    """

    def __init__(
        self, in_channels: int, num_anchors: int, *, convolutions: int = 1, channels: int | None = None
    ) -> None:
        super().__init__()
        width = in_channels if channels is None else channels
        check_at_least(0, convolutions=convolutions)
        check_at_least(1, channels=width)
        layers: list[nn.Module] = []
        for index in range(convolutions):
            layers += [nn.Conv2d(width if index else in_channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        self.convolutions = nn.Sequential(*layers)
        last = width if convolutions else in_channels
        self.objectness = nn.Conv2d(last, num_anchors, 1)
        self.deltas = nn.Conv2d(last, 4 * num_anchors, 1)
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=0.01)
            else:
                nn.init.zeros_(parameter)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level (N, C, H, W) → objectness logits (N, A, H, W) and deltas (N, 4 A, H, W)."""
        hidden = [self.convolutions(feature) for feature in features]
        return [self.objectness(x) for x in hidden], [self.deltas(x) for x in hidden]

    def at(self, features: Sequence[Tensor], cells: Cells) -> tuple[Tensor, Tensor]:
        """The same at S cells alone: objectness logits (S, A) and deltas (S, 4 A)."""
        layers = [layer for layer in self.convolutions if isinstance(layer, nn.Conv2d)]
        hidden, inside = surroundings(features, cells, radius=len(layers))
        for layer in layers:
            hidden = F.conv2d(hidden, layer.weight, layer.bias).relu()
            inside = inside[..., 1:-1, 1:-1]
            hidden = hidden * inside  # what a layer pads with is zero, not what would stand beyond the border
        predicted = [F.conv2d(hidden, layer.weight, layer.bias) for layer in (self.objectness, self.deltas)]
        return predicted[0].flatten(1), predicted[1].flatten(1)
