"""Without the extension the same functions run on torchvision's operations or on the twin."""

from __future__ import annotations

import logging

import pytest
import torch

from toolbox import ops
from toolbox.errors import ToolboxError
from toolbox.ops import fallback, native

CALLS = {
    "align": lambda f, g, rois: ops.roi_align(f, rois, 3, sampling_ratio=0),
    "max": lambda f, g, rois: ops.roi_align(f, rois, 3, mode="max"),
    "pool": lambda f, g, rois: ops.roi_pool(f, rois, 3),
    "pyramid": lambda f, g, rois: ops.multiscale_roi_align([f, g], rois, 3, strides=(1, 2), canonical_size=60),
    "pyramid max": lambda f, g, rois: ops.multiscale_roi_align(
        [f, g], rois, 3, strides=(1, 2), canonical_size=60, mode="max"
    ),
    "pyramid pool": lambda f, g, rois: ops.multiscale_roi_pool([f, g], rois, 3, strides=(1, 2), canonical_size=60),
}


@pytest.fixture
def without_extension(monkeypatch) -> None:
    monkeypatch.setattr(native, "_extension", None)
    monkeypatch.setattr(native, "missing_because", "it was not compiled")
    fallback._warn_once.cache_clear()


@pytest.mark.skipif(not ops.native_built(), reason="nothing to compare with")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gives_what_the_extension_gives(make_rois, monkeypatch, name, dtype) -> None:
    f, g, rois = torch.randn(2, 5, 16, 16).to(dtype), torch.randn(2, 5, 8, 8).to(dtype), make_rois(9, 2, 16.0, 16.0)
    ours = [level.clone().requires_grad_() for level in (f, g)]
    want = CALLS[name](*ours, rois)
    want.sum().backward()
    monkeypatch.setattr(native, "_extension", None)
    theirs = [level.clone().requires_grad_() for level in (f, g)]
    got = CALLS[name](*theirs, rois)
    got.sum().backward()
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(got, want, **tolerance)
    for a, b in zip(theirs, ours, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, **tolerance)


@pytest.mark.parametrize("name", CALLS)
def test_no_regions_are_fine(without_extension, name) -> None:
    f, g = torch.randn(2, 5, 16, 16), torch.randn(2, 5, 8, 8)
    assert CALLS[name](f, g, torch.zeros(0, 5)).shape == (0, 5, 3, 3)


def test_says_once_why_it_is_slow(without_extension, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="toolbox"):
        for _ in range(3):
            ops.roi_align(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), 1)
    assert len(caplog.messages) == 1
    assert "cannot be used: it was not compiled." in caplog.messages[0]


def test_a_wrong_image_index_is_named_too(without_extension) -> None:
    with pytest.raises(ToolboxError, match=r"rois\[0\] belongs to image 5"):
        ops.roi_align(torch.zeros(1, 1, 4, 4), torch.tensor([[5.0, 0, 0, 1, 1]]), 1)
