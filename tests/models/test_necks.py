"""Necks against the same layers written out in torch operations, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolbox.models.necks import FPN, SimpleFeaturePyramid
from toolbox.structures import FeatureSpec


def randomised(neck: SimpleFeaturePyramid) -> dict[str, Tensor]:
    """The weights, none of them a neutral 1 or 0 any more."""
    torch.manual_seed(0)
    for parameter in neck.parameters():
        nn.init.normal_(parameter, std=0.3)
    return {name: parameter.detach() for name, parameter in neck.named_parameters()}


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Over the channels of each pixel, by its definition."""
    centred = x - x.mean(1, keepdim=True)
    scaled = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return scaled * weight[:, None, None] + bias[:, None, None]


def level_of(x: Tensor, weights: dict[str, Tensor], level: str) -> Tensor:
    """What follows the change of scale."""
    for part, padding in (("lateral", 0), ("output", 1)):
        x = F.conv2d(x, weights[f"{part}.{level}.0.weight"], padding=padding)
        x = layer_norm(x, weights[f"{part}.{level}.1.weight"], weights[f"{part}.{level}.1.bias"])
    return x


def deconvolution(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """A 2×2 deconvolution of stride 2 puts a matrix product on each of the four quarters of a pixel."""
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    quarters = torch.einsum("nchw,cokl->nohkwl", x, weight)
    n, o, h, _, w, _ = quarters.shape
    return quarters.reshape(n, o, 2 * h, 2 * w) + bias[:, None, None]


def test_simple_pyramid_equals_its_layers_written_out() -> None:
    neck = SimpleFeaturePyramid({"c4": FeatureSpec(8, 16)}, out_channels=4)
    weights = randomised(neck)
    x = torch.randn(2, 8, 4, 6)
    with torch.no_grad():
        out = neck({"c4": x})

    twice = deconvolution(x, weights, "resample.p2.0")
    twice = layer_norm(twice, weights["resample.p2.1.weight"], weights["resample.p2.1.bias"])
    twice = 0.5 * twice * (1 + torch.erf(twice / 2**0.5))  # GELU (arXiv:1606.08415)
    expected = {
        "p2": level_of(deconvolution(twice, weights, "resample.p2.3"), weights, "p2"),
        "p3": level_of(deconvolution(x, weights, "resample.p3.0"), weights, "p3"),
        "p4": level_of(x, weights, "p4"),
        "p5": level_of(x.unflatten(2, (2, 2)).unflatten(4, (3, 2)).amax((3, 5)), weights, "p5"),
    }
    expected["p6"] = expected["p5"][:, :, [0]][..., [0, 2]]
    assert list(out) == list(expected)
    for level, value in expected.items():
        torch.testing.assert_close(out[level], value, rtol=1e-4, atol=1e-5, msg=level)


def test_the_papers_widths_halve_at_each_deconvolution() -> None:
    neck = SimpleFeaturePyramid({"c4": FeatureSpec(768, 16)})
    widths = {level: lateral[0].in_channels for level, lateral in neck.lateral.items()}
    assert widths == {"p2": 192, "p3": 384, "p4": 768, "p5": 768}
    assert all(convolution.bias is None for convolution in neck.modules() if isinstance(convolution, nn.Conv2d))


@pytest.mark.parametrize(
    ("stride", "settings", "strides"),
    [
        (16, {}, [4, 8, 16, 32, 64]),
        (16, {"extra": "none"}, [4, 8, 16, 32]),
        (16, {"strides": [8, 16, 32], "extra": "conv", "extra_levels": 2}, [8, 16, 32, 64, 128]),
        (8, {"norm": "none"}, [4, 8, 16, 32, 64]),
        (8, {"norm": "bn", "strides": [2, 4], "extra_levels": 0}, [2, 4]),
        (32, {"norm": "gn", "strides": [32]}, [32, 64]),
        (4, {"strides": [16, 32, 64]}, [16, 32, 64, 128]),
    ],
)
def test_simple_pyramid_keeps_its_promise_and_reaches_every_parameter(
    stride: int, settings: dict[str, Any], strides: list[int]
) -> None:
    neck = SimpleFeaturePyramid({"c": FeatureSpec(6, stride)}, out_channels=4, **settings)
    assert neck.out_features == {f"p{[1, 2, 4, 8, 16, 32, 64, 128].index(s)}": FeatureSpec(4, s) for s in strides}
    # 96 and 160 are multiples of the strides to 32, as the detector pads; the coarser levels round up.
    maps = neck({"c": torch.randn(2, 6, 96 // stride, 160 // stride)})
    assert {level: tuple(x.shape) for level, x in maps.items()} == {
        level: (2, 4, -(-96 // spec.stride), -(-160 // spec.stride)) for level, spec in neck.out_features.items()
    }
    sum(x.square().sum() for x in maps.values()).backward()
    assert all(parameter.grad is not None for parameter in neck.parameters())


def test_simple_pyramid_gives_the_same_in_channels_last() -> None:
    neck = SimpleFeaturePyramid({"c4": FeatureSpec(8, 16)}, out_channels=4)
    x = torch.randn(1, 8, 4, 6)
    with torch.no_grad():
        expected = neck({"c4": x})
        last = neck.to(memory_format=torch.channels_last)({"c4": x.contiguous(memory_format=torch.channels_last)})
    for level, value in expected.items():
        torch.testing.assert_close(last[level], value, rtol=1e-4, atol=1e-5)
    for level in ("p2", "p3", "p4", "p5"):
        assert last[level].is_contiguous(memory_format=torch.channels_last), level


@pytest.mark.parametrize(
    ("maps", "settings", "message"),
    [
        ({"c3": (8, 8), "c4": (8, 16)}, {}, "takes one map, got c3 of stride 8, c4 of stride 16; FPN joins several"),
        ({"c4": (8, 14)}, {}, "a power of two, 4 or more, got c4 of stride 14"),
        ({"c1": (8, 2)}, {}, "a power of two, 4 or more, got c1 of stride 2"),
        ({"c4": (8, 16)}, {"strides": [4, 16]}, r"^strides are powers of two that double, .*, got \[4, 16\]"),
        ({"c4": (8, 16)}, {"strides": [6, 12]}, "^strides are powers of two"),
        ({"c4": (8, 16)}, {"strides": []}, "^strides are powers of two"),
        ({"c4": (8, 16)}, {"out_channels": 0}, "^out_channels is 1 or more"),
        ({"c4": (8, 16)}, {"extra_levels": -1}, "^extra_levels is 0 or more"),
    ],
)
def test_simple_pyramid_refuses_what_it_cannot_scale(
    maps: dict[str, tuple[int, int]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SimpleFeaturePyramid({name: FeatureSpec(*spec) for name, spec in maps.items()}, **settings)


def test_fpn_subsamples_its_extra_levels() -> None:
    neck = FPN({"c4": FeatureSpec(6, 16), "c5": FeatureSpec(8, 32)}, out_channels=4, extra_levels=2)
    maps = neck({"c4": torch.randn(1, 6, 10, 12), "c5": torch.randn(1, 8, 5, 6)})
    assert list(maps) == ["p4", "p5", "p6", "p7"]
    assert torch.equal(maps["p6"], maps["p5"][:, :, [0, 2, 4]][..., [0, 2, 4]])
    assert torch.equal(maps["p7"], maps["p5"][:, :, [0, 4]][..., [0, 4]])


def test_fpn_of_one_map_names_the_neck_for_it() -> None:
    with pytest.raises(ValueError, match="there is c4 alone; SimpleFeaturePyramid makes a pyramid of one"):
        FPN({"c4": FeatureSpec(8, 16)})
