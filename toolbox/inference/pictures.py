"""Pictures of a data set: what is there beside what the detector finds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from toolbox.data.interfaces import Dataset
from toolbox.data.resize import Resize, resize_image
from toolbox.errors import DataError, StorageError
from toolbox.visualize import captioned, draw_detections, draw_sample, grid, picture_scale
from toolbox.weights import replacing

JPEG_QUALITY = 92


def draw_dataset(
    detector: nn.Module,
    dataset: Dataset,
    folder: str | os.PathLike[str],
    *,
    resize: Resize | None,
    device: torch.device,
    count: int = 8,
    threshold: float = 0.5,
) -> list[Path]:
    """Draw images spread evenly over a data set: ground truth on the left, detections on the right, with captions.

    Args:
        detector: on `device`; left in the mode it was in.
        dataset: images with objects.
        folder: made when missing; pictures are named after the image ids.
        resize: how images are brought to network size.
        device: where the detector is.
        count: most pictures.
        threshold: lowest score that is drawn.

    Returns:
        The files written.
    """
    model: Any = detector
    training = detector.training
    detector.eval()
    files = []
    try:
        for index in np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)):
            sample = dataset.load(int(index))
            height, width = sample.image.shape[:2]
            network = torch.from_numpy(resize_image(sample.image, resize)).permute(2, 0, 1).to(device)
            with torch.inference_mode():
                (found,) = model.predict([network], [(height, width)], [sample.image_id])
            look: dict[str, Any] = {"skeleton": dataset.skeleton, "scale": picture_scale(height, width, target=384)}
            truth = draw_sample(sample, dataset.classes, **look)
            guess = draw_detections(sample.image, found, dataset.classes, threshold=threshold, **look)
            # The font knows only ASCII, so no "≥".
            pair = [captioned(truth, "annotated"), captioned(guess, f"detected, score >= {threshold:g}")]
            files.append(write_picture(Path(folder) / f"{sample.image_id}.jpg", grid(pair, 2)))
    finally:
        detector.train(training)
    return files


def write_picture(path: Path, picture: np.ndarray) -> Path:
    """Write (h, w, 3) uint8 RGB as a JPEG; the folder is made when missing.

    Raises:
        DataError: the picture is larger than a JPEG can be.
        StorageError: it cannot be written.
    """
    done, content = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise DataError(f"{path}: a picture of {picture.shape[1]} x {picture.shape[0]} pixels does not fit a JPEG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
    with replacing(path) as temporary:
        temporary.write_bytes(content.tobytes())
    return path
