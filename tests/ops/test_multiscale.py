from __future__ import annotations

import math
from collections import OrderedDict

import pytest
import torch
import torchvision
from torch import Tensor

from toolbox import ops
from toolbox.ops import reference
from toolbox.ops.arguments import PoolSettings

FORMATS = [torch.contiguous_format, torch.channels_last]
STRIDES = (4, 8, 16, 32)


def constant_pyramid() -> list[Tensor]:
    """Levels of a 512 × 512 image, each filled with its own number: 2, 3, 4, 5."""
    return [
        torch.full((1, 1, 512 // stride, 512 // stride), math.log2(stride), dtype=torch.float32) for stride in STRIDES
    ]


def square(side: float) -> Tensor:
    return torch.tensor([[0.0, 0.0, 0.0, side, side]])


@pytest.mark.parametrize(
    ("side", "level"),
    [(1, 2), (56, 2), (111.9, 2), (112, 3), (223.9, 3), (224, 4), (300, 4), (447.9, 4), (448, 5), (4000, 5), (0, 2)],
)
def test_level_follows_the_pyramid_paper(side: float, level: int) -> None:
    # floor(4 + log2(side / 224)), kept within 2 … 5.
    # The first bin, since the centre of the largest box lies outside the image.
    pooled = ops.multiscale_roi_align(constant_pyramid(), square(side), 9, strides=STRIDES, sampling_ratio=1)
    assert pooled[0, 0, 0, 0].item() == pytest.approx(level)


def test_canonical_size_and_level_move_the_rule() -> None:
    pooled = ops.multiscale_roi_align(
        constant_pyramid(), square(100), 1, strides=STRIDES, canonical_size=50, canonical_level=4
    )
    assert pooled.item() == 5


def test_a_missing_level_is_served_by_the_finer_one() -> None:
    levels = constant_pyramid()
    pooled = ops.multiscale_roi_align([levels[0], levels[2]], square(112), 1, strides=(4, 16))
    assert pooled.item() == 2


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_equals_torchvision_forward_and_backward(make_rois, layout, sampling_ratio) -> None:
    maps = [torch.randn(2, 16, 256 // stride, 320 // stride) for stride in STRIDES]
    rois = torch.cat([make_rois(20, 2, 256.0, 320.0), make_rois(20, 2, 60.0, 60.0)])
    pooler = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 5, sampling_ratio or -1)
    theirs = [level.clone().requires_grad_() for level in maps]
    boxes = [rois[rois[:, 0] == image, 1:] for image in range(2)]
    want = pooler(OrderedDict((str(i), level) for i, level in enumerate(theirs)), boxes, [(256, 320)] * 2)
    ours = [level.clone(memory_format=layout).requires_grad_() for level in maps]
    order = torch.argsort(rois[:, 0], stable=True)
    got = ops.multiscale_roi_align(ours, rois[order], 5, strides=STRIDES, sampling_ratio=sampling_ratio, aligned=False)
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(want)
    got.backward(weight)
    want.backward(weight)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("method", ["align_max", "pool_max"])
def test_maximum_equals_the_plain_pytorch_twin(make_rois, method) -> None:
    maps = [torch.randn(2, 10, 128 // stride, 96 // stride) for stride in STRIDES[:3]]
    rois = make_rois(16, 2, 128.0, 96.0)
    ours, twins = ([level.clone().requires_grad_() for level in maps] for _ in range(2))
    settings = PoolSettings((4, 3), (1 / 4, 1 / 8, 1 / 16), (2, 3, 4), method, 2, True, 40, 3)
    want = reference.pool_regions(twins, rois, settings)
    place = {"strides": STRIDES[:3], "canonical_size": 40, "canonical_level": 3}
    if method == "pool_max":
        got = ops.multiscale_roi_pool(ours, rois, (4, 3), **place)
    else:
        got = ops.multiscale_roi_align(ours, rois, (4, 3), mode="max", **place)
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(want)
    got.backward(weight)
    want.backward(weight)
    for a, b in zip(ours, twins, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_gradcheck_over_all_levels(make_rois) -> None:
    maps = [torch.randn(1, 2, 8 // s, 8 // s, dtype=torch.float64, requires_grad=True) for s in (1, 2)]
    rois = make_rois(5, 1, 8.0, 8.0, torch.float64)
    place = {"strides": (1, 2), "canonical_size": 4, "canonical_level": 1}
    assert torch.autograd.gradcheck(lambda *f: ops.multiscale_roi_align(f, rois, 2, **place), tuple(maps))


def test_odd_boxes_choose_a_level_that_exists(odd_rois) -> None:
    pooled = ops.multiscale_roi_align(constant_pyramid(), odd_rois, 2, strides=STRIDES)
    assert bool(((pooled >= 0) & (pooled <= 5)).all())


def test_an_unused_level_gets_a_zero_gradient() -> None:
    maps = [level.requires_grad_() for level in constant_pyramid()]
    ops.multiscale_roi_align(maps, square(50), 1, strides=STRIDES).sum().backward()
    assert maps[0].grad is not None and maps[0].grad.any()
    assert maps[3].grad is not None and not maps[3].grad.any()
