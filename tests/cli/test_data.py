"""`rcnn data browse`: pictures of what training gets."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from toolbox.cli import main
from toolbox.data.batching import Key
from toolbox.data.shapes import Shapes
from toolbox.data.source import seen_samples
from toolbox.data.transforms import HorizontalFlip, RandomCrop

CONFIG = """\
model:
  backbone: {type: ResNet, depth: 18, norm: gn}
  neck: {type: FPN, out_channels: 16}
  rpn:
    head: {type: ConvRPNHead}
    anchors: {sizes: [8, 16, 32, 64, 128]}
  box:
    extractor: {type: RoIAlign, output_size: 7}
    head: {type: TwoFCBoxHead, channels: 32}
data:
  train: {type: Shapes, length: 12, height: 64, width: 96}
  val: {type: Shapes, length: 3, height: 64, width: 96, seed: 1}
  resize: {short: 80, max: 200}
  transforms:
    - {type: HorizontalFlip}
    - {type: RandomCrop, height: 72, width: 72}
train: {steps: 10, batch: 4, lr: 0.1, seed: 3}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    return path


def browse(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["data", "browse", *map(str, arguments)])
    return int(exit_.value.code or 0)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_it_draws_the_epochs_first_images_and_a_sheet_the_same_each_time(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert browse(config, "--count", 3) == 0
    printed = capsys.readouterr().out
    assert "data.train: 3 pictures in runs/browse/run, all of them in runs/browse/run/sheet.jpg" in printed
    first = contents(Path("runs/browse/run"))
    order = np.random.default_rng([3, 0]).permutation(12)[:3]
    ids = [Shapes(length=12, height=64, width=96).load(int(index)).image_id for index in order]
    assert sorted(first) == [*(f"{n:03}_image_{i}_epoch_0.jpg" for n, i in enumerate(ids, start=1)), "sheet.jpg"]
    assert browse(config, "--count", 3, "--out", "again") == 0
    assert contents(Path("again")) == first
    assert browse(config, "--count", 3, "--out", "later", "--epoch", 1) == 0
    assert set(contents(Path("later"))) != set(first)


def test_a_picture_shows_the_pixels_that_training_gets(config: Path) -> None:
    """Where nothing is drawn; the picture is enlarged by a whole factor, below a line of text."""
    assert browse(config, "--count", 1, "--image", 5, "--epoch", 2) == 0
    shown = cv2.imread("runs/browse/run/001_image_5_epoch_2.jpg")[..., ::-1]
    shapes = Shapes(length=12, height=64, width=96)
    index = next(i for i in range(12) if shapes.load(i).image_id == 5)
    from toolbox.data.resize import Resize

    transforms = [HorizontalFlip(), RandomCrop(height=72, width=72)]
    (sample,) = seen_samples(shapes, [Key(2, index)], resize=Resize(short=80, max=200), transforms=transforms, seed=3)
    scale = shown.shape[1] // 72
    expected = cv2.resize(sample.image, None, fx=scale, fy=scale).astype(int)
    free = np.ones(expected.shape[:2], bool)
    for x1, y1, x2, y2 in (sample.boxes * scale).astype(int):
        free[max(y1 - 30, 0) : y2 + 10, max(x1 - 10, 0) : x2 + 60] = False
    assert free.mean() > 0.1
    assert np.abs(shown[-expected.shape[0] :] - expected)[free].mean() < 6  # JPEG


def test_one_image_in_several_epochs_is_augmented_otherwise_in_each(config: Path) -> None:
    assert browse(config, "--image", 5, "--count", 4) == 0
    pictures = contents(Path("runs/browse/run"))
    assert [name for name in pictures if "image" in name] == [f"00{n + 1}_image_5_epoch_{n}.jpg" for n in range(4)]
    assert len(set(pictures.values())) == 5


def test_raw_and_val_are_not_augmented(config: Path) -> None:
    assert browse(config, "--raw", "--out", "raw", "--count", 2) == 0
    assert browse(config, "--split", "val", "--out", "val") == 0
    raw, val = (sorted(Path(name).glob("0*.jpg")) for name in ("raw", "val"))
    assert [len(raw), len(val)] == [2, 3]
    assert cv2.imread(str(raw[0])).shape[1] % 96 == 0
    assert cv2.imread(str(val[0])).shape[1] % 120 == 0  # 64 x 96 with a short edge of 80


def test_a_class_filters_pictures_and_must_be_known(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert browse(config, "--class", "star", "--count", 50) == 0
    drawn = len(list(Path("runs/browse/run").glob("0*.jpg")))
    resize = ["data.transforms=[]", "data.resize=null"]
    assert browse(config, *resize, "--class", "star", "--count", 50, "--out", "all") == 0
    shapes = Shapes(length=12, height=64, width=96)
    stars = sum(shapes.classes.index("star") in shapes.load(i).labels for i in range(12))
    assert len(list(Path("all").glob("0*.jpg"))) == stars
    assert 0 < drawn <= stars < 12
    capsys.readouterr()
    assert browse(config, "--class", "stars") == 2
    assert "data.train has no class 'stars'; did you mean 'star'? (classes: circle, " in capsys.readouterr().err
    assert browse(config, "--image", 99) == 2
    assert "data.train has no image 99; its ids are 1 to 12" in capsys.readouterr().err


def test_copy_paste_on_boxes_alone_is_refused_by_browse_and_by_check(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = Shapes(length=3, height=64, width=96)
    truth = shapes.ground_truth()
    Path("images").mkdir()
    for index, image in enumerate(truth["images"]):
        image["file_name"] = f"{image['id']}.png"
        cv2.imwrite(f"images/{image['id']}.png", shapes.load(index).image)
    for annotation in truth["annotations"]:
        del annotation["segmentation"]
    Path("boxes.json").write_text(json.dumps(truth))
    settings = [
        "data.train={type: CocoDataset, images: images, annotations: boxes.json}",
        "data.transforms=[{type: HorizontalFlip}, {type: RandomApply, transforms: [{type: CopyPaste}], prob: 1.0}]",
    ]
    assert browse(config, *settings) == 2
    assert "CopyPaste needs masks" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        main(["check", str(config), *settings])
    assert exit_.value.code == 2
    message = "CocoDataset has no masks here, but data.transforms.1.transforms.0 (CopyPaste) needs them to train"
    assert message in capsys.readouterr().err
