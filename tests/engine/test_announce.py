"""What the log says of a data set; the whole of it is tested with the training loop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from toolbox.data import CocoDataset
from toolbox.data.sampling import ImageSampling, RepeatFactors
from toolbox.engine.announce import contents, sampled


def test_objects_are_counted_where_there_is_an_index(tmp_path: Path, tiny_images: type) -> None:
    common = {"image_id": 1, "category_id": 4, "area": 4, "iscrowd": 0}
    annotations = [{"id": i, "bbox": [i, 1, 2, 2], **common} for i in range(3)]
    images, categories = [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}], [{"id": 4, "name": "cat"}]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (tmp_path / "a.json").write_text(json.dumps(content))
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    assert contents(CocoDataset(images=tmp_path, annotations=tmp_path / "a.json")) == "1 image, 3 objects, 1 class"
    assert contents(tiny_images()) == "12 images, 1 class"


def test_an_epoch_of_sampled_images_has_its_own_length() -> None:
    images = [np.array(labels, dtype=np.int64) for labels in [[0]] + [[1]] * 15 + [[]] * 9]
    repeat = RepeatFactors(threshold=0.64)  # class 0 is in 1 of 25: sqrt(0.64 · 25) = 4; class 1 in 15, sqrt(16 / 15)
    made = ImageSampling(images, 2, repeat=repeat, negatives=0.2)
    said = "an epoch is about 24 images, 2 rare classes repeated up to 4.0 times, 20% of them without objects"
    assert sampled(made) == said  # 4 + 15 · 1.0328 = 19.5, and a quarter of it without objects, 5
