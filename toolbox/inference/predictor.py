"""A trained model as a function of images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from toolbox.data.resize import resize_image
from toolbox.errors import DeviceError
from toolbox.inference.images import ImageSource, as_image
from toolbox.inference.loading import load_detector
from toolbox.structures import Detections


class Predictor:
    """Detect objects in images with a trained model.

        predictor = Predictor("runs/mine")
        for detections in predictor(["a.jpg", "b.jpg"]):
            print(detections.boxes, detections.scores)

    Args:
        path: a run folder or its `model.safetensors`.
        device: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:1`.
        score_threshold: lowest score that is returned; None keeps the run's `test.score_threshold`.
        detections: most objects per image; None keeps the run's `test.detections`.
        batch: images that go through the network together.

    Attributes:
        classes: name of each label.
        category_ids: the training data's own id of each label.
        skeleton: joints of the keypoints, or None.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str | torch.device = "auto",
        score_threshold: float | None = None,
        detections: int | None = None,
        batch: int = 1,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch is a number of images, not {batch}")
        settings = {"test.score_threshold": score_threshold, "test.detections": detections}
        loaded = load_detector(Path(path), [f"{key}={value}" for key, value in settings.items() if value is not None])
        self.device = choose_device(device)
        self.model = loaded.model.to(self.device).eval()
        self.classes = tuple(loaded.classes)
        self.category_ids = tuple(loaded.category_ids)
        self.skeleton = loaded.skeleton
        self.resize = loaded.config.data.resize
        self.batch = batch

    def __call__(self, images: ImageSource | Iterable[ImageSource]) -> list[Detections]:
        """Detect in one image or several; one `Detections` per image, in order, with `image_id` counted from 0.

        Args:
            images: paths, (h, w, 3) uint8 RGB arrays, PIL images or (3, h, w) uint8 RGB tensors.

        Raises:
            DataError: an image that cannot be read; the message names it.
        """
        if isinstance(images, str | os.PathLike | np.ndarray | torch.Tensor | PIL.Image.Image):
            images = [images]
        return list(self.stream(images))

    def stream(self, images: Iterable[ImageSource]) -> Iterator[Detections]:
        """Detect in any number of images, holding only one batch of them at a time."""
        source = enumerate(images)
        while chunk := list(islice(source, self.batch)):
            yield from self._predict([i for i, _ in chunk], [image for _, image in chunk])

    @torch.inference_mode()
    def _predict(self, ids: list[int], sources: list[ImageSource]) -> list[Detections]:
        pixels = [as_image(source) for source in sources]
        sizes = [(image.shape[0], image.shape[1]) for image in pixels]
        resized = [torch.from_numpy(resize_image(image, self.resize)).permute(2, 0, 1) for image in pixels]
        detector: Any = self.model
        return detector.predict(resized, original_sizes=sizes, image_ids=ids)


def choose_device(device: str | torch.device) -> torch.device:
    """The device that is meant; `auto` takes a GPU where there is one.

    Raises:
        DeviceError: the device is unknown to this PyTorch or is not there.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise DeviceError(f"no device is called '{device}'; use auto, cpu, cuda or cuda:<number>") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise DeviceError(f"device '{device}' is not there: PyTorch sees {count} GPUs here; use device=cpu")
    return chosen
