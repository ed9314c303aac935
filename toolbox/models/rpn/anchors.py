"""Reference boxes on a grid (Ren et al., *Faster R-CNN*, arXiv:1506.01497, section 3.1.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from toolbox.errors import counted
from toolbox.structures import FeatureSpec


class AnchorGenerator(nn.Module):
    """Anchors of several sizes and aspect ratios at every cell of every level.

    Args:
        in_features: the maps that the anchors lie on.
        sizes: square root of the anchor area in pixels; one per level (`[32, 64, 128, 256, 512]`), or a list per level
            (`[[32, 64, 128, 256, 512]]` for a single level with five).
        ratios: height / width.
        rounding: round the corners of the anchors around the origin to whole pixels, as torchvision does.
        offset: position of an anchor's centre in its cell, 0 for the top left corner, 0.5 for the middle.
        whole_strides: space the cells by image size // map size, as torchvision does. It differs from the map's stride
            where that does not divide the image: p6 of an image 800 high has 13 rows 61 pixels apart instead of 64.
    """

    cells: Tensor

    wired: ClassVar[tuple[str, ...]] = ("in_features",)

    def __init__(
        self,
        in_features: Mapping[str, FeatureSpec],
        *,
        sizes: Sequence[float] | Sequence[Sequence[float]] = (32, 64, 128, 256, 512),
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        rounding: bool = False,
        offset: float = 0.0,
        whole_strides: bool = False,
    ) -> None:
        super().__init__()
        per_level = [[size] if isinstance(size, int | float) else list(size) for size in sizes]
        if len(per_level) != len(in_features):
            raise ValueError(_level_problem(per_level, list(in_features)))
        if not ratios or not all(per_level):
            raise ValueError(f"{'sizes' if ratios else 'ratios'} holds an empty list; a cell has at least one anchor")
        if len({len(level) for level in per_level}) != 1:
            raise ValueError(f"sizes are not equally many at every level, got {per_level}; give each level as many")
        for name, values in (("sizes", [size for level in per_level for size in level]), ("ratios", ratios)):
            if not all(0 < value < math.inf for value in values):
                raise ValueError(f"{name} are more than 0, got {list(values)}")
        self.strides = [spec.stride for spec in in_features.values()]
        self.num_anchors = len(per_level[0]) * len(ratios)
        self.offset = offset
        self.whole_strides = whole_strides
        # A buffer (levels, A, 4), so that it lies on the model's device and no step waits for a copy.
        cells = torch.stack([_cell_anchors(level, ratios, rounding) for level in per_level])
        self.register_buffer("cells", cells, persistent=False)

    def forward(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> list[Tensor]:
        """Per level (N, C, H, W) → (H · W · A, 4) in network pixels, row by row, a cell's anchors adjacent.

        Args:
            features: the maps.
            image_size: height and width of the padded images.
        """
        return [
            self._grid(cell, stride, feature, image_size)
            for cell, stride, feature in zip(self.cells, self.strides, features, strict=True)
        ]

    def _grid(self, cell: Tensor, stride: int, feature: Tensor, image_size: tuple[int, int]) -> Tensor:
        height, width = feature.shape[-2:]
        steps = (stride, stride)
        if self.whole_strides:
            steps = (image_size[0] // height, image_size[1] // width)
        dtype = torch.promote_types(feature.dtype, torch.float32)
        x = (torch.arange(width, device=feature.device, dtype=dtype) + self.offset) * steps[1]
        y = (torch.arange(height, device=feature.device, dtype=dtype) + self.offset) * steps[0]
        x, y = x[None, :].expand(height, width), y[:, None].expand(height, width)
        corners = torch.stack((x, y, x, y), dim=-1)
        return (corners[:, :, None, :] + cell.to(corners)).reshape(-1, 4)


def _cell_anchors(sizes: Sequence[float], ratios: Sequence[float], rounding: bool) -> Tensor:
    """(A, 4) anchors around the origin, ratio by ratio, as torchvision orders them."""
    root = torch.tensor(ratios, dtype=torch.float64).sqrt()[:, None]
    size = torch.tensor(sizes, dtype=torch.float64)[None, :]
    width, height = (size / root).flatten(), (size * root).flatten()
    anchors = torch.stack((-width, -height, width, height), dim=1) / 2
    return (anchors.round() if rounding else anchors).float()


def _level_problem(sizes: Sequence[Sequence[float]], maps: Sequence[str]) -> str:
    """What is said of sizes for another number of levels; on one map, a list of sizes was meant for all of it."""
    there = f"there is 1: {maps[0]}" if len(maps) == 1 else f"there are {len(maps)}: {', '.join(maps)}"
    message = f"sizes are given for {counted(len(sizes), 'level')}, but {there}"
    if len(maps) == 1 and sizes and all(len(level) == 1 for level in sizes):
        written = ", ".join(f"{level[0]:g}" for level in sizes)
        return f"{message}; for all of them on that one, write [[{written}]]"
    return f"{message}; give one size (or list of sizes) per level"
