"""Annotation files, images and model files, made and mutated: each is refused with a message, or can be used."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import ODD, garbled, mutated, trees
from pycocotools import mask as coco_mask
from tally import many, refused_or_taken

from toolbox.data.coco import CocoDataset
from toolbox.data.counts import count_objects
from toolbox.data.loader import training_loader
from toolbox.data.resize import Resize
from toolbox.data.transforms import HorizontalFlip
from toolbox.engine.coco_metrics import coco_metrics
from toolbox.inference.images import read_image as read_upright
from toolbox.inference.loading import load_detector
from toolbox.inference.metadata import model_metadata
from toolbox.models.builder import build_detector
from toolbox.schema import config_from_text
from toolbox.structures import Targets
from toolbox.weights import load_model, save_model

FOLDER = Path(tempfile.mkdtemp(prefix="rcnn_fuzz_"))
PIXELS = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
for name in ("a.png", "b.png"):
    PIL.Image.fromarray(PIXELS).save(FOLDER / name)


def content() -> dict[str, Any]:
    """Polygons, RLE of both kinds, a crowd and keypoints with limbs."""
    bitmap = np.zeros((20, 30), dtype=np.uint8, order="F")
    bitmap[5:9, 10:14] = 1
    compressed = coco_mask.encode(bitmap)["counts"].decode()
    joints = {"keypoints": ["left_eye", "right_eye", "tail"], "skeleton": [[1, 2], [2, 3]]}
    return {
        "info": {"year": 2026},
        "images": [
            {"id": 7, "file_name": "a.png", "height": 20, "width": 30, "license": 1},
            {"id": 3, "file_name": "b.png", "height": 20, "width": 30},
        ],
        "categories": [{"id": 90, "name": "dog", **joints}, {"id": 4, "name": "cat", **joints}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [2, 4, 8, 10], "area": 80, "iscrowd": 0,
             "segmentation": [[2, 4, 10, 4, 10, 14, 2, 14]], "keypoints": [3, 5, 2, 5, 5, 1, 0, 0, 0],
             "num_keypoints": 2},
            {"id": 2, "image_id": 3, "category_id": 4, "bbox": [10, 5, 4, 4], "area": 16, "iscrowd": 0,
             "segmentation": {"size": [20, 30], "counts": compressed}, "keypoints": [11, 6, 2, 12, 6, 2, 11.5, 8, 2],
             "num_keypoints": 3},
            {"id": 3, "image_id": 7, "category_id": 4, "bbox": [0, 0, 1, 2], "area": 2, "iscrowd": 1,
             "segmentation": {"size": [20, 30], "counts": [0, 2, 598]}, "keypoints": [0] * 9, "num_keypoints": 0},
        ],
    }  # fmt: skip


def use(text: str | bytes, bad: str) -> None:
    """Read a data set and do with it all that training and evaluation do."""
    file = FOLDER / "objects.json"
    file.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    dataset = CocoDataset(images=FOLDER, annotations=file, bad=bad)
    assert count_objects(dataset).objects.sum() >= 0
    for index in range(len(dataset)):
        sample = dataset.load(index)
        assert np.isfinite(sample.boxes).all() and sample.image.shape[:2] == dataset.size(index)
    batch = next(iter(training_loader(
        dataset, resize=Resize(24, 48), transforms=[HorizontalFlip(prob=1.0)], batch=2, seed=0, steps=1,
    )))  # fmt: skip
    rasterise(batch.targets)
    truth = dataset.ground_truth()
    for kind in ["bbox", *(["segm"] if dataset.index.segmentations is not None else [])]:
        kept = ("image_id", "category_id", "bbox")
        perfect = [{name: record[name] for name in kept} | {"score": 1.0} for record in truth["annotations"]]
        coco_metrics(truth, perfect if kind == "bbox" else [], kind)  # type: ignore[arg-type]


def rasterise(targets: Targets) -> None:
    if targets.masks is None:
        return
    n, g = targets.boxes.shape[:2]
    image = torch.arange(n).repeat_interleave(g)
    rois = torch.cat([image[:, None].float(), targets.boxes.reshape(-1, 4)], dim=1)
    masks = targets.masks.rasterise(rois, torch.arange(g).repeat(n), (7, 7))
    assert masks.shape == (n * g, 7, 7) and bool(((masks == 0) | (masks == 1)).all())


POLICIES = st.sampled_from(["drop", "clip", "error"])


@many
@given(mutated(content()), POLICIES)
def fuzz_annotations_tree(tree: Any, bad: str) -> None:
    with refused_or_taken("annotations, tree mutated"):
        use(json.dumps(tree), bad)


@many
@given(garbled(json.dumps(content()).encode()), POLICIES)
def fuzz_annotations_bytes(text: bytes, bad: str) -> None:
    with refused_or_taken("annotations, bytes garbled"):
        use(text, bad)


@many
@given(st.fixed_dictionaries({}, optional={name: trees for name in ("images", "annotations", "categories", "info")}))
def fuzz_annotations_made(tree: Any) -> None:
    with refused_or_taken("annotations, made"):
        use(json.dumps(tree), "clip")


def encoded() -> list[tuple[str, bytes]]:
    """The same small picture in every format that OpenCV writes, with 16 bits and EXIF among them."""
    bgr = PIXELS[..., ::-1]
    files = []
    for suffix in (".png", ".jpg", ".tiff", ".webp", ".bmp"):
        done, buffer = cv2.imencode(suffix, bgr)
        files += [(suffix, buffer.tobytes())] if done else []
    deep = cv2.imencode(".png", bgr.astype(np.uint16) * 257)[1].tobytes()
    turned = PIL.Image.fromarray(PIXELS)
    exif = turned.getexif()
    exif[274] = 6
    turned.save(FOLDER / "turned.jpg", exif=exif)
    PIL.Image.fromarray(PIXELS).save(FOLDER / "c.gif")
    array = FOLDER / "d.npy"
    np.save(array, np.concatenate([PIXELS, PIXELS], axis=2))
    return [
        *files, (".png", deep), (".npy", array.read_bytes()),
        (".jpg", (FOLDER / "turned.jpg").read_bytes()), (".gif", (FOLDER / "c.gif").read_bytes()),
    ]  # fmt: skip


@many
@given(
    st.sampled_from(encoded()).flatmap(lambda file: st.tuples(st.just(file[0]), garbled(file[1]))),
    st.sampled_from([1, 3, 4, 6]),
)
def fuzz_images(file: tuple[str, bytes], channels: int) -> None:
    path = FOLDER / f"fuzzed{file[0]}"
    path.write_bytes(file[1])
    with refused_or_taken("images"):
        image = read_upright(path, channels)
        assert image.ndim == 3 and image.shape[2] == channels and image.dtype == np.uint8


CONFIG = """\
model:
  backbone: {type: ResNet, depth: 18, norm: gn, out: [c4]}
  rpn: {head: {type: ConvRPNHead}, anchors: {sizes: [32]}}
  box: {extractor: {type: RoIAlign, output_size: 2}, head: {type: TwoFCBoxHead, channels: 4}}
train: {steps: 1, lr: 0.1}
"""


def model_file() -> tuple[Path, dict[str, str]]:
    config = config_from_text(CONFIG, "run.yaml")
    model = build_detector(config, classes=["a"])
    metadata = model_metadata(config, ["a"], [1], None)
    path = FOLDER / "model.safetensors"
    save_model(path, model.state_dict(), metadata)
    return path, metadata


MODEL, METADATA = model_file()
START = MODEL.read_bytes()


@many
@given(garbled(START[:4000]))
def fuzz_model_bytes(start: bytes) -> None:
    path = FOLDER / "fuzzed.safetensors"
    path.write_bytes(start + START[4000:])
    with refused_or_taken("model file, header garbled"):
        load_model(path)


@many
@given(
    mutated(METADATA, odd=[value for value in ODD if isinstance(value, str)] + ["[]", "{}", "null", "[1]", '{"a": 1}'])
)
def fuzz_model_metadata(metadata: Any) -> None:
    path = FOLDER / "fuzzed.safetensors"
    with refused_or_taken("model file, metadata mutated"):
        save_model(path, {}, {str(name): str(value) for name, value in metadata.items()})
        load_detector(path)
