"""Image files to RGB uint8."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from toolbox.errors import DataError

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"


def read_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read an image file as (h, w, 3) uint8 RGB.

    Grey becomes three equal channels, an alpha channel is dropped, 16 bits are scaled to 8 by their full range. Pixels
    are taken as stored and an EXIF rotation is not applied, because COCO annotations refer to the stored pixels; the
    one exception is a declared `size` that fits only the rotated image, as some annotation tools write it.

    Args:
        path: of the file.
        size: height and width that the annotations declare.

    Raises:
        DataError: the file is missing, is not an image, or has another size.
    """
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        advice = "; check the folder of the data set's images" if isinstance(error, FileNotFoundError) else ""
        raise DataError(f"{path}: image cannot be read ({error.strerror}){advice}") from error
    # imdecode raises on an empty buffer and returns None on a broken file.
    pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if content.size else None
    if pixels is None or _is_cut_jpeg(content):
        raise DataError(
            f"{path}: not an image that OpenCV can decode, or cut short ({content.size} bytes); replace the file"
        )
    image = _as_rgb(pixels, path)
    if size is None or image.shape[:2] == tuple(size):
        return image
    rotated = cv2.imdecode(content, cv2.IMREAD_COLOR)  # this one applies EXIF
    if rotated is not None and rotated.shape[:2] == tuple(size):
        return cv2.cvtColor(rotated, cv2.COLOR_BGR2RGB)
    raise DataError(
        f"{path}: image is {image.shape[1]} x {image.shape[0]} (width x height), but the annotations declare "
        f"{size[1]} x {size[0]}; annotations of a resized copy do not fit, correct the one or the other"
    )


def _is_cut_jpeg(file: np.ndarray) -> bool:
    """Whether a JPEG lacks its end: up to OpenCV 4.10, the missing part is made grey without a word."""
    if bytes(file[:2]) != _JPEG_START or bytes(file[-2:]) == _JPEG_END:
        return False
    content = file.tobytes()
    at = len(_JPEG_START)
    # Segments that say their length, up to the first scan; a preview among them may have an end of its own.
    while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] not in (b"\xda", b"\xd9"):
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big") if content[at + 1] != 0xFF else 1
    # In scans, 0xff is followed by 0 or a restart marker; what follows the end (padding, a maker's data) is allowed.
    return content.find(_JPEG_END, at) < 0


def _as_rgb(pixels: np.ndarray, path: Path) -> np.ndarray:
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise DataError(f"{path}: pixels are {pixels.dtype}; convert the image to 8 or 16 bits a channel")
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    conversion = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}.get(channels)
    if conversion is None:
        raise DataError(f"{path}: image has {channels} channels; grey, RGB and RGBA are read")
    return cv2.cvtColor(pixels, conversion)
