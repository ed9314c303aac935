"""OpenCV's decoders, without their messages and with their colours in the usual order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np

_ROWS = 1024  # at a time


def decoded_by_opencv(content: np.ndarray) -> np.ndarray | None:
    """The stored pixels (h, w, c) of a file (n,) uint8, colours as R G B A; None where it cannot be decoded.

    Raises:
        cv2.error: the image has more pixels than OpenCV allows.
    """
    if not content.size:
        return None  # imdecode raises
    with _quiet():
        pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    if pixels is None:
        return None
    if pixels.ndim == 2:
        return pixels[..., None]
    orders = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}
    if pixels.shape[2] in orders and pixels.dtype in (np.uint8, np.uint16):
        # In place, as there may be no room for a second large image; by rows, as OpenCV copies what it edits in place.
        for start in range(0, len(pixels), _ROWS):
            rows = pixels[start : start + _ROWS]
            cv2.cvtColor(rows, orders[pixels.shape[2]], dst=rows)
    return pixels


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep OpenCV from writing its source lines to the terminal: the error that follows says what is wrong."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
