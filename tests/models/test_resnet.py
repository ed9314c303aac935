"""Dilation in place of a stride, and a stage on regions: against timm, torchvision, and the stride itself."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d

from toolbox.models.backbones import ResNet, ResNetStage, residual
from toolbox.structures import RoIShape

FORMS: list[dict[str, Any]] = [{"depth": 18}, {"depth": 50}, {"depth": 50, "stride_in_1x1": True}]


def stirred(module: nn.Module) -> nn.Module:
    """In evaluation, with statistics as a trained network has them, in float64."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, 0.3, 0.8)
            nn.init.uniform_(layer.bias, -0.2, 0.2)
    return module.eval().double()


@torch.no_grad()
def c5(backbone: nn.Module, images: Tensor) -> Tensor:
    return backbone(images)["c5"]


@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 0.5])
def test_norm_eps_is_what_every_norm_adds_to_its_variance(epsilon: float) -> None:
    ours = stirred(ResNet(depth=18, norm="bn", out=["c5"], norm_eps=epsilon))
    theirs = resnet18(norm_layer=partial(nn.BatchNorm2d, eps=epsilon)).eval().double()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    theirs.avgpool, theirs.fc = nn.Identity(), nn.Identity()
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(c5(ours, images).flatten(1), theirs(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("size", [(128, 160), (112, 144)])
def test_dilated_c5_has_the_strided_one_at_every_second_cell(form: dict[str, Any], size: tuple[int, int]) -> None:
    strided = stirred(ResNet(norm="bn", out=["c5"], **form))
    dilated = stirred(ResNet(norm="bn", out=["c5"], dilated_c5=True, **form))
    dilated.load_state_dict(strided.state_dict())  # the same weights, key by key
    assert strided.out_features["c5"].stride == 32 and dilated.out_features["c5"].stride == 16
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    close = c5(dilated, images)
    assert close.shape[-2:] == (-(-size[0] // 16), -(-size[1] // 16))
    torch.testing.assert_close(close[..., ::2, ::2], c5(strided, images))


@pytest.mark.parametrize("depth", [18, 50])
def test_dilated_c5_is_timms_of_output_stride_16(depth: int) -> None:
    timm = pytest.importorskip("timm", reason="extra 'timm' is not installed")
    theirs = stirred(timm.create_model(f"resnet{depth}", features_only=True, out_indices=(4,), output_stride=16))
    ours = stirred(ResNet(depth=depth, norm="bn", out=["c5"], dilated_c5=True))
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 96, 128, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(c5(ours, images), theirs(images)[0])


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_dilated_c5_of_all_blocks_has_dilation_in_every_3x3_as_detectron2s(stride_in_1x1: bool) -> None:
    ours = ResNet(norm="bn", out=["c5"], dilated_c5="all_blocks", stride_in_1x1=stride_in_1x1)
    assert [block.conv2.dilation for block in ours.layer4] == [(2, 2)] * 3
    assert all(convolution.stride == (1, 1) for convolution in ours.layer4.modules() if hasattr(convolution, "stride"))
    assert ours.out_features["c5"].stride == 16
    as_torchvision = ResNet(norm="bn", out=["c5"], dilated_c5=True, stride_in_1x1=stride_in_1x1)
    first = as_torchvision.layer4[0].conv2
    assert first.dilation == ((2, 2) if stride_in_1x1 else (1, 1))


def test_dilated_c5_folds_frozen_norms_as_live_ones_in_evaluation(tmp_path: Any) -> None:
    live = stirred(ResNet(depth=50, norm="bn", dilated_c5=True, out=["c5"]))
    torch.save(live.state_dict(), tmp_path / "live.pth")
    weights = str(tmp_path / "live.pth")
    frozen = ResNet(depth=50, norm="frozen_bn", dilated_c5=True, out=["c5"], weights=weights).double()
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    torch.testing.assert_close(c5(frozen.train(), images), c5(live, images), rtol=1e-5, atol=1e-5)
    bottleneck = frozen.layer4[1]
    assert bottleneck.conv2.dilation == (2, 2)
    images.requires_grad_()
    frozen(images)["c5"].sum().backward()
    assert bottleneck.conv2.weight.grad.any()


@pytest.mark.parametrize("groups_width", [(64, 4), (32, 8)])
def test_resnext_101_has_torchvisions_keys_and_parameters(groups_width: tuple[int, int]) -> None:
    import torchvision

    groups, width = groups_width
    with torch.device("meta"):
        ours = ResNet(depth=101, norm="bn", groups=groups, width_per_group=width).state_dict()
        theirs = getattr(torchvision.models, f"resnext101_{groups}x{width}d")().state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items() if not k.startswith("fc.")}


def test_a_stage_on_regions_is_the_backbones_own_and_may_leave_its_stride_out(tmp_path: Any) -> None:
    backbone = stirred(ResNet(depth=18, norm="bn", out=["c4", "c5"]))
    torch.save(backbone.state_dict(), tmp_path / "net.pth")
    settings = {"depth": 18, "norm": "frozen_bn", "weights": str(tmp_path / "net.pth")}
    maps = {name: x.detach() for name, x in backbone(torch.randn(1, 3, 96, 96, dtype=torch.float64)).items()}
    halved = ResNetStage(RoIShape(256, 6, 6), **settings).double()
    assert halved.out_shape == RoIShape(512, 3, 3)
    torch.testing.assert_close(halved(maps["c4"]), maps["c5"], rtol=1e-5, atol=1e-5)
    whole = ResNetStage(RoIShape(256, 6, 6), stride=1, **settings).double()
    assert whole.out_shape == RoIShape(512, 6, 6) and whole(maps["c4"]).shape == (1, 512, 6, 6)


def test_a_stage_with_frozen_norms_and_no_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="^norm 'frozen_bn' needs pretrained weights"):
        ResNetStage(RoIShape(1024, 7, 7))


def fixed_block(norm: residual.BlockNorm = "frozen_bn") -> nn.Module:
    """A bottleneck with a shortcut of its own, and statistics that change what passes."""
    torch.manual_seed(0)
    form = {"stride": 2, "dilation": 1, "first_dilation": 1, "groups": 1, "width": 64, "stride_in_1x1": False}
    block = residual.ResidualBlock(8, 4, bottleneck=True, norm=norm, **form)
    for layer in block.modules():
        if isinstance(layer, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(0.5, 2)
    return block.eval()


def test_folded_weights_are_not_kept_for_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they would be a copy of the backbone, alive until the backward pass."""
    made, fold = [], residual._folded

    def noted(weight: Tensor, scale: Tensor) -> Tensor:
        folded = fold(weight, scale)
        made.append(weakref.ref(folded))
        return folded

    monkeypatch.setattr(residual, "_folded", noted)
    out = fixed_block()(torch.rand(1, 8, 9, 9, requires_grad=True))
    assert len(made) == 4 and not any(reference() is not None for reference in made)
    out.sum().backward()
    assert len(made) == 8  # again, once each


@pytest.mark.parametrize("norm", ["frozen_bn", "bn"])
def test_weights_changed_before_the_backward_pass_are_refused_as_torch_refuses_them(norm: residual.BlockNorm) -> None:
    """Folded again they would give the gradient of another network than the one that was computed."""
    block, images = fixed_block(norm), torch.rand(1, 8, 9, 9, requires_grad=True)
    out = block(images)
    with torch.no_grad():
        block.conv2.weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"weights \(4, 4, 3, 3\) were changed in place|by an inplace operation"):
        torch.autograd.grad(out.sum(), images)


@pytest.mark.parametrize("kind", ["plain", "trained norm", "checkpointed", "bfloat16"])
def test_a_folded_norm_has_the_gradients_of_convolution_and_norm(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block = fixed_block("bn" if kind == "trained norm" else "frozen_bn")
    images = torch.rand(2, 8, 9, 9, requires_grad=True)
    inputs = [images, *block.parameters()]
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"):
        out = checkpoint(block, images, use_reentrant=False) if kind == "checkpointed" else block(images)
    found = torch.autograd.grad(out.float().sin().sum(), inputs)
    monkeypatch.setattr(residual, "conv_norm", lambda convolution, norm, x: norm(convolution(x)))
    expected = torch.autograd.grad(block(images).sin().sum(), inputs)
    for own, other in zip(found, expected, strict=True):
        assert (own - other).norm() <= (0.1 if kind == "bfloat16" else 1e-5) * other.norm()
