"""The compiler and recomputed activations: the same results under the same names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toolbox.engine import model_switches
from toolbox.engine.model_switches import compile_maps, recompute_activations
from toolbox.engine.train import train
from toolbox.errors import ConfigError
from toolbox.models.backbones import ResNet, TimmBackbone
from toolbox.models.necks import FPN

MakeConfig = Callable[..., Any]


def step(backbone: nn.Module, images: Tensor) -> tuple[list[Tensor], list[Tensor | None], int]:
    """Maps, gradients, and how many values were kept for the gradient."""
    backbone.zero_grad()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maps = list(backbone(images).values())
    count = sum(kept.values()) - sum(p.numel() for p in backbone.parameters() if p.data_ptr() in kept)
    sum(x.square().mean() for x in maps).backward()  # type: ignore[union-attr]
    return maps, [p.grad for p in backbone.parameters()], count


class Noisy(nn.Module):
    """A stage with random numbers in it, which must be the same ones the second time."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand_like(x)


@pytest.mark.parametrize("settings", [{"depth": 18, "norm": "gn"}, {"depth": 50, "norm": "bn"}], ids=str)
def test_recomputed_activations_change_memory_and_nothing_else(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = ResNet(**settings)
    plain.layer2[0].conv2 = nn.Sequential(plain.layer2[0].conv2, Noisy())  # type: ignore[index, union-attr]
    again = copy.deepcopy(plain)
    again.recompute_activations()
    images = torch.rand(2, 3, 64, 96)
    maps, gradients, kept = step(plain, images)
    maps_again, gradients_again, kept_again = step(again, images)
    assert all(map(torch.equal, maps, maps_again))
    for expected, found in zip(gradients, gradients_again, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert kept_again < 0.6 * kept
    assert plain.state_dict().keys() == again.state_dict().keys()


def test_batch_statistics_are_counted_once_though_computed_twice() -> None:
    plain = ResNet(depth=18, norm="bn", out=["c2"])
    again = copy.deepcopy(plain)
    again.recompute_activations()
    for backbone in (plain, again):
        step(backbone, torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, msg=name)


def test_a_backbone_that_cannot_is_named(tiny_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.activation_checkpointing: .*TinyDetector has no backbone"):
        train(tiny_config(steps=1, activation_checkpointing=True), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train\.compile: compile needs a model with a backbone"):
        train(tiny_config(steps=1, compile=True), tmp_path / "run")
    model = nn.Module()
    model.backbone = nn.Conv2d(3, 8, 1)
    with pytest.raises(ValueError, match=r"recompute_activations\(\).*Conv2d has none"):
        recompute_activations(model)


def test_timm_recomputes_where_it_can() -> None:
    pytest.importorskip("timm")
    plain = TimmBackbone(name="convnext_atto")
    again = copy.deepcopy(plain)
    again.recompute_activations()
    images = torch.rand(2, 3, 64, 64)
    maps, gradients, kept = step(plain, images)
    maps_again, gradients_again, kept_again = step(again, images)
    for expected, found in zip((*maps, *gradients), (*maps_again, *gradients_again), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert kept_again < kept


def test_timm_is_not_let_count_a_batch_twice() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="counts each batch twice"):
        TimmBackbone(name="resnet18").recompute_activations()


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_maps_are_the_same_under_the_same_names(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend != "inductor":  # the compiler's own part takes minutes on a busy machine
        monkeypatch.setattr(model_switches, "try_compiler", lambda device: None)
        whole = nn.Module.compile
        monkeypatch.setattr(nn.Module, "compile", lambda self, **options: whole(self, **options | {"backend": backend}))
    torch.manual_seed(0)
    model = nn.Module()
    model.backbone = ResNet(depth=18, norm="gn", out=["c2"])
    model.neck = None
    model.to(memory_format=torch.channels_last)
    plain = copy.deepcopy(model).double()  # whose sums do not depend on their order
    compile_maps(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    torch._dynamo.utils.counters.clear()
    for size in ((256, 320), (224, 480), (256, 384), (320, 288)):
        images = torch.rand(1, 3, *size).contiguous(memory_format=torch.channels_last)
        maps, gradients, _ = step(plain.backbone, images.double())
        maps_compiled, gradients_compiled, _ = step(model.backbone, images)
        for expected, found in zip((*maps, *gradients), (*maps_compiled, *gradients_compiled), strict=True):
            torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-4)
    # Not one for each size; torch has others for small maps.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_without_a_compiler_the_reason_and_the_way_out_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Any) -> Any:
        raise RuntimeError("No working C++ compiler found in cpp.cxx: (None, 'g++')")

    monkeypatch.setattr(model_switches.torch, "compile", broken)
    model = nn.Module()
    model.backbone = ResNet(depth=18, norm="gn", out=["c2"])
    model.neck = FPN(ResNet(depth=18, norm="gn").out_features)
    with pytest.raises(ValueError, match=r"No working C\+\+ compiler.*needs a C\+\+ compiler.*or write false"):
        compile_maps(model)
    assert model.backbone._compiled_call_impl is None
