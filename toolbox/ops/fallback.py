"""What runs without the extension: torchvision's operation where it can do the same, else the plain-PyTorch twin."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from toolbox.ops import native, reference
from toolbox.ops.arguments import PoolSettings, check_images


def pool_regions(features: Sequence[Tensor], rois: Tensor, settings: PoolSettings) -> Tensor:
    """Pool (R, C, P, P) out of checked arguments, differentiable."""
    if not torch.compiler.is_compiling():
        if not native.native_built():
            _warn_once()
        if features[0].device.type == "cpu":
            check_images(rois[:, 0], features[0].shape[0])
    if settings.method == "align_max":
        return reference.pool_regions(features, rois, settings)
    dtype = torch.promote_types(features[0].dtype, torch.float32)
    rois = rois.to(dtype)
    if len(features) == 1:
        return _torchvision(features[0], rois, settings, 0)
    level = reference.choose_level(rois, settings)
    rows = [(level == index).nonzero().squeeze(1) for index in range(len(features))]
    pooled = [_torchvision(features[index], rois[row], settings, index) for index, row in enumerate(rows)]
    return torch.cat(pooled)[torch.argsort(torch.cat(rows))]


def _torchvision(features: Tensor, rois: Tensor, settings: PoolSettings, level: int) -> Tensor:
    from torchvision.ops import roi_align, roi_pool

    maps, scale = features.to(rois.dtype), settings.scales[level]
    if settings.method == "pool_max":
        pooled = roi_pool(maps, rois, settings.output_size, scale)
    else:
        ratio = settings.sampling_ratio or -1
        pooled = roi_align(maps, rois, settings.output_size, scale, ratio, settings.aligned)
    return pooled.to(features.dtype)


@functools.cache
def _warn_once() -> None:
    logging.getLogger("toolbox").warning(
        "the compiled part of toolbox.ops cannot be used: %s. Slower operations of torchvision and PyTorch run instead",
        native.missing_because,
    )
