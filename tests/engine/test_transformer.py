"""A plain transformer under a pyramid of its own, from YAML text to a trained run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import toolbox
from toolbox.engine import Progress, train
from toolbox.engine.checkpoint import load_checkpoint
from toolbox.errors import ConfigError
from toolbox.masks import InstanceMasks, PolygonMask
from toolbox.models.backbones import TimmBackbone
from toolbox.schema import Config, config_from_text
from toolbox.structures import Targets

pytest.importorskip("timm", reason="extra 'timm' is not installed")

YAML = """
model:
  backbone: {type: TimmBackbone, name: test_vit}
  neck: {type: SimpleFeaturePyramid, out_channels: 16}
  rpn:
    head: {type: ConvRPNHead}
    anchors: {sizes: [8, 16, 32, 64, 128]}
    train: {before_nms: 100, after_nms: 50}
    test: {before_nms: 100, after_nms: 50}
  box:
    extractor: {type: RoIAlign, output_size: 3}
    head: {type: ConvFCBoxHead, convolutions: 1, channels: 16, norm: ln, fc_channels: 32}
    sampler: {type: RandomSampler, size: 16}
  instance:
    mask:
      extractor: {type: RoIAlign, output_size: 6}
      head: {type: FCNMaskHead, convolutions: 1, channels: 16, norm: ln}
data:
  train: {type: Shapes, length: 4, difficulty: easy}
  resize: {short: 64, max: 64}
  workers: 0
train:
  steps: 2
  batch: 2
  lr: 0.001
  optimizer: {type: AdamW, weight_decay: 0.1}
  schedule: {type: Cosine, warmup_steps: 0}
  layer_decay: 0.5
  device: cpu
"""


def made(*overrides: str) -> Config:
    return config_from_text(YAML, "transformer.yaml", overrides)


def test_a_step_gives_finite_losses_and_a_gradient_to_every_parameter() -> None:
    torch.manual_seed(0)
    detector: Any = toolbox.build_detector(made(), classes=("a", "b"))
    polygon = torch.tensor([[10.0, 10], [60, 10], [60, 50], [10, 50]])
    yes = torch.ones(1, 1, dtype=torch.bool)
    boxes, areas = torch.tensor([[[10.0, 10, 60, 50]]]), torch.tensor([[2000.0]])
    masks = InstanceMasks([[PolygonMask([polygon.numpy()])]])
    targets = Targets(boxes, torch.zeros(1, 1, dtype=torch.int64), yes, ~yes, areas, masks=masks)
    # Neither side is a multiple of 32, or of the patch.
    images = [torch.randint(256, (3, 70, 90), dtype=torch.uint8)]

    losses = detector(images, targets)
    assert {"mask"} < set(losses) and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, parameter in detector.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())
    found = detector.eval().predict(images)[0]
    assert found.image_size == (70, 90) and len(found.masks) == len(found)


def test_every_level_has_the_size_that_anchors_and_extractors_count_on() -> None:
    detector: Any = toolbox.build_detector(made(), classes=("a",)).eval()
    batch = detector.preprocess([torch.zeros(3, 70, 90, dtype=torch.uint8)])
    assert batch.tensor.shape[-2:] == (96, 96)  # multiples of 32, the stride of p5, though the transformer's is 16
    with torch.no_grad():
        maps = detector.extract(batch.tensor)
    assert {level: tuple(x.shape[-2:]) for level, x in maps.items()} == {
        "p2": (24, 24),
        "p3": (12, 12),
        "p4": (6, 6),
        "p5": (3, 3),
        "p6": (2, 2),
    }
    assert detector.rpn.anchors.strides == [4, 8, 16, 32, 64]
    assert detector.box.extractor.pyramid.strides == (4, 8, 16, 32)


def test_a_run_trains_the_patch_embedding_slowest_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="toolbox"):
        train(made(), tmp_path)
    groups = load_checkpoint(tmp_path / "checkpoint.pt")["optimizer"]["param_groups"]
    # test_vit has 6 blocks, so its embedding lies 7 layers from what follows them. Step 2 of 2 is half way down.
    assert [groups[0]["lr_scale"], groups[-1]["lr_scale"]] == [0.5**7, 1.0]
    assert [group["lr"] for group in groups] == pytest.approx([0.0005 * group["lr_scale"] for group in groups])
    assert "learning rate 0.001, down to 7.81e-06 towards the image (layer_decay 0.5)" in caplog.text


def test_a_run_with_layer_decay_resumes_with_the_same_bits(tmp_path: Path) -> None:
    config = made("train.checkpoint_every=1")

    def die(progress: Progress) -> None:
        if progress.done == 2:  # the checkpoint of step 1 is the last
            raise MemoryError

    with pytest.raises(MemoryError):
        train(config, tmp_path / "parts", on_progress=die)
    train(config, tmp_path / "parts", resume=True)
    train(config, tmp_path / "whole")
    whole, parts = (load_checkpoint(tmp_path / name / "checkpoint.pt")["model"] for name in ("whole", "parts"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_layer_decay_that_does_not_fit_is_refused_before_weights_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(TimmBackbone, "depth_of")
    config = made("model.backbone.weights=pretrained")
    with pytest.raises(ConfigError, match="transformer.yaml:28:16: train.layer_decay: .* TimmBackbone has none"):
        train(config, tmp_path)
