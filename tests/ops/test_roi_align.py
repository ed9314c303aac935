from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from toolbox import ops
from toolbox.ops import reference
from toolbox.ops.arguments import PoolSettings

FORMATS = [torch.contiguous_format, torch.channels_last]

# 0  1  2  3
# 4  5  6  7      value = 4 y + x at cell (y, x), whose centre is at (y + 0.5, x + 0.5)
# 8  9 10 11
RAMP = torch.arange(12.0).reshape(1, 1, 3, 4)


def box(*corners: float) -> Tensor:
    return torch.tensor([[0.0, *corners]])


def test_one_sample_at_a_cell_centre_reads_that_cell() -> None:
    # The box [1, 2) x [1, 2) has its centre at (1.5, 1.5): cell (1, 1), value 5.
    assert ops.roi_align(RAMP, box(1, 1, 2, 2), 1, sampling_ratio=1).item() == 5.0


def test_bins_average_their_four_samples() -> None:
    # Box x 0.5 … 2.5, y 0.5 … 2.5, one bin, 2 x 2 samples at 1.0 and 2.0, in cell coordinates 0.5 and 1.5.
    # On a ramp a bilinear sample is exact: 4 y + x over {0.5, 1.5} squared has the mean 4 * 1 + 1.
    assert ops.roi_align(RAMP, box(0.5, 0.5, 2.5, 2.5), 1, sampling_ratio=2).item() == 5.0
    # The largest of the four is at (1.5, 1.5): 4 * 1.5 + 1.5.
    assert ops.roi_align(RAMP, box(0.5, 0.5, 2.5, 2.5), 1, sampling_ratio=2, mode="max").item() == 7.5


def test_not_aligned_reads_half_a_cell_further() -> None:
    # Without the half-pixel shift the sample of box [1, 2) is at 1.5 instead of 1.0: 4 * 1.5 + 1.5.
    assert ops.roi_align(RAMP, box(1, 1, 2, 2), 1, sampling_ratio=1, aligned=False).item() == 7.5


def test_output_may_be_higher_than_wide() -> None:
    # Rows y 0 … 3 in three bins, one column at x = 1.5 in cell coordinates 1.0.
    pooled = ops.roi_align(RAMP, box(1, 0, 2, 3), (3, 1), sampling_ratio=1)
    assert pooled.shape == (1, 1, 3, 1)
    assert pooled.flatten().tolist() == [1.0, 5.0, 9.0]


def test_spatial_scale_divides_image_pixels_by_the_stride() -> None:
    assert ops.roi_align(RAMP, box(16, 16, 32, 32), 1, spatial_scale=1 / 16, sampling_ratio=1).item() == 5.0


def test_border_is_constant_for_one_cell_and_zero_beyond() -> None:
    # Centre at x = 4.25 is 0.75 cells right of the last centre: constant. At x = 5.25 it is outside: zero.
    assert ops.roi_align(RAMP, box(3.75, 1, 4.75, 2), 1, sampling_ratio=1).item() == 7.0
    assert ops.roi_align(RAMP, box(4.75, 1, 5.75, 2), 1, sampling_ratio=1).item() == 0.0


def test_adaptive_sampling_takes_a_sample_a_cell() -> None:
    # One bin of 2 x 3 cells: samples at all six cell centres of columns 0 … 2, rows 0 and 1.
    values = [0, 1, 2, 4, 5, 6]
    assert ops.roi_align(RAMP, box(0, 0, 3, 2), 1, sampling_ratio=0).item() == pytest.approx(sum(values) / 6)
    assert ops.roi_align(RAMP, box(0, 0, 3, 2), 1, sampling_ratio=0, mode="max").item() == 6.0


def test_gradient_goes_to_the_cells_by_their_weights() -> None:
    features = RAMP.clone().requires_grad_()
    # One sample at cell coordinates y = 1, x = 0.75: a quarter from column 0, three quarters from column 1.
    ops.roi_align(features, box(0.75, 1, 1.75, 2), 1, sampling_ratio=1).sum().backward()
    assert features.grad is not None
    assert features.grad[0, 0].tolist() == [[0, 0, 0, 0], [0.25, 0.75, 0, 0], [0, 0, 0, 0]]


def test_gradient_of_a_maximum_goes_to_the_winning_sample() -> None:
    features = RAMP.clone().requires_grad_()
    ops.roi_align(features, box(0, 0, 3, 2), 1, sampling_ratio=0, mode="max").sum().backward()
    assert features.grad is not None
    assert features.grad[0, 0].tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_maximum_counts_samples_outside_as_zero() -> None:
    # All cells are negative and half of the samples lie outside, where the value is zero.
    features = (-RAMP - 1).requires_grad_()
    pooled = ops.roi_align(features, box(-4, 0, 2, 2), 1, sampling_ratio=2, mode="max")
    pooled.sum().backward()
    assert pooled.item() == 0.0
    assert features.grad is not None and not features.grad.any()


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torchvision_forward_and_backward(make_rois, layout, aligned, sampling_ratio, dtype) -> None:
    for channels, height, width, size in ((1, 7, 9, (1, 1)), (21, 16, 5, (7, 3)), (72, 13, 18, (2, 7))):
        features = torch.randn(2, channels, height, width, dtype=dtype)
        rois = make_rois(9, 2, 2.0 * height, 2.0 * width, dtype)
        ours = features.clone(memory_format=layout).requires_grad_()
        theirs = features.clone().requires_grad_()
        got = ops.roi_align(ours, rois, size, spatial_scale=0.5, sampling_ratio=sampling_ratio, aligned=aligned)
        want = torchvision.ops.roi_align(theirs, rois, size, 0.5, sampling_ratio or -1, aligned)
        torch.testing.assert_close(got, want)
        weight = torch.randn_like(want)
        got.backward(weight)
        want.backward(weight)
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("mode", ["average", "max"])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_equals_the_plain_pytorch_twin(make_rois, layout, mode, sampling_ratio) -> None:
    features = torch.randn(2, 20, 11, 14, dtype=torch.float64)
    rois = make_rois(12, 2, 44.0, 56.0, torch.float64)
    ours, twins = features.clone(memory_format=layout).requires_grad_(), features.clone().requires_grad_()
    got = ops.roi_align(ours, rois, (3, 2), spatial_scale=0.25, sampling_ratio=sampling_ratio, mode=mode)
    method = "align_average" if mode == "average" else "align_max"
    want = reference.pool_regions([twins], rois, PoolSettings((3, 2), (0.25,), (0,), method, sampling_ratio))
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(want)
    got.backward(weight)
    want.backward(weight)
    torch.testing.assert_close(ours.grad, twins.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", FORMATS)
def test_half_types_are_summed_in_float(make_rois, dtype, layout) -> None:
    features = torch.randn(1, 19, 12, 12).to(dtype)
    rois = make_rois(10, 1, 12.0, 12.0)
    half = features.clone(memory_format=layout).requires_grad_()
    full = features.float().requires_grad_()
    got, want = ops.roi_align(half, rois, 3), torchvision.ops.roi_align(full, rois, 3, 1.0, 2, True)
    assert got.dtype == dtype
    assert torch.equal(got, want.to(dtype)) or (got.float() - want).abs().max() < 2 * torch.finfo(dtype).eps
    got.backward(torch.ones_like(got))
    want.backward(torch.ones_like(want))
    torch.testing.assert_close(half.grad.float(), full.grad, rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_half_conversion_keeps_extremes() -> None:
    # One sample at each cell's centre copies it: denormal, smallest normal, largest, infinity, NaN, negative zero.
    values = torch.tensor([5.96e-8, 6.0e-5, 6.104e-5, 65504.0, float("inf"), float("nan"), -0.0, -1.5])
    for dtype in (torch.float16, torch.bfloat16):
        features = values.to(dtype)[None, :, None, None]
        pooled = ops.roi_align(features, box(0, 0, 1, 1), 1, sampling_ratio=1)
        torch.testing.assert_close(pooled.flatten(), features.flatten(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("mode", ["average", "max"])
@pytest.mark.parametrize("aligned", [True, False])
def test_gradcheck_in_float64(make_rois, layout, mode, aligned) -> None:
    features = torch.randn(1, 9, 5, 6, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    rois = make_rois(3, 1, 5.0, 6.0, torch.float64)
    assert torch.autograd.gradcheck(
        lambda f: ops.roi_align(f, rois, 2, sampling_ratio=2, aligned=aligned, mode=mode), (features,)
    )


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("mode", ["average", "max"])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_odd_boxes_are_finite_and_read_nothing_outside(odd_rois, layout, mode, sampling_ratio, aligned) -> None:
    features = torch.ones(1, 10, 10, 12).contiguous(memory_format=layout).requires_grad_()
    pooled = ops.roi_align(features, odd_rois, 3, sampling_ratio=sampling_ratio, aligned=aligned, mode=mode)
    pooled.sum().backward()
    # Weights of a sample sum to one inside and to zero outside: of ones nothing but 0 … 1 can come.
    assert bool(((pooled >= 0) & (pooled <= 1 + 1e-6)).all())
    assert features.grad is not None and bool(torch.isfinite(features.grad).all())
    assert bool((pooled[-1] > 0.99).all())
    assert not pooled[~odd_rois.isfinite().all(dim=1)].any()


def test_neighbours_in_memory_are_not_read() -> None:
    # The map is the inside of a buffer of NaN: a read past its ends would show.
    buffer = torch.full((3, 8, 6, 6), float("nan"))
    buffer[1] = torch.randn(8, 6, 6)
    corners = [(-1.0, -1.0, 7.0, 7.0), (4.0, 4.0, 6.9, 6.9), (-0.9, -0.9, 1.0, 1.0)]
    rois = torch.tensor([(0.0, *corner) for corner in corners])
    assert not ops.roi_align(buffer[1:2], rois, 7, sampling_ratio=0).isnan().any()


@pytest.mark.parametrize("last", [False, True])
def test_a_map_of_more_elements_than_an_int_counts_is_read_to_its_end(last) -> None:
    side = 27000
    try:
        # Memory that is never touched is never taken, unlike that of torch.zeros.
        memory = np.zeros((1, side, side, 3) if last else (1, 3, side, side), np.float16)
    except MemoryError:
        pytest.skip("4.4 GB of addresses are not given here")
    features = torch.from_numpy(memory)
    features = features.permute(0, 3, 1, 2) if last else features
    assert features.numel() > 1 << 31
    features[0, :, -1, -1] = torch.tensor([1.0, 3.0, 5.0])
    corner = box(side - 1, side - 1, side, side)
    assert ops.roi_align(features, corner, 1, sampling_ratio=1).flatten().tolist() == [1.0, 3.0, 5.0]
    assert ops.roi_pool(features, corner, 1).flatten().tolist() == [1.0, 3.0, 5.0]


def test_no_regions_and_no_images_give_empty_results_with_a_gradient() -> None:
    features = torch.randn(2, 3, 4, 4, requires_grad=True)
    pooled = ops.roi_align(features, torch.zeros(0, 5), 2)
    assert pooled.shape == (0, 3, 2, 2)
    pooled.sum().backward()
    assert features.grad is not None and not features.grad.any()
    none = torch.randn(0, 3, 4, 4, requires_grad=True)
    ops.roi_align(none, torch.zeros(0, 5), 2).sum().backward()
    assert none.grad is not None and none.grad.shape == (0, 3, 4, 4)


def test_layout_of_the_result_follows_the_features() -> None:
    features, rois = torch.randn(1, 4, 6, 6), box(0, 0, 5, 5)
    assert ops.roi_align(features, rois, 3).is_contiguous()
    last = ops.roi_align(features.contiguous(memory_format=torch.channels_last), rois, 3)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_strided_features_and_rois_are_read_right(make_rois) -> None:
    features, rois = torch.randn(2, 8, 18, 20), make_rois(6, 2, 9.0, 10.0)
    crop, wide = features[:, ::2, ::2, 1::2], torch.cat([rois, rois], dim=1)[:, :5]
    assert not crop.is_contiguous() and not wide.is_contiguous()
    want = torchvision.ops.roi_align(crop.contiguous(), rois, 3, 1.0, 2, True)
    torch.testing.assert_close(ops.roi_align(crop, wide, 3), want)
