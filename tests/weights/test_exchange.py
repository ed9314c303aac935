"""Detectors of torchvision become model files and come back; whose classes they are is known, asked for, or refused."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection, get_model_weights
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import toolbox
from toolbox import weights
from toolbox.cli import main
from toolbox.errors import CheckpointError
from toolbox.inference.loading import LoadedDetector
from toolbox.models.backbones.weights import without_pretrained
from toolbox.weights.exchange import importing
from toolbox.weights.exchange.classes import classes_of_meta, coco_classes, rows_of
from toolbox.weights.exchange.settings import unlike_torchvision
from toolbox.weights.foreign_files import read_checkpoint
from toolbox.weights.torchvision import from_torchvision, model_name, to_torchvision

CONFIGS = Path(__file__).resolve().parents[2] / "configs/torchvision"
FASTER = str(CONFIGS / "faster_rcnn_r50_fpn.yaml")
SMALL = "model.backbone.depth=18"
NAMES = (
    *("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"),
    *("fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn_v2"),
)


def small_peer(classes: int) -> Any:
    """torchvision's Faster R-CNN, on a ResNet-18."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    return detection.FasterRCNN(backbone, num_classes=classes + 1).eval()


@pytest.fixture(scope="module")
def coco_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with torchvision's 91 rows."""
    file = tmp_path_factory.mktemp("coco") / "theirs.pth"
    torch.save(small_peer(90).state_dict(), file)
    return file


def rcnn(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def load(*overrides: str) -> Any:
    return toolbox.load_config(FASTER, [SMALL, *overrides])


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_torchvisions_models_has_one_here_and_comes_back(name: str) -> None:
    with torch.device("meta"):
        peer = getattr(detection, name)(weights=None, weights_backbone=None)
    state = peer.state_dict()
    assert model_name(state) == name
    back = to_torchvision(from_torchvision(state))
    assert {key: tensor.shape for key, tensor in back.items()} == {key: tensor.shape for key, tensor in state.items()}


def test_names_of_torchvisions_first_files_are_read_as_torchvision_reads_them() -> None:
    peer = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    old: dict[str, Tensor] = {}
    for name, tensor in peer.state_dict().items():
        for there, then in (("inner_blocks.{}.0.", "inner_blocks.{}."), ("layer_blocks.{}.0.", "layer_blocks.{}.")):
            for level in range(4):
                name = name.replace(there.format(level), then.format(level))
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for index in range(4):
            name = name.replace(f"mask_head.{index}.0.", f"mask_head.mask_fcn{index + 1}.")
        old[name] = tensor
    assert "roi_heads.mask_head.mask_fcn4.bias" in old and "backbone.fpn.inner_blocks.3.weight" in old
    other = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    other.load_state_dict(dict(old))  # torchvision's own loader knows these names
    expected, found = from_torchvision(other.state_dict()), from_torchvision(old)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_table_of_coco_is_torchvisions() -> None:
    meta = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    table = coco_classes()
    assert len(table) == 80
    assert [meta[category] for category in table.category_ids] == list(table.names)
    joints = detection.KeypointRCNN_ResNet50_FPN_Weights.COCO_V1.meta["keypoint_names"]
    assert table.skeleton is not None and list(table.skeleton.names) == joints
    assert len(table.skeleton.sigmas) == len(joints) and (5, 6) in table.skeleton.pairs


def test_without_unused_rows_scores_grow_by_what_those_had() -> None:
    peer = small_peer(90)
    model: Any = weights.import_torchvision(peer.state_dict(), load()).model
    hidden = torch.randn(6, 1024, generator=torch.Generator().manual_seed(1))
    theirs = peer.roi_heads.box_predictor(hidden)[0].softmax(dim=1)
    ids = torch.tensor(coco_classes().category_ids)
    unused = torch.tensor([row for row in range(1, 91) if row not in ids])
    ours = model.box.head.predictor(hidden).logits.softmax(dim=1)
    expected = theirs[:, ids] / (1 - theirs[:, unused].sum(dim=1, keepdim=True))
    torch.testing.assert_close(ours[:, :80], expected)
    every: Any = weights.import_torchvision(peer.state_dict(), load(), classes=weights.read_classes("coco-90")).model
    torch.testing.assert_close(every.box.head.predictor(hidden).logits.softmax(dim=1)[:, :90], theirs[:, 1:])


def test_a_model_file_predicts_and_goes_back_to_torchvision_unchanged(
    coco_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, back, image = tmp_path / "model.safetensors", tmp_path / "back.pth", tmp_path / "image.png"
    assert rcnn("weights", "import", coco_file, "--config", FASTER, "--out", model, SMALL) == 0
    said = capsys.readouterr().out
    assert "80 classes: person, bicycle" in said and f"rcnn predict {model} IMAGE" in said
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(image)
    assert rcnn("predict", model, image, "--out", tmp_path / "found") == 0
    table = json.loads((tmp_path / "found/images.json").read_text())
    assert {"id": 90, "name": "toothbrush"} in table["categories"]

    assert rcnn("weights", "export", model, "--to", "torchvision", "--out", back) == 0
    assert "fasterrcnn_resnet18_fpn with num_classes=91" in capsys.readouterr().out
    before, after = (torch.load(file, weights_only=True) for file in (coco_file, back))
    peer = small_peer(90)
    peer.load_state_dict(after, strict=True)
    live = torch.tensor((0, *coco_classes().category_ids))
    for name, tensor in before.items():
        if "cls_score" in name:
            assert torch.equal(after[name][live], tensor[live]), name
        elif "bbox_pred" in name and "roi_heads" in name:  # the background's box, which nothing reads, is not kept
            rows = (live[1:, None] * 4 + torch.arange(4)).flatten()
            assert torch.equal(after[name][rows], tensor[rows]) and not after[name][:4].any(), name
        else:
            assert torch.equal(after[name], tensor), name
    # An id that COCO does not use is never found, and takes nothing from the others' probabilities.
    scores = peer.roi_heads.box_predictor(torch.randn(3, 1024))[0].softmax(dim=1)
    assert scores[:, 12].eq(0).all()
    torch.testing.assert_close(scores[:, live].sum(dim=1), torch.ones(3))


def test_a_model_of_own_classes_is_exported_with_a_row_for_each(tmp_path: Path) -> None:
    peer = small_peer(3)
    detector = weights.import_torchvision(peer.state_dict(), load(), classes=weights.read_classes("cat,dog,cow"))
    back = weights.export_torchvision(detector)
    small_peer(3).load_state_dict(back, strict=True)
    assert torch.equal(back["roi_heads.box_predictor.cls_score.weight"], peer.roi_heads.box_predictor.cls_score.weight)


def test_classes_come_from_the_data_by_number_of_rows_or_by_category_id(tmp_path: Path) -> None:
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    table = weights.read_classes(str(file))
    assert rows_of(table, 2) == [0, 1] and rows_of(table, 7) == [2, 6]
    with pytest.raises(ValueError, match=r"rows for 4 classes, but there are 2 classes of .*cat, dog.*2 or 7"):
        rows_of(table, 4)
    some = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    file.write_text(json.dumps({"categories": some}))
    assert rows_of(weights.read_classes(str(file)), 90) == [0, 17]  # of torchvision's COCO
    assert rows_of(weights.read_classes(str(file)), 80) == [0, 16]  # of Detectron2's

    data = f"{{type: CocoDataset, images: {tmp_path}, annotations: {file}}}"
    PIL.Image.new("RGB", (9, 9)).save(tmp_path / "1.png")
    images = [{"id": 1, "file_name": "1.png", "height": 9, "width": 9}]
    objects = [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}]
    file.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    config = load(f"data.train={data}", "data.val=null")
    by_id = weights.import_torchvision(small_peer(7).state_dict(), config)
    assert by_id.classes == ("cat", "dog") and by_id.category_ids == (3, 7)
    model: Any = by_id.model
    bias = small_peer(7).roi_heads.box_predictor.cls_score.bias
    assert torch.equal(model.box.head.predictor.logits.bias, bias[[3, 7, 0]])


OF_MMDETECTION = {
    **{f"neck.lateral.c{i + 2}.0.": f"neck.lateral_convs.{i}.conv." for i in range(4)},
    **{f"neck.output.p{i + 2}.0.": f"neck.fpn_convs.{i}.conv." for i in range(4)},
    "rpn.head.convolutions.0.": "rpn_head.rpn_conv.",
    "rpn.head.objectness.": "rpn_head.rpn_cls.",
    "rpn.head.deltas.": "rpn_head.rpn_reg.",
    **{f"box.head.hidden.{2 * i}.": f"roi_head.bbox_head.shared_fcs.{i}." for i in range(2)},
    "box.head.predictor.logits.": "roi_head.bbox_head.fc_cls.",
    "box.head.predictor.deltas.": "roi_head.bbox_head.fc_reg.",
}


def test_boxes_for_all_classes_stay_as_they_are_where_rows_of_classes_are_chosen(tmp_path: Path) -> None:
    config = load("model.box.head.class_agnostic=true")
    with without_pretrained():
        own = toolbox.build_detector(config, classes=coco_classes().names).state_dict()
    theirs = {}
    for name, tensor in own.items():
        prefix = next((prefix for prefix in OF_MMDETECTION if name.startswith(prefix)), "")
        theirs[OF_MMDETECTION.get(prefix, "") + name.removeprefix(prefix)] = tensor
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]}))
    table = weights.read_classes(str(file))
    found: Any = weights.import_weights(theirs, config, source="mmdetection", classes=table).model
    logits, deltas = (own[f"box.head.predictor.{name}.weight"] for name in ("logits", "deltas"))
    assert torch.equal(found.box.head.predictor.logits.weight, logits[[0, 16, 80]])
    assert torch.equal(found.box.head.predictor.deltas.weight, deltas) and len(deltas) == 4


@pytest.mark.parametrize("text", ["cat\n\ndog \n", "cat,dog", "cat, dog"])
def test_names_in_a_file_or_with_commas(tmp_path: Path, text: str) -> None:
    file = tmp_path / "names.txt"
    file.write_text(text)
    table = weights.read_classes(str(file) if "\n" in text else text)
    assert table.names == ("cat", "dog") and table.category_ids == (1, 2)


def test_the_classes_that_a_checkpoint_names_are_taken() -> None:
    own = classes_of_meta({"CLASSES": ("cat", "dog")}, "mine.pth")
    assert own is not None and own.names == ("cat", "dog") and own.category_ids == (1, 2)
    coco = classes_of_meta({"dataset_meta": {"classes": list(coco_classes().names)}}, "theirs.pth")
    assert coco is not None and coco.category_ids[-1] == 90
    for meta in ({}, {"dataset_meta": "text"}, {"CLASSES": [1, 2]}):
        assert classes_of_meta(meta, "theirs.pth") is None


def state_of(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> dict[str, Tensor]:
    return change(dict(small_peer(90).state_dict()))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda _: nn.Linear(1, 1).state_dict(), "no tensor 'weight'; only the ResNet-FPN detectors"),
        (lambda _: {"fc.weight": torch.zeros(1)}, "classifier.*model.backbone.weights"),
        (lambda _: {"backbone.bottom_up.stem.conv1.weight": torch.zeros(1)}, "--from detectron2"),
        (lambda _: {"roi_head.bbox_head.fc_cls.weight": torch.zeros(1)}, "--from mmdetection"),
        (lambda _: {"head.classification_head.cls_logits.bias": torch.zeros(1)}, "one-stage"),
        (lambda _: {"box.head.predictor.logits.bias": torch.zeros(1)}, "this toolbox already.*rcnn predict"),
        (lambda s: s | {"roi_heads.fancy.weight": torch.zeros(1)}, "no tensor 'roi_heads.fancy.weight'"),
        (lambda s: {n: t for n, t in s.items() if n.startswith("backbone.")}, r"no box predictor.*state_dict\(\)"),
    ],
)
def test_what_is_no_detector_of_torchvision_is_said(change: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"(?s)the state dict: .*{told}"):
        weights.import_torchvision(state_of(change), load())


def test_another_architecture_than_the_configs_is_named_with_its_config() -> None:
    with torch.device("meta"):
        peer = detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    state = {name: torch.zeros(tensor.shape) for name, tensor in peer.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"(?s)not in the model.*configs/torchvision/mask_rcnn_r50_fpn_v2.yaml"):
        weights.import_torchvision(state, toolbox.load_config(FASTER))


def test_rows_whose_classes_nobody_knows_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.pth"
    options = argparse.Namespace(lr=0.02)  # as torchvision's own training script keeps them
    torch.save({"model": small_peer(3).state_dict(), "epoch": 3, "args": options}, file)
    command = ("weights", "import", file, "--config", FASTER, "--out", tmp_path / "m.safetensors", SMALL)
    assert rcnn(*command) == 2
    said = capsys.readouterr().err
    assert f"{file}: has rows for 3 classes, whose names it does not hold" in said and "--classes" in said
    assert rcnn(*command, "--classes", "cat,dog") == 2
    said = capsys.readouterr().err
    assert "rows for 3 classes, but there are 2 classes of --classes (cat, dog); 2 would fit" in said
    assert rcnn(*command, "--classes", "cat,dog,cow") == 0
    assert rcnn(*command, "--classes", tmp_path / "none.json") == 2
    assert "none.json: no such file" in capsys.readouterr().err
    assert rcnn(*command, "--classes", "cat,cat,cow") == 2
    assert "'cat' more than once" in capsys.readouterr().err


def test_settings_unlike_torchvisions_are_said_both_ways(coco_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = read_checkpoint(coco_file)
    for name in NAMES:
        kind, _, rest = name.partition("rcnn_resnet50_")
        assert unlike_torchvision(toolbox.load_config(CONFIGS / f"{kind}_rcnn_r50_{rest}.yaml")) == []
    config = load("model.rpn.anchors.rounding=false", "model.box.extractor.aligned=true")
    detector = importing.import_checkpoint(checkpoint, config, source="torchvision")
    assert "add model.rpn.anchors.rounding=true model.box.extractor.aligned=false" in caplog.text
    caplog.clear()
    weights.export_torchvision(detector)
    assert "with model.rpn.anchors.rounding=true model.box.extractor.aligned=false" in caplog.text


def test_a_model_without_batch_norm_cannot_go_to_torchvision() -> None:
    config = toolbox.load_config(CONFIGS.parent / "quickstart.yaml")
    model = toolbox.build_detector(config, classes=["cat"])
    with pytest.raises(CheckpointError, match="has no batch norm"):
        weights.export_torchvision(LoadedDetector(model, config, ("cat",), (1,), None))


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, trace = tmp_path / "evil.pth", tmp_path / "was_here"
    torch.save({"model": small_peer(1).state_dict(), "extra": Malicious(f"touch {trace}")}, file)
    out = tmp_path / "m.safetensors"
    assert rcnn("weights", "import", file, "--config", FASTER, "--out", out, SMALL) == 2
    said = capsys.readouterr().err
    assert str(file) in said and "could run code" in said and "state_dict()" in said
    assert not trace.exists() and not out.exists()


def test_options_that_are_wrong_are_said_before_anything_is_read(
    coco_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("weights", "import", coco_file, "--config", FASTER)
    assert rcnn(*command, "--out", tmp_path / "model.pth") == 2
    assert "name a file that ends in .safetensors" in capsys.readouterr().err
    assert rcnn(*command, "--out", tmp_path / "none/model.safetensors") == 2
    assert f"there is no folder {tmp_path / 'none'}" in capsys.readouterr().err
    assert rcnn(*command, "--out", tmp_path / "model.safetensors", "--from", "torchvison") == 2
    assert "--from torchvison: did you mean 'torchvision'?" in capsys.readouterr().err


def test_a_published_file_runs_its_norms_as_torchvision_does(
    coco_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def epsilon(*overrides: str) -> float:
        config, _ = importing.config_for(coco_file, Path(FASTER), [SMALL, *overrides])
        return config.model["backbone"]["norm_eps"]

    assert epsilon() == 1e-5  # not one of the published files
    digest = hashlib.sha256(coco_file.read_bytes()).hexdigest()
    monkeypatch.setitem(importing._WITHOUT_EPSILON, digest[:8], "fasterrcnn_resnet18_fpn")
    assert epsilon() == 0
    assert epsilon("model.backbone.norm_eps=1e-3") == 1e-3


def test_the_files_run_without_epsilon_are_torchvisions_of_that_name() -> None:
    for digest, told in importing._WITHOUT_EPSILON.items():
        name, _, member = told.partition(", ")
        assert get_model_weights(name)[member].url.endswith(f"-{digest}.pth")
