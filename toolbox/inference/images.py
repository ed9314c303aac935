"""Images in every form that a user may hold, brought to one: (h, w, 3) uint8 RGB."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL.ExifTags
import PIL.Image
import torch

from toolbox.data.images import read_image as read_stored_pixels
from toolbox.errors import DataError

ImageSource: TypeAlias = "str | os.PathLike[str] | np.ndarray | PIL.Image.Image | torch.Tensor"

IMAGE_FORMS = "a path, an (h, w, 3) uint8 RGB array, a PIL image or a (3, h, w) uint8 RGB tensor"


def as_image(source: Any) -> np.ndarray:
    """Bring one image to (h, w, 3) uint8 RGB.

    Args:
        source: a path, an (h, w, 3) uint8 RGB array, a PIL image, or a (3, h, w) uint8 RGB tensor.

    Raises:
        DataError: a file that cannot be read, or an array or tensor of another shape or type.
    """
    if isinstance(source, str | os.PathLike):
        return read_image(source)
    if isinstance(source, PIL.Image.Image):
        return np.array(source.convert("RGB"))
    if isinstance(source, torch.Tensor):
        if source.ndim == 3 and source.shape[0] == 3 and source.dtype == torch.uint8 and source.numel():
            return np.ascontiguousarray(source.detach().cpu().permute(1, 2, 0).numpy())
        raise DataError(f"got a tensor of shape {tuple(source.shape)} and type {source.dtype}; {_hint(source.dtype)}")
    if isinstance(source, np.ndarray):
        if source.ndim == 3 and source.shape[2] == 3 and source.dtype == np.uint8 and source.size:
            return np.require(source, requirements=["C", "W"])  # torch takes only arrays that may be written
        raise DataError(f"got an array of shape {source.shape} and type {source.dtype}; {_hint(source.dtype)}")
    raise DataError(f"got {type(source).__name__}; an image is {IMAGE_FORMS}")


def _hint(dtype: Any) -> str:
    if "float" in str(dtype):
        return f"an image is {IMAGE_FORMS}; multiply values of 0 … 1 by 255 and convert them to uint8"
    return f"an image is {IMAGE_FORMS}"


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as (h, w, 3) uint8 RGB, turned upright as its EXIF data says.

    Annotations of data sets refer to the stored pixels, so their reader does not turn; a photo from a camera is meant
    to be seen upright.

    Raises:
        DataError: the file is missing, cut short, or no image.
    """
    if not Path(path).is_file():  # the data sets' reader would speak of their folder
        raise DataError(f"{path}: {'this is a folder, not an image' if Path(path).is_dir() else 'no such file'}")
    image = read_stored_pixels(Path(path))
    try:
        with PIL.Image.open(path) as header:
            orientation = header.getexif().get(PIL.ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError):
        return image  # a format that only OpenCV knows
    return turned_upright(image, orientation)


def turned_upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo one of EXIF's eight orientations; unknown numbers leave the image as it is."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(image[rows, columns])
