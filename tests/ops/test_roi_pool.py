from __future__ import annotations

import pytest
import torch
import torchvision

from toolbox import ops
from toolbox.ops import reference
from toolbox.ops.arguments import PoolSettings

FORMATS = [torch.contiguous_format, torch.channels_last]
RAMP = torch.arange(12.0).reshape(1, 1, 3, 4)  # value 4 y + x at cell (y, x)


def test_bins_take_the_largest_cell() -> None:
    # Cells 0 … 3 in x and 0 … 2 in y (the last corner belongs to the box); two bins of two columns each.
    pooled = ops.roi_pool(RAMP, torch.tensor([[0.0, 0, 0, 3, 2]]), (1, 2))
    assert pooled.flatten().tolist() == [9.0, 11.0]


def test_corners_are_rounded_half_away_from_zero() -> None:
    # x 0.5 … 1.4 rounds to cells 1 … 1, y 1.5 … 2.4 to 2 … 2.
    assert ops.roi_pool(RAMP, torch.tensor([[0.0, 0.5, 1.5, 1.4, 2.4]]), 1).item() == 9.0


def test_a_bin_outside_the_map_is_zero_and_has_no_gradient() -> None:
    features = (RAMP + 1).requires_grad_()
    pooled = ops.roi_pool(features, torch.tensor([[0.0, 20, 20, 30, 30]]), 2)
    pooled.sum().backward()
    assert not pooled.any()
    assert features.grad is not None and not features.grad.any()


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torchvision_forward_and_backward(make_rois, layout, dtype) -> None:
    for channels, height, width, size in ((1, 7, 9, (1, 1)), (21, 16, 5, (7, 3)), (72, 13, 18, (2, 7))):
        features = torch.randn(2, channels, height, width, dtype=dtype)
        rois = make_rois(9, 2, 2.0 * height, 2.0 * width, dtype)
        ours = features.clone(memory_format=layout).requires_grad_()
        theirs = features.clone().requires_grad_()
        got = ops.roi_pool(ours, rois, size, spatial_scale=0.5)
        want = torchvision.ops.roi_pool(theirs, rois, size, 0.5)
        assert torch.equal(got, want)
        weight = torch.randn_like(want)
        got.backward(weight)
        want.backward(weight)
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_equals_the_plain_pytorch_twin(make_rois) -> None:
    features, rois = torch.randn(2, 6, 11, 14), make_rois(12, 2, 22.0, 28.0)
    want = reference.pool_regions([features], rois, PoolSettings((3, 2), (0.5,), (0,), "pool_max"))
    assert torch.equal(ops.roi_pool(features, rois, (3, 2), spatial_scale=0.5), want)


@pytest.mark.parametrize("layout", FORMATS)
def test_gradcheck_in_float64(make_rois, layout) -> None:
    features = torch.randn(1, 9, 5, 6, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    rois = make_rois(3, 1, 5.0, 6.0, torch.float64)
    assert torch.autograd.gradcheck(lambda f: ops.roi_pool(f, rois, 2), (features,))


@pytest.mark.parametrize("layout", FORMATS)
def test_odd_boxes_do_no_harm(odd_rois, layout) -> None:
    features = torch.rand(1, 10, 10, 12).contiguous(memory_format=layout).requires_grad_()
    pooled = ops.roi_pool(features, odd_rois, 3)
    pooled.sum().backward()
    assert bool(((pooled >= 0) & (pooled <= 1)).all())
    assert not pooled[~odd_rois.isfinite().all(dim=1)].any()
    assert features.grad is not None and bool(torch.isfinite(features.grad).all())


def test_nan_features_are_not_hidden() -> None:
    features = RAMP.clone()
    features[0, 0, 1, 1] = float("nan")
    assert ops.roi_pool(features, torch.tensor([[0.0, 0, 0, 3, 2]]), 1).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_pool_exactly(make_rois, dtype) -> None:
    features, rois = torch.randn(1, 10, 9, 9).to(dtype), make_rois(8, 1, 9.0, 9.0)
    want = torchvision.ops.roi_pool(features.float(), rois, 3)
    assert torch.equal(ops.roi_pool(features, rois, 3).float(), want)
