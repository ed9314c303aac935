"""A run's YAML: sections, defaults, the messages that a user sees, and the resolved config."""

from __future__ import annotations

from pathlib import Path

import pytest

import toolbox
from toolbox.errors import ConfigError
from toolbox.models.box_branch import TestSettings
from toolbox.schema import TrainConfig, config_from_text

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").rglob("*.yaml"))

RUN = """\
model:
  backbone:
    type: ResNet
    depth: 18
    norm: gn
  neck: {type: FPN, out_channels: 16}
  rpn:
    head: {type: ConvRPNHead}
    anchors: {sizes: [8, 16, 32, 64, 128]}
  box:
    extractor: {type: RoIAlign}
    head: {type: TwoFCBoxHead, channels: 16}
train:
  steps: 10
  lr: 1e-3
"""


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_from_text(text, "configs/mine.yaml", overrides)
    return str(caught.value).splitlines()


def test_a_config_of_fifteen_lines_is_complete() -> None:
    config = config_from_text(RUN, "run.yaml")
    assert config.model.cls.__name__ == "RCNN" and config.model["backbone"]["depth"] == 18
    assert (config.train.steps, config.train.lr, config.train.batch) == (10, 0.001, 16)
    assert config.train.optimizer.cls.__name__ == "SGD" and config.train.optimizer["momentum"] == 0.9
    assert config.train.schedule.cls.__name__ == "MultiStep"
    assert config.test == TestSettings() and config.data.train is None and config.data.transforms == []


def test_settings_of_a_default_component_can_be_overridden_alone() -> None:
    config = config_from_text(RUN, "run.yaml", ["train.optimizer.momentum=0.8"])
    assert config.train.optimizer.cls.__name__ == "SGD" and config.train.optimizer["momentum"] == 0.8


def test_the_first_two_lines_of_the_design_s_example_come_out_together() -> None:
    text = RUN.replace("ResNet", "Resnet50").replace("TwoFCBoxHead, channels", "TwoFCBoxHead, chanels")
    first, second, third = problems(text, "train.lr=fast")
    prefix = "configs/mine.yaml:3:11: model.backbone.type: no backbone named 'Resnet50'; did you mean 'ResNet'? ("
    assert first.startswith(prefix)
    assert second == (
        "configs/mine.yaml:12:32: model.box.head: TwoFCBoxHead has no argument 'chanels'; did you mean 'channels'?"
    )
    assert third == "command line: train.lr=fast: expected float"


def test_a_section_s_own_checks_are_placed_too_and_come_together() -> None:
    text = RUN.replace("steps: 10", "steps: 0") + "data:\n  resize: {short: 0}\n"
    lines = problems(text)
    assert "configs/mine.yaml:14:3: train: steps is 1 or more, got 0" in lines
    assert any(line.startswith("configs/mine.yaml:17:11: data.resize: resize.short is a size") for line in lines)


def test_accumulation_that_does_not_fit_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch \(16\) is not a multiple of micro_batch \(3\)"):
        TrainConfig(steps=1, lr=0.1, micro_batch=3)


def test_a_train_config_made_in_code_has_the_same_defaults() -> None:
    made, read = TrainConfig(steps=10, lr=1e-3), config_from_text(RUN, "run.yaml").train
    assert made.optimizer.to_dict() == read.optimizer.to_dict() and made.schedule.to_dict() == read.schedule.to_dict()
    assert (made.batch, made.seed, made.device, made.amp) == (read.batch, read.seed, read.device, read.amp)


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text(RUN)
    with pytest.raises(
        ConfigError, match=r"quikstart.yaml: cannot read the config: .*did you mean 'quickstart.yaml'\?"
    ):
        toolbox.load_config(tmp_path / "quikstart.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_short_and_its_resolved_form_loads_to_the_same(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    config = toolbox.load_config(path)
    again = config_from_text(config.to_yaml(), "resolved")
    assert again.to_yaml() == config.to_yaml() and again.to_dict() == config.to_dict()
