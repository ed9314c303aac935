"""Networks of timm as backbones, with timm itself as the oracle: its maps, its grouping, its fitting of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toolbox.errors import CheckpointError
from toolbox.models.backbones import ResNet, TimmBackbone
from toolbox.models.backbones.timm_networks import look_up
from toolbox.models.backbones.weights import checking_pretrained
from toolbox.structures import PixelStats

timm = pytest.importorskip("timm", reason="extra 'timm' is not installed")
optim = pytest.importorskip("timm.optim")

PYRAMIDS = [
    "test_resnet",
    "mobilenetv3_small_050",
    "test_efficientnet",
    "test_convnext",
    "swin_tiny_patch4_window7_224",
    "test_mambaout",
]
PLAIN = ["test_vit", "vit_tiny_patch16_224"]


def whole_twin(backbone: TimmBackbone, name: str, **settings: Any) -> nn.Module:
    """timm's classification network with the backbone's weights."""
    whole = timm.create_model(name, pretrained=False, **settings)
    source = {key.removeprefix("model."): value for key, value in backbone.network.state_dict().items()}
    own = whole.state_dict()
    given = {key: source.get(key, source.get(key.replace(".", "_", 1))) for key in own}
    whole.load_state_dict({key: value for key, value in given.items() if value is not None}, strict=False)
    return whole.eval()


@pytest.mark.parametrize("name", [*PYRAMIDS, *PLAIN])
def test_maps_are_those_of_timms_classification_network(name: str) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(name=name).eval()
    whole = whole_twin(backbone, name, **({"dynamic_img_size": True} if "vit" in name or "swin" in name else {}))
    images = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        maps = backbone(images)
        expected = whole.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
    assert list(maps) == (["c4"] if name in PLAIN else ["c2", "c3", "c4", "c5"])
    deepest = {(x.shape[-2:]): x for x in expected}  # of several maps of a size the last
    for level, x in maps.items():
        spec = backbone.out_features[level]
        assert x.shape == (1, spec.channels, 96 // spec.stride, 160 // spec.stride)
        if "mobilenet" not in name and "efficientnet" not in name:  # there timm's own two ways differ in where they tap
            torch.testing.assert_close(x, deepest[x.shape[-2:]])


def test_a_map_with_as_many_channels_as_rows_keeps_its_layout() -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(name="test_mambaout", strides=[4]).eval()
    channels = backbone.out_features["c2"].channels
    with torch.no_grad():
        given = backbone.network(torch.randn(1, 3, 4 * channels, 4 * channels))[0]  # (N, H, W, C) with C = H = W
        torch.manual_seed(1)
        maps = backbone(image := torch.randn(1, 3, 4 * channels, 4 * channels))
        torch.testing.assert_close(maps["c2"], backbone.network(image)[0].permute(0, 3, 1, 2))
    assert given.shape == (1, channels, channels, channels)


@pytest.mark.parametrize("name", [*PYRAMIDS, "test_vit"])
def test_every_parameter_learns_and_half_precision_runs(name: str) -> None:
    backbone = TimmBackbone(name=name).train()
    maps = backbone(torch.randn(2, 3, 64, 96))
    torch.stack([x.square().mean() for x in maps.values()]).sum().backward()
    assert [key for key, value in backbone.named_parameters() if value.grad is None] == []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert all(x.isfinite().all() for x in backbone.eval()(torch.randn(1, 3, 64, 96)).values())


def test_state_dict_of_one_fills_another() -> None:
    first, second = (TimmBackbone(name="test_vit").eval() for _ in range(2))
    second.load_state_dict(first.state_dict())
    images = torch.randn(1, 3, 48, 80)
    torch.testing.assert_close(first(images)["c4"], second(images)["c4"])


@pytest.mark.parametrize(("name", "strides"), [("hrnet_w18_small", [4, 32]), ("legacy_xception", [16])])
def test_parameters_that_no_map_needs_do_not_wait_for_a_gradient(name: str, strides: list[int]) -> None:
    backbone = TimmBackbone(name=name, strides=strides).eval()
    torch.stack([x.sum() for x in backbone(torch.randn(1, 3, 64, 64)).values()]).sum().backward()
    learning = {key for key, value in backbone.named_parameters() if value.requires_grad}
    assert learning == {key for key, value in backbone.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("strides", [[4], [8], [4, 8]])
@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "swin_tiny_patch4_window7_224"])
def test_stages_behind_the_last_map_ask_nothing_of_the_images(name: str, strides: list[int]) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(name=name, strides=strides).eval()
    images = torch.randn(1, 3, 40, 24)
    with torch.no_grad():
        maps = backbone(images)
    assert [tuple(x.shape[-2:]) for x in maps.values()] == [(40 // stride, 24 // stride) for stride in strides]
    assert [spec.stride for spec in backbone.out_features.values()] == strides


def test_a_network_is_tried_out_once_however_often_it_is_built() -> None:
    known = look_up("test_convnext", in_channels=3, drop_path=0.0, strides=[4, 8])
    assert look_up("test_convnext", in_channels=3, drop_path=0.0, strides=(4, 8)) is known
    assert list(look_up("test_convnext", in_channels=3, drop_path=0.0, strides=[8]).maps) == [8]
    assert look_up("test_convnext", in_channels=5, drop_path=0.0, strides=[4, 8]).options["in_chans"] == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet5O"}, "name: timm has no network 'resnet5O'; did you mean 'resnet50'"),
        ({"name": "resnet50.a1_in1K"}, "name: timm has no weights 'a1_in1K' of resnet50; did you mean 'a1_in1k'"),
        (
            {"name": "cait_xxs24_224"},
            "^name 'cait_xxs24_224' cannot be a backbone: .*certain sizes only .*one that can is",
        ),
        ({"name": "crossvit_tiny_240"}, r"^name .*maps have strides of \[12, 17\].*powers of two"),
        ({"name": "test_vit", "strides": [4, 16]}, r"^strides of 'test_vit' are \[16\], got \[4\]"),
        (
            {"name": "legacy_xception", "strides": [4, 8]},
            r"^strides \[4\] of 'legacy_xception' give maps of another size",
        ),
        ({"name": "hrnet_w18_small", "drop_path": 0.1}, "^drop_path must be 0 for 'hrnet_w18_small'"),
        ({"name": "test_vit", "drop_path": 1.0}, "^drop_path is 0 or more"),
        (
            {"name": "test_resnet", "frozen_stages": 6},
            r"^frozen_stages of 'test_resnet' is 0 \(none\) to 5 \(all\), got 6",
        ),
        ({"name": "rdnet_tiny", "frozen_stages": 1}, "^frozen_stages must be 0 for 'rdnet_tiny': timm does not say"),
        ({"name": "test_vit", "weights": "IMAGENET1K_V1"}, "^weights is 'pretrained', 'package'.*got 'IMAGENET1K_V1'"),
        ({"name": "test_vit", "weights": "package"}, "^weights: the weight package is for tf_efficientnet_lite0"),
        ({"name": "resnet10t.nothing"}, "^name: timm has no weights 'nothing' of resnet10t"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_setting(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimmBackbone(**settings)


def test_patches_of_14_pixels_become_16_with_resampled_weights(tmp_path: Path) -> None:
    name = "vit_small_patch14_dinov2"
    torch.save(timm.create_model(name, pretrained=False, depth=12).state_dict(), tmp_path / "dinov2.pth")
    backbone = TimmBackbone(name=name, weights=str(tmp_path / "dinov2.pth"))
    state = torch.load(tmp_path / "dinov2.pth", weights_only=True)
    expected = timm.layers.resample_patch_embed(state["patch_embed.proj.weight"], [16, 16])
    torch.testing.assert_close(backbone.network.model.patch_embed.proj.weight.detach(), expected)
    assert {name: spec.stride for name, spec in backbone.out_features.items()} == {"c4": 16}


def statistics(backbone: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in backbone.state_dict().items() if "running_" in key}


def step(backbone: nn.Module) -> None:
    """One step of gradient descent in training mode."""
    optimizer = torch.optim.SGD([value for value in backbone.parameters() if value.requires_grad], lr=0.1)
    torch.stack([x.square().mean() for x in backbone(torch.randn(2, 3, 64, 64)).values()]).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_vit"])
def test_frozen_stages_rest_and_the_others_learn(name: str) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(name=name, frozen_stages=2).train()
    whole = timm.create_model(name)
    groups = timm.models.group_parameters(whole, whole.group_matcher(coarse=True), reverse=True)
    known = {own: key for key in groups for own in (key, key.replace(".", "_", 1), f"model.{key}")}
    before = {key: value.clone() for key, value in backbone.network.state_dict().items()}
    step(backbone)
    changed = {key for key, value in backbone.network.state_dict().items() if not torch.equal(value, before[key])}
    for key, value in backbone.network.named_parameters():
        assert value.requires_grad == (groups[known[key]] >= 2), key
        assert value.requires_grad or key not in changed, key
    for key in changed:  # the statistics of frozen batch norms included
        owner = [groups[whole] for own, whole in known.items() if own.rpartition(".")[0] == key.rpartition(".")[0]]
        assert min(owner) >= 2, key
    assert changed


@pytest.mark.parametrize("name", ["test_resnet", pytest.param("nextvit_small", marks=pytest.mark.slow)])
def test_frozen_batch_norm_keeps_its_statistics(tmp_path: Path, name: str) -> None:
    # nextvit has norms of one dimension too, which timm itself does not freeze.
    torch.save(timm.create_model(name).state_dict(), tmp_path / "file.pth")
    backbone = TimmBackbone(name=name, norm="frozen_bn", weights=str(tmp_path / "file.pth")).train()
    before = statistics(backbone)
    step(backbone)
    assert before and all(torch.equal(value, before[key]) for key, value in statistics(backbone).items())


def test_drop_path_drops_whole_branches_while_training_only() -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(name="test_convnext", drop_path=0.9)
    images = torch.randn(4, 3, 64, 64)
    backbone.eval()
    torch.testing.assert_close(backbone(images)["c5"], backbone(images)["c5"])
    backbone.train()
    assert not torch.equal(backbone(images)["c5"], backbone(images)["c5"])


@pytest.mark.parametrize("name", [*PYRAMIDS, "test_vit"])
def test_depths_are_those_of_timms_layer_decay(name: str) -> None:
    backbone, whole = TimmBackbone(name=name), timm.create_model(name)
    # timm's groups hold tensors; a decay of 1/2 makes each scale a depth: 2 ** -(deepest - depth).
    groups = optim.param_groups_layer_decay(whole, layer_decay=0.5)
    scale = {id(value): group["lr_scale"] for group in groups for value in group["params"]}
    stem = min(scale.values())
    for key, value in whole.named_parameters():
        for own in (key, key.replace(".", "_", 1), f"model.{key}"):
            if own in backbone.network.state_dict():
                assert 2 ** backbone.depth_of(f"network.{own}") == scale[id(value)] / stem, key
    depths = {backbone.depth_of(key) for key, _ in backbone.named_parameters()}
    assert depths == set(range(max(depths) + 1))


def test_depths_of_resnet_are_timms() -> None:
    whole = timm.create_model("resnet50")
    expected = timm.models.group_parameters(whole, whole.group_matcher(coarse=False), reverse=True)
    ours = ResNet(depth=50, norm="bn")
    assert {key: ours.depth_of(key) for key, _ in ours.named_parameters()} == {
        key: depth for key, depth in expected.items() if not key.startswith("fc.")
    }


def test_a_network_that_timm_does_not_group_has_no_depths() -> None:
    with pytest.raises(ValueError, match="train it without layer decay"):
        TimmBackbone(name="csatv2").depth_of("network.stem.weight")


@pytest.mark.parametrize("channels", [1, 4, 7])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_weights_made_for_rgb_are_fitted_as_timm_fits_them(name: str, channels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model(name).state_dict()
    torch.save(state, tmp_path / "rgb.pth")
    backbone = TimmBackbone(name=name, in_channels=channels, weights=str(tmp_path / "rgb.pth"))
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    given = next(value for value in state.values() if value.ndim == 4 and value.shape[1] == 3)
    torch.testing.assert_close(first.weight.detach(), timm.models.adapt_input_conv(channels, given))
    assert len(backbone.pixels.mean) == channels
    assert backbone.eval()(torch.randn(1, channels, 64, 64))


@pytest.mark.parametrize("channels", [1, 4, 7])
def test_resnet_weights_made_for_rgb_are_fitted_too(channels: int, tmp_path: Path) -> None:
    state = timm.create_model("resnet18").state_dict()
    torch.save(state, tmp_path / "rgb.pth")
    backbone = ResNet(depth=18, in_channels=channels, weights=str(tmp_path / "rgb.pth"))
    expected = timm.models.adapt_input_conv(channels, state["conv1.weight"])
    torch.testing.assert_close(backbone.conv1.weight.detach(), expected)
    torch.save(backbone.state_dict(), tmp_path / "own.pth")
    again = ResNet(depth=18, in_channels=channels, weights=str(tmp_path / "own.pth"))
    assert torch.equal(again.conv1.weight, backbone.conv1.weight)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("of", ["classifier", "features"])
def test_a_file_of_timm_fills_the_network(name: str, of: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    given = timm.create_model(name, features_only=of == "features", pretrained=False)
    save_file(given.state_dict(), tmp_path / "file.safetensors")
    backbone = TimmBackbone(name=name, weights=str(tmp_path / "file.safetensors"))
    expected = [value for value in given.state_dict().values() if value.ndim == 4]
    own = [value for value in backbone.network.state_dict().values() if value.ndim == 4]
    assert all(torch.equal(a, b) for a, b in zip(own, expected, strict=False))


def test_a_file_of_another_network_or_half_a_network_is_refused(tmp_path: Path) -> None:
    state = timm.create_model("test_vit").state_dict()
    torch.save({key: value for key, value in state.items() if "blocks.3" not in key}, tmp_path / "half.pth")
    with pytest.raises(
        CheckpointError, match=r"half.pth: 1\d of \d+ tensors of the backbone are not in it, first 'model.blocks.3"
    ):
        TimmBackbone(name="test_vit", weights=str(tmp_path / "half.pth"))
    with pytest.raises(CheckpointError, match="half.pth: .* are not in it"):
        TimmBackbone(name="test_convnext", weights=str(tmp_path / "half.pth"))


def test_without_a_network_the_message_names_the_file_to_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    wanted = r"copy model.safetensors of https://huggingface.co/timm/test_resnet.r160_in1k .*: weights: FILE"
    with pytest.raises(CheckpointError, match=wanted):
        TimmBackbone(name="test_resnet", weights="pretrained")


def test_weights_that_timm_has_not_are_refused_before_training() -> None:
    with (
        torch.device("meta"),
        checking_pretrained(),
        pytest.raises(ValueError, match="^weights: timm has no pretrained"),
    ):
        TimmBackbone(
            name="ese_vovnet19b_slim_dw",
            weights="pretrained",
        )


def test_pixels_are_those_of_the_named_weights() -> None:
    assert TimmBackbone(name="vit_tiny_patch16_224.augreg_in21k").pixels == PixelStats((0.5,) * 3, (0.5,) * 3)
    assert TimmBackbone(name="resnet10t.c3_in1k").pixels == PixelStats()
