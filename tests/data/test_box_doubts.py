"""Boxes that are wrong together are refused, and those that are merely untidy are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from toolbox.data.coco import CocoDataset
from toolbox.errors import DataError

BOXES = [[10, 10, 20, 20], [50, 40, 30, 30], [70, 5, 10, 20], [5, 50, 25, 25]]  # x y width height in 100 × 80
CORNERS = [[10, 10, 30, 30], [50, 40, 80, 70], [70, 5, 80, 25], [5, 50, 30, 75]]  # the same


def dataset(folder: Path, known: list[list[float]], **settings: Any) -> CocoDataset:
    Image.fromarray(np.zeros((80, 100, 3), dtype=np.uint8)).save(folder / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, "bbox": box} for i, box in enumerate(known, 1)],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return CocoDataset(images=folder, annotations=folder / "a.json", **settings)


def test_corners_are_refused_and_read_as_such_when_the_config_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="75% of the boxes leave .* annotation 2: .* 'boxes: xyxy'"):
        dataset(tmp_path, CORNERS)
    read = dataset(tmp_path, CORNERS, boxes="xyxy")
    assert read.load(0).boxes.tolist() == CORNERS
    truth = read.ground_truth()["annotations"]
    assert [record["bbox"] for record in truth] == BOXES
    assert [record["area"] for record in truth] == [400, 900, 200, 625]


def test_boxes_of_another_size_of_image_are_not_taken_for_corners(tmp_path: Path) -> None:
    doubled = [[value * 2 for value in box] for box in BOXES]
    with pytest.raises(DataError, match="75% of the boxes leave .* do they belong to images of another size"):
        dataset(tmp_path, doubled)


def test_right_boxes_are_read_whatever_the_setting_is(tmp_path: Path) -> None:
    for settings in ({}, {"boxes": "xywh"}):
        assert dataset(tmp_path, BOXES, **settings).load(0).boxes.tolist() == CORNERS


def test_boxes_that_are_trusted_are_clipped_as_ever(tmp_path: Path) -> None:
    read = dataset(tmp_path, CORNERS, boxes="xywh")
    assert read.load(0).boxes.tolist() == [[10, 10, 40, 40], [50, 40, 100, 80], [70, 5, 100, 30], [5, 50, 35, 80]]


def test_half_of_the_boxes_may_stick_out_and_so_may_the_few_of_a_small_file(tmp_path: Path) -> None:
    untidy = [[90, 10, 20, 20], [90, 40, 30, 30], *BOXES[2:]]
    assert len(dataset(tmp_path, untidy).load(0)) == 4
    assert len(dataset(tmp_path, CORNERS[1:3]).load(0)) == 2


def test_fractions_of_the_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fractions of the image, and COCO wants pixels"):
        dataset(tmp_path, [[0.1, 0.125, 0.2, 0.25]])
    assert len(dataset(tmp_path, [[0.1, 0.125, 0.2, 0.25], *BOXES]).load(0)) == 5
