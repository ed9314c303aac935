"""Images in every form that a user may hold, brought to one: (h, w, C) uint8."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL.Image
import torch

from toolbox.data.images import read_image as read_stored_pixels
from toolbox.errors import DataError

ImageSource: TypeAlias = "str | os.PathLike[str] | np.ndarray | PIL.Image.Image | torch.Tensor"

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def image_forms(channels: int) -> str:
    """What an image of so many channels may be, in words."""
    kind = "uint8 RGB" if channels == 3 else "uint8"
    pillow = " a PIL image" if channels in _MODES else ""
    return f"a path, an (h, w, {channels}) {kind} array,{pillow} or a ({channels}, h, w) {kind} tensor"


def as_image(source: Any, channels: int = 3) -> np.ndarray:
    """Bring one image to (h, w, channels) uint8; 3 channels are RGB.

    Args:
        source: a path, an (h, w, channels) uint8 array, a PIL image, or a (channels, h, w) uint8 tensor. PIL images are
            converted to RGB, or to grey for 1 channel, and are RGBA for 4.
        channels: that the model reads.

    Raises:
        DataError: a file that cannot be read, or an array or tensor of another shape or type.
    """
    if isinstance(source, str | os.PathLike):
        return read_image(source, channels)
    if isinstance(source, PIL.Image.Image):
        return _from_pillow(source, channels)
    if isinstance(source, torch.Tensor):
        if source.ndim == 3 and source.shape[0] == channels and source.dtype == torch.uint8 and source.numel():
            return np.ascontiguousarray(source.detach().cpu().permute(1, 2, 0).numpy())
        hint = _hint(source.dtype, channels)
        raise DataError(f"got a tensor of shape {tuple(source.shape)} and type {source.dtype}; {hint}")
    if isinstance(source, np.ndarray):
        if source.ndim == 3 and source.shape[2] == channels and source.dtype == np.uint8 and source.size:
            return np.require(source, requirements=["C", "W"])  # torch takes only arrays that may be written
        hint = _hint(source.dtype, channels)
        raise DataError(f"got an array of shape {source.shape} and type {source.dtype}; {hint}")
    raise DataError(f"got {type(source).__name__}; an image is {image_forms(channels)}")


def _from_pillow(image: PIL.Image.Image, channels: int) -> np.ndarray:
    mode = _MODES.get(channels)
    if mode is None or (channels == 4 and image.mode != "RGBA") or image.mode == "F":
        raise DataError(f"got a PIL image of mode {image.mode}; an image is {image_forms(channels)}")
    if 0 in image.size:
        raise DataError(f"got a PIL image of {image.width} x {image.height} pixels; an image has at least one")
    if image.mode.startswith("I"):  # Pillow would cut 16 bits off at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"got a PIL image of {values.min()} … {values.max()}; convert it to 8 or 16 bits")
        image = PIL.Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    pixels = np.array(image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _hint(dtype: Any, channels: int) -> str:
    if "float" in str(dtype):
        return f"an image is {image_forms(channels)}; multiply values of 0 … 1 by 255 and convert them to uint8"
    return f"an image is {image_forms(channels)}"


def read_image(path: str | os.PathLike[str], channels: int = 3) -> np.ndarray:
    """Read an image file as (h, w, channels) uint8, turned upright as its EXIF data says.

    Annotations of data sets refer to the stored pixels, so their reader does not turn; a photo from a camera is meant
    to be seen upright.

    Raises:
        DataError: the file is missing, cut short, no image, or has other channels.
    """
    return read_stored_pixels(Path(path), channels=channels, upright=True)
