"""RoI extractors of the ablations: what RoIAlign is compared with in *Mask R-CNN* (arXiv:1703.06870, table 2c)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from toolbox.models.heads.layers import check_at_least
from toolbox.models.roi_extractors.pyramid import Pyramid
from toolbox.models.roi_extractors.sampling import read_regions
from toolbox.registry import ROI_EXTRACTORS
from toolbox.structures import FeatureSpec


@ROI_EXTRACTORS.register
class RoIWarp(nn.Module):
    """Bilinear samples of a region that is rounded to whole cells first (Dai et al., *MNC*, arXiv:1512.04412).

    The cells are those that RoIPool reads. What lies outside the map is zero, and so a sample fades within the cell
    beyond its edge.

    Args:
        in_features: the maps to read from.
        output_size: P, or (height, width).
        features: names of the maps to use; all up to stride 32 if None.
        sampling_ratio: samples per bin and axis.
        mode: average or maximum of the samples; MNC takes the maximum of 2 × 2.
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
        mode: Literal["average", "max"] = "average",
        canonical_size: float = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        check_at_least(1, sampling_ratio=sampling_ratio)
        self.pyramid = Pyramid.over(in_features, features, output_size, canonical_size, canonical_level)
        self.out_shape = self.pyramid.out_shape
        self.sampling_ratio = sampling_ratio
        self.mode: Literal["average", "max"] = mode

    def forward(self, features: Mapping[str, Tensor], rois: Tensor) -> Tensor:
        """Maps (N, C, H, W) and rois (R, 5) → (R, C, P, P)."""
        maps, ratio = self.pyramid.maps(features), self.sampling_ratio
        return read_regions(maps, rois, self.pyramid, whole_cells=True, sampling_ratio=ratio, mode=self.mode)


@ROI_EXTRACTORS.register
class SpatialTransformerPool(nn.Module):
    """A region read by the affine grid of its box (Jaderberg et al., *Spatial Transformer Networks*, arXiv:1506.02025).

    One bilinear sample in the middle of each bin, and nothing rounded. What lies outside the map is zero, and so a
    sample fades within the cell beyond its edge; inside the map it is RoIAlign with as many samples.

    Args:
        in_features: the maps to read from.
        output_size: P, or (height, width).
        features: names of the maps to use; all up to stride 32 if None.
        sampling_ratio: samples per bin and axis, averaged.
        canonical_size: a region of this side in pixels reads from `canonical_level` (arXiv:1612.03144, equation 1).
        canonical_level: 4 is p4, the level of stride 16.
    """

    def __init__(
        self,
        in_features: Mapping[str, FeatureSpec],
        *,
        output_size: int | tuple[int, int] = 7,
        features: Sequence[str] | None = None,
        sampling_ratio: int = 1,
        canonical_size: float = 224,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        check_at_least(1, sampling_ratio=sampling_ratio)
        self.pyramid = Pyramid.over(in_features, features, output_size, canonical_size, canonical_level)
        self.out_shape = self.pyramid.out_shape
        self.sampling_ratio = sampling_ratio

    def forward(self, features: Mapping[str, Tensor], rois: Tensor) -> Tensor:
        """Maps (N, C, H, W) and rois (R, 5) → (R, C, P, P)."""
        maps, ratio = self.pyramid.maps(features), self.sampling_ratio
        return read_regions(maps, rois, self.pyramid, whole_cells=False, sampling_ratio=ratio, mode="average")
