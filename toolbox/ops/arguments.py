"""Checks of what a caller passes to the RoI operations, and the settings of one call."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.compiler import is_compiling

from toolbox.errors import ToolboxError

FEATURE_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MAX_LEVELS = 8  # kMaxLevels in csrc/request.h
MAX_POOLED = 1024
MAX_LEVEL_NUMBER = 1024  # log2 of a stride

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

    def __post_init__(self) -> None:
        if not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise ArgumentError(f"spatial_scale is {self.scales[0]}: expected a positive number, 1 / stride")
        if not 0 <= self.sampling_ratio <= MAX_POOLED:
            raise ArgumentError(f"sampling_ratio is {self.sampling_ratio}: expected 0 (adaptive) to {MAX_POOLED}")
        if not self.canonical_size > 0:
            raise ArgumentError(f"canonical_size is {self.canonical_size}: expected a positive number")
        if abs(self.canonical_level) > MAX_LEVEL_NUMBER:
            raise ArgumentError(
                f"canonical_level is {self.canonical_level}: expected the level of a map, log2 of its stride"
            )


def single_settings(
    output_size: int | Sequence[int],
    spatial_scale: float,
    mode: str | None = None,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> PoolSettings:
    """Settings for one map; RoIPool unless `mode` says which RoIAlign."""
    size = output_size if isinstance(output_size, int) else tuple(output_size)
    make = _make_single if is_compiling() else _cached_single
    return make(size, float(spatial_scale), mode, int(sampling_ratio), bool(aligned))


def pyramid_settings(
    output_size: int | Sequence[int],
    strides: Sequence[float],
    levels: int,
    sampling: tuple[str, int, bool] | None,
    canonical_size: float,
    canonical_level: int,
) -> PoolSettings:
    """Settings for maps of growing stride; `sampling` is RoIAlign's mode, ratio and aligned, None for RoIPool."""
    size = output_size if isinstance(output_size, int) else tuple(output_size)
    make = _make_pyramid if is_compiling() else _cached_pyramid
    return make(size, tuple(strides), levels, sampling, float(canonical_size), int(canonical_level))


def _make_single(
    size: int | tuple[int, ...], scale: float, mode: str | None, sampling_ratio: int, aligned: bool
) -> PoolSettings:
    return PoolSettings(size_pair(size), (scale,), (0,), pool_method(mode), sampling_ratio, aligned)


def _make_pyramid(
    size: int | tuple[int, ...],
    strides: tuple[float, ...],
    levels: int,
    sampling: tuple[str, int, bool] | None,
    canonical_size: float,
    canonical_level: int,
) -> PoolSettings:
    mode, ratio, aligned = sampling or (None, 0, True)
    scales, numbers = level_scales(strides, levels)
    method = pool_method(mode)
    return PoolSettings(size_pair(size), scales, numbers, method, ratio, aligned, canonical_size, canonical_level)


# Kept from call to call, but not for the compiler: it looks through a cache, and says so every time.
_cached_single = functools.lru_cache(maxsize=1024)(_make_single)
_cached_pyramid = functools.lru_cache(maxsize=1024)(_make_pyramid)


def size_pair(output_size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of the pooled region."""
    pair = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(pair) != 2 or not all(isinstance(side, int) and 1 <= side <= MAX_POOLED for side in pair):
        raise ArgumentError(f"output_size is {output_size}: expected one or two integers of 1 to {MAX_POOLED}")
    return pair[0], pair[1]


def pool_method(mode: str | None) -> Method:
    """Return the method of RoIAlign's `mode`; None is RoIPool."""
    if mode is None:
        return "pool_max"
    if mode == "average":
        return "align_average"
    if mode == "max":
        return "align_max"
    raise ArgumentError(f"mode is '{mode}': expected 'average' or 'max'")


def level_scales(strides: Sequence[float], levels: int) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Return cells per image pixel and rounded log2 of the strides: 4, 8 → (0.25, 0.125), (2, 3)."""
    if len(strides) != levels:
        raise ArgumentError(f"{levels} feature maps but {len(strides)} strides ({list(strides)}): one stride per map")
    if not all(stride > 0 and math.isfinite(stride) for stride in strides):
        raise ArgumentError(f"strides are {list(strides)}: expected positive numbers")
    numbers = tuple(round(math.log2(stride)) for stride in strides)
    if any(b <= a for a, b in zip(numbers, numbers[1:], strict=False)):
        raise ArgumentError(f"strides are {list(strides)}: expected growing ones, about a power of two apart")
    return tuple(1.0 / stride for stride in strides), numbers


def fit(features: Sequence[Tensor], rois: Tensor) -> bool:
    """Whether nothing can be said against the tensors, in few questions: on a small input they are what a call costs.

    Where not, `check_features` and `check_rois` say what is wrong, unless it is merely rare.
    """
    if not 1 <= len(features) <= MAX_LEVELS:
        return False
    table, dtype, device = rois.shape, features[0].dtype, rois.device
    if len(table) != 2 or table[1] != 5 or rois.dtype not in FEATURE_DTYPES or dtype not in FEATURE_DTYPES:
        return False
    before: tuple[int, int] | None = None
    for level in features:
        shape = level.shape
        if len(shape) != 4 or level.dtype is not dtype or level.device != device:
            return False
        images, channels, height, width = shape
        if height < 1 or width < 1 or (before is not None and before != (images, channels)):
            return False
        before = images, channels
    return True


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


def check_images(images_of_rois: Tensor, images: int) -> None:
    """Raise unless every region's image exists: its index (R,) lies in 0 … `images` - 1. Waits for the device."""
    bad = ~((images_of_rois >= 0) & (images_of_rois < images))
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        raise bad_image_index(row, images_of_rois[row].item(), images)


def check_out(out: Tensor, features: Sequence[Tensor], rois: Tensor, settings: PoolSettings) -> None:
    """Raise unless the result can be written to `out`."""
    first = features[0]
    shape = (rois.shape[0], first.shape[1], *settings.output_size)
    if out.shape != shape or out.dtype != first.dtype or out.device != first.device:
        raise ArgumentError(
            f"out is {tuple(out.shape)} {out.dtype} on {out.device}: expected {shape} {first.dtype} on {first.device}"
        )
    last = first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous()
    if not out.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format):
        raise ArgumentError(f"out is not {'channels-last' if last else 'contiguous'}, as features are: make it so")
    if torch.is_grad_enabled() and (out.requires_grad or any(level.requires_grad for level in features)):
        raise ArgumentError(
            "out cannot be given where a gradient is wanted: call under torch.no_grad(), or without out"
        )


def bad_image_index(row: int, index: float, images: int) -> ArgumentError:
    """The error for a region whose image does not exist."""
    return ArgumentError(
        f"rois[{row}] belongs to image {index:g}, but features hold {images} "
        f"image{'' if images == 1 else 's'}: the first column of rois is an image index from 0"
    )
