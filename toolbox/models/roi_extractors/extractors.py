"""RoI extractors of the compiled operations: regions of odd sizes to regions of one size, on one or several levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from toolbox import ops
from toolbox.models.roi_extractors.pyramid import Pyramid
from toolbox.registry import ROI_EXTRACTORS
from toolbox.structures import FeatureSpec


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
        self.pyramid = Pyramid.over(in_features, features, output_size, canonical_size, canonical_level)
        self.out_shape = self.pyramid.out_shape
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.mode = mode

    def forward(self, features: Mapping[str, Tensor], rois: Tensor) -> Tensor:
        """Maps (N, C, H, W) and rois (R, 5) → (R, C, P, P)."""
        return ops.multiscale_roi_align(
            self.pyramid.maps(features),
            rois,
            self.pyramid.output_size,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            mode=self.mode,
            **self.pyramid.rule,
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
        self.pyramid = Pyramid.over(in_features, features, output_size, canonical_size, canonical_level)
        self.out_shape = self.pyramid.out_shape

    def forward(self, features: Mapping[str, Tensor], rois: Tensor) -> Tensor:
        """Maps (N, C, H, W) and rois (R, 5) → (R, C, P, P)."""
        maps, size = self.pyramid.maps(features), self.pyramid.output_size
        return ops.multiscale_roi_pool(maps, rois, size, **self.pyramid.rule)
