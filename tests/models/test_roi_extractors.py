"""RoIWarp and SpatialTransformerPool against numbers worked out by hand, and RoIAlign where they are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from toolbox.models.roi_extractors import RoIAlign, RoIWarp, SpatialTransformerPool
from toolbox.ops import ArgumentError
from toolbox.structures import FeatureSpec

# 0  1  2  3
# 4  5  6  7      value = 4 y + x at cell (y, x), whose centre is at (y + 0.5, x + 0.5)
# 8  9 10 11
RAMP = {"c4": torch.arange(12.0).reshape(1, 1, 3, 4)}
GRID = [RoIWarp, SpatialTransformerPool]
LEVELS = {f"p{level}": FeatureSpec(3, 2**level) for level in range(2, 6)}


def on(stride: int, extractor: type[nn.Module], **settings: Any) -> nn.Module:
    return extractor({"c4": FeatureSpec(1, stride)}, **settings)


def box(*corners: float) -> Tensor:
    return torch.tensor([[0.0, *corners]])


def pyramid_maps(images: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(images, 3, 512 // spec.stride, 768 // spec.stride, generator=generator, dtype=torch.float64)
        for name, spec in LEVELS.items()
    }


def inner_boxes(count: int = 40, images: int = 2) -> Tensor:
    """(R, 5): boxes of all sizes, more than a cell of the coarsest map away from the border of a 512 × 768 image."""
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(count, 2, 2, generator=generator, dtype=torch.float64) ** 2
    corners[0] = torch.tensor([[0.0, 0], [1, 1]])  # the random ones are smaller
    corners = 33 + corners * torch.tensor([700, 440])
    image = torch.randint(0, images, (count, 1), generator=generator).double()
    return torch.cat((image, corners.amin(1), corners.amax(1)), dim=1)


def test_warp_reads_the_cells_that_roi_pool_reads() -> None:
    # Corners 0.6 and 2.4 become cells 1 … 2, that is 1 … 3 on both axes; a sample in each quarter of it lies on the
    # centre of one of these cells: 5, 6, 9, 10.
    warp = on(1, RoIWarp, output_size=2, sampling_ratio=1)
    assert warp(RAMP, box(0.6, 0.6, 2.4, 2.4)).flatten().tolist() == [5.0, 6.0, 9.0, 10.0]
    # Halves are rounded away from zero: 0.5 … 1.5 becomes cells 1 … 2 too.
    assert warp(RAMP, box(0.5, 0.5, 1.5, 1.5)).flatten().tolist() == [5.0, 6.0, 9.0, 10.0]


def test_warp_takes_the_average_or_the_maximum_of_a_bin() -> None:
    # The same region in one bin of 2 × 2 samples.
    region = box(0.6, 0.6, 2.4, 2.4)
    assert on(1, RoIWarp, output_size=1, mode="average")(RAMP, region).item() == 7.5
    assert on(1, RoIWarp, output_size=1, mode="max")(RAMP, region).item() == 10.0


def test_warp_reads_at_least_one_cell() -> None:
    assert on(1, RoIWarp, output_size=1, sampling_ratio=1)(RAMP, box(1, 1, 1, 1)).item() == 5.0
    assert on(1, RoIWarp, output_size=1, sampling_ratio=1)(RAMP, box(2, 1, 1, 1)).item() == 6.0  # corners swapped


def test_strides_divide_image_pixels() -> None:
    # Stride 16: 8 … 39.9 is 0.5 … 2.49 in cells, cells 1 … 2.
    region = box(8, 8, 39.9, 39.9)
    assert on(16, RoIWarp, output_size=1)(RAMP, region).item() == 7.5
    # Unrounded, its middle is at 1.497 cells, in units from the first centre 0.997; the ramp is linear.
    middle = (8 + 39.9) / 2 / 16 - 0.5
    found = on(16, SpatialTransformerPool, output_size=1)(RAMP, region).item()
    assert found == pytest.approx(4 * middle + middle, abs=1e-5)


@pytest.mark.parametrize("ratio", [1, 2])
def test_spatial_transformer_samples_the_middles_of_its_bins(ratio: int) -> None:
    # x 0.5 … 3.5 in three bins, y 1 … 2 in one: middles at x 1, 2, 3 and y 1.5, minus half a cell 0.5, 1.5, 2.5 and 1.
    # The ramp is linear, so more samples of a bin have the same average.
    pool = on(1, SpatialTransformerPool, output_size=(1, 3), sampling_ratio=ratio)
    assert pool(RAMP, box(0.5, 1, 3.5, 2)).flatten().tolist() == pytest.approx([4.5, 5.5, 6.5], abs=1e-5)


@pytest.mark.parametrize("extractor", GRID)
def test_outside_the_map_is_zero_and_a_sample_fades_within_a_cell(extractor: type[nn.Module]) -> None:
    # Regions of one cell, read in their middle; column 3 of row 1 holds 7.
    def read(*corners: float) -> float:
        return on(1, extractor, output_size=1, sampling_ratio=1)(RAMP, box(*corners)).item()

    one_cell = 0 if extractor is RoIWarp else 1  # RoIWarp reads up to the end of its last cell
    assert read(3, 1, 3 + one_cell, 1 + one_cell) == pytest.approx(7.0)
    assert read(4, 1, 4 + one_cell, 1 + one_cell) == 0.0
    assert read(-9, 1, -9 + one_cell, 1 + one_cell) == 0.0
    # Three cells wide from column 3: the middle is at x = 4.5, a cell beyond the last centre; two wide, half a cell.
    assert read(3, 1, 4 + one_cell, 1 + one_cell) == pytest.approx(3.5)
    assert read(3, 1, 5 + one_cell, 1 + one_cell) == 0.0


@pytest.mark.parametrize("extractor", GRID)
def test_boxes_that_are_not_finite_are_zero_and_have_no_gradient(extractor: type[nn.Module]) -> None:
    nan, inf = float("nan"), float("inf")
    rows = [(nan, 1.0, 3.0, 3.0), (1.0, nan, 4.0, nan), (-inf, -inf, inf, inf), (1e30, 1e30, 1e31, 1e31)]
    rois = torch.tensor([(0.0, *row) for row in rows])
    features = RAMP["c4"].clone().requires_grad_()
    pooled = on(4, extractor, output_size=2)({"c4": features}, rois)
    pooled.sum().backward()
    assert not pooled.any() and not features.grad.any()


@pytest.mark.parametrize("mode", ["average", "max"])
@pytest.mark.parametrize("ratio", [1, 2])
def test_warp_of_whole_boxes_is_align_of_the_cells_that_they_cover(mode: Any, ratio: int) -> None:
    settings = {"output_size": (5, 7), "sampling_ratio": ratio, "mode": mode}
    maps = {"c4": torch.randn(2, 6, 20, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    rois = torch.tensor([[0.0, 2, 3, 9, 5], [1, 4, 1, 4, 1], [1, 2, 2, 26, 17], [0, 12, 6, 27, 16]])
    covered = rois + torch.tensor([0.0, 0, 0, 1, 1])  # a box's last cell is part of it, as in RoIPool
    align = RoIAlign({"c4": FeatureSpec(6, 1)}, aligned=True, **settings)
    warp = RoIWarp({"c4": FeatureSpec(6, 1)}, **settings)
    torch.testing.assert_close(warp(maps, rois), align(maps, covered))


@pytest.mark.parametrize("ratio", [1, 3])
def test_spatial_transformer_on_a_pyramid_is_align_inside_the_map(ratio: int) -> None:
    settings = {"output_size": 7, "sampling_ratio": ratio}
    maps, rois = pyramid_maps(), inner_boxes()
    pool = SpatialTransformerPool(LEVELS, **settings)
    assert len(pool.pyramid.level_of(rois).unique()) == 4
    torch.testing.assert_close(pool(maps, rois), RoIAlign(LEVELS, aligned=True, **settings)(maps, rois))


def test_spatial_transformer_is_torchs_affine_grid_of_the_box() -> None:
    features = torch.randn(1, 3, 9, 13, generator=torch.Generator().manual_seed(0))
    x1, y1, x2, y2 = 7.0, -6.0, 110.0, 40.0  # stride 8: partly outside of a map of 72 × 104 pixels
    scale_x, scale_y = (x2 - x1) / 104, (y2 - y1) / 72
    theta = torch.tensor([[[scale_x, 0, (x1 + x2) / 104 - 1], [0, scale_y, (y1 + y2) / 72 - 1]]])
    expected = F.grid_sample(features, F.affine_grid(theta, [1, 3, 4, 6], align_corners=False), align_corners=False)
    pool = SpatialTransformerPool({"c3": FeatureSpec(3, 8)}, output_size=(4, 6))
    torch.testing.assert_close(pool({"c3": features}, box(x1, y1, x2, y2)), expected, rtol=1e-4, atol=1e-5)


def test_warp_and_roi_pool_agree_where_a_bin_is_a_cell() -> None:
    features = torch.randn(1, 4, 30, 30, generator=torch.Generator().manual_seed(0))
    rois = torch.tensor([[0.0, 33.1, 58.7, 158.2, 151.9]])  # stride 8: cells 4 … 20 and 7 … 19
    expected = torchvision.ops.roi_pool(features, rois, (13, 17), spatial_scale=1 / 8)
    warp = RoIWarp({"c3": FeatureSpec(4, 8)}, output_size=(13, 17), sampling_ratio=1)
    torch.testing.assert_close(warp({"c3": features}, rois), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("extractor", GRID)
def test_a_region_does_not_depend_on_how_many_others_its_image_has(extractor: type[nn.Module]) -> None:
    maps, rois = pyramid_maps(images=3), inner_boxes(images=2)  # image 2 has none, and image 0 another number than 1
    pool = extractor(LEVELS)
    alone = torch.cat([pool(maps, roi[None]) for roi in rois])
    torch.testing.assert_close(pool(maps, rois), alone)


@pytest.mark.parametrize("extractor", GRID)
def test_no_regions_leave_a_gradient_of_zero_on_every_map(extractor: type[nn.Module]) -> None:
    maps = {name: x.requires_grad_() for name, x in pyramid_maps().items()}
    pooled = extractor(LEVELS, output_size=3)(maps, torch.zeros(0, 5))
    assert pooled.shape == (0, 3, 3, 3)
    pooled.sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in maps.values())


@pytest.mark.parametrize("extractor", GRID)
def test_the_result_has_the_layout_and_the_type_of_the_maps(extractor: type[nn.Module]) -> None:
    maps, rois = pyramid_maps(), inner_boxes()
    outermost, last = torch.contiguous_format, torch.channels_last
    for layout in (outermost, last):
        given = {name: x.float().contiguous(memory_format=layout) for name, x in maps.items()}
        pooled = extractor(LEVELS)(given, rois)
        assert pooled.is_contiguous(memory_format=layout) and pooled.dtype == torch.float32
    halves = {name: x.bfloat16() for name, x in maps.items()}
    exact = extractor(LEVELS)({name: x.float() for name, x in halves.items()}, rois)
    assert torch.equal(extractor(LEVELS)(halves, rois), exact.bfloat16())  # places are not rounded to 16 bits


@pytest.mark.parametrize(
    ("extractor", "mode"), [(RoIWarp, "average"), (RoIWarp, "max"), (SpatialTransformerPool, None)]
)
def test_gradient_is_that_of_finite_differences_in_float64(extractor: type[nn.Module], mode: str | None) -> None:
    specs = {"p2": FeatureSpec(2, 4), "p3": FeatureSpec(2, 8)}
    pool = extractor(specs, output_size=2, sampling_ratio=2, canonical_size=56, **({"mode": mode} if mode else {}))
    rois = torch.tensor([[0.0, 3, 3, 17, 20], [1, 2, 1, 30, 31], [1, -9, 4, 12, 40], [0, 1, 1, 31, 31]])
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 2, side, side, generator=generator, dtype=torch.float64) for side in (8, 4)]
    assert set(pool.pyramid.level_of(rois).tolist()) == {0, 1}
    for x in maps:
        x.requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: pool(dict(zip(specs, x, strict=True)), rois), tuple(maps))


@pytest.mark.parametrize("extractor", GRID)
def test_settings_and_images_that_do_not_exist_are_refused(extractor: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="^sampling_ratio is 1 or more, got 0$"):
        on(4, extractor, sampling_ratio=0)
    with pytest.raises(ArgumentError, match=r"rois\[1\] belongs to image 1, but features hold 1 image"):
        on(4, extractor)(RAMP, torch.tensor([[0.0, 1, 1, 2, 2], [1, 1, 1, 2, 2]]))
