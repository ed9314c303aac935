from __future__ import annotations

import pytest
import torch

from toolbox import ops
from toolbox.errors import ToolboxError

F = torch.zeros(2, 3, 8, 8)
ROIS = torch.zeros(4, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.roi_align(F, torch.zeros(4, 4), 7), r"rois have shape \(4, 4\): expected \(R, 5\)"),
        (lambda: ops.roi_align(F[0], ROIS, 7), r"features has shape \(3, 8, 8\): expected \(N, C, H, W\)"),
        (lambda: ops.roi_align(F.int(), ROIS, 7), r"features is torch.int32: expected one of"),
        (lambda: ops.roi_align(F, ROIS, 0), r"output_size is 0"),
        (lambda: ops.roi_align(F, ROIS, (7, 7, 7)), r"output_size is \(7, 7, 7\)"),
        (lambda: ops.roi_align(F, ROIS, 7, mode="mean"), r"mode is 'mean': expected 'average' or 'max'"),
        (lambda: ops.roi_align(F, ROIS, 7, sampling_ratio=-1), r"sampling_ratio is -1: expected 0 \(adaptive\)"),
        (lambda: ops.roi_align(F, ROIS, 7, spatial_scale=0), r"spatial_scale is 0.0"),
        (lambda: ops.roi_align(F, ROIS.to("meta"), 7), r"rois are on meta, features on cpu"),
        (lambda: ops.roi_align(F[:, :, :0], ROIS, 7), r"a map needs at least one cell"),
        (lambda: ops.multiscale_roi_align([F, F], ROIS, 7, strides=(4,)), r"2 feature maps but 1 strides"),
        (lambda: ops.multiscale_roi_align([F, F], ROIS, 7, strides=(8, 4)), r"expected growing ones"),
        (lambda: ops.multiscale_roi_align([], ROIS, 7, strides=()), r"got 0 feature maps"),
        (lambda: ops.multiscale_roi_align([F, F.double()], ROIS, 7, strides=(4, 8)), r"levels share type and device"),
        (lambda: ops.multiscale_roi_align([F, F[:, :2]], ROIS, 7, strides=(4, 8)), r"levels share the number of"),
        (lambda: ops.multiscale_roi_pool([F], ROIS, 7, strides=(0,)), r"strides are \[0\]: expected positive"),
        (
            lambda: ops.multiscale_roi_align([F], ROIS, 7, strides=(4,), canonical_level=1 << 40),
            r"canonical_level is 1099511627776",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message) -> None:
    with pytest.raises(ToolboxError, match=message) as raised:
        call()
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize("index", [2.0, -1.0, float("nan")])
def test_an_image_that_does_not_exist_is_named(index: float) -> None:
    rois = ROIS.clone()
    rois[3, 0] = index
    for call in (ops.roi_align, ops.roi_pool):
        with pytest.raises(ToolboxError, match=rf"rois\[3\] belongs to image {index:g}, but features hold 2 images"):
            call(F, rois, 7)


def test_a_whole_number_may_be_a_float_and_is_the_same_setting() -> None:
    rois = torch.tensor([[0.0, 1, 1, 5, 5]])
    features = torch.rand(1, 3, 8, 8)
    # A number that no other test uses, since settings are kept from call to call.
    got = ops.multiscale_roi_align([features], rois, 2, strides=(1,), sampling_ratio=11.0)  # type: ignore[arg-type]
    assert torch.equal(got, ops.multiscale_roi_align([features], rois, 2, strides=(1,), sampling_ratio=11))
