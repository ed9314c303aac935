"""A trained model as a function of images."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from toolbox.data.resize import resize_image
from toolbox.errors import DataError, DeviceError
from toolbox.inference.images import ImageSource, as_image, image_forms
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
        plugins: files and modules of the model's own components, where they are not where the run had them.

    Attributes:
        classes: name of each label.
        category_ids: the training data's own id of each label.
        skeleton: joints of the keypoints, or None.
        channels: of the images that the model reads; 3 is RGB.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str | torch.device = "auto",
        score_threshold: float | None = None,
        detections: int | None = None,
        batch: int = 1,
        plugins: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        _check_number("batch", batch, whole=True, low=1)
        _check_number("score_threshold", score_threshold, high=1, none="the run's own")
        _check_number("detections", detections, whole=True, low=1, none="the run's own")
        settings = {"test.score_threshold": score_threshold, "test.detections": detections}
        given = [f"{key}={value}" for key, value in settings.items() if value is not None]
        loaded = load_detector(Path(path), given, plugins=[os.fspath(plugin) for plugin in plugins])
        self.device = choose_device(device)
        self.model = loaded.model.to(self.device).eval()
        self.classes = tuple(loaded.classes)
        self.category_ids = tuple(loaded.category_ids)
        self.skeleton = loaded.skeleton
        self.channels = loaded.channels
        self.resize = loaded.config.data.resize
        self.batch = batch

    def __call__(self, images: ImageSource | Iterable[ImageSource]) -> list[Detections]:
        """Detect in one image or several; one `Detections` per image, in order, with `image_id` counted from 0.

        Args:
            images: paths, (h, w, 3) uint8 RGB arrays, PIL images or (3, h, w) uint8 RGB tensors; for a model of other
                `channels`, with as many, and PIL images only for 1 (made grey) and 4 (RGBA).

        Raises:
            DataError: an image that cannot be read, or something that is no image; the message names it.
        """
        if isinstance(images, str | os.PathLike | np.ndarray | torch.Tensor | PIL.Image.Image):
            images = [images]
        return list(self.stream(images))

    def stream(self, images: Iterable[ImageSource]) -> Iterator[Detections]:
        """Detect in any number of images, holding only one batch of them at a time."""
        if not isinstance(images, Iterable):
            forms = image_forms(self.channels)
            raise DataError(f"images: got {type(images).__name__}; give images one by one or in a list: {forms}")
        source = enumerate(images)
        while chunk := list(islice(source, self.batch)):
            yield from self._predict([i for i, _ in chunk], [image for _, image in chunk])

    @torch.inference_mode()
    def _predict(self, ids: list[int], sources: list[ImageSource]) -> list[Detections]:
        pixels = [as_image(source, self.channels) for source in sources]
        sizes = [(image.shape[0], image.shape[1]) for image in pixels]
        resized = [torch.from_numpy(resize_image(image, self.resize)).permute(2, 0, 1) for image in pixels]
        detector: Any = self.model
        return detector.predict(resized, original_sizes=sizes, image_ids=ids)


def _check_number(
    name: str, value: Any, *, whole: bool = False, low: int = 0, high: int | None = None, none: str | None = None
) -> None:
    """Refuse an argument that is not a number in its range; None passes where `none` says what it means."""
    kind = Integral if whole else Real  # numpy's are among them
    number = isinstance(value, kind) and not isinstance(value, bool)
    fits = number and low <= float(value) <= (high or math.inf)
    if fits or (value is None and none is not None):
        return
    wanted = f"a {'whole ' if whole else ''}number, {f'{low} or more' if high is None else f'{low} … {high}'}"
    raise ValueError(f"{name}={value!r}: expected {wanted}{f', or None for {none}' if none else ''}")


def choose_device(device: str | torch.device, *, instead: str = "device='cpu'") -> torch.device:
    """The device that is meant; `auto` takes a GPU where there is one.

    Args:
        device: `auto`, or as PyTorch names it.
        instead: how the caller's user asks for the CPU, for the message.

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
        seen = {0: "no GPU", 1: "1 GPU"}.get(count, f"{count} GPUs")
        other = "" if count == 0 else "cuda:0 or " if count == 1 else f"cuda:0 … cuda:{count - 1} or "
        raise DeviceError(f"device '{device}' is not there: PyTorch sees {seen} here; use {other}{instead}")
    return chosen
