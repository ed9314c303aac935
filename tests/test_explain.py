"""`rcnn show --explain`: where a value comes from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolbox import catalogue
from toolbox.cli import main
from toolbox.config import check
from toolbox.errors import ToolboxError
from toolbox.explain import explain
from toolbox.precheck import read_nodes
from toolbox.schema import config_from_text
from toolbox.sections import RunConfig
from toolbox.yaml_nodes import Findings

TEXT = """\
model:
  backbone: {type: ResNet, norm: gn}
  neck: {type: FPN}
  rpn:
    head: {type: ConvRPNHead}
    anchors: {sizes: [8, 16, 32, 64, 128]}
  box:
    extractor: {type: RoIAlign, output_size: 7}
    head: {type: TwoFCBoxHead}
data:
  resize: {short: 64}
  transforms:
    - {type: HorizontalFlip}
train: {steps: 10, lr: 0.1}
"""


def lines(key: str, *overrides: str) -> list[str]:
    """What is explained, from the components and from the record of them alike."""
    said = explain(config_from_text(TEXT, "run.yaml", overrides).plan, key)
    known, findings = catalogue.read(json.loads(json.dumps(catalogue.record(RunConfig)))), Findings()
    root = read_nodes(TEXT, "run.yaml", overrides, findings)
    assert explain(check(root, known.root, findings, families=known.families), key) == said
    return said


@pytest.mark.parametrize(
    ("key", "value", "source"),
    [
        ("model.backbone.norm", "gn", "run.yaml:2:34"),
        ("model.backbone.depth", "50", "default of ResNet (toolbox.models.backbones.resnet)"),
        ("model.backbone.type", "ResNet", "run.yaml:2:20"),
        ("model.type", "RCNN", "default of RunConfig (toolbox.sections)"),
        ("train.optimizer.type", "SGD", "default of TrainConfig (toolbox.sections)"),
        (
            "model.box.extractor.canonical_size",
            "224.0",
            "default of RoIAlign (toolbox.models.roi_extractors.extractors)",
        ),
        ("model.neck.out_channels", "256", "default of FPN (toolbox.models.necks.fpn)"),
        ("model.rpn.anchors.sizes.2", "32.0", "run.yaml:6:22"),
        ("data.resize.short", "64", "run.yaml:11:19"),
        ("data.transforms.0.prob", "0.5", "default of HorizontalFlip (toolbox.data.transforms)"),
        ("train.optimizer", "SGD", "default of TrainConfig (toolbox.sections)"),
        ("train.optimizer.momentum", "0.9", "default of SGD (toolbox.engine.optim.optimizers)"),
        ("test.nms", "0.5", "default of 'test', which is a TestSettings unless told"),
    ],
)
def test_value_and_source(key: str, value: str, source: str) -> None:
    assert lines(key)[:2] == [f"{key}: {value}", f"  from: {source}"]


def test_an_override_is_quoted() -> None:
    first = lines("model.backbone.depth", "model.backbone.depth=101")[:2]
    assert first == ["model.backbone.depth: 101", "  from: command line (model.backbone.depth=101)"]


def test_a_type_on_the_command_line_is_not_the_files() -> None:
    first = lines("data.transforms.0.type", "data.transforms.0.type=VerticalFlip")[:2]
    assert first[1] == "  from: command line (data.transforms.0.type=VerticalFlip)"


def test_an_entry_whose_name_ends_like_its_setting_takes_nothing_of_its_own() -> None:
    said = lines("model.instance.instance", "model.instance.instance={head: {type: FCNMaskHead}}")
    assert said[0] == "model.instance.instance: InstanceBranch" and not any("takes:" in line for line in said)


def test_a_section_lists_its_settings_with_their_sources() -> None:
    rows = [line.split() for line in lines("data.resize", "data.resize.max=99")]
    assert ["short", "64", "run.yaml:11:19"] in rows
    assert ["max", "99", "command", "line", "(data.resize.max=99)"] in rows


def test_what_a_constructor_gives_its_part_is_not_the_parts_own_default() -> None:
    """RPN keeps 2000 proposals in training; ProposalCounts by itself would keep 1000."""
    key, override = "model.rpn.train.after_nms", "model.rpn.train={before_nms: 500}"
    wanted = [f"{key}: 2000", "  from: default of 'model.rpn.train', which is a ProposalCounts unless told"]
    assert lines(key, override)[:2] == wanted


def test_what_the_builder_fills_in_is_said() -> None:
    assert lines("model.neck.in_features") == [
        "model.neck.in_features: filled in by the builder; it cannot be set in YAML"
    ]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("model.backbone.dept", r"'model.backbone' \(ResNet\) has no 'dept'; did you mean 'depth'\?"),
        ("modle", r"the config has no 'modle'; did you mean 'model'\?"),
        ("data.transforms.3", r"'data.transforms' has no '3' \(it has 0\)"),
        ("train.lr.x", "'train.lr' is 0.1, which has no entries; explain 'train.lr'"),
    ],
)
def test_an_unknown_key_suggests(key: str, said: str) -> None:
    with pytest.raises(ToolboxError, match=said):
        lines(key)


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(TEXT)
    with pytest.raises(SystemExit):
        main(["show", str(file), "--explain", "model.backbone.norm"])
    assert capsys.readouterr().out.startswith(f"model.backbone.norm: gn\n  from: {file}:2:34\n  takes: 'frozen_bn' | ")


def test_several_keys_at_once_and_the_parts_of_a_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(TEXT)
    with pytest.raises(SystemExit):
        main(["show", str(file), "--explain", "train.lr", "--explain", "test.nms"])
    out = capsys.readouterr().out
    assert out.startswith(f"train.lr: 0.1\n  from: {file}:14:24\n")
    assert "\ntest.nms: 0.5\n" in out and "  takes: float, default 0.5\n  overlap above which" in out
