"""Model files of a run load back with all that they were trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from toolbox.errors import CheckpointError, ConfigError
from toolbox.inference.loading import load_detector, model_metadata, read_skeleton
from toolbox.models.builder import build_detector
from toolbox.schema import config_from_text
from toolbox.structures import Skeleton
from toolbox.weights import save_model

CONFIG = """
model:
  backbone: {type: ResNet, depth: 18, norm: gn}
  neck: {type: FPN, out_channels: 8}
  rpn: {head: {type: ConvRPNHead}, anchors: {sizes: [8, 16, 32, 64, 128]}}
  box:
    extractor: {type: RoIAlign, output_size: 3}
    head: {type: TwoFCBoxHead, channels: 8}
train: {steps: 1, lr: 0.1}
"""
CLASSES = ("cat", "dog")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_from_text(CONFIG, "test.yaml")
    model = build_detector(config, classes=CLASSES)
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    save_model(path, model.state_dict(), model_metadata(config, CLASSES, (17, 18), None))
    return path


def test_a_model_file_alone_gives_weights_config_classes_and_ids(file: Path) -> None:
    loaded = load_detector(file)
    again = load_detector(file.parent, ["test.detections=7"])  # the folder, here without a config.yaml
    assert (loaded.classes, loaded.category_ids, loaded.skeleton) == (CLASSES, (17, 18), None)
    assert not loaded.model.training
    assert (loaded.config.test.detections, again.config.test.detections) == (100, 7)
    for one, other in zip(loaded.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_override_that_changes_the_model_is_reported_with_the_shapes(file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"hidden.0.weight \(8, 72\), the model has \(9, 72\)"):
        load_detector(file, ["model.box.head.channels=9"])
    with pytest.raises(ConfigError, match="test.detection"):
        load_detector(file, ["test.detection=9"])


def test_a_folder_without_a_model_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no model.safetensors"):
        load_detector(tmp_path)
    save_model(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="no 'config' in its metadata"):
        load_detector(tmp_path / "other.safetensors")


def test_a_skeleton_comes_back_as_it_was() -> None:
    skeleton = Skeleton(names=("left", "right"), pairs=((0, 1),), limbs=((0, 1),), sigmas=(0.1, 0.2))
    metadata = model_metadata(config_from_text(CONFIG, "test.yaml"), CLASSES, (1, 2), skeleton)
    assert read_skeleton(metadata["skeleton"]) == skeleton
