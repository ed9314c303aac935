"""Whose weights a file holds: another project's, a wrapper's, our own; and what is said of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_names import detectron2_state, mmdetection_state
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from toolbox.errors import CheckpointError
from toolbox.models.backbones.weights import read_state_dict
from toolbox.weights.foreign_files import read_checkpoint
from toolbox.weights.whose import check_source, unwrapped, whose


def torchvision_state() -> dict[str, Tensor]:
    with torch.device("meta"):
        return fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()


STATES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "torchvision": torchvision_state,
    "detectron2": lambda: detectron2_state("fpn", 80),
    "mmdetection": lambda: mmdetection_state("fpn", 80),
}
TITLES = {"torchvision": "torchvision", "detectron2": "Detectron2", "mmdetection": "MMDetection"}


@pytest.mark.parametrize("project", STATES)
def test_the_file_of_another_project_is_named_with_the_option_to_write(project: str) -> None:
    state = STATES[project]()
    assert whose(state) == project
    check_source(state, project, "x.pth")
    for other in STATES.keys() - {project}:
        with pytest.raises(CheckpointError) as caught:
            check_source(state, other, "x.pth")
        assert str(caught.value) == f"x.pth: these are weights of {TITLES[project]}; write --from {project}"


def test_names_that_no_project_has_are_left_to_the_importer() -> None:
    check_source({"layers.0.weight": torch.zeros(1)}, "torchvision", "x.pth")


@pytest.mark.parametrize("source", STATES)
def test_the_toolbox_s_own_model_needs_no_import(source: str) -> None:
    names = ("backbone.conv1.weight", "rpn.head.objectness.weight", "box.head.predictor.logits.bias")
    with pytest.raises(
        CheckpointError, match=r"a\.safetensors: this is a model file of the toolbox; it needs no import"
    ):
        check_source(dict.fromkeys(names), source, "a.safetensors")


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda model: torch.compile(nn.DataParallel(model))])
def test_what_a_wrapper_puts_before_the_names_is_taken_off_and_said(
    wrap: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    torch.save(wrap(model).state_dict(), tmp_path / "wrapped.pth")
    caplog.set_level("INFO", "toolbox")
    for read in (read_state_dict(tmp_path / "wrapped.pth"), read_checkpoint(tmp_path / "wrapped.pth").state):
        assert read.keys() == model.state_dict().keys()
        assert all(torch.equal(read[name], tensor) for name, tensor in model.state_dict().items())
    assert "wrapped.pth: was saved inside " in caplog.text and "is taken off its names" in caplog.text


def test_a_part_that_is_called_module_keeps_its_name(caplog: pytest.LogCaptureFixture) -> None:
    state = {"module.weight": 1, "head.weight": 2}
    assert unwrapped(state, "x.pth") == state and not caplog.records
    assert unwrapped({}, "x.pth") == {}


def test_a_folder_is_said_to_be_one_with_what_lies_in_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="this is a folder without weights$"):
        read_checkpoint(tmp_path)
    (tmp_path / "b.pth").touch()
    (tmp_path / "a.pkl").touch()
    with pytest.raises(CheckpointError, match=r"this is a folder; give the file, e\.g\. .*/a\.pkl$"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="this is a run folder, which needs no import: rcnn predict "):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"no such weight file; did you mean '.*b\.pth'"):
        read_checkpoint(tmp_path / "bb.pth")
