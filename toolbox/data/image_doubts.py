"""Images that can be read and probably mean something else, said once: it is mostly so in the whole set."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

logger = logging.getLogger("toolbox")

_NARROW = 65536 // 8  # values of 16 bits below which contrast is lost rather than an image dark
_said: set[str] = set()  # in this process


def leave_to_another() -> None:
    """Say nothing in this process: of several that read images of one set, one is enough to speak."""
    _said.update(("narrow", "fourth band"))


def doubt_range(path: Path, pixels: np.ndarray) -> None:
    """Warn of 16 bits of which a small part is used, since they are scaled to 8 by their full range.

    Args:
        path: of the image.
        pixels: (h, w, c) as stored; where an alpha channel may follow grey or colours, it is not looked at.
    """
    if pixels.dtype != np.uint16 or "narrow" in _said:
        return
    bands = pixels.shape[2]
    largest = int(pixels[..., : bands - 1 if bands in (2, 4) else bands].max())
    if not 0 < largest < _NARROW:
        return
    _said.add("narrow")
    logger.warning(
        "%s: the largest of its 16-bit values is %d, and 16 bits are scaled to 8 by their full range, so %d of 256 "
        "levels are left; unless only this image is so dark, multiply the values of all files by one number that "
        "brings them to the full range, 0 to 65535 (by 16 for 12 bits, 0 to 4095)",
        path,
        largest,
        (largest + 128) // 257 + 1,
    )


def doubt_fourth_band(path: Path, *, transparent: bool) -> None:
    """Warn of a band that is left out as an alpha channel is, unless the TIFF calls it one."""
    if transparent or "fourth band" in _said:
        return
    _said.add("fourth band")
    logger.warning(
        "%s: this TIFF has a fourth band that it does not call transparency (its tag ExtraSamples), and which is not "
        "read; set 'channels: 4' on the data set to read it, or write files of 3 bands",
        path,
    )
