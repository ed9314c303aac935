"""Instance heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from toolbox.structures import Regions, RoIShape, Targets


class GoodHead(nn.Module):
    """Area of each object, from the mean of its region."""

    def __init__(self, in_shape: RoIShape, num_classes: int, *, weight: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(in_shape.channels, 1)
        self.weight = weight

    def forward(self, regions: Tensor) -> Tensor:
        return self.layer(regions.mean(dim=(2, 3))).squeeze(1)

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        image = regions.rois[:, 0].long()
        wanted = targets.area[image, regions.matched].clamp(min=1).log()
        error = (prediction.float() - wanted).abs()
        count = regions.valid.sum().clamp(min=1)
        return {"area": self.weight * torch.where(regions.valid, error, 0.0).sum() / count}

    def predict(self, prediction: Tensor, labels: Tensor) -> Tensor:
        return prediction.float().exp()

    def to_image(self, values: Tensor, boxes: Tensor, height: int, width: int) -> dict[str, Any]:
        return {"area": values.tolist()}


class UndocumentedHead(GoodHead): ...


class PositionalHead(GoodHead):
    """Takes a setting by position."""

    def __init__(self, in_shape: RoIShape, num_classes: int, weight: float = 1.0) -> None:
        super().__init__(in_shape, num_classes, weight=weight)


class UntypedHead(GoodHead):
    """Has a setting without a type."""

    def __init__(self, in_shape: RoIShape, num_classes: int, *, weight=1.0) -> None:
        super().__init__(in_shape, num_classes, weight=weight)


class MethodlessHead(nn.Module):
    """Has no loss."""

    def __init__(self, in_shape: RoIShape, num_classes: int) -> None:
        super().__init__()

    def forward(self, regions: Tensor) -> Tensor:
        return regions


class EmptyHead(GoodHead):
    """Cannot flatten no regions."""

    def forward(self, regions: Tensor) -> Tensor:
        return super().forward(regions.view(len(regions), -1, 6, 6))


class NeighbourHead(GoodHead):
    """Compares each region with the mean of all."""

    def forward(self, regions: Tensor) -> Tensor:
        return super().forward(regions - regions.mean(dim=0))


class WritingHead(GoodHead):
    """Writes into its input."""

    def forward(self, regions: Tensor) -> Tensor:
        return super().forward(regions.relu_())


class DiceHead(GoodHead):
    """Adds noise in evaluation."""

    def forward(self, regions: Tensor) -> Tensor:
        return super().forward(regions) + torch.rand(len(regions))


class DetachedHead(GoodHead):
    """Has a parameter that nothing uses."""

    def __init__(self, in_shape: RoIShape, num_classes: int) -> None:
        super().__init__(in_shape, num_classes)
        self.unused = nn.Parameter(torch.zeros(1))


class NarrowHead(GoodHead):
    """Overflows to infinity in half precision, where the largest step of 1 is lost."""

    def forward(self, regions: Tensor) -> Tensor:
        x = super().forward(regions)
        return x / (torch.full_like(x, 257.0) - 256.0)


class MixedHead(GoodHead):
    """Makes a float32 tensor, which autocast forgives and a bfloat16 layer does not."""

    def forward(self, regions: Tensor) -> Tensor:
        return self.layer(regions.mean(dim=(2, 3)) + torch.zeros(regions.shape[1])).squeeze(1)


class SingleHead(GoodHead):
    """Computes in float32, whatever it is given."""

    def forward(self, regions: Tensor) -> Tensor:
        return (regions.float().mean(dim=(2, 3)) @ self.layer.weight.float().T + self.layer.bias.float())[:, 0]


class StrideHead(GoodHead):
    """Reads memory instead of shape."""

    def forward(self, regions: Tensor) -> Tensor:
        return super().forward(regions * (2.0 if regions.stride(1) == 1 else 1.0))


class ForgetfulHead(GoodHead):
    """Keeps what it has learned where no state dict sees it."""

    def __init__(self, in_shape: RoIShape, num_classes: int) -> None:
        super().__init__(in_shape, num_classes)
        self.scale = torch.rand(1)

    def forward(self, regions: Tensor) -> Tensor:
        return super().forward(regions) * self.scale.to(regions.dtype)


class BranchingHead(GoodHead):
    """Decides by a value."""

    def forward(self, regions: Tensor) -> Tensor:
        x = super().forward(regions)
        return x if x.sum().item() > 1e6 else x * 2


class VectorLossHead(GoodHead):
    """Returns a loss per region."""

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        return {"area": prediction.abs()}


class ConstantLossHead(GoodHead):
    """Returns a loss that no gradient flows from where there are no regions."""

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        return super().loss(prediction, regions, targets) if len(prediction) else {"area": torch.zeros(())}


class MeanLossHead(GoodHead):
    """Divides by no objects."""

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        return {"area": prediction.float().abs().mean()}


class PaddedLossHead(GoodHead):
    """Counts padding."""

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        return {"area": prediction.float().abs().sum() / max(1, len(prediction))}


class LossWritingHead(GoodHead):
    """Writes into the targets."""

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        targets.area += 1
        return super().loss(prediction, regions, targets)


class ShortHead(GoodHead):
    """Loses a detection on the way to the image."""

    def to_image(self, values: Tensor, boxes: Tensor, height: int, width: int) -> dict[str, Any]:
        return {"area": values.tolist()[1:]}


# Components that raise on what every component of their family is given.


class FixedWidthHead(GoodHead):
    """Has a width written into it that is not that of its input."""

    def __init__(self, in_shape: RoIShape, num_classes: int) -> None:
        super().__init__(in_shape, num_classes)
        self.layer = nn.Linear(256, 1)

    def forward(self, regions: Tensor) -> Tensor:
        return self.layer(regions.mean(dim=(2, 3)))[:, 0]  # FixedWidthHead.forward


class MisspelledLossHead(GoodHead):
    """Calls a method that is not there, in loss."""

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        return {"area": prediction.flaot().sum()}  # MisspelledLossHead.loss


class MisspelledPredictHead(GoodHead):
    """Calls a method that is not there, in predict."""

    def predict(self, prediction: Tensor, labels: Tensor) -> Tensor:
        return prediction.flaot().exp()  # MisspelledPredictHead.predict


class MisspelledToImageHead(GoodHead):
    """Calls a method that is not there, in to_image."""

    def to_image(self, values: Tensor, boxes: Tensor, height: int, width: int) -> dict[str, Any]:
        return {"area": values.to_list()}  # MisspelledToImageHead.to_image
