"""COCO run-length encoding: runs of clear and set pixels in turn, down the columns, the first of clear ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_counts(rle: Mapping[str, Any]) -> NDArray[np.int64]:
    """Run lengths of an RLE dict, compressed (`counts` is text or bytes) or not (a list of numbers).

    Raises:
        ValueError: the dict is not an RLE, or its runs do not add up to its size.
    """
    if "counts" not in rle or "size" not in rle:
        raise ValueError(f"an RLE has 'size' and 'counts', got {sorted(rle)}")
    height, width = rle["size"]
    text = rle["counts"]
    if isinstance(text, str | bytes):
        counts = _decompress(text.encode("ascii", "replace") if isinstance(text, str) else text)
    else:
        counts = np.asarray(text)
        if counts.ndim != 1 or (counts.size and counts.dtype.kind not in "iu"):
            raise ValueError(f"RLE counts are a list of whole numbers, or text; got {str(text)[:60]!r}")
        counts = counts.astype(np.int64)
    if (counts < 0).any():
        worst = int((counts < 0).argmax())
        raise ValueError(f"RLE counts are not negative, but count {worst} is {counts[worst]}")
    if counts.sum() != height * width:
        raise ValueError(
            f"RLE counts add up to {counts.sum()}, but a mask of height {height} and width {width} "
            f"has {height * width} pixels"
        )
    return counts


def _decompress(text: bytes) -> NDArray[np.int64]:
    """Run lengths from COCO's text form.

    A character holds 5 bits, lowest first, and a sixth that says whether the number goes on; the last one's highest
    bit is the sign. From the fourth on, a number is the difference to the run two before.
    """
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if codes.size == 0:
        return codes
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError(f"RLE text holds {chr(text[int(((codes < 0) | (codes > 63)).argmax())])!r}, outside '0' … 'o'")
    last = np.flatnonzero(codes < 32)
    if last.size == 0 or last[-1] != codes.size - 1:
        raise ValueError("RLE text ends in the middle of a number")
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > 7:
        raise ValueError("RLE text holds a number of more than 7 characters")
    shifts = 5 * (np.arange(codes.size) - np.repeat(first, lengths))
    numbers = np.add.reduceat((codes & 31) << shifts, first)
    numbers -= (codes[last] & 16) << (5 * (lengths - 1) + 1)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def decode_box(counts: NDArray[np.int64], height: int) -> tuple[NDArray[np.uint8], int, int]:
    """Decode runs inside their own box: patch (h, w) of 0 and 1, and x and y of its upper left pixel.

    Memory is that of the columns that the box spans, not of the image.
    """
    ends = counts.cumsum()
    starts = (ends - counts)[1::2]
    ends = ends[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if starts.size == 0:
        return np.zeros((0, 0), np.uint8), 0, 0
    x, right = int(starts[0] // height), int((ends[-1] - 1) // height) + 1
    steps = np.zeros((right - x) * height + 1, np.int8)
    np.add.at(steps, starts - x * height, 1)
    np.add.at(steps, ends - x * height, -1)
    columns = steps[:-1].cumsum(dtype=np.int8).reshape(right - x, height)
    rows = np.flatnonzero(columns.any(axis=0))
    y, bottom = int(rows[0]), int(rows[-1]) + 1
    return np.ascontiguousarray(columns[:, y:bottom].T, dtype=np.uint8), x, y


def encode_bitmap(bitmap: NDArray[np.uint8]) -> dict[str, Any]:
    """(h, w) of 0 and 1 → compressed RLE."""
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(bitmap, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"]}
