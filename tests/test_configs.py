"""Every YAML in the repository loads, builds, trains a step and predicts at small size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import toolbox
from toolbox.engine.sweep import load_sweep
from toolbox.masks import InstanceMasks, PolygonMask
from toolbox.models.detector import RCNN
from toolbox.structures import Skeleton, Targets

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    path
    for folder in ("configs", "plugins", "benchmarks")
    for path in (ROOT / folder).rglob("*.yaml")
    if "paper" not in path.relative_to(ROOT).parts  # sweeps, which tests/test_paper_tables.py reads
)
SWEEPS = [path for path in FILES if "\nvariants:" in path.read_text(encoding="utf-8")]
CONFIGS = [path for path in FILES if path not in SWEEPS]
CLASSES = ("a", "b")
SKELETON = Skeleton(names=("left", "right"), pairs=((0, 1),), sigmas=(0.05, 0.05))


# How many regions go through a stage is a number, not a part of what is tested: C4 runs c5 on each of them.
FEW = [
    "test.detections=8",
    "model.rpn.test.after_nms=30",
    "model.rpn.train.after_nms=60",
    "model.box.sampler={type: RandomSampler, size: 16}",
]


def small(path: Path) -> toolbox.schema.Config:
    """The config without pretrained weights; norms that need them become ones that do not; and with few regions."""
    config = toolbox.load_config(path)
    overrides = []
    if config.model["backbone"]["weights"] is not None:
        overrides += ["model.backbone.weights=null", "model.backbone.norm=bn"]
    if config.model.given.get("roi_stage") is not None:  # not every detector has one
        overrides += ["model.roi_stage.weights=null", "model.roi_stage.norm=bn"]
    if config.model.cls is RCNN:
        overrides += FEW
    return toolbox.load_config(path, overrides)


def batch() -> tuple[list[Tensor], Targets]:
    boxes = torch.tensor([[[10.0, 10, 60, 90]]])
    polygon = torch.tensor([[10.0, 10], [60, 10], [60, 90], [10, 90]]).numpy()
    yes = torch.ones(1, 1, dtype=torch.bool)
    targets = Targets(
        boxes,
        torch.zeros(1, 1, dtype=torch.int64),
        yes,
        ~yes,
        torch.tensor([[4000.0]]),
        keypoints=torch.tensor([[[[20.0, 20, 2], [40, 80, 2]]]]),
        masks=InstanceMasks([[PolygonMask([polygon])]]),
    )
    return [torch.randint(256, (3, 96, 128), dtype=torch.uint8)], targets


@pytest.mark.parametrize("path", CONFIGS, ids=[str(path.relative_to(ROOT)) for path in CONFIGS])
def test_config_builds_trains_a_step_and_predicts(path: Path) -> None:
    if "TimmBackbone" in path.read_text():
        pytest.importorskip("timm", reason="extra 'timm' is not installed")
    torch.manual_seed(0)
    detector: nn.Module = toolbox.build_detector(small(path), classes=CLASSES, skeleton=SKELETON)
    images, targets = batch()
    losses = detector(images, targets)
    total = sum(losses.values())
    total.backward()
    assert total.isfinite() and total > 0
    found = detector.eval().predict(images)[0]
    assert found.image_size == (96, 128)


@pytest.mark.parametrize("path", CONFIGS, ids=[str(path.relative_to(ROOT)) for path in CONFIGS])
def test_config_is_complete_and_fits_on_a_page(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) < 40
    assert lines[0].startswith("# "), "says first what it is"


@pytest.mark.parametrize("path", CONFIGS, ids=[str(path.relative_to(ROOT)) for path in CONFIGS])
def test_resolved_config_loads_again_to_the_same(path: Path) -> None:
    resolved = toolbox.load_config(path).to_yaml()
    again = toolbox.schema.config_from_text(resolved, str(path))
    assert again.to_yaml() == resolved


def test_the_largest_model_builds_without_memory_and_has_the_published_size() -> None:
    path = ROOT / "configs/torchvision/mask_rcnn_r50_fpn.yaml"
    config = toolbox.load_config(path, ["model.backbone.norm=bn"])
    with torch.device("meta"):
        detector = toolbox.build_detector(config, classes=[str(index) for index in range(90)])
    # torchvision documents 44,401,393 parameters for maskrcnn_resnet50_fpn. Its norms are frozen, ours here are not
    # (53,120 more); its predictors have rows for the background (4 x 1025 box deltas, 257 mask weights less here).
    assert sum(parameter.numel() for parameter in detector.parameters()) == 44_401_393 + 53_120 - 4 * 1025 - 257


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: str(path.relative_to(ROOT)))
def test_sweep_of_a_benchmark_is_read_and_its_variants_fit(path: Path) -> None:
    sweep = load_sweep(path)
    assert len(sweep.text.variants) > 1 and sweep.text.seeds
