"""Box heads: class and box of a pooled region."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from toolbox.models.heads.layers import Norm, check_at_least, conv_stack, linear_stack
from toolbox.models.interfaces import BoxPrediction
from toolbox.registry import BOX_HEADS
from toolbox.structures import RoIShape


class BoxPredictor(nn.Module):
    """The two last layers of every box head: (R, channels) → class logits and box deltas."""

    def __init__(self, channels: int, num_classes: int, class_agnostic: bool) -> None:
        super().__init__()
        self.logits = nn.Linear(channels, num_classes + 1)
        self.deltas = nn.Linear(channels, 4 * (1 if class_agnostic else num_classes))
        # Small weights start every region as uncertain and undisplaced (Fast R-CNN, arXiv:1504.08083, section 2.3).
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.logits.bias)
        nn.init.zeros_(self.deltas.bias)

    def forward(self, hidden: Tensor) -> BoxPrediction:
        return BoxPrediction(logits=self.logits(hidden), deltas=self.deltas(hidden).unflatten(1, (-1, 4)))


@BOX_HEADS.register
class TwoFCBoxHead(nn.Module):
    """Two hidden fully connected layers (Lin et al., *Feature Pyramid Networks*, arXiv:1612.03144, section 4.2).

    Args:
        in_shape: (R, C, P, P).
        num_classes: K, without background.
        channels: width of the hidden layers.
        class_agnostic: one box per region instead of one per class.
    """

    def __init__(
        self, in_shape: RoIShape, num_classes: int, *, channels: int = 1024, class_agnostic: bool = False
    ) -> None:
        super().__init__()
        check_at_least(1, channels=channels)
        self.hidden = linear_stack(in_shape.channels * in_shape.height * in_shape.width, channels, 2)
        self.predictor = BoxPredictor(channels, num_classes, class_agnostic)

    def forward(self, regions: Tensor) -> BoxPrediction:
        """(R, C, P, P) → class logits and box deltas."""
        return self.predictor(self.hidden(regions.flatten(1)))


@BOX_HEADS.register
class ConvFCBoxHead(nn.Module):
    """3×3 convolutions, then fully connected layers (Wu & He, *Group Normalization*, arXiv:1803.08494, section 4.2).

    Args:
        in_shape: (R, C, P, P).
        num_classes: K, without background.
        convolutions: number of convolutions.
        channels: their width.
        norm: norm after each.
        fully_connected: number of hidden fully connected layers.
        fc_channels: their width.
        class_agnostic: one box per region instead of one per class.
    """

    def __init__(
        self,
        in_shape: RoIShape,
        num_classes: int,
        *,
        convolutions: int = 4,
        channels: int = 256,
        norm: Norm = "none",
        fully_connected: int = 1,
        fc_channels: int = 1024,
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        check_at_least(0, convolutions=convolutions, fully_connected=fully_connected)
        check_at_least(1, channels=channels, fc_channels=fc_channels)
        self.convolutions = conv_stack(in_shape.channels, channels, convolutions, norm)
        width = channels if convolutions else in_shape.channels
        inputs = width * in_shape.height * in_shape.width
        self.hidden = linear_stack(inputs, fc_channels, fully_connected)
        self.predictor = BoxPredictor(fc_channels if fully_connected else inputs, num_classes, class_agnostic)

    def forward(self, regions: Tensor) -> BoxPrediction:
        """(R, C, P, P) → class logits and box deltas."""
        return self.predictor(self.hidden(self.convolutions(regions).flatten(1)))


@BOX_HEADS.register
class AveragePoolBoxHead(nn.Module):
    """The average of the region, and no layer between: what follows a RoI stage (*Mask R-CNN*, figure 4 left).

    Args:
        in_shape: (R, C, P, P).
        num_classes: K, without background.
        class_agnostic: one box per region instead of one per class.
    """

    needs_roi_stage: ClassVar[bool] = True

    def __init__(self, in_shape: RoIShape, num_classes: int, *, class_agnostic: bool = False) -> None:
        super().__init__()
        self.predictor = BoxPredictor(in_shape.channels, num_classes, class_agnostic)

    def forward(self, regions: Tensor) -> BoxPrediction:
        """(R, C, P, P) → class logits and box deltas."""
        return self.predictor(regions.mean(dim=(2, 3)))
