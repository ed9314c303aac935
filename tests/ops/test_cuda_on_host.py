"""The CUDA sources, compiled by the C++ compiler and run thread after thread, against the CPU's kernels.

What they compute is tested wherever there is a compiler; what only a GPU shows (races, launches, speed) is in
test_cuda.py and benchmarks/on_gpu.sh.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from toolbox import ops
from toolbox.ops import native
from toolbox.ops.arguments import PoolSettings

ROOT = Path(__file__).resolve().parents[2]
CXX = shutil.which("g++")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ops.native_built() or CXX is None, reason="needs the extension and g++"),
]
FORMATS = [torch.contiguous_format, torch.channels_last]
METHODS = ["align_average", "align_max", "pool_max"]


@pytest.fixture
def route() -> str:
    """Below the routes there is one."""
    return "eager"


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The extension with its CUDA part, compiled for the CPU."""
    pybind11 = pytest.importorskip("pybind11")
    target = tmp_path_factory.mktemp("cuda_on_host") / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = [pybind11.get_include(), sysconfig.get_path("include"), ROOT / "tests/ops/cuda_on_host", ROOT / "csrc"]
    subprocess.run(
        [
            *[str(CXX), "-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wno-psabi"],
            *["-DTOOLBOX_WITH_CUDA", "-DTOOLBOX_CUDA_ON_HOST", *(f"-I{folder}" for folder in include)],
            *map(str, [ROOT / "csrc/bindings.cpp", *sorted((ROOT / "csrc/cpu").glob("*.cpp"))]),
            *["-x", "c++", *map(str, sorted((ROOT / "csrc/cuda").glob("*.cu"))), "-o", str(target)],
        ],
        check=True,
    )
    spec = importlib.util.spec_from_file_location("_native", target)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def on_host(compiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on tensors of the CPU are pooled by the CUDA sources, through the same Python."""

    @contextlib.contextmanager
    def queue(device: torch.device) -> Iterator[tuple[int, int]]:
        yield 0, 0

    native._handle.cache_clear()
    monkeypatch.setattr(native, "_extension", compiled)
    monkeypatch.setattr(native, "_handle", native._handle.__wrapped__)
    monkeypatch.setattr(native, "_cuda_queue", queue)
    monkeypatch.setattr(native, "_on_cpu", lambda tensor: False)


def both(maps: list[Tensor], rois: Tensor, how: PoolSettings, weight: Tensor, undo: pytest.MonkeyPatch) -> Any:
    """Pooled regions and gradients by the CUDA sources, then by the CPU's kernels."""
    results = []
    for _ in range(2):
        pooled = native.forward(maps, rois, how)
        shapes = [side for level in maps for side in level.shape]
        kept = [] if how.method == "align_average" else maps
        last = native.is_channels_last(maps[0])
        results.append([pooled, *native.backward(weight.to(pooled.dtype), kept, shapes, last, rois, how)])
        undo.undo()
    return zip(*results, strict=True)


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [7, 16])
def test_equals_the_cpu(make_rois, deterministic, layout, method, sampling_ratio, dtype, channels, monkeypatch) -> None:
    maps = [torch.randn(2, channels, s, s + 2).to(dtype).contiguous(memory_format=layout) for s in (24, 12)]
    rois = make_rois(20, 2, 96.0, 96.0, torch.float64 if dtype == torch.float64 else torch.float32)
    weight = torch.randn(20, channels, 5, 3)
    how = PoolSettings((5, 3), (0.25, 0.125), (2, 3), method, sampling_ratio, True, 60.0, 3)
    torch.use_deterministic_algorithms(deterministic)
    try:
        pairs = both(maps, rois, how, weight, monkeypatch)
    finally:
        torch.use_deterministic_algorithms(False)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype.itemsize > 2 else {"rtol": 1e-2, "atol": 1e-1}
    for ours, want in pairs:
        torch.testing.assert_close(ours, want, **close)


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [0, 2])
def test_odd_boxes_do_what_they_do_on_the_cpu(odd_rois, deterministic, layout, method, ratio, monkeypatch) -> None:
    maps = [torch.rand(1, 8, 10, 12).contiguous(memory_format=layout), torch.rand(1, 8, 5, 6)]
    maps[1] = maps[1].contiguous(memory_format=layout)
    how = PoolSettings((5, 3), (0.25, 0.125), (2, 3), method, ratio, True, 60.0, 3)
    torch.use_deterministic_algorithms(deterministic)
    try:
        pairs = both(maps, odd_rois, how, torch.ones(len(odd_rois), 8, 5, 3), monkeypatch)
    finally:
        torch.use_deterministic_algorithms(False)
    for ours, want in pairs:
        torch.testing.assert_close(ours, want)


@contextlib.contextmanager
def deterministic_algorithms() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_collected_as_on_the_cpu(
    sizes: list[tuple[int, int]], layout: torch.memory_format, rois: Tensor, how: PoolSettings, undo: pytest.MonkeyPatch
) -> None:
    """The deterministic gradients in float64 are the CPU's to 1e-10."""
    maps = [torch.randn(2, 6, *size, dtype=torch.float64).contiguous(memory_format=layout) for size in sizes]
    weight = torch.randn(len(rois), 6, *how.output_size, dtype=torch.float64)
    with deterministic_algorithms():
        pairs = both(maps, rois.double(), how, weight, undo)
    for ours, want in pairs:
        torch.testing.assert_close(ours, want, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(7, 7), (18, 33)])  # more bins a side than are staged at once
def test_many_regions_over_many_tiles(make_rois, layout, method, size, monkeypatch) -> None:
    rois = make_rois(150, 2, 180.0, 172.0)  # three words of 64 regions
    how = PoolSettings(size, (0.25, 0.125), (2, 3), method, 2, True, 60.0, 3)
    assert_collected_as_on_the_cpu([(45, 43), (23, 22)], layout, rois, how, monkeypatch)


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [0, 1, 7])
@pytest.mark.parametrize("aligned", [False, True])
def test_no_region_is_missed_where_tiles_meet(method, ratio, aligned, monkeypatch) -> None:
    edges = [-9.0, -1.0, -0.5, 0.0, 6.9, 7.0, 7.49, 7.5, 8.0, 8.5, 8.51, 9.0, 15.5, 16.0, 19.0, 21.0]
    lengths = [-10.0, -0.3, 0.0, 1e-4, 0.6, 1.0, 8.0, 40.0, 1e6]
    spans = torch.tensor([(edge, edge + length) for edge in edges for length in lengths])
    other = spans[torch.randperm(len(spans))]
    rois = torch.stack([torch.zeros(len(spans)), spans[:, 0], other[:, 0], spans[:, 1], other[:, 1]], dim=1)
    how = PoolSettings((4, 5), (1.0,), (0,), method, ratio, aligned, 60.0, 3)
    assert_collected_as_on_the_cpu([(19, 20)], torch.channels_last, rois, how, monkeypatch)


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [0, 2])
def test_odd_boxes_are_collected(odd_rois, method, ratio, monkeypatch) -> None:
    how = PoolSettings((5, 3), (0.25, 0.125), (2, 3), method, ratio, True, 60.0, 3)
    assert_collected_as_on_the_cpu([(21, 18), (11, 9)], torch.channels_last, odd_rois, how, monkeypatch)


@pytest.mark.usefixtures("on_host")
def test_an_infinite_gradient_stays_where_it_belongs() -> None:
    features = torch.zeros(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    rois = torch.tensor([[0.0, 2, 2, 4, 4]])  # one bin, one sample at (3, 3), the corner of cells 2 and 3
    how = PoolSettings((1, 1), (1.0,), (0,), "align_average", 1, True, 60.0, 3)
    given = torch.full((1, 4, 1, 1), float("inf"))
    with deterministic_algorithms():
        [gradient] = native.backward(given, [], features.shape, True, rois, how)
    reached = torch.zeros(8, 8, dtype=torch.bool)
    reached[2:4, 2:4] = True
    assert torch.equal(gradient[0, 0].isinf(), reached)
    assert not gradient[0, 0][~reached].any()


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_region_of_no_image_gives_nothing(deterministic) -> None:
    rois = torch.tensor([[5.0, 0, 0, 8, 8], [-1.0, 0, 0, 8, 8], [float("nan"), 0, 0, 8, 8]])
    how = PoolSettings((2, 2), (1.0,), (0,), "align_average", 1, True, 60.0, 3)
    with deterministic_algorithms() if deterministic else contextlib.nullcontext():
        [gradient] = native.backward(torch.ones(3, 4, 2, 2), [], (2, 4, 9, 9), False, rois, how)
    assert not gradient.any()


@pytest.mark.usefixtures("on_host")
def test_the_workspace_is_a_bit_for_each_region_and_tile(compiled) -> None:
    how = PoolSettings((7, 7), (0.25, 0.125), (2, 3), "align_average", 2, True, 60.0, 3)
    shapes = (3, 8, 17, 16, 3, 8, 8, 9)  # 3 × 2 and 1 × 2 tiles of 8 × 8 in each of 3 images
    request = compiled.request(*native._call([0, 0], shapes, torch.zeros(65, 5), how, True, torch.float32))
    assert compiled.collect_workspace(request) == 3 * (6 + 2) * 2 * 8  # 65 regions: two words of 8 bytes
