"""The operation inside torch: opcheck, compile, autocast, threads, fork, meta tensors."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision
from torch import Tensor

from toolbox import ops
from toolbox.ops import native

pytestmark = pytest.mark.skipif(not ops.native_built(), reason="the extension was not compiled")
FORMATS = [torch.contiguous_format, torch.channels_last]


def pyramid(layout: torch.memory_format, dtype: torch.dtype = torch.float32, channels: int = 6) -> list[Tensor]:
    return [torch.randn(2, channels, s, s, dtype=dtype).contiguous(memory_format=layout) for s in (16, 8)]


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("method", ["align_average", "align_max", "pool_max"])
def test_opcheck_passes(make_rois, layout, method) -> None:
    maps = [level.requires_grad_() for level in pyramid(layout, torch.float64)]
    settings = ([3, 2], [0.25, 0.125], [2, 3], method, 2, True, 40.0, 3)
    rois = make_rois(5, 2, 64.0, 64.0, torch.float64)
    torch.library.opcheck(torch.ops.toolbox.pool_regions.default, (maps, rois, *settings))
    plain = [level.detach() for level in maps]
    pooled = torch.ops.toolbox.pool_regions.default(plain, rois, *settings)
    shapes = [side for level in plain for side in level.shape]
    kept = [] if method == "align_average" else plain
    last = layout == torch.channels_last
    arguments = (torch.randn_like(pooled), kept, shapes, last, rois, *settings)
    torch.library.opcheck(torch.ops.toolbox.pool_regions_backward.default, arguments)


@pytest.mark.slow
def test_compiles_to_one_graph_forward_and_backward(make_rois) -> None:
    def loss(f: Tensor, g: Tensor, rois: Tensor) -> Tensor:
        return (ops.multiscale_roi_align([f * 2, g], rois, 3, strides=(4, 8), canonical_size=40) ** 2).sum()

    rois = make_rois(7, 2, 64.0, 64.0)
    eager = [level.requires_grad_() for level in pyramid(torch.contiguous_format)]
    compiled = [level.detach().clone().requires_grad_() for level in eager]
    want, got = loss(*eager, rois), torch.compile(loss, fullgraph=True)(*compiled, rois)
    torch.testing.assert_close(got, want)
    want.backward()
    got.backward()
    for a, b in zip(compiled, eager, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_exports_with_a_free_number_of_regions(make_rois) -> None:
    class Extractor(torch.nn.Module):
        def forward(self, features: Tensor, rois: Tensor) -> Tensor:
            return ops.roi_align(features, rois, 2)

    features, rois = torch.randn(1, 4, 8, 8), make_rois(5, 1, 8.0, 8.0)
    regions = torch.export.Dim("regions", min=2, max=100)
    program = torch.export.export(
        Extractor(), (features, rois), dynamic_shapes={"features": None, "rois": {0: regions}}
    )
    more = make_rois(9, 1, 8.0, 8.0)
    torch.testing.assert_close(program.module()(features, more), ops.roi_align(features, more, 2))


def test_autocast_keeps_the_type_of_features_and_the_precision_of_rois() -> None:
    conv = torch.nn.Conv2d(3, 8, 1)
    # In bfloat16 this box would move by up to two pixels.
    rois = torch.tensor([[0.0, 301.3, 305.7, 309.9, 311.2]])
    image = torch.randn(1, 3, 320, 320)
    with torch.autocast("cpu", torch.bfloat16):
        features = conv(image)
        pooled = ops.roi_align(features, rois, 2)
        mixed = ops.multiscale_roi_align([features, features.float()[..., ::2, ::2]], rois, 2, strides=(1, 2))
    assert features.dtype == pooled.dtype == torch.bfloat16
    assert mixed.dtype == torch.float32
    want = torchvision.ops.roi_align(features.float(), rois, 2, 1.0, 2, True)
    torch.testing.assert_close(pooled.float(), want, rtol=1e-2, atol=1e-3)
    pooled.sum().backward()
    assert conv.weight.grad is not None and conv.weight.grad.any()


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("mode", ["average", "max"])
def test_results_are_the_same_bits_for_any_number_of_threads(make_rois, layout, mode) -> None:
    features = torch.randn(1, 150, 20, 20).contiguous(memory_format=layout)
    rois = make_rois(60, 1, 20.0, 20.0)
    weight = torch.randn(60, 150, 7, 7)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5, 1):
            torch.set_num_threads(count)
            leaf = features.clone().requires_grad_()
            pooled = ops.roi_align(leaf, rois, 7, mode=mode)
            pooled.backward(weight)
            results.append((pooled.detach(), leaf.grad))
    finally:
        torch.set_num_threads(threads)
    for pooled, grad in results[1:]:
        assert torch.equal(pooled, results[0][0])
        assert torch.equal(grad, results[0][1])


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("channels", [7, 33, 65])
@pytest.mark.parametrize("height", [20, 200])  # the regions cover the map many times, or a part of it
@pytest.mark.parametrize("pool", ["average", "max", "whole cells"])
def test_so_are_gradients_however_channels_are_shared_out(make_rois, layout, channels, height, pool) -> None:
    features = torch.randn(1, channels, height, height).contiguous(memory_format=layout)
    rois, weight = make_rois(40, 1, 20.0, 20.0), torch.randn(40, channels, 14, 14)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            leaf = features.clone().requires_grad_()
            pooled = ops.roi_pool(leaf, rois, 14) if pool == "whole cells" else ops.roi_align(leaf, rois, 14, mode=pool)
            pooled.backward(weight)
            results.append(leaf.grad)
    finally:
        torch.set_num_threads(threads)
    assert results[0] is not None and results[0].any()
    assert all(torch.equal(gradient, results[0]) for gradient in results[1:])


def test_several_threads_of_python_may_call_at_once(make_rois) -> None:
    rois = make_rois(50, 2, 30.0, 30.0)
    maps = [torch.randn(2, 24, 30, 30, requires_grad=True) for _ in range(4)]
    sizes = (3, 5, 7, 9)

    def work(index: int) -> tuple[Tensor, Tensor]:
        pooled = ops.roi_align(maps[index], rois, sizes[index], mode=("average", "max")[index % 2])
        return pooled.detach(), torch.autograd.grad(pooled.square().sum(), maps[index])[0]

    alone = [work(index) for index in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, list(range(4)) * 10))
    for index, results in enumerate(together):
        assert all(torch.equal(a, b) for a, b in zip(results, alone[index % 4], strict=True))


def test_works_in_a_forked_process(make_rois) -> None:
    features, rois = torch.randn(1, 256, 20, 20), make_rois(60, 1, 20.0, 20.0)
    want = ops.roi_align(features, rois, 7).numpy().tobytes()
    child = os.fork()
    if child == 0:
        # Compared as bytes: torch's own threads do not survive a fork, ours must.
        os._exit(0 if ops.roi_align(features, rois, 7).numpy().tobytes() == want else 1)
    deadline = time.monotonic() + 20
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    if done[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the operation hangs in a forked process")
    assert done[1] == 0


def test_meta_tensors_give_shapes_and_layout() -> None:
    features = torch.empty(2, 8, 16, 16, device="meta").contiguous(memory_format=torch.channels_last)
    pooled = ops.roi_align(features, torch.empty(5, 5, device="meta"), (3, 4))
    assert pooled.shape == (5, 8, 3, 4) and pooled.device.type == "meta"
    assert pooled.is_contiguous(memory_format=torch.channels_last)


def test_averaging_does_not_keep_the_features_for_its_gradient(make_rois) -> None:
    kept: list[torch.Size] = []
    features, rois = torch.randn(1, 4, 8, 8, requires_grad=True), make_rois(3, 1, 8.0, 8.0)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        ops.roi_align(features, rois, 2)
    assert kept == [torch.Size([3, 5])]


def test_a_stale_build_is_noticed(monkeypatch) -> None:
    extension, _ = native._load()
    monkeypatch.setattr(extension, "INTERFACE", 0)
    assert native._load() == (None, "it was compiled from other sources; build it again")
