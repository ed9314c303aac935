"""Single cells of feature maps: what an RPN's loss looks at is a few hundred of a hundred thousand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cells:
    """S cells of the maps of N images on several levels.

    Attributes:
        image: (S,) int64.
        level: (S,) int64.
        y, x: (S,) int64, row and column in the level's map.
    """

    image: Tensor
    level: Tensor
    y: Tensor
    x: Tensor


def cells_of(index: Tensor, sizes: Sequence[tuple[int, int]], anchors: int) -> tuple[Cells, Tensor]:
    """Where anchors stand.

    Args:
        index: (N, S) int64, into all anchors of an image: level by level, row by row, a cell's anchors adjacent.
        sizes: height and width of each level's map.
        anchors: A, per cell.

    Returns:
        The N · S cells, and (N · S,) which of its cell's anchors each is.
    """
    image = torch.arange(len(index), device=index.device)[:, None].expand_as(index).flatten()
    left, level, width = index.flatten(), torch.zeros_like(image), torch.full_like(image, sizes[0][1])
    begin = 0
    for number, (rows, columns) in enumerate(sizes[:-1], start=1):
        begin += rows * columns * anchors
        beyond = index.flatten() >= begin
        level = torch.where(beyond, number, level)
        width = torch.where(beyond, sizes[number][1], width)
        left = torch.where(beyond, index.flatten() - begin, left)
    cell = left // anchors
    return Cells(image, level, cell // width, cell % width), left % anchors


def surroundings(features: Sequence[Tensor], cells: Cells, radius: int) -> tuple[Tensor, Tensor]:
    """The square of 2 · radius + 1 map cells around each, zero beyond the border.

    Every level is asked for every cell, and what is of another level is not taken: so shapes are fixed, and the device
    is not waited for.

    Args:
        features: per level (N, C, H, W).
        cells: S of them.
        radius: 0 for the cell alone.

    Returns:
        (S, C, side, side), and (S, 1, side, side) bool, what lies within the map.
    """
    away = torch.arange(-radius, radius + 1, device=cells.y.device)
    y, x = cells.y[:, None, None] + away[:, None], cells.x[:, None, None] + away
    image = cells.image[:, None, None]
    inside = torch.zeros_like(y + x, dtype=torch.bool)
    found: list[Tensor] = []
    for level, feature in enumerate(features):
        height, width = feature.shape[-2:]
        own = (cells.level == level)[:, None, None] & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        values = feature.permute(0, 2, 3, 1)[image, y.clamp(0, height - 1), x.clamp(0, width - 1)]
        found.append(torch.where(own[..., None], values, 0.0))
        inside = inside | own
    return torch.stack(found).sum(0).permute(0, 3, 1, 2), inside[:, None]
