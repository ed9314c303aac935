"""Mask heads: a small mask of each detected object (He et al., *Mask R-CNN*, arXiv:1703.06870, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from toolbox.models.heads.layers import Norm, check_at_least, conv_stack, init_kaiming, linear_stack
from toolbox.models.heads.mask_output import Activation, Convention, MaskOutput
from toolbox.models.interfaces import Loss
from toolbox.registry import INSTANCE_HEADS
from toolbox.structures import Regions, RoIShape, Targets


@INSTANCE_HEADS.register
class FCNMaskHead(nn.Module):
    """Convolutions, a deconvolution and one mask per class (figure 4, right; without convolutions left).

    Args:
        in_shape: (R, C, P, P).
        num_classes: K, without background.
        convolutions: 3×3 convolutions before the deconvolution.
        channels: their width.
        norm: norm after each.
        class_agnostic: one mask per region instead of one per class.
        activation: `sigmoid` trains the mask of the true class alone, so classes do not compete; `softmax` gives each
            pixel one of the classes or background (table 2b).
        loss: per mask pixel, averaged; if None binary cross-entropy, or with softmax cross-entropy.
        threshold: probability above which a pixel is in the mask.
        convention: whose sampling pastes the mask into the image. Detectron2's is exact; torchvision's rounds the
            box to whole pixels first, which costs small objects dearly (perfect 28 × 28 masks of 96-pixel images of
            the synthetic set: mask AP 0.97 against 0.89).
    """

    needs: ClassVar[tuple[str, ...]] = ("masks",)

    def __init__(
        self,
        in_shape: RoIShape,
        num_classes: int,
        *,
        convolutions: int = 4,
        channels: int = 256,
        norm: Norm = "none",
        class_agnostic: bool = False,
        activation: Activation = "sigmoid",
        loss: Loss | None = None,
        threshold: float = 0.5,
        convention: Convention = "detectron2",
    ) -> None:
        super().__init__()
        check_at_least(0, convolutions=convolutions)
        check_at_least(1, channels=channels)
        self.output = MaskOutput(
            num_classes,
            activation=activation,
            class_agnostic=class_agnostic,
            loss=loss,
            threshold=threshold,
            convention=convention,
        )
        width = channels if convolutions else in_shape.channels
        self.convolutions = conv_stack(in_shape.channels, channels, convolutions, norm)
        self.upsample = nn.Sequential(nn.ConvTranspose2d(width, channels, 2, stride=2), nn.ReLU(inplace=True))
        self.predictor = nn.Conv2d(channels, self.output.channels, 1)
        init_kaiming(self.upsample)
        init_kaiming(self.predictor)  # zero bias
        nn.init.normal_(self.predictor.weight, std=0.001)

    def forward(self, regions: Tensor) -> Tensor:
        """(R, C, P, P) → mask logits (R, K, 2 P, 2 P); K is 1 when class-agnostic, and softmax has one more."""
        return self.predictor(self.upsample(self.convolutions(regions)))

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        """Loss over the pixels of each region's mask."""
        return self.output.loss(prediction, regions, targets)

    def predict(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """Mask logits and classes (R,) → mask probabilities (R, 2 P, 2 P)."""
        return self.output.predict(prediction, labels)

    def to_image(self, values: Tensor, boxes: Tensor, height: int, width: int) -> Mapping[str, Any]:
        """Probabilities (D, M, M) and boxes (D, 4) of one image → COCO RLE, without a full-size bitmap."""
        return self.output.to_image(values, boxes, height, width)


@INSTANCE_HEADS.register
class MLPMaskHead(nn.Module):
    """Fully connected layers that predict all pixels of the masks at once (table 2e).

    Args:
        in_shape: (R, C, P, P).
        num_classes: K, without background.
        fully_connected: hidden layers; the paper's `fc: 1024 → 1024 → 80 · 28²` is 2.
        channels: their width.
        mask_size: M, height and width of a mask.
        class_agnostic: one mask per region instead of one per class.
        activation: as FCNMaskHead's, and so `loss`, `threshold` and `convention`.
        loss: per mask pixel, averaged; if None binary cross-entropy, or with softmax cross-entropy.
        threshold: probability above which a pixel is in the mask.
        convention: whose sampling pastes the mask into the image.
    """

    needs: ClassVar[tuple[str, ...]] = ("masks",)

    def __init__(
        self,
        in_shape: RoIShape,
        num_classes: int,
        *,
        fully_connected: int = 2,
        channels: int = 1024,
        mask_size: int = 28,
        class_agnostic: bool = False,
        activation: Activation = "sigmoid",
        loss: Loss | None = None,
        threshold: float = 0.5,
        convention: Convention = "detectron2",
    ) -> None:
        super().__init__()
        check_at_least(0, fully_connected=fully_connected)
        check_at_least(1, channels=channels, mask_size=mask_size)
        self.output = MaskOutput(
            num_classes,
            activation=activation,
            class_agnostic=class_agnostic,
            loss=loss,
            threshold=threshold,
            convention=convention,
        )
        self.mask_size = mask_size
        inputs = in_shape.channels * in_shape.height * in_shape.width
        self.hidden = linear_stack(inputs, channels, fully_connected)
        self.predictor = nn.Linear(channels if fully_connected else inputs, self.output.channels * mask_size**2)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, regions: Tensor) -> Tensor:
        """(R, C, P, P) → mask logits (R, K, M, M); K is 1 when class-agnostic, and softmax has one more."""
        pixels = self.predictor(self.hidden(regions.flatten(1)))
        return pixels.unflatten(1, (self.output.channels, self.mask_size, self.mask_size))

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        """Loss over the pixels of each region's mask."""
        return self.output.loss(prediction, regions, targets)

    def predict(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """Mask logits and classes (R,) → mask probabilities (R, M, M)."""
        return self.output.predict(prediction, labels)

    def to_image(self, values: Tensor, boxes: Tensor, height: int, width: int) -> Mapping[str, Any]:
        """Probabilities (D, M, M) and boxes (D, 4) of one image → COCO RLE, without a full-size bitmap."""
        return self.output.to_image(values, boxes, height, width)
