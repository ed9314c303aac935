"""The models of the paper's tables, small: each trains a step and predicts, from YAML to detections.

Backbone maps (C4, C5, dilated C5, FPN), extractors (RoIPool, RoIWarp, RoIAlign, SpatialTransformerPool) and mask heads
(FCN or MLP, sigmoid or softmax) make 4 × 4 × 4 models. The 16 tried are a Latin square of them: every two values of
different kinds meet exactly once. Models of boxes alone have no mask head: 4 more, in which each backbone and each
extractor stands once.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import toolbox
from toolbox.errors import ConfigError
from toolbox.masks import InstanceMasks, PolygonMask
from toolbox.structures import Targets

C4 = """\
  backbone: {type: ResNet, depth: 18, norm: gn, out: [c4]}
  roi_stage: {type: ResNetStage, depth: 18, norm: gn, stride: 1}
"""
C5 = "  backbone: {type: ResNet, depth: 18, norm: gn, out: [c5]}\n"
DC5 = "  backbone: {type: ResNet, depth: 18, norm: gn, out: [c5], dilated_c5: true}\n"
FPN = """\
  backbone: {type: ResNet, depth: 18, norm: gn}
  neck: {type: FPN, out_channels: 16}
"""
BACKBONES = {"C4": C4, "C5": C5, "DC5": DC5, "FPN": FPN}
ONE_LEVEL, FIVE_LEVELS = "[[16, 32, 64]]", "[8, 16, 32, 64, 128]"
EXTRACTORS = ["RoIPool", "RoIWarp", "RoIAlign", "SpatialTransformerPool"]
MASKS = {
    "FCN sigmoid": "{type: FCNMaskHead, convolutions: 1, channels: 8}",
    "FCN softmax": "{type: FCNMaskHead, convolutions: 0, channels: 8, activation: softmax}",
    "MLP sigmoid": "{type: MLPMaskHead, channels: 16, mask_size: 12}",
    "MLP softmax": "{type: MLPMaskHead, channels: 16, mask_size: 12, activation: softmax}",
}
WITH_MASKS = [
    (maps, extractor, [*MASKS][(row + column) % 4])
    for row, maps in enumerate(BACKBONES)
    for column, extractor in enumerate(EXTRACTORS)
]
BOXES_ALONE = [(maps, extractor, None) for maps, extractor in zip(BACKBONES, EXTRACTORS, strict=True)]


def config_text(maps: str, extractor: str, mask: str | None) -> str:
    """A whole config."""
    shared = maps == "C4"
    head = "{type: AveragePoolBoxHead}" if shared else "{type: TwoFCBoxHead, channels: 16}"
    text = f"""\
# {maps}, {extractor}, {mask}
model:
{BACKBONES[maps]}\
  rpn:
    head: {{type: ConvRPNHead, channels: 16}}
    anchors: {{sizes: {FIVE_LEVELS if maps == "FPN" else ONE_LEVEL}}}
    train: {{before_nms: 100, after_nms: 50}}
    test: {{before_nms: 100, after_nms: 20}}
  box:
    extractor: {{type: {extractor}, output_size: 5}}
    head: {head}
    sampler: {{type: RandomSampler, size: 16}}
"""
    if mask:
        own = "" if shared else f"extractor: {{type: {extractor}, output_size: 6}}, "
        text += f"  instance: {{mask: {{{own}head: {MASKS[mask]}}}}}\n"
    return text + "train: {steps: 1, lr: 0.01}\ntest: {score_threshold: 0, detections: 10}\n"


def build(folder: Path, maps: str, extractor: str, mask: str | None, *overrides: str) -> nn.Module:
    torch.manual_seed(0)
    path = folder / "model.yaml"
    path.write_text(config_text(maps, extractor, mask))
    return toolbox.build_detector(toolbox.load_config(path, overrides), classes=("a", "b", "c"))


def scene() -> tuple[list[Tensor], Targets]:
    """Two images, the second without objects."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (3, 64, 96), generator=generator, dtype=torch.uint8) for _ in range(2)]
    box = torch.tensor([10.0, 10, 60, 50])
    valid = torch.tensor([[True], [False]])
    polygon = PolygonMask([box[torch.tensor([[0, 1], [2, 1], [2, 3]])].numpy()])
    labels = torch.ones(2, 1, dtype=torch.int64)
    boxes = box.expand(2, 1, 4) * valid[..., None]
    area = torch.tensor([[1000.0], [0]])
    return images, Targets(boxes, labels, valid, ~valid & valid, area, masks=InstanceMasks([[polygon], []]))


@pytest.mark.parametrize(("maps", "extractor", "mask"), [*WITH_MASKS, *BOXES_ALONE], ids=str)
def test_model_trains_a_step_and_predicts(tmp_path: Path, maps: str, extractor: str, mask: str | None) -> None:
    detector = build(tmp_path, maps, extractor, mask)
    images, targets = scene()
    losses = detector(images, targets)
    assert set(losses) == {"rpn_objectness", "rpn_box", "box_class", "box_delta", *(["mask"] if mask else [])}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values()), losses
    sum(losses.values()).backward()
    trained = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    without = [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    before = {name: p.detach().clone() for name, p in trained.items()}
    torch.optim.SGD(trained.values(), lr=0.01).step()
    moved = {name.split(".")[0] for name, p in trained.items() if not torch.equal(p, before[name])}
    assert moved == {name.split(".")[0] for name in trained}

    (found, other) = detector.eval().predict(images)
    assert len(found) == len(other) == 10 and found.boxes.isfinite().all()
    assert (found.masks is None) == (mask is None)
    if mask:
        assert [rle["size"] for rle in found.masks] == [[64, 96]] * 10


def test_the_square_covers_every_pair() -> None:
    pairs = {(a, b) for row in WITH_MASKS for a in row for b in row if a != b}
    kinds = [set(BACKBONES), set(EXTRACTORS), set(MASKS)]
    wanted = {(a, b) for first in kinds for other in kinds if first is not other for a in first for b in other}
    assert pairs == wanted and len(set(WITH_MASKS)) == 16
    assert {row[0] for row in BOXES_ALONE} == set(BACKBONES) and {row[1] for row in BOXES_ALONE} == set(EXTRACTORS)


def test_c4_shares_its_stage_and_pools_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = build(tmp_path, "C4", "RoIAlign", "FCN sigmoid")
    calls: list[int] = []
    detector.roi_stage.register_forward_hook(lambda module, given, out: calls.append(len(out)))
    detector(*scene())
    assert len(calls) == 1  # in training the mask head reads rows of what the box head got
    names = [name for name, _ in detector.named_parameters()]
    assert any(name.startswith("roi_stage.layer4.") for name in names)
    assert not any("layer4" in name for name in names if not name.startswith("roi_stage."))


def test_c4_without_its_stage_is_refused_with_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        build(tmp_path, "C4", "RoIAlign", None, "model.roi_stage=null")
    (problem,) = caught.value.problems
    assert problem.key == "model.box.head"
    assert "AveragePoolBoxHead has no layers" in problem.message and "add one" in problem.message


def test_a_stage_after_c5_is_refused_with_the_map_to_pool_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.roi_stage.*takes 256 channels.* have 512; pool from c4"):
        build(tmp_path, "C4", "RoIAlign", None, "model.backbone.out=[c5]")


def test_a_stage_of_another_network_than_the_backbone_s_is_refused_with_the_override_to_add(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        build(tmp_path, "C4", "RoIAlign", None, "model.backbone.depth=50")
    assert str(caught.value).endswith(
        "model.roi_stage.depth: it goes on where the backbone ends, and that has depth 50, not 18; "
        "add model.roi_stage.depth=50"
    )
    next_ones = ["model.backbone.depth=101", "model.backbone.groups=32", "model.backbone.width_per_group=8"]
    with pytest.raises(ConfigError, match="add model.roi_stage.depth=101 model.roi_stage.groups=32 model.roi_stage.w"):
        build(tmp_path, "C4", "RoIAlign", None, *next_ones)
    build(tmp_path, "C4", "RoIAlign", None, "model.backbone.depth=50", "model.roi_stage.depth=50")


def test_maps_of_different_width_without_a_neck_are_refused_with_what_to_name(tmp_path: Path) -> None:
    wrong = ["model.backbone.out=[c4, c5]", "model.rpn.anchors.sizes=[16, 32]"]
    with pytest.raises(ConfigError, match=r"c4: 256, c5: 512\); name one under 'features', or add a neck"):
        build(tmp_path, "C5", "RoIWarp", None, *wrong)
