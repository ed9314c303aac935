"""What the log says of a data set; the whole of it is tested with the training loop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from toolbox.data import CocoDataset
from toolbox.engine.announce import contents


def test_objects_are_counted_where_there_is_an_index(tmp_path: Path, tiny_images: type) -> None:
    common = {"image_id": 1, "category_id": 4, "area": 4, "iscrowd": 0}
    annotations = [{"id": i, "bbox": [i, 1, 2, 2], **common} for i in range(3)]
    images, categories = [{"id": 1, "file_name": "a.png", "height": 20, "width": 30}], [{"id": 4, "name": "cat"}]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (tmp_path / "a.json").write_text(json.dumps(content))
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    assert contents(CocoDataset(images=tmp_path, annotations=tmp_path / "a.json")) == "1 image, 3 objects, 1 class"
    assert contents(tiny_images()) == "12 images, 1 class"
