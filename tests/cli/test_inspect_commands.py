"""`rcnn check` and `rcnn show` on small configs."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from toolbox.cli import main
from toolbox.cli.wiring import wiring_lines
from toolbox.models.builder import build_detector
from toolbox.registry import BACKBONES, INSTANCE_HEADS
from toolbox.schema import config_from_text
from toolbox.sections import register_builtin
from toolbox.structures import FeatureSpec, PixelStats

RUN = """\
model:
  backbone: {type: ResNet, depth: 18, norm: gn}
  neck: {type: FPN, out_channels: 16}
  rpn:
    head: {type: ConvRPNHead}
    anchors: {sizes: [8, 16, 32, 64, 128]}
    test: {after_nms: 50}
  box:
    extractor: {type: RoIAlign, output_size: 7}
    head: {type: TwoFCBoxHead, channels: 32}
  instance:
    mask:
      extractor: {type: RoIAlign, output_size: 14}
      head: {type: FCNMaskHead, channels: 16}
data:
  train: {type: Shapes, length: 20}
  val: {type: Shapes, length: 5, seed: 1}
train: {steps: 10, batch: 4, lr: 0.1}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return caught.value.code or 0


# check


def test_check_of_a_good_config_says_ok_and_what_it_is(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", config) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"ok: {config}"
    assert lines[1].startswith("  data.train: 20 images, ") and lines[2].startswith("  data.val: 5 images, ")
    assert lines[4] == "  train: 10 steps of 4 images, 2.0 epochs"


def test_check_lists_all_problems_of_file_and_command_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(RUN.replace("out_channels", "channels").replace("batch: 4", "batch: four"))
    assert run("check", config, "train.lr=fast") == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        f"{config}:3:21: model.neck: FPN has no argument 'channels'; did you mean 'out_channels'?",
        f"{config}:18:27: train.batch: expected int, got 'four'",
        "command line: train.lr=fast: expected float",
    ]


def test_check_finds_what_only_the_wiring_shows(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four anchor sizes do not fit the FPN's five levels."""
    assert run("check", config, "model.rpn.anchors.sizes=[8, 16, 32, 64]") == 2
    assert capsys.readouterr().err.startswith(
        "command line: model.rpn.anchors.sizes=[8, 16, 32, 64]: sizes are given for 4 levels, but there are 5: p2, p3, "
    )


def test_check_names_data_files_that_are_not_there(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = "  val: {type: CocoDataset, images: nowhere, annotations: nowhere.json}"
    config.write_text("\n".join(data if line.startswith("  val:") else line for line in RUN.splitlines()))
    assert run("check", config) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{config}:17:36: data.val.images: no such file or folder: nowhere (paths are relative to")
    assert second.startswith(f"{config}:17:58: data.val.annotations: no such file or folder: nowhere.json")


def test_a_fault_of_a_data_set_is_placed_where_its_file_is_named(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not at the data set, whose line in the file says nothing of what the command line sets."""
    (tmp_path / "objects.json").write_text("{}")
    (tmp_path / "images").mkdir()
    data = f"  val: {{type: CocoDataset, images: {tmp_path}/images, annotations: {tmp_path}/nowhere.json}}"
    config.write_text("\n".join(data if line.startswith("  val:") else line for line in RUN.splitlines()))
    for command in ("check", "train"):
        assert run(command, config, f"data.val.annotations={tmp_path}/objects.json") == 2
        place = f"command line: data.val.annotations={tmp_path}/objects.json: {tmp_path}/objects.json: no list"
        assert place in capsys.readouterr().err


def test_a_fault_of_a_file_in_the_folder_of_images_is_placed_at_the_file(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/objects.json").write_text("{}")
    for images in (f"{tmp_path}/images", f"{tmp_path}/images/"):
        data = f"data.val={{type: CocoDataset, images: {images}, annotations: {tmp_path}/images/objects.json}}"
        assert run("check", config, data) == 2
        assert f"data.val.annotations: {tmp_path}/images/objects.json: no list" in capsys.readouterr().err
    data = f"data.val={{type: CocoDataset, images: {tmp_path}/images, annotations: {tmp_path}/images}}"
    assert run("check", config, data) == 2
    assert f"data.val.annotations: {tmp_path}/images: is a folder; 'annotations' is" in capsys.readouterr().err


def test_check_without_data_reads_what_the_run_starts_from(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", config, "--no-data", "train.init_from=nowhere") == 2
    assert "train.init_from=nowhere: nowhere: no such file or run folder" in capsys.readouterr().err


def test_check_and_train_refuse_backbone_weights_of_another_network(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"encoder.weight": torch.zeros(3)}, tmp_path / "other.pth")
    for command in ("check", "train"):
        assert run(command, config, f"model.backbone.weights={tmp_path}/other.pth") == 2
        said = capsys.readouterr().err
        assert "model.backbone.weights=" in said and "of the backbone are not in it" in said


def test_check_without_data_leaves_the_data_sets_alone(config: Path) -> None:
    assert run("check", config, "data.train={type: CocoDataset, images: x, annotations: y}", "--no-data") == 0


def test_check_compares_the_classes_of_both_data_sets(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", config, "data.val.classes=[circle]") == 2
    said = capsys.readouterr().err
    assert ".yaml:" in said and "data.val lacks 'square', 'triangle', 'star'" in said


def test_check_and_train_say_alike_that_classes_stand_in_another_order(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned = "data.val.classes=[star, triangle, square, circle]"
    for arguments in (("check", config, turned), ("train", config, turned, "--run", tmp_path / "run")):
        assert run(*arguments) == 2
        said = capsys.readouterr().err
        assert (
            "the same in another order" in said and "give data.val 'classes: [circle, square, triangle, star]'" in said
        )
        assert ".yaml:" in said


def test_check_compares_the_joints_of_both_data_sets(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extractor = "{type: RoIAlign, output_size: 14}"
    keypoint = f"model.instance.keypoint={{extractor: {extractor}, head: {{type: FCNKeypointHead, channels: 8}}}}"
    assert run("check", config, "data.train.keypoints=true") == 0  # no part of the model needs them
    assert run("check", config, "data.train.keypoints=true", keypoint) == 2
    said = capsys.readouterr().err
    assert "data.val: the joints of data.val are not those of data.train" in said
    assert "data.train (4): tip, left, right, tail" in said and "data.val (0): none" in said


def write_coco(folder: Path, boxes: list[list[float]], **extra: object) -> str:
    """One image of 100 × 100 with objects of one class; returns the override that names it."""
    Image.fromarray(np.zeros((100, 100, 3), dtype=np.uint8)).save(folder / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box, **extra} for i, box in enumerate(boxes)
        ],
    }
    (folder / "objects.json").write_text(json.dumps(content))
    return f"data.train={{type: CocoDataset, images: {folder}, annotations: {folder / 'objects.json'}}}"


def test_check_and_train_refuse_a_mask_head_on_data_without_masks(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_coco(tmp_path, [[10, 10, 20, 20]])
    said = "data.train: CocoDataset has no masks here, but model.instance.mask (FCNMaskHead) needs them to train"
    assert run("check", config, data, "data.val=null") == 2
    assert said in capsys.readouterr().err.replace(data, "data.train")
    assert run("train", config, data, "data.val=null", "--run", tmp_path / "run") == 2
    assert said in capsys.readouterr().err.replace(data, "data.train")


def test_check_counts_the_objects_of_each_class(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", config, "data.train.classes=[circle, star]", "data.val=null") == 0
    line = capsys.readouterr().out.splitlines()[1]
    total, circles, stars = re.fullmatch(
        r"  data.train: 20 images, (\d+) objects: circle (\d+), star (\d+)", line
    ).groups()
    assert int(total) == int(circles) + int(stars) > 20


def test_check_passes_on_what_the_data_set_warns_of(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = write_coco(tmp_path, [[10, 10, 30, 30], [60, 60, 90, 90], [120, 0, 10, 10]])
    assert run("check", config, data, "data.val=null", "model.instance={}") == 0
    assert "67% of the boxes leave their image: are they x1 y1 x2 y2?" in caplog.text
    assert "data.train: 1 image, 2 objects: cell 2" in capsys.readouterr().out
    assert run("check", config, data, "data.val=null", "model.instance={}", "--strict") == 2
    assert "warning: " in capsys.readouterr().err


def test_check_says_when_there_are_no_objects(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    train = write_coco(tmp_path, [])
    for arguments in (("check", config, train), ("train", config, train, "--run", tmp_path / "run")):
        assert run(*arguments, "data.val=null") == 2
        assert "it has no objects, so there is nothing to learn" in (said := capsys.readouterr().err)
        assert "command line: data.train=" in said
    assert "objects.json: no objects, its list of annotations is empty" in caplog.text


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.transforms=[{type: HorizontalFlip, prob: 5}]", "data.transforms.0.prob: prob lies between 0 and 1"),
        ("data.transforms=[{type: RandomCrop, height: -4, width: 0}]", "height is 1 pixel or more, got -4"),
        ("train.optimizer.momentum=-1", "train.optimizer.momentum=-1: momentum is 0 or more, got -1"),
        ("model.backbone.weights=IMAGENET", "model.backbone.weights=IMAGENET: torchvision has no resnet18 weights"),
        ("model.backbone.weights=nothere.pth", "model.backbone.weights=nothere.pth: nothere.pth: no such weight file"),
        ("train.device=cuda", "train.device=cuda: device 'cuda' is not there"),
    ],
)
def test_check_finds_what_train_would_stumble_over(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], override: str, said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("check", config, override) == 2
    assert said in capsys.readouterr().err


def test_check_lists_missing_weights_and_a_wrong_neck_together(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("check", config, "model.backbone.weights=nothere.pth", "model.neck.out_channels=-5") == 2
    neck, weights = capsys.readouterr().err.splitlines()
    assert "out_channels is 1 or more, got -5" in neck and "nothere.pth: no such weight file" in weights


def test_check_only_warns_of_milestones_after_the_end(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run("check", config, "train.schedule.milestones=[5, 700]") == 0
    assert "the run ends after 10 steps, so the learning rate does not drop at 700" in caplog.text


def test_a_run_folder_stands_for_its_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(RUN)
    assert run("check", tmp_path) == 0
    assert capsys.readouterr().out.startswith(f"ok: {tmp_path / 'config.yaml'}\n")
    assert run("show", tmp_path, "--no-resolved") == 0


def test_a_folder_without_a_config_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text(RUN)
    assert run("check", tmp_path) == 2
    assert f"Is a directory; did you mean '{tmp_path / 'mine.yaml'}'?" in capsys.readouterr().err


def test_strict_makes_warnings_errors(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import toolbox.cli.inspect_commands as commands

    original = commands._open_data

    def warns(config: object) -> object:
        logging.getLogger("toolbox").warning("3 boxes lie outside their image")
        return original(config)

    monkeypatch.setattr(commands, "_open_data", warns)
    assert run("check", config) == 0
    assert run("check", config, "--strict") == 2
    assert "warning: 3 boxes lie outside their image" in capsys.readouterr().err


PLUGIN = """\
import torch
from torch import nn
from toolbox.registry import INSTANCE_HEADS


@INSTANCE_HEADS.register
class NAME(nn.Module):
    def __init__(self, in_shape, num_classes):
        super().__init__()
        self.layer = nn.Linear(WIDTH, 1)

    def forward(self, regions):
        return BODY

    def loss(self, prediction, regions, targets):
        return prediction.float().sum() * 0

    def predict(self, prediction, labels):
        return prediction

    def to_image(self, values, boxes, height, width):
        return {"fill": values.tolist()}
"""


@pytest.fixture
def with_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a config whose branch `fill` has a plugin's head; its forward returns `body`."""
    register_builtin()
    monkeypatch.setattr(INSTANCE_HEADS, "_classes", dict(INSTANCE_HEADS._classes))
    monkeypatch.setattr("toolbox.plugins.loaded_plugins", {})

    def write(name: str, width: int = 16, body: str = "self.layer(regions.mean(dim=(2, 3)))") -> Path:
        code = PLUGIN.replace("NAME", name).replace("WIDTH", str(width)).replace("BODY", body)
        (tmp_path / "own_head.py").write_text(code)
        branch = f"    fill:\n      extractor: {{type: RoIAlign, output_size: 7}}\n      head: {{type: {name}}}\n"
        path = tmp_path / "run.yaml"
        path.write_text(f"plugins: [./own_head.py]\n{RUN.replace('data:', branch + 'data:', 1)}")
        return path

    return write


def test_check_finds_a_head_that_fails_on_what_it_is_wired_to(
    with_head: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_head("FixedWidthFill", width=256)
    assert run("check", config) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(
        f"{config}:18:13: model.instance.fill.head: FixedWidthFill.forward fails on regions (16, 7, 7): RuntimeError: "
    )
    assert said.endswith(f"({tmp_path / 'own_head.py'}, line 13)") and "\n" not in said


@pytest.mark.parametrize(
    "body",
    [
        "self.layer(regions.mean(dim=(2, 3))) * regions.sum().item()",
        "self.layer(regions.mean(dim=(2, 3))) * regions.sum().tolist()",
        "self.layer(regions.mean(dim=(2, 3))) if regions.sum() > 0 else regions[:, 0, 0]",
        "self.layer(regions.mean(dim=(2, 3))) + len(regions.nonzero())",
        "self.layer(regions.mean(dim=(2, 3))) + float(regions.cpu().detach().numpy().sum())",
        "self.layer(regions.mean(dim=(2, 3))) + torch.from_numpy(__import__('numpy').ones(1, dtype='float32'))",
    ],
    ids=["item", "tolist", "bool", "nonzero", "numpy", "from_numpy"],
)
def test_what_only_the_meta_device_cannot_do_is_no_finding(with_head: Callable[..., Path], body: str) -> None:
    assert run("check", with_head("ValueFill", body=body)) == 0


def test_train_ends_a_plugins_traceback_with_its_line_and_what_was_done(
    with_head: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_head("TrainedFill", width=256)
    assert run("train", config, "train.steps=1", "train.batch=1", "data.workers=0", "--run", tmp_path / "run") == 1
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    last = said.splitlines()[-1]
    assert (
        last.startswith(f"plugin {tmp_path / 'own_head.py'}, line 13, in forward: RuntimeError: ")
        and "mat1 and mat2" in last
    )
    assert last.endswith("; in training, model.instance.fill: TrainedFill")


def test_train_says_which_heads_loss_is_no_mapping(
    with_head: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_head("TensorFill")
    assert run("train", config, "train.steps=1", "train.batch=1", "data.workers=0", "--run", tmp_path / "run") == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "TypeError: model.instance.fill: TensorFill.loss returns Tensor, not a mapping of named losses; "
        "return a dict of scalars, e.g. {'fill': loss}"
    )


# show


def test_show_prints_the_resolved_config_and_the_wiring(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", config, "--size", "120x128") == 0
    output = capsys.readouterr().out
    resolved, _, table = output.partition("stage  ")
    assert config_from_text(resolved, "resolved").model["backbone"]["depth"] == 18
    assert "p2 16/4, p3 16/8, p4 16/16, p5 16/32, p6 16/64" in table
    assert "50 regions (16, 7, 7) → 100 detections" in table
    assert "for one image of 128 × 128 pixels" in table


def test_show_refuses_a_size_that_is_none(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", config, "--size", "800") == 2
    assert "--size is HEIGHTxWIDTH in pixels, e.g. 800x1216, not '800'" in capsys.readouterr().err


class OneConvolution(torch.nn.Module):
    """3 → 8 channels, 3×3, stride 4: 224 parameters, 27 · 8 multiply-adds per output pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features = {"c2": FeatureSpec(8, 4)}
        self.pixels = PixelStats()
        self.conv = torch.nn.Conv2d(3, 8, 3, stride=4, padding=1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"c2": self.conv(images)}


def test_parameters_and_multiply_adds_are_those_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    register_builtin()
    monkeypatch.setattr(BACKBONES, "_classes", {**BACKBONES._classes, "OneConvolution": OneConvolution})
    text = RUN.replace("{type: ResNet, depth: 18, norm: gn}", "{type: OneConvolution}").replace("  neck:", "  # neck:")
    config = config_from_text(text.replace("[8, 16, 32, 64, 128]", "[8]"), "run.yaml")
    with torch.device("meta"):
        model = build_detector(config, classes=["a"])
    lines = wiring_lines(model, 4000, 4000)
    backbone = next(line for line in lines if line.startswith("model.backbone"))
    # 1000 × 1000 outputs of 216 multiply-adds; 8 · 27 weights and 8 biases
    assert backbone.split() == ["model.backbone", "OneConvolution", "c2", "8/4", "0.2", "k", "0.2", "k", "0.22", "G"]
    box = next(line for line in lines if line.startswith("model.box"))
    # fully connected: 8·7·7 → 32 → 32, then 2 logits and 4 deltas, on 50 regions
    assert box.split()[-2:] == [f"{50 * (392 * 32 + 32 * 32 + 32 * 6) / 1e9:.2f}", "G"]
