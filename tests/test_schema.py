"""A run's YAML: sections, defaults, the messages that a user sees, and the resolved config."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import toolbox
from toolbox.errors import ConfigError
from toolbox.models.box_branch import TestSettings
from toolbox.models.builder import build_detector
from toolbox.registry import INSTANCE_HEADS
from toolbox.schema import config_from_text
from toolbox.sections import TrainConfig
from toolbox.structures import RoIShape

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if "paper" not in path.relative_to(ROOT).parts)

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
    assert "configs/mine.yaml:14:10: train.steps: steps is 1 or more, got 0" in lines
    assert any(line.startswith("configs/mine.yaml:17:19: data.resize.short: short is a size") for line in lines)


def test_all_that_is_wrong_with_the_train_section_comes_together_each_at_its_key() -> None:
    text = RUN.replace("lr: 1e-3", "lr: -1")
    wrong = ("train.micro_batch=0", "train.seed=-1", "train.eval_every=0", "train.log_every=0", "train.ema=3")
    assert problems(text, *wrong) == [
        "configs/mine.yaml:15:7: train.lr: lr is more than 0, got -1.0",
        "command line: train.micro_batch=0: micro_batch is 1 or more, got 0",
        "command line: train.eval_every=0: eval_every is 1 or more, got 0",
        "command line: train.log_every=0: log_every is 1 or more, got 0",
        "command line: train.seed=-1: seed is 0 or more, got -1",
        "command line: train.ema=3: ema lies between 0 and 1, e.g. 0.999, got 3.0",
    ]


def test_what_is_wrong_inside_a_section_s_parts_hides_nothing_of_the_section() -> None:
    text = RUN.replace("steps: 10", "steps: 0") + "data:\n  resize: {short: 0}\n  repeat_factors: {threshold: 7}\n"
    wrong = ("data.workers=-1", "train.micro_batch=3", "train.early_stopping={metric: segm.AP, patience: 0}")
    assert [line.split(": ")[1] for line in problems(text, *wrong)] == [
        "data.resize.short",
        "data.repeat_factors.threshold",
        "train.steps",
        "train.batch",  # 16, which 3 does not divide
        "data.workers=-1",
        "train.early_stopping.patience",
    ]


def test_a_missing_section_is_named_with_what_it_needs() -> None:
    text = RUN[: RUN.index("train:")]
    assert problems(text) == [
        "configs/mine.yaml:1:1: the section 'train:' is missing; it needs steps (int), lr (float)"
    ]
    assert problems(f"{text}train:\n") == ["configs/mine.yaml:13:7: train: is empty; it needs steps (int), lr (float)"]
    assert problems(RUN[RUN.index("train:") :]) == [
        "configs/mine.yaml:1:1: the section 'model:' is missing; "
        "it needs backbone (backbone), rpn (RPN), box (BoxBranch)"
    ]
    assert problems(RUN.replace("    anchors: {sizes: [8, 16, 32, 64, 128]}\n", "")) == [
        "configs/mine.yaml:8:5: model.rpn: the section 'anchors:' is missing; for its defaults, write 'anchors: {}'"
    ]


def test_a_head_without_the_methods_of_its_family_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class EdgeHead(nn.Module):
        def __init__(self, in_shape: RoIShape, num_classes: int) -> None:
            super().__init__()

        def forward(self, regions: Tensor) -> Tensor:
            return regions

    monkeypatch.setattr(INSTANCE_HEADS, "_classes", {**INSTANCE_HEADS._classes, "EdgeHead": EdgeHead})
    text = RUN.replace("train:", "  instance: {edge: {head: {type: EdgeHead}}}\ntrain:")
    assert problems(text) == [
        "configs/mine.yaml:13:34: model.instance.edge.head.type: EdgeHead has no method 'loss'; "
        "every instance_head needs forward, loss, predict, to_image (toolbox/models/interfaces.py)"
    ]


@pytest.mark.parametrize(
    ("override", "refusal"),
    [
        ("test.score_threshold=7", "score_threshold lies between 0 and 1, got 7.0"),
        ("test.nms=9", "nms lies between 0 and 1, got 9.0"),
        ("test.detections=0", "detections is 1 or more, got 0"),
        ("data.resize={short: 240, max: 160}", "max bounds the long edge, so it is at least short (240), got 160"),
        ("model.rpn.nms=9", "nms lies between 0 and 1, got 9.0"),
        ("model.rpn.test.after_nms=0", "after_nms is 1 or more, got 0"),
        ("model.rpn.head.channels=0", "channels is 1 or more, got 0"),
        ("model.rpn.anchors.ratios=[]", "ratios holds an empty list"),
        ("model.box.head.channels=0", "channels is 1 or more, got 0"),
        ("model.box.head={type: ConvFCBoxHead, convolutions: -1}", "convolutions is 0 or more, got -1"),
        ("model.neck.out_channels=-5", "out_channels is 1 or more, got -5"),
        ("model.instance.mask.head.channels=0", "channels is 1 or more, got 0"),
        ("model.instance.mask.head.threshold=7", "threshold lies between 0 and 1, got 7.0"),
    ],
)
def test_a_value_out_of_range_is_refused_where_it_is_written(override: str, refusal: str) -> None:
    text = RUN.replace("train:", "  instance: {mask: {extractor: {type: RoIAlign}, head: {type: FCNMaskHead}}}\ntrain:")
    with pytest.raises(ConfigError) as caught, torch.device("meta"):
        build_detector(config_from_text(text, "mine.yaml", [override]), classes=["a"])
    (line,) = str(caught.value).splitlines()
    assert line.startswith("command line: ") and refusal in line


def test_accumulation_that_does_not_fit_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch \(16\) is not a multiple of micro_batch \(3\)"):
        TrainConfig(steps=1, lr=0.1, micro_batch=3)


def test_a_train_config_made_in_code_has_the_same_defaults() -> None:
    made, read = TrainConfig(steps=10, lr=1e-3), config_from_text(RUN, "run.yaml").train
    assert made.optimizer.to_dict() == read.optimizer.to_dict() and made.schedule.to_dict() == read.schedule.to_dict()
    assert (made.batch, made.seed, made.device, made.precision) == (read.batch, read.seed, read.device, read.precision)


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
