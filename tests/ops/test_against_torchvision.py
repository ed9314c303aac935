"""Drawn maps, boxes and settings: the operations against torchvision's, forward and backward, on one thread and two.

Every value is finite and every image exists: what ours does with others is said in the tests of each operation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torchvision
from torch import Tensor

from toolbox import ops

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")
pytestmark = pytest.mark.skipif(not ops.native_built(), reason="the extension was not compiled")
Pool = Callable[[list[Tensor]], Tensor]

# The same examples every time. The route is set once for all examples of a test, and stays.
drawn = hypothesis.settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
BOX_KINDS = ("ordinary", "tiny", "turned", "partly outside", "outside", "huge", "on borders")


@dataclass(frozen=True)
class Maps:
    """How the maps of a call look; the values follow from `seed`."""

    seed: int
    images: int
    channels: int
    dtype: torch.dtype
    layout: str

    def make(self, generator: torch.Generator, height: int, width: int) -> Tensor:
        """(N, C, height, width) of the layout, with values of a normal distribution."""
        shape = [self.images, self.channels, height, width]
        if self.layout == "sliced":
            shape = [self.images + 1, self.channels + 2, 2 * height, width + 3]
        elif self.layout == "expanded":
            shape[0:2] = 1, 1
        elif self.layout == "rows expanded":
            shape[2] = 1
        values = torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)
        if self.layout == "sliced":
            return values[1:, 2:, ::2, 3:]
        if self.layout == "channels-last":
            return values.contiguous(memory_format=torch.channels_last)
        return values.expand(self.images, self.channels, height, width)


LAYOUTS = ("contiguous", "channels-last", "sliced", "expanded", "rows expanded")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
sides = st.integers(1, 40)
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
kinds = st.lists(st.sampled_from(BOX_KINDS), min_size=1, max_size=3, unique=True)
counts = st.sampled_from((1, 6, 60, 400, 0))  # 400 are work for two threads
scales = st.sampled_from((1.0, 0.5, 0.25, 1 / 16, 0.3))
maps = st.builds(
    Maps,
    seed=st.integers(0, 2**32),
    images=st.integers(1, 3),
    channels=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
)


def make_boxes(
    generator: torch.Generator, count: int, kinds: list[str], height: float, width: float, reach: float
) -> Tensor:
    """(count, 4) float64 around a map of height × width cells, in cells; a huge one reaches so far out of it."""
    map_size = torch.tensor([width, height], dtype=torch.float64)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 2, generator=generator, dtype=torch.float64)

    def box(kind: str) -> Tensor:
        first, second = draw(0, 1) * map_size, draw(0, 1) * map_size
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        if kind == "tiny":
            high = low + draw(0, 0.5) ** 4
        elif kind == "turned":
            low, high = second, first
        elif kind == "partly outside":
            low, high = low - draw(0, 0.7) * map_size, high + draw(-0.5, 0.7) * map_size
        elif kind == "outside":
            low = torch.where(draw(0, 1) < 0.5, low - 2 * map_size - 2, map_size + low + 1)
            high = low + draw(0, 1) * map_size
        elif kind == "huge":
            low, high = -draw(0, reach), map_size + draw(0, reach)
        elif kind == "on borders":
            # Around the places where a sample begins to count as outside, -1 and the map's size, as either convention
            # has them: a middle sample lies right there.
            middle = torch.where(draw(0, 1) < 0.5, -1, map_size) + torch.where(draw(0, 1) < 0.5, 0.0, 0.5)
            half = (draw(0, 4) * 2).round() / 2 + 0.5
            low, high = middle - half, middle + half
        return torch.cat([low, high], dim=1)

    every = torch.stack([box(kind) for kind in kinds])
    return every[torch.arange(count) % len(kinds), torch.arange(count)]


def turned_on_both_axes(boxes: Tensor) -> Tensor:
    """The boxes, but those with corners swapped on one axis alone, whose area is negative, have none swapped."""
    low, high = boxes.split(2, dim=1)
    negative = (high - low).prod(dim=1, keepdim=True) < 0
    return torch.where(negative, torch.cat([torch.minimum(low, high), torch.maximum(low, high)], dim=1), boxes)


def make_rois(generator: torch.Generator, images: int, boxes: Tensor, dtype: torch.dtype) -> Tensor:
    """(R, 5) with random images, in the type that ours and torchvision compute in."""
    index = torch.randint(0, images, (len(boxes), 1), generator=generator).double()
    return torch.cat([index, boxes], dim=1).to(wide(dtype))


def wide(dtype: torch.dtype) -> torch.dtype:
    """What a type is summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def results(pool: Pool, levels: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Pooled regions, and the gradient of each level for random gradients of them."""
    leaves = [level.detach().requires_grad_() for level in levels]
    pooled = pool(leaves)
    given = torch.randn(pooled.shape, generator=generator, dtype=torch.float64).to(levels[0].dtype)
    # A level of torchvision's pyramid that no region reads is unused.
    gradients = torch.autograd.grad(pooled, leaves, given.to(pooled.dtype), allow_unused=True)
    filled = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients, strict=True)]
    return [pooled.detach(), *filled]


def check(ours: Pool, theirs: Pool, levels: list[Tensor], seed: int) -> None:
    """Compare `ours` with `theirs`, which gets the type that is summed in, and two threads with one."""
    threads = torch.get_num_threads()
    got = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            got.append(results(ours, levels, torch.Generator().manual_seed(seed)))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*got, strict=True):
        assert torch.equal(one, two)
    dtype = levels[0].dtype
    given = torch.Generator().manual_seed(seed)
    plain = [level.to(wide(dtype)).contiguous() for level in levels]

    def in_wide(leaves: list[Tensor]) -> Tensor:
        # Their gradients of the pooled regions are rounded to the type of the maps, as ours are.
        return _RoundedGradient.apply(theirs(leaves), dtype)

    for own, peer in zip(got[0], results(in_wide, plain, given), strict=True):
        assert own.dtype == dtype
        # Of the largest value, since sums of many values cancel; half types are rounded once, from a sum in float32.
        close = 1e-10 if dtype == torch.float64 else 1e-5
        largest = max(1.0, peer.abs().max().item() if peer.numel() else 0.0)
        rounding = torch.finfo(dtype).eps if dtype.itemsize == 2 else 0.0
        torch.testing.assert_close(own.to(peer.dtype), peer, rtol=rounding, atol=close * largest)


class _RoundedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, pooled: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype  # type: ignore[attr-defined]
        return pooled.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype).to(grad.dtype), None  # type: ignore[attr-defined]


@drawn
@hypothesis.given(maps, sides, sides, sizes, scales, st.integers(0, 4), st.booleans(), kinds, counts)
def test_roi_align(maps, height, width, size, scale, ratio, aligned, kinds, count) -> None:
    generator = torch.Generator().manual_seed(maps.seed)
    features = maps.make(generator, height, width)
    # Adaptive sampling takes a sample a cell, and torchvision takes those outside the map too: it would need minutes.
    boxes = make_boxes(generator, count, kinds, height, width, reach=20 if ratio == 0 else 1e6)
    if ratio == 0 and aligned:
        # torchvision reserves memory for height × width samples, and fails where their product is negative.
        boxes = turned_on_both_axes(boxes)
    rois = make_rois(generator, maps.images, boxes / scale, maps.dtype)
    check(
        lambda f: ops.roi_align(f[0], rois, size, spatial_scale=scale, sampling_ratio=ratio, aligned=aligned),
        lambda f: torchvision.ops.roi_align(f[0], rois, size, scale, ratio or -1, aligned),
        [features],
        maps.seed,
    )


@drawn
@hypothesis.given(maps, sides, sides, sizes, scales, kinds, counts)
def test_roi_pool(maps, height, width, size, scale, kinds, count) -> None:
    generator = torch.Generator().manual_seed(maps.seed)
    features = maps.make(generator, height, width)
    boxes = make_boxes(generator, count, kinds, height, width, reach=1e6)
    rois = make_rois(generator, maps.images, boxes / scale, maps.dtype)
    check(
        lambda f: ops.roi_pool(f[0], rois, size, spatial_scale=scale),
        lambda f: torchvision.ops.roi_pool(f[0], rois, size, scale),
        [features],
        maps.seed,
    )


@drawn
@hypothesis.given(
    maps, st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 9), st.integers(0, 4), kinds, counts
)
def test_multiscale_roi_align(maps, rows, columns, levels, size, ratio, kinds, count) -> None:
    generator = torch.Generator().manual_seed(maps.seed)
    strides = [4 * 2**level for level in range(levels)]
    height, width = 32 * rows, 32 * columns
    features = [maps.make(generator, height // stride, width // stride) for stride in strides]
    boxes = make_boxes(generator, count, kinds, height, width, reach=20 if ratio == 0 else 1e6)
    # torchvision finds no level for a negative area, and leaves zeros; ours reads the finest.
    rois = make_rois(generator, maps.images, turned_on_both_axes(boxes), maps.dtype)
    rois = rois[torch.argsort(rois[:, 0], stable=True)]
    pooler = torchvision.ops.MultiScaleRoIAlign(
        [str(stride) for stride in strides], size, ratio or -1, canonical_scale=60, canonical_level=4
    )

    def theirs(leaves: list[Tensor]) -> Tensor:
        lists = [rois[rois[:, 0] == image, 1:] for image in range(maps.images)]
        return pooler(dict(zip(pooler.featmap_names, leaves, strict=True)), lists, [(height, width)] * maps.images)

    check(
        lambda f: ops.multiscale_roi_align(
            f, rois, size, strides=strides, sampling_ratio=ratio, aligned=False, canonical_size=60
        ),
        theirs,
        features,
        maps.seed,
    )
