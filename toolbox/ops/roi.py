"""RoIAlign and RoIPool on one feature map or on a pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from toolbox.ops import eager, fallback, native, operators
from toolbox.ops.arguments import (
    PoolSettings,
    check_features,
    check_out,
    check_rois,
    fit,
    pyramid_settings,
    single_settings,
)


def roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: int | Sequence[int],
    *,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
    mode: str = "average",
    out: Tensor | None = None,
) -> Tensor:
    """Pool regions by bilinear samples (RoIAlign of Mask R-CNN).

    Args:
        features: (N, C, H, W), contiguous or channels-last; the result has the same layout and type.
        rois: (R, 5) float32, image index and x1 y1 x2 y2 in image pixels. Not differentiated. Boxes may lie outside the
            map: what a sample reads more than a cell outside is zero, and so is a box that is not finite.
        output_size: height and width of the pooled region, or one number for both.
        spatial_scale: feature cells per image pixel, 1 / stride.
        sampling_ratio: samples a side of a bin; 0 takes one for each cell of the bin.
        aligned: pixel centres at 0.5, which is right; False is the first RoIAlign, for weights trained so.
        mode: `"average"` or `"max"` of a bin's samples.
        out: where to write the result, where no gradient is wanted: a large one costs more to allocate than to compute.

    Returns:
        (R, C, P, P).

    Raises:
        ArgumentError: shapes, types or settings do not fit; on the CPU also an image index that does not exist (CUDA is
            not waited for: there such a region is zero).
    """
    settings = single_settings(output_size, spatial_scale, mode, sampling_ratio, aligned)
    return _pool([features], rois, settings, out)


def multiscale_roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: int | Sequence[int],
    *,
    strides: Sequence[float],
    sampling_ratio: int = 2,
    aligned: bool = True,
    mode: str = "average",
    canonical_size: float = 224,
    canonical_level: int = 4,
    out: Tensor | None = None,
) -> Tensor:
    """RoIAlign on a pyramid: each region is read from the level that fits its size, all in one call.

    The level is floor(canonical_level + log2(sqrt(area) / canonical_size)), the FPN paper's rule, or the nearest that
    is there; level k is the map of stride 2 ** k.

    Args:
        features: per level (N, C, H, W), from fine to coarse.
        rois: (R, 5) float32, image index and x1 y1 x2 y2 in image pixels.
        output_size: height and width of the pooled region, or one number for both.
        strides: image pixels per cell of each level.
        sampling_ratio: as in `roi_align`, and so `aligned`, `mode` and `out`.
        canonical_size: side in pixels of the box that belongs to `canonical_level`.

    Returns:
        (R, C, P, P).
    """
    sampling = (mode, int(sampling_ratio), bool(aligned))
    settings = pyramid_settings(output_size, strides, len(features), sampling, canonical_size, canonical_level)
    return _pool(features, rois, settings, out)


def roi_pool(
    features: Tensor,
    rois: Tensor,
    output_size: int | Sequence[int],
    *,
    spatial_scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """Pool regions by the maximum over whole cells (RoIPool of Fast R-CNN).

    Args:
        features: (N, C, H, W).
        rois: (R, 5) float32, image index and x1 y1 x2 y2 in image pixels.
        output_size: height and width of the pooled region, or one number for both.
        spatial_scale: feature cells per image pixel, 1 / stride.
        out: where to write the result, where no gradient is wanted.

    Returns:
        (R, C, P, P); a bin outside the map is zero.
    """
    return _pool([features], rois, single_settings(output_size, spatial_scale), out)


def multiscale_roi_pool(
    features: Sequence[Tensor],
    rois: Tensor,
    output_size: int | Sequence[int],
    *,
    strides: Sequence[float],
    canonical_size: float = 224,
    canonical_level: int = 4,
    out: Tensor | None = None,
) -> Tensor:
    """RoIPool on a pyramid; arguments and result as in `multiscale_roi_align`."""
    settings = pyramid_settings(output_size, strides, len(features), None, canonical_size, canonical_level)
    return _pool(features, rois, settings, out)


def _pool(features: Sequence[Tensor], rois: Tensor, settings: PoolSettings, out: Tensor | None) -> Tensor:
    """Check the arguments and run the compiled operation, or what stands in for it."""
    if not fit(features, rois):
        features = _one_dtype(list(features))
        check_features(features)
        check_rois(rois, features)
    if out is not None:
        check_out(out, features, rois, settings)
    if not native.usable_for(features[0]):
        pooled = fallback.pool_regions(features, rois, settings)
    elif eager.is_plain(features if out is None else [*features, out], rois):
        pooled = eager.pool_regions(features, rois, settings, out)
    else:
        pooled = operators.pool_regions(features, rois, settings)
    return pooled if out is None or out is pooled else out.copy_(pooled)


def _one_dtype(features: list[Tensor]) -> list[Tensor]:
    """Under autocast levels may come out in different types: give them the widest. Regions keep float32."""
    dtypes = {level.dtype for level in features}
    if len(dtypes) < 2 or not torch.is_autocast_enabled(features[0].device.type):
        return features
    widest = features[0].dtype
    for dtype in dtypes:
        widest = torch.promote_types(widest, dtype)
    return [level.to(widest) for level in features]
