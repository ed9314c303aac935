"""RoIAlign and RoIPool in plain PyTorch: literal, slow, differentiable. What the compiled kernels are held against.

One region at a time; along y first, then along x, since the samples of a bin lie on a grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from toolbox.ops.arguments import PoolSettings


def pool_regions(features: Sequence[Tensor], rois: Tensor, settings: PoolSettings) -> Tensor:
    """Pool regions as `toolbox.ops.multiscale_roi_align` and its like do.

    Args:
        features: per level (N, C, H, W).
        rois: (R, 5), image index and x1 y1 x2 y2.

    Returns:
        (R, C, P, P).
    """
    channels = features[0].shape[1]
    pool = _pool_region if settings.method == "pool_max" else _align_region
    dtype = torch.promote_types(features[0].dtype, torch.float32)
    levels = choose_level(rois.to(dtype), settings).tolist()
    pooled = [
        pool(features[level][int(roi[0])].to(dtype), roi[1:].to(dtype), settings.scales[level], settings)
        for roi, level in zip(rois, levels, strict=True)
    ]
    if not pooled:
        return features[0].sum(dim=(0, 2, 3)).new_zeros(0).reshape(0, channels, *settings.output_size)
    return torch.stack(pooled).to(features[0].dtype)


def choose_level(rois: Tensor, settings: PoolSettings) -> Tensor:
    """Return (R,) int64, index of each region's level: floor(k0 + log2(sqrt(area) / s0)), or the nearest there is."""
    area = (rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])
    exact = settings.canonical_level + torch.log2(area.sqrt() / settings.canonical_size)
    number = torch.nan_to_num(torch.floor(exact + 1e-6), nan=-math.inf)
    below = torch.tensor(settings.numbers[1:], dtype=number.dtype, device=number.device)
    return (number[:, None] >= below).sum(dim=1)


def _align_region(image: Tensor, box: Tensor, scale: float, settings: PoolSettings) -> Tensor:
    """RoIAlign of one box: image (C, H, W), box (4,) → (C, P, P)."""
    height, width = settings.output_size
    y, samples_y = _sample_places(box[1], box[3], scale, height, settings)
    x, samples_x = _sample_places(box[0], box[2], scale, width, settings)
    if samples_y * samples_x == 0:
        return image.sum(dim=(1, 2))[:, None, None].expand(-1, height, width) * 0
    along_y = _interpolate(image, y, dim=1)
    samples = _interpolate(along_y, x, dim=2).reshape(-1, height, samples_y, width, samples_x)
    if settings.method == "align_average":
        return samples.mean(dim=(2, 4))
    return samples.transpose(2, 3).flatten(3).max(dim=3).values


def _sample_places(low: Tensor, high: Tensor, scale: float, bins: int, settings: PoolSettings) -> tuple[Tensor, int]:
    """Places of the samples on one axis (bins × samples,), in cells, and how many a bin has."""
    offset = 0.5 if settings.aligned else 0.0
    start = low * scale - offset
    length = high * scale - offset - start
    if not settings.aligned:
        length = torch.clamp(length, min=1)
    bin_length = length / bins
    samples = settings.sampling_ratio
    if samples == 0:
        samples = max(int(torch.ceil(bin_length)), 0) if bool(torch.isfinite(bin_length)) else 0
    steps = torch.arange(samples, dtype=low.dtype, device=low.device) + 0.5
    within = steps * bin_length / max(samples, 1)
    firsts = start + torch.arange(bins, dtype=low.dtype, device=low.device) * bin_length
    return (firsts[:, None] + within).flatten(), samples


def _interpolate(image: Tensor, places: Tensor, dim: int) -> Tensor:
    """Interpolate `image` linearly at `places` along `dim`: constant at the border, zero more than a cell outside."""
    size = image.shape[dim]
    inside = (places >= -1) & (places <= size)
    places = torch.where(inside, places, 0.0).clamp(0, size - 1)
    low = places.floor().long()
    high = (low + 1).clamp(max=size - 1)
    shape = [-1 if axis == dim else 1 for axis in range(3)]
    fraction = (places - low).reshape(shape)
    values = image.index_select(dim, low) * (1 - fraction) + image.index_select(dim, high) * fraction
    return torch.where(inside.reshape(shape), values, 0.0)


def _pool_region(image: Tensor, box: Tensor, scale: float, settings: PoolSettings) -> Tensor:
    """RoIPool of one box: image (C, H, W), box (4,) → (C, P, P)."""
    rows = _cell_ranges(box[1], box[3], scale, settings.output_size[0], image.shape[1])
    columns = _cell_ranges(box[0], box[2], scale, settings.output_size[1], image.shape[2])
    return torch.stack([torch.stack([_maximum(image[:, r, c]) for c in columns], dim=1) for r in rows], dim=1)


def _cell_ranges(low: Tensor, high: Tensor, scale: float, bins: int, size: int) -> list[slice]:
    """Cells of each bin on one axis."""
    if not bool(torch.isfinite(low + high)):
        return [slice(0, 0)] * bins
    first, last = _round(float(low * scale)), _round(float(high * scale))
    bin_length = float(torch.tensor(max(last - first + 1, 1), dtype=low.dtype) / bins)
    edges = torch.arange(bins + 1, dtype=low.dtype) * bin_length
    starts, ends = torch.floor(edges[:-1]).long() + first, torch.ceil(edges[1:]).long() + first
    return [slice(a, b) for a, b in zip(starts.clamp(0, size).tolist(), ends.clamp(0, size).tolist(), strict=True)]


def _round(value: float) -> int:
    """Halves away from zero, as Fast R-CNN's code rounds."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def _maximum(cells: Tensor) -> Tensor:
    """Largest cell (C, h, w) → (C,), zero without cells."""
    flat = cells.flatten(1)
    return flat.max(dim=1).values if flat.shape[1] else flat.sum(dim=1)
