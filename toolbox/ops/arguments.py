"""Checks of what a caller passes to the RoI operations, and the settings of one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from toolbox.errors import ToolboxError

FEATURE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MAX_LEVELS = 8  # kMaxLevels in csrc/request.h
MAX_POOLED = 1024

Method = Literal["align_average", "align_max", "pool_max"]


class ArgumentError(ToolboxError, ValueError):
    """A RoI operation was called with tensors or settings that do not fit."""


@dataclass(frozen=True)
class PoolSettings:
    """How to pool, for all regions of a call.

    Attributes:
        output_size: height and width of the pooled region, P.
        scales: feature cells per image pixel, per level.
        numbers: rounded log2 of each level's stride, ascending.
        method: average or maximum of bilinear samples (RoIAlign), or maximum of whole cells (RoIPool).
        sampling_ratio: samples a side of a bin; 0 for as many as the bin has cells.
        aligned: whether the pixel centre is at 0.5 (right), or at 0 (the first RoIAlign).
        canonical_size: side of the box that belongs to level `canonical_level`.
    """

    output_size: tuple[int, int]
    scales: tuple[float, ...]
    numbers: tuple[int, ...]
    method: Method
    sampling_ratio: int = 0
    aligned: bool = True
    canonical_size: float = 224.0
    canonical_level: int = 4


def size_pair(output_size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of the pooled region."""
    pair = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(pair) != 2 or not all(isinstance(side, int) and 1 <= side <= MAX_POOLED for side in pair):
        raise ArgumentError(f"output_size is {output_size}: expected one or two integers of 1 to {MAX_POOLED}")
    return pair[0], pair[1]


def align_method(mode: str) -> Method:
    """Return the method of RoIAlign's `mode`."""
    if mode == "average":
        return "align_average"
    if mode == "max":
        return "align_max"
    raise ArgumentError(f"mode is '{mode}': expected 'average' or 'max'")


def level_numbers(strides: Sequence[float], levels: int) -> tuple[int, ...]:
    """Return rounded log2 of the strides: 4, 8, 16 → 2, 3, 4."""
    if len(strides) != levels:
        raise ArgumentError(f"{levels} feature maps but {len(strides)} strides ({list(strides)}): one stride per map")
    if not all(stride > 0 and math.isfinite(stride) for stride in strides):
        raise ArgumentError(f"strides are {list(strides)}: expected positive numbers")
    numbers = tuple(round(math.log2(stride)) for stride in strides)
    if any(b <= a for a, b in zip(numbers, numbers[1:], strict=False)):
        raise ArgumentError(f"strides are {list(strides)}: expected growing ones, about a power of two apart")
    return numbers


def check_features(features: Sequence[Tensor]) -> None:
    """Raise unless `features` are one to MAX_LEVELS maps (N, C, H, W) that differ in height and width only."""
    if not 1 <= len(features) <= MAX_LEVELS:
        raise ArgumentError(f"got {len(features)} feature maps: expected 1 to {MAX_LEVELS}")
    first = features[0]
    for index, level in enumerate(features):
        name = f"features[{index}]" if len(features) > 1 else "features"
        if level.dim() != 4:
            raise ArgumentError(f"{name} has shape {tuple(level.shape)}: expected (N, C, H, W)")
        if level.dtype not in FEATURE_DTYPES:
            raise ArgumentError(f"{name} is {level.dtype}: expected one of {', '.join(map(str, FEATURE_DTYPES))}")
        if level.shape[2] < 1 or level.shape[3] < 1:
            raise ArgumentError(f"{name} has shape {tuple(level.shape)}: a map needs at least one cell")
        if level.shape[:2] != first.shape[:2]:
            raise ArgumentError(
                f"{name} has shape {tuple(level.shape)}, features[0] {tuple(first.shape)}: "
                "levels share the number of images and channels"
            )
        if level.device != first.device or level.dtype != first.dtype:
            raise ArgumentError(
                f"{name} is {level.dtype} on {level.device}, features[0] {first.dtype} on {first.device}: "
                "levels share type and device"
            )


def check_rois(rois: Tensor, features: Sequence[Tensor]) -> None:
    """Raise unless `rois` are (R, 5) on the device of the features."""
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise ArgumentError(f"rois have shape {tuple(rois.shape)}: expected (R, 5), image index and x1 y1 x2 y2")
    if rois.device != features[0].device:
        raise ArgumentError(f"rois are on {rois.device}, features on {features[0].device}: move one of them")
    if rois.is_complex() or rois.dtype == torch.bool:
        raise ArgumentError(f"rois are {rois.dtype}: expected torch.float32")


def check_settings(settings: PoolSettings) -> None:
    """Raise unless scales, sampling and canonical size make sense."""
    if not all(math.isfinite(scale) and scale > 0 for scale in settings.scales):
        raise ArgumentError(f"spatial_scale is {settings.scales[0]}: expected a positive number, 1 / stride")
    if not 0 <= settings.sampling_ratio <= MAX_POOLED:
        raise ArgumentError(f"sampling_ratio is {settings.sampling_ratio}: expected 0 (adaptive) to {MAX_POOLED}")
    if not settings.canonical_size > 0:
        raise ArgumentError(f"canonical_size is {settings.canonical_size}: expected a positive number")


def bad_image_index(row: int, index: float, images: int) -> ArgumentError:
    """The error for a region whose image does not exist."""
    return ArgumentError(
        f"rois[{row}] belongs to image {index:g}, but features hold {images} "
        f"image{'' if images == 1 else 's'}: the first column of rois is an image index from 0"
    )
