"""When the light route is taken, writing to a given buffer, and maps that are converted as a whole."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from toolbox import ops
from toolbox.ops import arguments, eager, native

pytestmark = pytest.mark.skipif(not ops.native_built(), reason="the extension was not compiled")
FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture
def plain(route: str) -> None:
    if route != "eager":
        pytest.skip("the other route")


def pooled_by_graph(function: object) -> bool:
    """Whether a traced function holds the operation."""
    return "pool_regions" in str(getattr(function, "graph", function))


def test_ordinary_tensors_take_the_light_route(plain: None) -> None:
    features, rois = torch.randn(1, 4, 8, 8), torch.tensor([[0.0, 1, 1, 5, 5]])
    assert eager.is_plain([features, torch.nn.Parameter(features)], rois)
    pooled = ops.roi_align(features.requires_grad_(), rois, 2)
    assert pooled.grad_fn is not None and "Pool" in pooled.grad_fn.name()


@pytest.mark.usefixtures("plain")
def test_whoever_watches_sees_the_operation() -> None:
    features, rois = torch.randn(1, 4, 8, 8), torch.tensor([[0.0, 1, 1, 5, 5]])
    traced = make_fx(lambda f, r: ops.roi_align(f, r, 2))(features, rois)
    assert pooled_by_graph(traced)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(features), mode.from_tensor(rois)
        assert not eager.is_plain([fake[0]], fake[1])
        assert ops.roi_align(*fake, 2).shape == (1, 4, 2, 2)
    with FlopCounterMode(display=False):
        assert not eager.is_plain([features], rois)
    with torch.autograd.forward_ad.dual_level():
        assert not eager.is_plain([features], rois)
    seen = []
    torch.func.vmap(lambda x: seen.append(eager.is_plain([x], rois)) or x)(features)
    torch.func.grad(lambda x: seen.append(eager.is_plain([x], rois)) or x.sum())(features)
    assert seen == [False, False]


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("mode", ["average", "max"])
def test_both_routes_give_the_same_bits(make_rois, mode, monkeypatch) -> None:
    rois = make_rois(30, 2, 64.0, 64.0)
    maps = [torch.randn(2, 20, s, s, requires_grad=True) for s in (16, 8)]
    results = []
    for is_plain in (eager.is_plain, lambda features, rois: False):
        monkeypatch.setattr(eager, "is_plain", is_plain)
        pooled = ops.multiscale_roi_align(maps, rois, 3, strides=(4, 8), mode=mode)
        results.append([pooled, *torch.autograd.grad(pooled.square().sum(), maps)])
    for light, dispatched in zip(*results, strict=True):
        assert torch.equal(light, dispatched)


def test_levels_without_a_gradient_get_none(make_rois) -> None:
    fine, coarse = torch.randn(1, 4, 16, 16), torch.randn(1, 4, 8, 8, requires_grad=True)
    ops.multiscale_roi_align([fine, coarse], make_rois(9, 1, 64.0, 64.0), 2, strides=(4, 8)).sum().backward()
    assert fine.grad is None and coarse.grad is not None


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("size", [1, (2, 3)])
def test_a_channels_last_result_has_the_strides_that_torch_gives(channels, size) -> None:
    features = torch.randn(1, channels, 8, 8).contiguous(memory_format=torch.channels_last)
    pooled = ops.roi_align(features, torch.tensor([[0.0, 1, 1, 5, 5]] * 2), size)
    # A map of one channel is contiguous as well, and counts as that.
    layout = torch.contiguous_format if channels == 1 else torch.channels_last
    assert pooled.stride() == torch.empty(pooled.shape, memory_format=layout).stride()


# out


@pytest.mark.parametrize("layout", FORMATS)
def test_the_result_is_written_to_out(make_rois, layout) -> None:
    features = torch.randn(2, 20, 16, 16).contiguous(memory_format=layout)
    rois = make_rois(7, 2, 16.0, 16.0)
    out = torch.full((7, 20, 3, 3), 9.0).contiguous(memory_format=layout)
    for function in (ops.roi_align, ops.roi_pool):
        assert function(features, rois, 3, out=out) is out
        assert torch.equal(out, function(features, rois, 3))
    pyramid = [features, features[..., ::2, ::2].contiguous(memory_format=layout)]
    for function in (ops.multiscale_roi_align, ops.multiscale_roi_pool):
        assert function(pyramid, rois, 3, strides=(1, 2), out=out) is out
        assert torch.equal(out, function(pyramid, rois, 3, strides=(1, 2)))


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (torch.empty(1, 4, 2, 3), r"expected \(1, 4, 2, 2\) torch.float32"),
        (torch.empty(1, 4, 2, 2, dtype=torch.float64), "out is .* torch.float64"),
        (torch.empty(1, 4, 2, 2).contiguous(memory_format=torch.channels_last), "out is not contiguous"),
        (torch.empty(1, 4, 2, 2, requires_grad=True), "gradient is wanted"),
    ],
)
def test_an_out_that_does_not_fit_is_refused(out: Tensor, said: str) -> None:
    with pytest.raises(ops.ArgumentError, match=said):
        ops.roi_align(torch.randn(1, 4, 8, 8), torch.tensor([[0.0, 1, 1, 5, 5]]), 2, out=out)


def test_whoever_kept_out_for_a_gradient_is_told_that_it_was_written() -> None:
    features, rois = torch.rand(1, 4, 8, 8), torch.tensor([[0.0, 1, 1, 5, 5]])
    out, weight = torch.zeros(1, 4, 2, 2), torch.ones(4, 2, 2, requires_grad=True)
    loss = (out * weight).sum()
    with torch.no_grad():
        ops.roi_align(features, rois, 2, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("layout", FORMATS)
def test_out_may_lie_where_the_features_lie(layout) -> None:
    # Written one by one, the first region would change the image that the last one reads.
    features = torch.rand(3, 4, 6, 6).contiguous(memory_format=layout)
    rois = torch.tensor([[image, 0.0, 0, 5, 5] for image in (2, 1, 0)])
    want = ops.roi_align(features, rois, 6)
    assert ops.roi_align(features, rois, 6, out=features) is features
    assert torch.equal(features, want)


def test_out_may_lie_where_the_regions_lie() -> None:
    # The first region is written to the last one's x1.
    memory = torch.zeros(20)
    rois, out = memory.view(4, 5), memory[16:].view(4, 1, 1, 1)
    rois[:] = torch.tensor([0.0, 1, 1, 5, 5])
    features = torch.rand(1, 1, 8, 8)
    want = ops.roi_align(features, rois.clone(), 1)
    assert torch.equal(ops.roi_align(features, rois, 1, out=out), want)


# Tensors whose values do not lie at their address


class Wrapper(Tensor):
    """A tensor without memory of its own, as those of distributed and quantised models are."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)  # type: ignore
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return function(*(a.inner if isinstance(a, Wrapper) else a for a in args), **(kwargs or {}))


def test_out_may_be_a_tensor_that_wraps_another() -> None:
    features, rois = torch.rand(1, 4, 8, 8), torch.tensor([[0.0, 1, 1, 5, 5]])
    inner = torch.zeros(1, 4, 2, 2)
    ops.roi_align(features, rois, 2, out=Wrapper(inner))
    assert torch.equal(inner, ops.roi_align(features, rois, 2))


def test_views_that_stand_for_the_negative_are_read_and_written_as_that() -> None:
    features, rois = torch.rand(1, 4, 8, 8), torch.tensor([[0.0, 1, 1, 5, 5]])
    want = ops.roi_align(features, rois, 2)
    assert torch.equal(ops.roi_align(torch._neg_view(features), rois, 2), -want)
    assert torch.equal(ops.roi_align(features, torch._neg_view(-rois), 2), want)
    out = torch._neg_view(torch.zeros(1, 4, 2, 2))
    assert torch.equal(ops.roi_align(features, rois, 2, out=out), want)
    leaf = features.requires_grad_()
    given = torch.rand(1, 4, 2, 2)
    gradients = []
    for sign in (given, torch._neg_view(-given)):
        pooled = ops.roi_align(leaf, rois, 2)
        gradients += torch.autograd.grad(pooled, leaf, sign)
    assert torch.equal(*gradients) and gradients[0].any()


def test_zeros_without_memory_do_no_harm(route) -> None:
    features, rois = torch._efficientzerotensor((1, 4, 8, 8)), torch.tensor([[0.0, 1, 1, 5, 5]])
    if route == "eager":
        with pytest.raises(ValueError, match="no memory of its own"):
            ops.roi_align(features, rois, 2)
    else:
        assert not ops.roi_align(features, rois, 2).any()
    leaf = torch.rand(1, 4, 8, 8, requires_grad=True)
    pooled = ops.roi_align(leaf, rois, 2)
    [gradient] = torch.autograd.grad(pooled, leaf, torch._efficientzerotensor(pooled.shape))
    assert gradient.shape == leaf.shape and not gradient.any()


@pytest.mark.parametrize("size", [(1 << 16, 1 << 15), (1, 1 << 31), (1 << 40, 1), (0, 5)])
def test_maps_whose_cells_cannot_be_counted_are_refused(size) -> None:
    settings = native._handle(arguments.single_settings(2, 1.0))
    with pytest.raises(ValueError, match=rf"1 to 2\*\*31 - 1 cells, got {size[0]} x {size[1]}"):
        native._extension.request(settings, [0], [1, 1, *size], 0, 1, False, 0)


# Maps with channels outermost, converted where the regions together cover them


@pytest.mark.parametrize("channels", [1, 16, 37, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("regions", [1, 60])
def test_many_and_few_regions_agree_with_channels_last(make_rois, channels, dtype, regions) -> None:
    """One region of a large map reads its own cells, sixty convert the map first; images without regions among them."""
    rois = make_rois(regions, 2, 80.0, 120.0)
    rois[:, 0] *= 2  # images 0 and 2 of three
    results = []
    for layout in FORMATS:
        torch.manual_seed(3)
        maps = [
            torch.randn(3, channels, h, w).to(dtype).contiguous(memory_format=layout).requires_grad_()
            for h, w in ((20, 30), (10, 15))
        ]
        for mode in ("average", "max"):
            pooled = ops.multiscale_roi_align(maps, rois, (3, 5), strides=(4, 8), mode=mode, canonical_size=40)
            weights = torch.arange(pooled.numel()).reshape(pooled.shape).to(dtype).cos()
            results.append([pooled, *torch.autograd.grad((pooled * weights).sum(), maps)])
    for first, last in zip(results[:2], results[2:], strict=True):
        for a, b in zip(first, last, strict=True):
            assert a.is_contiguous() and torch.equal(a, b.contiguous())


def test_a_large_call_agrees_with_torchvision(make_rois) -> None:
    features, rois = torch.randn(2, 40, 50, 70), make_rois(200, 2, 50.0, 70.0)
    want = torchvision.ops.roi_align(features, rois, 7, 1.0, 2, True)
    torch.testing.assert_close(ops.roi_align(features, rois, 7), want, rtol=1e-5, atol=1e-5)
