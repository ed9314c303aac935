"""Data sets of other images than RGB, from the file to detections, training and `rcnn` included."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import toolbox
import toolbox.cli
from toolbox.data.coco import CocoDataset
from toolbox.data.geometry import apply_view, translation
from toolbox.data.interfaces import Sample, View
from toolbox.data.loader import training_loader
from toolbox.data.rendering import fill_of
from toolbox.data.resize import scale_pixels
from toolbox.data.shapes import Shapes
from toolbox.engine.channels import check_channels
from toolbox.errors import ConfigError, DataError
from toolbox.models.preprocess import Preprocess
from toolbox.registry import TRANSFORMS
from toolbox.schema import config_from_text
from toolbox.structures import PixelStats
from toolbox.visualize import as_colours

RANDOM = np.random.default_rng(0)
CONFIG = """
model:
  backbone: {{type: ResNet, depth: 18, norm: gn, frozen_stages: 0}}
  neck: {{type: FPN, out_channels: 16}}
  rpn:
    head: {{type: ConvRPNHead}}
    anchors: {{sizes: [12, 24, 48, 96, 192]}}
    train: {{before_nms: 50, after_nms: 20}}
    test: {{before_nms: 50, after_nms: 20}}
  box:
    extractor: {{type: RoIAlign, output_size: 7}}
    head: {{type: TwoFCBoxHead, channels: 32}}
  instance:
    mask:
      extractor: {{type: RoIAlign, output_size: 14}}
      head: {{type: FCNMaskHead, convolutions: 1, channels: 16}}
data:
  train: &set {{type: CocoDataset, images: images, annotations: truth.json, channels: {channels}}}
  val: *set
  resize: {{short: 64, max: 96}}
  transforms: [{transforms}]
  workers: 0
train: {{steps: 2, batch: 2, lr: 0.001, device: cpu}}
test: {{score_threshold: 0.0, detections: 5}}
"""


def write_set(folder: Path, channels: int, suffix: str) -> None:
    """Four images of a bright square."""
    (folder / "images").mkdir()
    images, annotations = [], []
    for number in range(4):
        pixels = RANDOM.integers(0, 60, (48, 64, channels), dtype=np.uint8)
        pixels[10:30, 20:44] = 200
        name = f"{number}{suffix}"
        if suffix == ".npy":
            np.save(folder / "images" / name, pixels)
        else:
            PIL.Image.fromarray(pixels.squeeze()).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "height": 48, "width": 64})
        outline = [20, 10, 44, 10, 44, 30, 20, 30]
        place = {"bbox": [20, 10, 24, 20], "area": 480, "segmentation": [outline], "iscrowd": 0}
        annotations.append({"id": number + 1, "image_id": number, "category_id": 1, **place})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (folder / "truth.json").write_text(json.dumps(content))


def rcnn(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        toolbox.cli.main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.mark.parametrize(("channels", "suffix"), [(5, ".npy"), (1, ".png"), (4, ".png")])
def test_images_of_other_channels_are_trained_on_evaluated_and_predicted(
    tmp_path: Path, channels: int, suffix: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path, channels, suffix)
    transforms = "{type: ScaleJitter, height: 64, width: 96}, {type: HorizontalFlip}, {type: GaussianNoise}"
    (tmp_path / "run.yaml").write_text(CONFIG.format(channels=channels, transforms=transforms))
    assert rcnn("train", tmp_path / "run.yaml", "--run", tmp_path / "run") == 0
    assert list((tmp_path / "run/pictures").rglob("*.jpg"))
    assert rcnn("eval", tmp_path / "run") == 0
    assert rcnn("predict", tmp_path / "run", tmp_path / "images", "--out", tmp_path / "found") == 0
    assert "4 images, 20 detections" in capsys.readouterr().out
    assert len(list((tmp_path / "found/pictures").iterdir())) == 4

    predictor = toolbox.Predictor(tmp_path / "run", device="cpu")
    assert predictor.channels == channels
    path = tmp_path / "images" / f"0{suffix}"
    pixels = CocoDataset(images=path.parent, annotations=tmp_path / "truth.json", channels=channels).load(0).image
    forms = [path, pixels, torch.from_numpy(pixels).permute(2, 0, 1)]
    forms += [PIL.Image.open(path)] if suffix == ".png" else []
    expected, *others = predictor(forms)
    for found in others:
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=0)
    with pytest.raises(DataError, match=rf"shape \(48, 64, 3\) .* an \(h, w, {channels}\) uint8 array"):
        predictor(np.zeros((48, 64, 3), np.uint8))


def test_single_pixels_and_long_strips_are_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number, (height, width) in enumerate([(1, 1), (1, 3000), (3000, 1), (2, 9)]):
        pixels = RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        outline = [0, 0, width, 0, width, height, 0, height]
        place = {"bbox": [0, 0, width, height], "area": width * height, "segmentation": [outline], "iscrowd": 0}
        annotations.append({"id": number + 1, "image_id": number, "category_id": 1, **place})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "all of it"}]}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    transforms = "{type: HorizontalFlip}, {type: RandomCrop, height: 40, width: 90}"
    (tmp_path / "run.yaml").write_text(CONFIG.format(channels=3, transforms=transforms))
    assert rcnn("train", tmp_path / "run.yaml", "--run", tmp_path / "run") == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses and np.isfinite(losses).all()


def test_check_says_what_training_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path, 5, ".npy")
    for command in (["check"], ["train", "--run", "run"]):
        (tmp_path / "run.yaml").write_text(CONFIG.format(channels=5, transforms="{type: ColorJitter}"))
        assert rcnn(command[0], "run.yaml", *command[1:]) == 2
        assert "data.transforms.0: ColorJitter edits images of 1 or 3 channels" in capsys.readouterr().err


def config_of(channels: int, transforms: str) -> toolbox.Config:
    return config_from_text(CONFIG.format(channels=channels, transforms=transforms), "run.yaml")


class Of:
    """A data set as far as its channels."""

    def __init__(self, channels: int) -> None:
        self.channels = channels


def test_transforms_that_do_not_take_the_channels_are_refused_before_training() -> None:
    config = config_of(5, "{type: HorizontalFlip}, {type: ColorJitter}, {type: RandomCrop, height: 9, width: 9}")
    with pytest.raises(ConfigError) as raised:
        check_channels(config, Of(5))
    (problem,) = raised.value.problems
    assert problem.where.startswith("run.yaml:") and problem.key == "data.transforms.1"
    assert "ColorJitter edits images of 1 or 3 channels, those of data.train have 5; remove it" in problem.message
    check_channels(config, Of(1))
    with pytest.raises(ConfigError, match="RandomGrayscale edits images of 3 channels"):
        check_channels(config_of(1, "{type: RandomGrayscale}"), Of(1))
    fill = config_of(5, "{type: RandomCrop, height: 9, width: 9, fill: [1, 2, 3, 4]}")
    with pytest.raises(ConfigError, match=r"\.fill: 4 values for images of 5 channels"):
        check_channels(fill, Of(5))
    check_channels(fill, Of(4))


def test_training_and_validation_images_have_as_many_channels() -> None:
    with pytest.raises(ConfigError, match=r"data\.val: its images have 4 channels, those of data\.train 5"):
        check_channels(config_of(5, ""), Of(5), Of(4))
    check_channels(config_of(5, ""), Of(5), Of(5))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_each_transform_takes_the_channels_that_it_says(channels: int) -> None:
    image = RANDOM.integers(0, 256, (40, 50, channels), dtype=np.uint8)
    empty = np.zeros((0, 4), np.float32)
    sample = Sample(image, empty, np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, np.float32))
    ran = 0
    for name in TRANSFORMS:
        cls = TRANSFORMS.get(name)
        if not cls.__module__.startswith("toolbox.") or channels not in getattr(cls, "channels", (channels,)):
            continue
        sized = {"height": 30, "width": 60} if name in ("RandomCrop", "ScaleJitter") else {}
        if name in ("OneOf", "RandomApply"):  # made of others
            continue
        view = cls(**sized)(View(40, 50), np.random.default_rng(1))
        view = view if sized else cls(prob=1.0)(View(40, 50), np.random.default_rng(1))
        assert apply_view(sample, view).image.shape == (view.height, view.width, channels), name
        ran += 1
    assert ran >= 7


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("method", ["cv2", "pil", "torchvision"])
def test_channels_are_resized_and_warped_each_as_if_alone(channels: int, method: str) -> None:
    image = RANDOM.integers(0, 256, (20, 31, channels), dtype=np.uint8)
    alone = [scale_pixels(np.repeat(image[..., i : i + 1], 3, axis=2), 33, 17, method)[..., 0] for i in range(channels)]
    assert np.abs(scale_pixels(image, 33, 17, method).astype(int) - np.stack(alone, axis=2)).max() <= 1  # rounding
    turn = View(24, 40, np.array([[0.9, -0.3, 4.5], [0.3, 0.9, -2.5]]), fill=tuple(range(1, channels + 1)))
    empty = np.zeros((0, 4), np.float32)

    def seen(pixels: np.ndarray, view: View) -> np.ndarray:
        nothing = (empty, np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, np.float32))
        return apply_view(Sample(pixels, *nothing), view).image

    for matrix in (turn.matrix, translation(-3, 4)):
        got = seen(image, View(24, 40, matrix, fill=turn.fill))
        for i in range(channels):
            three = np.repeat(image[..., i : i + 1], 3, axis=2)
            expected = seen(three, View(24, 40, matrix, fill=(i + 1,) * 3))[..., 0]
            # OpenCV interpolates two channels in steps of 1/32 of a pixel, three exactly.
            assert np.abs(got[..., i].astype(int) - expected).max() <= 255 / 32


def test_fill_has_a_value_for_each_channel() -> None:
    assert fill_of((124, 116, 104), 3) == (124, 116, 104)
    assert fill_of((124, 116, 104), 1) == (115,)  # 114.67
    assert fill_of((1, 2, 3), 5) == (1, 2, 3, 1, 2)
    assert fill_of((9, 8), 2) == (9, 8)
    with pytest.raises(DataError, match="fill has 4 values, but the images have 5 channels"):
        fill_of((1, 2, 3, 4), 5)


def test_a_data_set_that_gives_other_channels_than_it_says_is_refused() -> None:
    class FiveBands(Shapes):
        channels = 5

    loader = training_loader(FiveBands(length=2, height=32, width=32), resize=None, batch=1, seed=0, steps=1)
    with pytest.raises(DataError, match="FiveBands gives 3 channels, but its 'channels' says 5; set the attribute"):
        list(loader)


def test_preprocessing_does_not_spread_a_grey_image_over_colours() -> None:
    grey = torch.zeros(1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"an image is \(1, 8, 8\), but the model reads \(3, height, width\)"):
        Preprocess(PixelStats(), 8)([grey])
    five = PixelStats().for_channels(5)
    pixels = RANDOM.integers(0, 256, (5, 8, 8), dtype=np.uint8)
    expected = (pixels / 255 - np.reshape(five.mean, (5, 1, 1))) / np.reshape(five.std, (5, 1, 1))
    got = Preprocess(five, 8)([torch.from_numpy(pixels)]).tensor[0]
    torch.testing.assert_close(got, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-5)


def test_images_of_other_channels_are_looked_at_as_grey_or_by_their_first_three() -> None:
    image = RANDOM.integers(0, 256, (4, 5, 6), dtype=np.uint8)
    assert np.array_equal(as_colours(image), image[..., :3])
    assert np.array_equal(as_colours(image[..., :2]), np.repeat(image[..., :1], 3, axis=2))
