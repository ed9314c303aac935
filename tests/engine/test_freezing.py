"""Freezing by name: what trains, what rests, and what a run leaves untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from toolbox.engine import train
from toolbox.engine.checkpoint import load_checkpoint
from toolbox.engine.freezing import freeze
from toolbox.engine.optim import parameter_groups
from toolbox.errors import ConfigError
from toolbox.models.backbones import ResNet


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet(depth=18, norm="bn", out=("c2",))
        self.head = nn.Sequential(nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images)["c2"].mean((2, 3)))


def trained(net: nn.Module) -> set[str]:
    return {name for name, parameter in net.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (
            ["backbone"],
            {"head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias", "head.3.weight", "head.3.bias"},
        ),
        (["backbone.*", "head.?"], None),
        (["backbone.*", "*.bias"], {"head.0.weight", "head.1.weight", "head.3.weight"}),
        (["backbone", "head.0", "head.1.weight"], {"head.1.bias", "head.3.weight", "head.3.bias"}),
    ],
)
def test_a_pattern_names_parameters_or_modules(patterns: list[str], left: set[str] | None) -> None:
    net = Net()
    if left is None:
        with pytest.raises(ValueError, match=r"freeze leaves nothing to train: backbone.\*, head.\?"):
            freeze(net, patterns)
        return
    freeze(net, patterns)
    assert trained(net) == left
    assert {id(p) for g in parameter_groups(net) for p in g["params"]} == {
        id(p) for name, p in net.named_parameters() if name in left
    }


def test_every_pattern_that_names_nothing_is_reported_with_near_names() -> None:
    with pytest.raises(ValueError) as caught:
        freeze(Net(), ["bakbone.*", "head", "layer1.conv1"])
    first, second = str(caught.value).splitlines()
    assert first.startswith("freeze has 'bakbone.*', which names no parameter or module of the model; did you mean ")
    assert "'backbone'" in first and "'layer1.conv1'" in second


def test_batch_norms_and_dropout_of_frozen_parts_rest_whatever_the_mode() -> None:
    net = Net()
    freeze(net, ["backbone.conv1", "backbone.bn1", "head.1"])
    before = copy.deepcopy(net.state_dict())
    net.eval()
    net.train()
    net(torch.rand(2, 3, 32, 32))
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert "backbone.layer1.0.bn1.running_mean" in moved
    assert not any(name.startswith(("backbone.bn1", "head.1")) for name in moved)
    assert net.training and net.head[2].training and not net.head[1].training
    freeze(net, ["head.0", "head.3"])
    assert not net.head[2].training, "nothing in the head trains, so its dropout rests"


def test_a_copy_of_a_frozen_model_holds_its_own_parts() -> None:
    net = Net()
    freeze(net, ["backbone"])
    other = copy.deepcopy(net)
    net.eval()
    other.train()
    assert not net.training and other.training and not other.backbone.bn1.training


def test_it_works_beside_the_backbones_own_frozen_stages() -> None:
    net = Net()
    net.backbone = ResNet(depth=18, norm="bn", frozen_stages=2, out=("c2", "c3"), weights=None)
    freeze(net, ["head.0"])
    assert not any(name.startswith(("backbone.layer1", "backbone.conv1", "head.0")) for name in trained(net))
    assert {"backbone.layer2.0.conv1.weight", "head.1.weight"} <= trained(net)
    net.train()
    assert not net.backbone.bn1.training and net.backbone.layer2.training


def test_a_run_leaves_frozen_parts_as_they_began(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    train(tiny_config(freeze=["hidden", "norm.bias"], ema=0.9), tmp_path / "frozen")
    train(tiny_config(steps=1, lr=1e-12), tmp_path / "start")
    frozen, start = (load_checkpoint(tmp_path / name / "checkpoint.pt")["model"] for name in ("frozen", "start"))
    same = {name for name in frozen if torch.allclose(frozen[name], start[name], rtol=0, atol=1e-9)}
    assert same == {"hidden.weight", "hidden.bias", "norm.bias"}
    said = (tmp_path / "frozen/log.txt").read_text()
    # 64 of the hidden layer, 16 and 16 of the norm, 68 of the boxes
    assert "0.2 k parameters, 0.1 k of them trained (freeze: hidden, norm.bias)" in said


def test_a_name_that_is_not_there_is_refused_before_the_first_step(
    tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match="train.freeze: freeze has 'backbone', which names no .*its parts are box, hidden, norm"
    ):
        train(tiny_config(freeze=["backbone"]), tmp_path / "run")
