"""Regions read by `torch.nn.functional.grid_sample`: what RoIWarp and SpatialTransformerPool share.

A sample is bilinear, and what lies outside the map is zero: a sample fades within a cell of the map's edge, and is zero
beyond. The regions of a level are read at once, as a block of samples for each image. The memory that this takes beside
the result is that of N × (the most regions of an image) × C × (samples of a region) values, level by level: four times
the result with 2 × 2 samples a bin, where all images have as many regions. Only a maximum keeps them for its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from toolbox.models.roi_extractors.pyramid import Pyramid
from toolbox.ops.arguments import check_images, check_rois

OUTSIDE = 3.0  # in units of a grid, where the map spans -1 … 1: reads no cell, of however small a map


def read_regions(
    maps: Sequence[Tensor],
    rois: Tensor,
    pyramid: Pyramid,
    *,
    whole_cells: bool,
    sampling_ratio: int,
    mode: Literal["average", "max"],
) -> Tensor:
    """Pool regions of a pyramid out of bilinear samples.

    Args:
        maps: per level (N, C, H, W).
        rois: (R, 5), image index and x1 y1 x2 y2 in network pixels. Not differentiated. One that is not finite is zero.
        whole_cells: round the region to the cells from x1's to x2's, both included, as RoIPool does.
        sampling_ratio: samples per bin and axis.
        mode: average or maximum of a bin's samples.

    Returns:
        (R, C, P, P).

    Raises:
        ArgumentError: the rois are none, or on the CPU: one is of an image that there is not.
    """
    check_rois(rois, maps)
    result = reduce(torch.promote_types, [feature.dtype for feature in maps])
    dtype = torch.promote_types(result, torch.float32)  # half precision cannot tell the cells of a large map apart
    rois = rois.detach().to(dtype)
    level, image = pyramid.level_of(rois), rois[:, 0].long()
    strides = rois.new_tensor(pyramid.strides)[level][:, None]
    cells = rois[:, 1:] / strides
    if whole_cells:
        cells = to_whole_cells(cells)
    sizes = rois.new_tensor([[feature.shape[-1], feature.shape[-2]] for feature in maps])[level]
    height, width = (side * sampling_ratio for side in pyramid.output_size)
    grid = affine_grid(cells, sizes, height, width)
    read = _read_by_image if not torch.compiler.is_exporting() else _read_everywhere
    pooled = read([feature.to(dtype) for feature in maps], grid, level, image, sampling_ratio, mode).to(result)
    outermost = all(feature.is_contiguous() for feature in maps)
    return pooled.contiguous(memory_format=torch.contiguous_format if outermost else torch.channels_last)


def to_whole_cells(cells: Tensor) -> Tensor:
    """Corners (R, 4) in cells → the corners around the cells that RoIPool reads, at least one."""
    # Halves go away from zero, as Fast R-CNN's code rounds; torch rounds them to even numbers.
    halves = (cells - cells.trunc()).abs() == 0.5
    rounded = torch.where(halves, cells.trunc() + cells.sign(), cells.round())
    first, last = rounded[:, :2], rounded[:, 2:]
    return torch.cat((first, torch.maximum(last, first) + 1), dim=1)


def affine_grid(cells: Tensor, sizes: Tensor, height: int, width: int) -> Tensor:
    """The middles of `height` × `width` equal parts of each region, in units where its map spans -1 … 1.

    The affine map of a box is a scale and a shift: by element, since `torch`'s own `affine_grid` multiplies matrices,
    which under autocast or TF32 moves samples by cells.

    Args:
        cells: (R, 4), corners of the regions in cells of their maps.
        sizes: (R, 2), width and height of their maps.

    Returns:
        (R, height, width, 2), x and y.
    """
    corners = 2 * cells.unflatten(1, (2, 2)) / sizes[:, None] - 1  # (R, 2, 2): low and high, x and y
    low, side = corners[:, 0], corners[:, 1] - corners[:, 0]
    x = low[:, :1] + side[:, :1] * (torch.arange(width, device=cells.device, dtype=cells.dtype) + 0.5) / width
    y = low[:, 1:] + side[:, 1:] * (torch.arange(height, device=cells.device, dtype=cells.dtype) + 0.5) / height
    grid = torch.stack((x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)), dim=-1)
    return grid.nan_to_num(nan=OUTSIDE).clamp(-OUTSIDE, OUTSIDE)


def _read_by_image(maps: Sequence[Tensor], grid: Tensor, level: Tensor, image: Tensor, ratio: int, mode: str) -> Tensor:
    """Per level, the regions of each image in a padded block; waits for the device once, for their counts.

    Args:
        maps: per level (N, C, H, W).
        grid: (R, height, width, 2).
        level, image: (R,), where each region is read.
    """
    images = maps[0].shape[0]
    if grid.device.type == "cpu":
        check_images(image, images)
    group = level * images + image
    order = group.argsort(stable=True)
    counts = torch.bincount(group, minlength=len(maps) * images)
    firsts = counts.cumsum(0) - counts
    place = torch.arange(len(order), device=order.device) - firsts[group[order]]  # of a region in its image's block
    pooled, done = [], 0
    for feature, per_image in zip(maps, counts.view(-1, images).tolist(), strict=True):
        rows = slice(done, done + sum(per_image))
        spots = (image[order[rows]], place[rows])
        block = grid.new_full((images, max(per_image), *grid.shape[1:]), OUTSIDE)
        block[spots] = grid[order[rows]]
        pooled.append(_sample(feature, block, ratio, mode)[spots])
        done = rows.stop
    return torch.cat(pooled)[order.argsort()]


def _read_everywhere(
    maps: Sequence[Tensor], grid: Tensor, level: Tensor, image: Tensor, ratio: int, mode: str
) -> Tensor:
    """Every region on every map, outside of all but its own: for export, where shapes may not depend on values."""
    pooled = []
    for number, feature in enumerate(maps):
        for index in range(feature.shape[0]):
            own = (level == number) & (image == index)
            elsewhere = torch.where(own[:, None, None, None], grid, OUTSIDE)
            pooled.append(_sample(feature[index : index + 1], elsewhere[None], ratio, mode)[0])
    return torch.stack(pooled).sum(dim=0)


def _sample(feature: Tensor, grid: Tensor, ratio: int, mode: str) -> Tensor:
    """Read a map at the samples of r regions of each image, and pool each bin's.

    Args:
        feature: (N, C, H, W).
        grid: (N, r, height, width, 2).

    Returns:
        (N, r, C, P, P).
    """
    images, channels = feature.shape[:2]
    regions, height, width = grid.shape[1:4]
    values = F.grid_sample(feature, grid.flatten(1, 2), mode="bilinear", padding_mode="zeros", align_corners=False)
    if mode == "max":
        pooled = F.max_pool2d(values.reshape(images * channels * regions, 1, height, width), ratio)
    else:  # avg_pool2d would keep the samples for its gradient
        pooled = values.reshape(-1, height // ratio, ratio, width // ratio, ratio).mean(dim=(2, 4))
    return pooled.reshape(images, channels, regions, height // ratio, width // ratio).transpose(1, 2)
