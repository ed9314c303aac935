"""RoI extractors: regions of odd sizes to regions of one size, over one or several feature levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from toolbox import ops
from toolbox.registry import ROI_EXTRACTORS
from toolbox.structures import FeatureSpec, RoIShape

COARSEST_STRIDE = 32  # p6 only serves the RPN (Feature Pyramid Networks, arXiv:1612.03144, footnote of section 4.1)


@ROI_EXTRACTORS.register
class RoIAlign(nn.Module):
    """Bilinear samples at exact positions (He et al., *Mask R-CNN*, arXiv:1703.06870, section 3).

    Args:
        in_features: the maps to read from.
        output_size: P, or (height, width).
        features: names of the maps to use; all up to stride 32 if None.
        sampling_ratio: samples per bin and axis; 0 for as many as the bin has feature pixels.
        aligned: shift by half a pixel, so that pixel i covers [i, i + 1); False is the original definition.
        mode: average or maximum of the samples.
        canonical_size: a region of this side in pixels reads from `canonical_level` (arXiv:1612.03144, equation 1).
        canonical_level: 4 is p4, the level of stride 16.
    """

    def __init__(
        self,
        in_features: Mapping[str, FeatureSpec],
        *,
        output_size: int | tuple[int, int] = 7,
        features: Sequence[str] | None = None,
        sampling_ratio: int = 2,
        aligned: bool = True,
        mode: Literal["average", "max"] = "average",
        canonical_size: float = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        self.features, self.strides, self.out_shape = _levels(in_features, features, output_size)
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.mode = mode
        self.canonical_size = canonical_size
        self.canonical_level = canonical_level

    def forward(self, features: Mapping[str, Tensor], rois: Tensor) -> Tensor:
        """Maps (N, C, H, W) and rois (R, 5) → (R, C, P, P)."""
        return ops.multiscale_roi_align(
            [features[name] for name in self.features],
            rois,
            (self.out_shape.height, self.out_shape.width),
            strides=self.strides,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            mode=self.mode,
            canonical_size=self.canonical_size,
            canonical_level=self.canonical_level,
        )


@ROI_EXTRACTORS.register
class RoIPool(nn.Module):
    """Maximum over quantised bins (Girshick, *Fast R-CNN*, arXiv:1504.08083, section 2.1).

    Args:
        in_features: the maps to read from.
        output_size: P, or (height, width).
        features: names of the maps to use; all up to stride 32 if None.
        canonical_size: a region of this side in pixels reads from `canonical_level` (arXiv:1612.03144, equation 1).
        canonical_level: 4 is p4, the level of stride 16.
    """

    def __init__(
        self,
        in_features: Mapping[str, FeatureSpec],
        *,
        output_size: int | tuple[int, int] = 7,
        features: Sequence[str] | None = None,
        canonical_size: float = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        self.features, self.strides, self.out_shape = _levels(in_features, features, output_size)
        self.canonical_size = canonical_size
        self.canonical_level = canonical_level

    def forward(self, features: Mapping[str, Tensor], rois: Tensor) -> Tensor:
        """Maps (N, C, H, W) and rois (R, 5) → (R, C, P, P)."""
        return ops.multiscale_roi_pool(
            [features[name] for name in self.features],
            rois,
            (self.out_shape.height, self.out_shape.width),
            strides=self.strides,
            canonical_size=self.canonical_size,
            canonical_level=self.canonical_level,
        )


def _levels(
    in_features: Mapping[str, FeatureSpec], names: Sequence[str] | None, output_size: int | tuple[int, int]
) -> tuple[tuple[str, ...], list[int], RoIShape]:
    """Names and strides of the maps to read, and what comes out."""
    chosen = names or [name for name, spec in in_features.items() if spec.stride <= COARSEST_STRIDE] or [*in_features]
    unknown = [name for name in chosen if name not in in_features]
    if unknown:
        raise ValueError(f"features: no feature map named {', '.join(unknown)}; there are {', '.join(in_features)}")
    channels = {in_features[name].channels for name in chosen}
    if len(channels) != 1:
        widths = ", ".join(f"{name}: {in_features[name].channels}" for name in chosen)
        raise ValueError(
            f"maps of different width cannot be pooled together ({widths}); name one under 'features', or add a neck"
        )
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    if height < 1 or width < 1:
        raise ValueError(f"output_size must be at least 1, got {output_size}")
    return tuple(chosen), [in_features[name].stride for name in chosen], RoIShape(channels.pop(), height, width)
