"""Parameter groups, and averaged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import toolbox
from toolbox.engine.ema import AveragedWeights
from toolbox.engine.optim import SGD, Adam, AdamW, build_optimizer, parameter_groups
from toolbox.errors import ConfigError
from toolbox.models.backbones import ResNet


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.GroupNorm(2, 4)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.again = self.conv
        self.scale = nn.Parameter(torch.ones(4))


def test_norms_and_biases_have_no_weight_decay_and_frozen_parameters_are_left_out() -> None:
    net = Net()
    decayed, plain = parameter_groups(net)
    assert decayed["params"] == [net.conv.weight]
    assert plain["weight_decay"] == 0.0
    assert set(plain["params"]) == {net.conv.bias, net.norm.weight, net.norm.bias, net.scale}


def test_biases_are_decayed_where_asked() -> None:
    net = Net()
    decayed, plain = parameter_groups(net, decay_biases=True)
    assert set(decayed["params"]) == {net.conv.weight, net.conv.bias}
    assert set(plain["params"]) == {net.norm.weight, net.norm.bias, net.scale}


@pytest.mark.parametrize("optimizer", [SGD, Adam, AdamW])
def test_a_step_without_a_gradient_decays_the_weights_only(optimizer: type) -> None:
    net = Net()
    for parameter in net.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer(parameter_groups(net), lr=0.1, weight_decay=0.5).step()
    assert (net.conv.weight < 1).all() and (net.conv.bias == 1).all() and (net.norm.weight == 1).all()


class Deep(nn.Module):
    """A model around a backbone of a patch embedding (depth 0) and two blocks (1 and 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Blocks()
        self.head = nn.Linear(4, 2)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 4, 2)
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def depth_of(self, name: str) -> int:
        return 0 if name.startswith("patch.") else 1 + int(name.split(".")[1])


def test_layer_decay_slows_each_layer_of_the_backbone_by_its_distance_from_the_head() -> None:
    net = Deep()
    groups = parameter_groups(net, layer_decay=0.5)
    assert [(group["lr_scale"], group.get("weight_decay"), len(group["params"])) for group in groups] == [
        (0.125, None, 1),
        (0.125, 0.0, 1),
        (0.25, None, 1),
        (0.25, 0.0, 1),
        (0.5, None, 1),
        (0.5, 0.0, 1),
        (1.0, None, 1),
        (1.0, 0.0, 1),
    ]
    assert [group["params"][0] for group in groups[::2]] == [
        net.backbone.patch.weight,
        net.backbone.blocks[0].weight,
        net.backbone.blocks[1].weight,
        net.head.weight,
    ]
    assert groups[3]["params"] == [net.backbone.blocks[0].bias]


def test_layer_decay_counts_frozen_layers_and_leaves_them_out() -> None:
    net = Deep()
    net.backbone.blocks.requires_grad_(False)
    scales = [group["lr_scale"] for group in parameter_groups(net, layer_decay=0.5)]
    assert scales == [0.125, 0.125, 1.0, 1.0]


def test_without_layer_decay_no_group_has_a_factor() -> None:
    assert all("lr_scale" not in group for group in parameter_groups(Deep()))


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet", "resnet18"])
def test_layer_decay_gives_timms_factors_for_its_networks(name: str) -> None:
    timm = pytest.importorskip("timm", reason="extra 'timm' is not installed")
    from timm.optim import param_groups_layer_decay

    from toolbox.models.backbones import TimmBackbone

    def factors(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
        # timm's feature networks add `model.` to names, or write `stages_0` for `stages.0`.
        names = {p: name.rpartition("network.")[2].removeprefix("model.") for name, p in model.named_parameters()}
        return {
            names[parameter].replace("_", "."): (group["lr_scale"], group.get("weight_decay", 0.05))
            for group in groups
            for parameter in group["params"]
        }

    whole, model = timm.create_model(name), nn.Module()
    model.backbone = TimmBackbone(name=name)
    plain = whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else ()
    groups = param_groups_layer_decay(whole, weight_decay=0.05, layer_decay=0.7, no_weight_decay_list=plain)
    theirs = factors(whole, groups)
    ours = factors(model, parameter_groups(model, layer_decay=0.7))
    assert len({scale for scale, _ in ours.values()}) > 4
    for key, (scale, weight_decay) in ours.items():
        assert (scale, weight_decay) == (pytest.approx(theirs[key][0]), theirs[key][1]), key


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224", "xcit_small_12_p8_224"])
def test_position_embeddings_and_tokens_are_not_decayed_as_timm_has_it(name: str) -> None:
    timm = pytest.importorskip("timm", reason="extra 'timm' is not installed")
    from timm.optim import param_groups_weight_decay

    from toolbox.models.backbones import TimmBackbone

    with torch.device("meta"):
        whole, model = timm.create_model(name), nn.Module()
        model.backbone = TimmBackbone(name=name)
    _, undecayed = groups_by_decay(param_groups_weight_decay(whole, 0.05, no_weight_decay_list=whole.no_weight_decay()))
    names = {p: name for name, p in whole.named_parameters()}
    theirs = {names[p].replace(".", "_") for p in undecayed}
    decayed, undecayed = groups_by_decay(parameter_groups(model))
    names = {p: name.rpartition("network.")[2].removeprefix("model.") for name, p in model.named_parameters()}
    ours = {names[p].replace(".", "_") for p in undecayed}
    assert ours and ours <= theirs and not theirs.intersection(names[p].replace(".", "_") for p in decayed)
    assert any(word in name for name in ours for word in ("pos_embed", "cls_token", "relative_position"))


def groups_by_decay(groups: list[dict[str, Any]]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    plain = [p for group in groups if group.get("weight_decay") == 0 for p in group["params"]]
    return [p for group in groups if group.get("weight_decay") != 0 for p in group["params"]], plain


def rates(net: nn.Module, **settings: Any) -> dict[str, float]:
    names = {parameter: name for name, parameter in net.named_parameters()}
    groups = parameter_groups(net, **settings)
    return {names[parameter]: group["lr_scale"] for group in groups for parameter in group["params"]}


def test_of_the_patterns_that_name_a_parameter_the_first_counts() -> None:
    found = rates(Deep(), lr_factors={"backbone.blocks.1": 3.0, "backbone.*": 0.1, "head.b*": 2.0})
    assert found == {
        "backbone.patch.weight": 0.1,
        "backbone.patch.bias": 0.1,
        "backbone.blocks.0.weight": 0.1,
        "backbone.blocks.0.bias": 0.1,
        "backbone.blocks.1.weight": 3.0,
        "backbone.blocks.1.bias": 3.0,
        "head.weight": 1.0,
        "head.bias": 2.0,
    }


def test_factors_multiply_layer_decay() -> None:
    found = rates(Deep(), lr_factors={"*.weight": 3.0}, layer_decay=0.5)
    assert found["backbone.patch.weight"] == 0.125 * 3 and found["backbone.patch.bias"] == 0.125
    assert found["head.weight"] == 3.0 and found["head.bias"] == 1.0


def test_a_pattern_behind_one_that_means_the_same_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has 'backbone.patch' below patterns that name all of the same"):
        parameter_groups(Deep(), lr_factors={"backbone.*": 0.1, "backbone.patch": 0.5})


def test_a_factor_of_what_does_not_train_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    net = Deep()
    net.head.requires_grad_(False)
    assert "head.weight" not in rates(net, lr_factors={"head": 0.1})
    assert "nothing that 'head' names trains" in caplog.text


def test_patterns_that_name_nothing_are_refused_where_they_are_written() -> None:
    with pytest.raises(ConfigError) as caught:
        build_optimizer(small_config(lr_factors="{backbon.*: 0.1, xyz: 2}"), Deep())
    first, second = caught.value.problems
    assert first.key == "train.lr_factors={backbon.*: 0.1, xyz: 2}" and "did you mean 'backbone'" in first.message
    assert "'xyz', which names no parameter or module of the model (its parts are backbone, head)" in second.message


@pytest.mark.parametrize(("factor", "said"), [(0, "which trains nothing; write freeze"), (-1, "more than 0")])
def test_factors_that_do_not_train_are_refused(factor: float, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        small_config(lr_factors=f"{{backbone.*: {factor}}}")


def test_the_settings_reach_the_groups() -> None:
    model = toolbox.build_detector(small_config(), classes=("a",))
    config = small_config(decay_biases=True, decay_norms=True, freeze="[backbone]", lr_factors="{rpn.head: 0.5}")
    optimizer = build_optimizer(config, model)
    half, whole = optimizer.param_groups
    assert half["lr_scale"] == 0.5 and set(half["params"]) == set(model.rpn.head.parameters())
    assert half["weight_decay"] == whole["weight_decay"] > 0
    assert not {*model.backbone.parameters()} & {*whole["params"]}


def small_config(**train: Any) -> toolbox.schema.Config:
    path = Path(__file__).resolve().parents[2] / "configs/quickstart.yaml"
    return toolbox.load_config(path, ["train.lr=0.01", *(f"train.{name}={value}" for name, value in train.items())])


@pytest.mark.parametrize(
    ("net", "what"), [(Net(), "Net has no backbone"), (nn.ModuleDict({"backbone": nn.Linear(2, 2)}), "Linear has none")]
)
def test_layer_decay_without_depths_is_refused_where_it_is_written(net: nn.Module, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_optimizer(small_config(layer_decay=0.75), net)
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == ("command line", "train.layer_decay=0.75")
    assert what in problem.message and "depth_of" in problem.message


@pytest.mark.parametrize("value", [0, -0.5, 1.1])
def test_layer_decay_outside_its_range_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=f"train.layer_decay={value}: layer_decay is more than 0 and at most 1"):
        small_config(layer_decay=value)


def test_averaged_weights_follow_the_formula() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    average = AveragedWeights(net, 0.5)
    nn.init.constant_(net.weight, 11.0)
    average.update(net, 0)  # the decay of the first step is 1 / 10
    assert average.values["weight"].item() == pytest.approx(0.1 * 1 + 0.9 * 11)
    nn.init.constant_(net.weight, 0.0)
    average.update(net, 100)  # and after many it is 0.5
    assert average.values["weight"].item() == pytest.approx(0.5 * 10)


def test_averaged_weights_are_in_the_model_only_for_a_while() -> None:
    net = nn.BatchNorm1d(1)
    average = AveragedWeights(net, 0.5)
    nn.init.constant_(net.weight, 3.0)
    net.num_batches_tracked += 7
    average.update(net, 100)
    with pytest.raises(KeyError), average.applied(net):
        assert net.weight.item() == 2.0
        raise KeyError
    assert net.weight.item() == 3.0
    assert average.values["num_batches_tracked"] == 7


def test_a_resnets_blocks_lie_one_deeper_each_behind_the_stem() -> None:
    backbone = ResNet(depth=18, norm="gn")  # two blocks a stage
    names = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.1.conv2.weight", "layer2.0.conv1.weight")
    assert [backbone.depth_of(name) for name in names] == [0, 0, 1, 2, 3]
    assert backbone.depth_of("layer4.1.bn2.bias") == 8
