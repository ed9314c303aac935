"""Every built-in component keeps the promises of its family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import pytest

import toolbox
from toolbox.data.copy_paste import CopyPaste
from toolbox.data.shapes import Shapes
from toolbox.data.transforms import HorizontalFlip
from toolbox.data.turns import RandomRotation
from toolbox.registry import FAMILIES
from toolbox.sections import register_builtin
from toolbox.structures import FeatureSpec, RoIShape
from toolbox.testing import check_component

SMALL_SHAPES = {"length": 5, "height": 64, "width": 64}
STAGE_INPUT = {"in_shape": RoIShape(256, 6, 6)}
# Small settings of every built-in component; several rows stand for its forms.
BUILTIN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("ResNet", {"depth": 18, "norm": "gn"}, {}),
    ("ResNet", {"depth": 18, "norm": "bn", "frozen_stages": 3, "out": ["c3", "c5"]}, {}),
    ("ResNet", {"depth": 50, "norm": "gn", "groups": 32, "width_per_group": 4, "stride_in_1x1": True}, {}),
    ("ResNet", {"depth": 50, "norm": "bn", "dilated_c5": True, "out": ["c5"]}, {}),
    ("ResNet", {"depth": 18, "norm": "gn", "dilated_c5": True, "out": ["c4", "c5"]}, {}),
    ("TimmBackbone", {"name": "mobilenetv3_small_050", "strides": [8, 16, 32]}, {}),
    ("FPN", {"out_channels": 8}, {}),
    ("FPN", {"out_channels": 8, "extra": "conv", "norm": "gn"}, {}),
    ("FPN", {"out_channels": 8, "extra": "none"}, {}),
    ("SimpleFeaturePyramid", {"out_channels": 8}, {"in_features": {"c4": FeatureSpec(8, 16)}}),
    ("ConvRPNHead", {}, {}),
    ("ConvRPNHead", {"convolutions": 0}, {}),
    ("RoIAlign", {"output_size": 5}, {}),
    ("RoIAlign", {"output_size": (4, 7), "sampling_ratio": 0, "mode": "max"}, {}),
    ("RoIPool", {"output_size": 5}, {}),
    ("RoIWarp", {"output_size": 5, "mode": "max"}, {}),
    ("RoIWarp", {"output_size": (4, 7), "sampling_ratio": 1}, {}),
    ("SpatialTransformerPool", {"output_size": 5}, {}),
    ("SpatialTransformerPool", {"output_size": (4, 7), "sampling_ratio": 2}, {}),
    ("ResNetStage", {"depth": 18, "norm": "gn"}, STAGE_INPUT),
    ("ResNetStage", {"depth": 18, "norm": "gn", "stride": 1}, STAGE_INPUT),
    ("TwoFCBoxHead", {"channels": 16}, {}),
    ("TwoFCBoxHead", {"channels": 16, "class_agnostic": True}, {}),
    ("ConvFCBoxHead", {"channels": 8, "fc_channels": 16, "norm": "gn"}, {}),
    ("ConvFCBoxHead", {"channels": 8, "convolutions": 1, "fully_connected": 0}, {}),
    ("AveragePoolBoxHead", {}, {}),
    ("AveragePoolBoxHead", {"class_agnostic": True}, {}),
    ("FCNMaskHead", {"channels": 8}, {}),
    ("FCNMaskHead", {"channels": 8, "activation": "softmax"}, {}),
    ("FCNMaskHead", {"channels": 8, "class_agnostic": True, "norm": "gn"}, {}),
    ("FCNMaskHead", {"channels": 8, "convolutions": 0, "convention": "torchvision"}, {}),
    ("FCNKeypointHead", {"channels": 8, "convolutions": 1}, {}),
    ("FCNKeypointHead", {"channels": 8, "convolutions": 0, "normaliser": 12.0, "decode": "parabola"}, {}),
    ("MLPMaskHead", {"channels": 16, "mask_size": 7}, {}),
    ("MLPMaskHead", {"channels": 16, "fully_connected": 0, "activation": "softmax", "class_agnostic": True}, {}),
    *((name, {}, {}) for name in ("BinaryCrossEntropy", "CrossEntropy", "SmoothL1")),
    ("RandomSampler", {"size": 16}, {}),
    ("Shapes", SMALL_SHAPES, {}),
    ("Shapes", {**SMALL_SHAPES, "keypoints": True, "difficulty": "hard"}, {}),
    ("RandomCrop", {"height": 30, "width": 50}, {}),
    ("RandomCrop", {"height": 30, "width": 50, "on_object": True}, {}),
    ("ScaleJitter", {"height": 50, "width": 50}, {}),
    ("MinIoUCrop", {"overlaps": (0.1, 0.5)}, {}),
    ("RandomRotation", {"degrees": 180.0}, {}),
    ("RandomRotation", {"degrees": [0, 90, 180, 270], "draw": "choice", "expand": True}, {}),
    ("RandomAffine", {"shear": 20.0, "min_scale": 0.5, "max_scale": 1.5, "shift": 0.2}, {}),
    ("CopyPaste", {}, {}),
    ("CopyPaste", {"sigma": 2.0, "max_objects": 1, "min_left": 0.3}, {}),
    ("RandomApply", {"transforms": [RandomRotation(), CopyPaste()]}, {}),
    ("OneOf", {"transforms": [HorizontalFlip(prob=1), RandomRotation()], "weights": [1.0, 3.0]}, {}),
    *((name, {}, {}) for name in ("HorizontalFlip", "VerticalFlip")),
    *((name, {"prob": 1.0}, {}) for name in ("ColorJitter", "PhotometricDistort", "RandomGrayscale", "GaussianBlur")),
    *((name, {"prob": 1.0}, {}) for name in ("GaussianNoise", "RandomSharpness", "RandomAutocontrast")),
    *((name, {"prob": 1.0}, {}) for name in ("RandomEqualize", "RandomInvert", "RandomJPEG")),
    *((name, {}, {}) for name in ("SGD", "Adam", "AdamW", "MultiStep", "Cosine", "Poly", "Constant")),
    ("TensorBoard", {}, {}),
    ("TensorBoard", {"pictures": False, "per_class": False}, {}),
]
ELSEWHERE = {"CocoDataset", "RCNN"}  # these need files, or built parts: tests of their own below


@pytest.mark.parametrize(
    ("name", "settings", "wired"), BUILTIN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_built_in_component_keeps_every_promise(name: str, settings: dict[str, Any], wired: dict[str, Any]) -> None:
    if name == "TimmBackbone":
        pytest.importorskip("timm", reason="extra 'timm' is not installed")
    if name == "TensorBoard":
        pytest.importorskip("tensorboard", reason="extra 'tensorboard' is not installed")
    check_component(name, settings=settings, wired=wired)


def test_every_built_in_component_is_in_the_table() -> None:
    register_builtin()
    families = FAMILIES.values()
    known = {n for family in families for n in family if family.get(n).__module__.startswith("toolbox.")}
    assert known == {name for name, _, _ in BUILTIN} | ELSEWHERE


def test_coco_data_sets_keep_every_promise(tmp_path: Path) -> None:
    shapes = Shapes(**SMALL_SHAPES, seed=3)
    truth = shapes.ground_truth()
    for image in truth["images"]:
        image["file_name"] = f"{image['id']}.png"
    for index in range(len(shapes)):
        sample = shapes.load(index)
        cv2.imwrite(str(tmp_path / f"{sample.image_id}.png"), sample.image[..., ::-1])
    for annotation in truth["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "all.json").write_text(json.dumps(truth))
    check_component("CocoDataset", settings={"images": str(tmp_path), "annotations": str(tmp_path / "all.json")})


def test_the_detector_keeps_every_promise() -> None:
    overrides = ["model.neck.out_channels=8", "model.box.head.channels=16", "test.score_threshold=0"]
    root = Path(toolbox.__file__).parents[1]
    config = toolbox.load_config(root / "configs" / "quickstart.yaml", overrides)
    built = toolbox.build_detector(config, classes=("a", "b", "c"))
    parts = {name: getattr(built, name) for name in ("backbone", "neck", "rpn", "box")}
    made = check_component("RCNN", settings={**parts, "instance": dict(built.instance)})
    assert {"losses", "detections", "repeatable"} <= set(made)
