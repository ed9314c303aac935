"""Joints as cells of a region's heat map, and back (He et al., *Mask R-CNN*, arXiv:1703.06870, section 5).

A cell is a pixel of the region stretched onto the map: joint x lies in column floor((x - x1) · W / (x2 - x1)), and what
comes back is the middle of a cell, as in torchvision and Detectron2.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CUBIC = -0.75  # torch's parameter


def encode_joints(keypoints: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The cell of each joint in the map of its region.

    Args:
        keypoints: (R, J, 3), x y visibility.
        boxes: (R, 4).
        size: height and width of the map.

    Returns:
        (R, J) int64 cells, row by row from the upper left, 0 where there is none, and (R, J) bool: the joint is
        labelled and lies in the region. One exactly on the right or lower edge belongs to the last column or row.
    """
    cell, inside = [], keypoints[..., 2] > 0
    for axis, count in enumerate(reversed(size)):  # x, y
        point, low, high = keypoints[..., axis], boxes[:, None, axis], boxes[:, None, axis + 2]
        place = ((point - low) * (count / (high - low))).floor()
        place = torch.where(point == high, count - 1, place)
        inside = inside & (place >= 0) & (place < count) & (low < high)
        cell.append(place)
    x, y = (torch.where(inside, place, 0).long() for place in cell)
    return y * size[1] + x, inside


def decode_parabola(maps: Tensor, boxes: Tensor) -> Tensor:
    """Joints at the best cell of each map, moved to the top of the parabola through it and its neighbours on each axis.

    Args:
        maps: (R, J, H, W) logits.
        boxes: (R, 4).

    Returns:
        (R, J, 3): x, y, and the logit of the best cell.
    """
    height, width = maps.shape[-2:]
    scores, best = maps.flatten(2).max(dim=2)
    column, row = best % width, best // width
    steps = torch.arange(-1, 2, device=maps.device)
    along_x = _around(maps, row[..., None].expand(-1, -1, 3), (column[..., None] + steps).clamp(0, width - 1))
    along_y = _around(maps, (row[..., None] + steps).clamp(0, height - 1), column[..., None].expand(-1, -1, 3))
    extent = (boxes[:, None, 2:] - boxes[:, None, :2]).clamp(min=1)
    x = boxes[:, None, 0] + (column + 0.5 + _top(along_x)) * extent[..., 0] / width
    y = boxes[:, None, 1] + (row + 0.5 + _top(along_y)) * extent[..., 1] / height
    return torch.stack((x, y, scores), dim=-1)


def _around(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Values of each map (R, J, H, W) at rows and columns (R, J, 3) → (R, J, 3)."""
    return maps.flatten(2).gather(2, rows * maps.shape[-1] + columns)


def _top(values: Tensor) -> Tensor:
    """(…, 3) values at -1, 0, 1, the middle one the largest → where the parabola through them is highest."""
    before, at, after = values.unbind(-1)
    bend = 2 * at - before - after
    return torch.where(bend > 0, (after - before) / (2 * bend.clamp(min=torch.finfo(values.dtype).tiny)), 0)


def decode_bicubic(maps: Tensor, boxes: Tensor) -> Tensor:
    """Joints at the highest pixel of each map resized to its region, as torchvision's `heatmaps_to_keypoints`.

    A region has whole pixels, rounded up; the middle of one is the joint. Resizing both axes by matrices is more
    arithmetic than 16 cells a pixel, and less than half of the time.

    Args:
        maps: (R, J, H, W) logits.
        boxes: (R, 4), in the pixels that set the resolution: those of the network.

    Returns:
        (R, J, 3): x, y, and the height of the resized map there.
    """
    boxes = boxes.to(maps.dtype)
    extent = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    found = maps.new_zeros(*maps.shape[:2], 3)
    with torch.autocast(maps.device.type, enabled=False):  # bfloat16 would move a joint by pixels
        for region, (width, height) in enumerate(extent.ceil().long().tolist()):
            across = resizing_matrix(maps.shape[3], width, maps)
            down = resizing_matrix(maps.shape[2], height, maps)
            resized = down @ (maps[region] @ across.T)  # (J, height, width)
            score, pixel = resized.flatten(1).max(dim=1)
            found[region] = torch.stack((pixel % width, pixel // width, score), dim=1)
    correction = extent / extent.ceil()
    found[..., :2] = boxes[:, None, :2] + (found[..., :2] + 0.5) * correction[:, None]
    return found


def resizing_matrix(cells: int, pixels: int, like: Tensor) -> Tensor:
    """(pixels, cells): the weights of cells in each pixel, as torch's bicubic interpolation without antialias.

    Cubic convolution (Keys, 1981), the cells at the ends repeated beyond them.
    """
    place = (torch.arange(pixels, dtype=like.dtype, device=like.device) + 0.5) * (cells / pixels) - 0.5
    t = place - place.floor()
    weights = torch.stack((_far(t + 1), _near(t), _near(1 - t), _far(2 - t)), dim=1)
    nearest = place.floor().long()[:, None] + torch.arange(-1, 3, device=like.device)
    return like.new_zeros(pixels, cells).scatter_add_(1, nearest.clamp(0, cells - 1), weights)


def _near(t: Tensor) -> Tensor:
    """The cubic at 0 ≤ t ≤ 1 from a pixel."""
    return ((_CUBIC + 2) * t - (_CUBIC + 3)) * t * t + 1


def _far(t: Tensor) -> Tensor:
    """The cubic at 1 ≤ t ≤ 2 from a pixel."""
    return ((_CUBIC * t - 5 * _CUBIC) * t + 8 * _CUBIC) * t - 4 * _CUBIC
