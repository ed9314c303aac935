"""Backbones, necks, heads and stages."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolbox.models.interfaces import BoxPrediction
from toolbox.structures import FeatureSpec, PixelStats, RoIShape


class WrongStrideBackbone(nn.Module):
    """Promises stride 4 and puts out stride 8."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, stride=8, padding=1)
        self.out_features = {"c2": FeatureSpec(4, 4)}
        self.pixels = PixelStats()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"c2": self.layer(images)}


class SilentBackbone(nn.Module):
    """Does not say what it puts out."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = PixelStats()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"c2": images}


class WideNeck(nn.Module):
    """Promises 4 channels and puts out 8."""

    def __init__(self, in_features: dict[str, FeatureSpec]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(in_features["c2"].channels, 8, 1)
        self.out_features = {"p2": FeatureSpec(4, 4)}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"p2": self.layer(features["c2"])}


class FlatRPNHead(nn.Module):
    """Two numbers a box instead of four."""

    def __init__(self, in_channels: int, num_anchors: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(in_channels, num_anchors, 1)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores = [self.layer(x) for x in features]
        return scores, [torch.cat((x, x), dim=1) for x in scores]


class BackgroundlessBoxHead(nn.Module):
    """Forgets the background class."""

    def __init__(self, in_shape: RoIShape, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_shape.channels, 5 * num_classes)

    def forward(self, regions: Tensor) -> BoxPrediction:
        x = self.layer(regions.mean(dim=(2, 3)))
        classes = x.shape[1] // 5
        return BoxPrediction(x[:, :classes], x[:, classes:].unflatten(1, (classes, 4)))


class OtherSizeStage(nn.Module):
    """Promises 3 × 3 and puts out 6 × 6."""

    def __init__(self, in_shape: RoIShape) -> None:
        super().__init__()
        self.out_shape = RoIShape(in_shape.channels, 3, 3)

    def forward(self, regions: Tensor) -> Tensor:
        return regions


class MisspelledNeck(WideNeck):
    """Reads a map that is not there."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"p2": self.layer(features["p2"])}  # MisspelledNeck.forward
