"""Schedules by hand, parameter groups, and averaged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import toolbox
from toolbox.engine.ema import AveragedWeights
from toolbox.engine.optim import SGD, Adam, AdamW, Cosine, MultiStep, build_optimizer, parameter_groups
from toolbox.errors import ConfigError
from toolbox.models.backbones import ResNet


def test_multistep_drops_at_fractions_and_at_steps() -> None:
    for milestones in ((0.5, 0.75), (50, 75), (0.5, 75)):
        schedule = MultiStep(100, milestones=milestones, warmup_steps=0)
        assert [schedule(step) for step in (0, 49)] == [1.0, 1.0]
        assert [schedule(step) for step in (50, 74)] == pytest.approx([0.1, 0.1])
        assert [schedule(step) for step in (75, 99)] == pytest.approx([0.01, 0.01])


def test_warmup_rises_linearly_from_its_factor_to_one() -> None:
    schedule = MultiStep(100, warmup_steps=4, warmup_factor=0.2)
    assert [schedule(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_warmup_takes_a_tenth_of_a_short_run_and_1000_steps_of_a_long_one() -> None:
    assert MultiStep(90)(8) < 1 == MultiStep(90)(9)
    assert MultiStep(90_000)(999) < 1 == MultiStep(90_000)(1000)


def test_cosine_is_one_after_the_warmup_half_way_down_in_the_middle_and_final_at_the_end() -> None:
    schedule = Cosine(110, warmup_steps=10, warmup_factor=0.5, final=0.2)
    assert [schedule(step) for step in (0, 10, 60, 110)] == pytest.approx([0.5, 1.0, 0.6, 0.2])


def test_a_run_of_one_step_needs_no_other_milestones() -> None:
    assert MultiStep(1)(0) == 1.0


@pytest.mark.parametrize("milestones", [(0.9, 0.5), (50, 50), (-1, 10)])
def test_milestones_that_do_not_grow_are_refused(milestones: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="train.schedule.milestones"):
        MultiStep(100, milestones=milestones)


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
    theirs = factors(whole, param_groups_layer_decay(whole, weight_decay=0.05, layer_decay=0.7))
    ours = factors(model, parameter_groups(model, layer_decay=0.7))
    assert len({scale for scale, _ in ours.values()}) > 4
    for key, (scale, weight_decay) in ours.items():
        assert (scale, weight_decay) == (pytest.approx(theirs[key][0]), theirs[key][1]), key


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
