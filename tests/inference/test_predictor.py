"""The Predictor over a model file, and `rcnn predict` over a run folder; the weights are random."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from pycocotools.coco import COCO

import toolbox
import toolbox.cli
from toolbox.errors import CheckpointError, DataError, DeviceError
from toolbox.weights import save_model

CONFIG = """
model:
  backbone: {type: ResNet, depth: 18, norm: gn}
  neck: {type: FPN, out_channels: 16}
  rpn:
    head: {type: ConvRPNHead}
    anchors: {sizes: [12, 24, 48, 96, 192]}
    test: {before_nms: 50, after_nms: 20}
  box:
    extractor: {type: RoIAlign, output_size: 7}
    head: {type: TwoFCBoxHead, channels: 32}
  instance:
    mask:
      extractor: {type: RoIAlign, output_size: 14}
      head: {type: FCNMaskHead, convolutions: 1, channels: 16}
data:
  resize: {short: 64, max: 96}
train: {steps: 1, lr: 0.1}
test: {score_threshold: 0.0, detections: 9}
"""
RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.integers(0, 256, (120, 90, 3), dtype=np.uint8)
WIDE = RANDOM.integers(0, 256, (50, 160, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(CONFIG)
    torch.manual_seed(0)
    model = toolbox.build_detector(toolbox.load_config(folder / "config.yaml"), classes=("cat", "dog"))
    labels = {"classes": json.dumps(["cat", "dog"]), "category_ids": json.dumps([17, 18]), "skeleton": "null"}
    metadata = {"config": CONFIG, **labels, "toolbox": toolbox.__version__}
    save_model(folder / "model.safetensors", model.state_dict(), metadata)
    return folder


@pytest.fixture(scope="module")
def predictor(run: Path) -> toolbox.Predictor:
    return toolbox.Predictor(run, device="cpu")


def test_classes_and_category_ids_come_from_the_file(predictor: toolbox.Predictor) -> None:
    assert (predictor.classes, predictor.category_ids, predictor.skeleton) == (("cat", "dog"), (17, 18), None)


def test_the_model_sees_the_image_resized_by_the_data_s_rule(predictor: toolbox.Predictor) -> None:
    # 120 x 90, short edge 64 but long at most 96: 85 x 64
    network = torch.from_numpy(cv2.resize(IMAGE, (64, 85), interpolation=cv2.INTER_LINEAR)).permute(2, 0, 1)
    with torch.no_grad():
        expected = predictor.model.predict([network], original_sizes=[(120, 90)])[0]
    found = predictor(IMAGE)[0]
    assert len(found) == len(expected) == 9 and found.image_size == (120, 90)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=0)
    assert found.masks == expected.masks and found.masks[0]["size"] == [120, 90]


def test_every_form_of_an_image_gives_the_same_detections(predictor: toolbox.Predictor, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    PIL.Image.fromarray(IMAGE).save(path)
    forms = [path, str(path), IMAGE, PIL.Image.fromarray(IMAGE), torch.from_numpy(IMAGE).permute(2, 0, 1)]
    (expected,) = predictor(IMAGE)
    for number, found in enumerate(predictor(forms)):
        assert found.image_id == number
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=0)
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=0)
    assert [len(predictor(form)) for form in forms[-2:]] == [1, 1]


def test_images_of_different_sizes_share_a_batch_and_keep_their_order(run: Path, predictor: toolbox.Predictor) -> None:
    both = toolbox.Predictor(run, device="cpu", batch=2)([IMAGE, WIDE, IMAGE])
    assert [found.image_size for found in both] == [(120, 90), (50, 160), (120, 90)]
    torch.testing.assert_close(both[2].boxes, predictor(IMAGE)[0].boxes)


@pytest.mark.parametrize("resized", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1), (3, 7)])
def test_single_pixels_and_long_strips_go_through_the_network(run: Path, size: tuple[int, int], resized: bool) -> None:
    single = toolbox.Predictor(run, device="cpu")
    if not resized:
        single.resize = None
    (found,) = single(RANDOM.integers(0, 256, (*size, 3), dtype=np.uint8))
    assert found.image_size == size and len(found) <= 9
    limit = torch.tensor([size[1], size[0]] * 2)
    assert ((found.boxes >= 0) & (found.boxes <= limit)).all() and found.boxes.isfinite().all()
    assert [mask["size"] for mask in found.masks] == [list(size)] * len(found)


KINDS = {
    "grey.png": lambda rgb: rgb.convert("L"),
    "alpha.png": lambda rgb: rgb.convert("LA"),
    "palette.gif": lambda rgb: rgb.quantize(32),
    "bits.tif": lambda rgb: rgb.convert("1"),
    "inks.jpg": lambda rgb: rgb.convert("CMYK"),
    "pixel ü.webp": lambda rgb: rgb.resize((1, 1)),
    "strip.png": lambda rgb: rgb.resize((5000, 1)),
}


def test_predict_takes_every_kind_of_file_and_names_each_that_is_none(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, made in KINDS.items():
        made(PIL.Image.fromarray(IMAGE)).save(folder / name)
    (folder / "folder.jpg").mkdir()
    wrong = {
        "page.jpg": (b"<!doctype html>", "not an image but a web page"),
        "phone.heic": (b"\0\0\0\x18ftypheic", "HEIC"),
        "zero.png": (b"", "the file is empty"),
    }
    for name, (content, _) in wrong.items():
        (folder / name).write_bytes(content)
    assert rcnn("predict", run, folder, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "3 of 10 images could not be read" in said
    for name, (_, message) in wrong.items():
        assert any(name in line and message in line for line in said.splitlines())
    assert len(COCO(str(tmp_path / "out/images.json")).imgs) == len(KINDS)


def test_no_images_give_no_detections(predictor: toolbox.Predictor) -> None:
    assert predictor([]) == []


def test_threshold_and_number_of_detections_replace_the_run_s(run: Path, predictor: toolbox.Predictor) -> None:
    scores = predictor(IMAGE)[0].scores
    lowest, next_lowest = scores.unique()[:2].tolist()
    limit = (lowest + next_lowest) / 2
    above = toolbox.Predictor(run / "model.safetensors", device="cpu", score_threshold=limit)(IMAGE)[0]
    assert len(above) == int((scores > limit).sum()) < 9
    few = toolbox.Predictor(run, device="cpu", detections=3)(IMAGE)[0]
    torch.testing.assert_close(few.scores, scores[:3], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score_threshold": "a"}, "score_threshold='a': expected a number, 0 … 1, or None for the run's own"),
        ({"score_threshold": 5}, "score_threshold=5: expected a number, 0 … 1"),
        ({"detections": 0}, "detections=0: expected a whole number, 1 or more, or None"),
        ({"detections": 2.5}, "detections=2.5: expected a whole number"),
        ({"batch": None}, "batch=None: expected a whole number, 1 or more$"),
        ({"batch": True}, "batch=True: expected a whole number"),
    ],
)
def test_arguments_that_do_not_fit_are_named_with_what_does(run: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toolbox.Predictor(run, device="cpu", **arguments)


@pytest.mark.parametrize("images", [5, None])
def test_what_is_no_image_is_said_to_be_so(predictor: toolbox.Predictor, images: object) -> None:
    with pytest.raises(DataError, match=f"images: got {type(images).__name__}; give images .* a path, an"):
        predictor(images)


def test_a_config_is_no_model(run: Path) -> None:
    with pytest.raises(CheckpointError, match="a config has no weights; give a run folder or model.safetensors"):
        toolbox.Predictor(run / "config.yaml")


def test_a_bad_image_is_named_and_its_neighbours_are_not_blamed(predictor: toolbox.Predictor, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.png"):
        predictor([IMAGE, tmp_path / "none.png"])


def test_devices_that_are_not_there_are_refused(run: Path) -> None:
    with pytest.raises(DeviceError, match="no device is called 'gpu'"):
        toolbox.Predictor(run, device="gpu")
    with pytest.raises(DeviceError, match="PyTorch sees"):
        toolbox.Predictor(run, device="cuda:77")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=tmp_path.name):
        toolbox.Predictor(tmp_path)


def rcnn(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        toolbox.cli.main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_predict_writes_results_and_pictures_of_the_good_images_and_exits_with_2_for_bad_ones(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    for name, image in (("a.png", IMAGE), ("c.png", WIDE)):
        PIL.Image.fromarray(image).save(tmp_path / "in" / name)
    assert rcnn("predict", run, tmp_path / "in", "--out", tmp_path / "good") == 0
    said = capsys.readouterr()
    assert said.out.startswith("2 images, 18 detections: ") and "predicting on " in caplog.text
    (tmp_path / "in" / "b.png").write_bytes(b"\x89PNG")
    assert rcnn("predict", run, tmp_path / "in", "--out", tmp_path / "out") == 2
    said = capsys.readouterr()
    assert "1 of 3 images could not be read" in said.err and "b.png" in said.err and "a.png" not in said.err
    truth = COCO(str(tmp_path / "out/images.json"))
    results = truth.loadRes(str(tmp_path / "out/predictions.json"))
    assert {row["file_name"].rsplit("/", 1)[1] for row in truth.dataset["images"]} == {"a.png", "c.png"}
    assert len(results.anns) == 18 and {row["category_id"] for row in results.anns.values()} <= {17, 18}
    assert sorted(path.name for path in (tmp_path / "out/pictures").iterdir()) == ["a.jpg", "c.jpg"]


def test_predict_without_any_image_says_so(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rcnn("predict", run, tmp_path, "--out", tmp_path / "out") == 2
    assert "no image in this folder" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_predict_of_inputs_that_do_not_exist_writes_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rcnn("predict", run, tmp_path / "none.png", "--out", tmp_path / "out") == 2
    assert "none.png: no such file or folder" in capsys.readouterr().err
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    assert rcnn("predict", run, tmp_path / "none.png", tmp_path / "broken.png", "--out", tmp_path / "out") == 2
    said = capsys.readouterr()
    assert "2 of 2 images could not be read; nothing is written" in said.err and "none.png: no such file" in said.err
    assert said.out == "" and not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_names_the_option(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rcnn("predict", run, tmp_path, "--out", tmp_path / "out", "--device", "cuda:77") == 2
    assert "use --device cpu" in capsys.readouterr().err
