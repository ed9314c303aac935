"""Pictures of a data set: evenly spread, truth beside detections. The detector is a stand-in that finds nothing."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toolbox.data import Shapes
from toolbox.errors import DataError
from toolbox.inference.pictures import draw_dataset, write_picture
from toolbox.structures import Detections
from toolbox.visualize import CAPTION_HEIGHT


class FindsNothing(nn.Module):
    def predict(
        self, images: list[Tensor], original_sizes: list[tuple[int, int]], image_ids: list[int]
    ) -> list[Detections]:
        assert not self.training
        return [Detections(size, torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long()) for size in original_sizes]


def test_pictures_are_spread_over_the_data_set_and_show_truth_left_of_detections(tmp_path: Path) -> None:
    dataset, detector = Shapes(length=9, seed=3), FindsNothing()
    files = draw_dataset(detector, dataset, tmp_path / "pictures", resize=None, device=torch.device("cpu"), count=3)
    assert [file.stem for file in files] == [str(dataset.load(i).image_id) for i in (0, 4, 8)]
    assert detector.training
    whole = cv2.imread(str(files[0]))[..., ::-1].astype(int)
    captions, picture = whole[:CAPTION_HEIGHT], whole[CAPTION_HEIGHT:]
    plain = dataset.load(0).image
    scale = picture.shape[0] // plain.shape[0]
    enlarged = cv2.resize(plain, None, fx=scale, fy=scale).astype(int)
    width = enlarged.shape[1]
    left, right = np.abs(picture[:, :width] - enlarged), np.abs(picture[:, -width:] - enlarged)
    assert right.mean() < 5 < left.mean()  # only JPEG's own differences on the right
    for half in (captions[:, :width], captions[:, -width:]):
        assert half.max() > 200 and np.median(half) < 60  # white text on dark grey


def test_fewer_images_than_pictures_are_each_drawn_once(tmp_path: Path) -> None:
    files = draw_dataset(FindsNothing(), Shapes(length=2, seed=3), tmp_path, resize=None, device=torch.device("cpu"))
    assert len(files) == len(set(files)) == 2


def test_a_picture_that_does_not_fit_a_jpeg_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="70000 x 1 pixels does not fit a JPEG"):
        write_picture(tmp_path / "wide.jpg", np.zeros((1, 70000, 3), np.uint8))
