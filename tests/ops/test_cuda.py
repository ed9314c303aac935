"""The CUDA kernels against the CPU's, which are held against torchvision's and the twin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from toolbox import ops
from toolbox.ops import eager
from toolbox.ops.arguments import PoolSettings

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available() or not ops.cuda_usable(), reason="no CUDA device or CUDA build"),
]
FORMATS = [torch.contiguous_format, torch.channels_last]
METHODS = ["align_average", "align_max", "pool_max"]


def settings(method: str, sampling_ratio: int = 2, aligned: bool = True) -> PoolSettings:
    return PoolSettings((5, 3), (0.25, 0.125), (2, 3), method, sampling_ratio, aligned, 60.0, 3)  # type: ignore[arg-type]


def run(maps: list[Tensor], rois: Tensor, how: PoolSettings, weight: Tensor) -> tuple[Tensor, list[Tensor]]:
    leaves = [level.detach().clone().requires_grad_() for level in maps]
    pooled = eager.pool_regions(leaves, rois, how)
    pooled.backward(weight.to(pooled))
    return pooled.detach().cpu(), [leaf.grad.cpu() for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_equals_the_cpu(make_rois, deterministic, layout, method, sampling_ratio, dtype) -> None:
    maps = [torch.randn(2, 20, size, size).to(dtype).contiguous(memory_format=layout) for size in (24, 12)]
    rois = make_rois(40, 2, 96.0, 96.0)
    weight = torch.randn(40, 20, 5, 3)
    how = settings(method, sampling_ratio)
    want, want_grads = run(maps, rois, how, weight)
    torch.use_deterministic_algorithms(deterministic)
    try:
        got, got_grads = run([level.cuda() for level in maps], rois.cuda(), how, weight)
    finally:
        torch.use_deterministic_algorithms(False)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype.itemsize > 2 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(got, want, **close)
    for a, b in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(a, b, **{**close, "atol": close["atol"] * 10})


@pytest.mark.parametrize("method", METHODS)
def test_deterministic_gradients_repeat_bit_by_bit(make_rois, method) -> None:
    maps = [torch.randn(1, 64, 32, 32, device="cuda"), torch.randn(1, 64, 16, 16, device="cuda")]
    rois, weight = make_rois(300, 1, 128.0, 128.0).cuda(), torch.randn(300, 64, 5, 3)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run(maps, rois, settings(method), weight)[1] for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("method", METHODS)
def test_many_regions_are_collected_as_on_the_cpu(make_rois, layout, method) -> None:
    maps = [torch.randn(2, 70, s, s + 3, dtype=torch.float64).contiguous(memory_format=layout) for s in (45, 22)]
    rois, weight = make_rois(500, 2, 180.0, 180.0, torch.float64), torch.randn(500, 70, 5, 3)
    want = run(maps, rois, settings(method), weight)[1]
    torch.use_deterministic_algorithms(True)
    try:
        got = run([level.cuda() for level in maps], rois.cuda(), settings(method), weight)[1]
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("method", METHODS)
def test_odd_boxes_do_what_they_do_on_the_cpu(odd_rois, deterministic, layout, method) -> None:
    maps = [torch.rand(1, 10, 10, 12).contiguous(memory_format=layout), torch.rand(1, 10, 5, 6)]
    weight = torch.ones(len(odd_rois), 10, 5, 3)
    for ratio in (0, 2):
        want, want_grads = run(maps, odd_rois, settings(method, ratio), weight)
        torch.use_deterministic_algorithms(deterministic)
        try:
            got, got_grads = run([level.cuda() for level in maps], odd_rois.cuda(), settings(method, ratio), weight)
        finally:
            torch.use_deterministic_algorithms(False)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(got_grads, want_grads)


def test_an_image_that_does_not_exist_is_zero() -> None:
    features = torch.ones(1, 3, 8, 8, device="cuda", requires_grad=True)
    pooled = ops.roi_align(features, torch.tensor([[3.0, 0, 0, 4, 4], [0, 0, 0, 4, 4]], device="cuda"), 2)
    pooled.sum().backward()
    assert not pooled[0].any() and bool((pooled[1] == 1).all())
    assert features.grad is not None and features.grad.sum().item() == pytest.approx(3 * 4)


def test_forward_waits_for_nothing(make_rois) -> None:
    features, rois = torch.randn(1, 8, 16, 16, device="cuda", requires_grad=True), make_rois(9, 1, 16.0, 16.0).cuda()
    ops.roi_align(features, rois, 3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.roi_align(features, rois, 3).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_autocast_pools_half_features_with_float_rois() -> None:
    conv = torch.nn.Conv2d(3, 8, 1).cuda()
    rois = torch.tensor([[0.0, 301.3, 305.7, 309.9, 311.2]], device="cuda")
    with torch.autocast("cuda", torch.float16):
        features = conv(torch.randn(1, 3, 320, 320, device="cuda"))
        pooled = ops.roi_align(features, rois, 2)
    assert pooled.dtype == torch.float16
    want = ops.roi_align(features.detach().float().cpu(), rois.cpu(), 2)
    torch.testing.assert_close(pooled.float().cpu(), want, rtol=1e-2, atol=1e-3)


def test_opcheck_passes_on_cuda(make_rois) -> None:
    maps = [torch.randn(1, 4, 8, 8, device="cuda", requires_grad=True)]
    arguments = (maps, make_rois(4, 1, 8.0, 8.0).cuda(), [2, 2], [1.0], [0], "align_average", 2, True, 224.0, 4)
    torch.library.opcheck(torch.ops.toolbox.pool_regions.default, arguments)
