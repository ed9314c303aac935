"""Polygons and bitmaps sampled at the pixel centres of a grid over a box: compiled, or the same sums in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from toolbox.masks.native import kernels

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]


def fill_polygons(points: Floats, starts: NDArray[np.int64], box: Sequence[float], out: Pixels) -> None:
    """Set the pixels of `out` whose centre lies in one of the parts, by the even-odd rule in each.

    A centre on an edge belongs to the part on its right (or below it), so parts that share an edge neither overlap nor
    leave a gap. A box of negative or unknown size sets nothing.

    Args:
        points: (V, 2) vertices of all parts.
        starts: (parts + 1,) where each part begins in `points`, and V.
        box: x1 y1 x2 y2, what `out` lies over.
        out: (h, w), zeros.
    """
    native = kernels()
    if native is not None:
        native.fill_polygons(points, starts, *box, out)
        return
    centres = _centres(box, out.shape)
    if centres is None:
        return
    xs, ys = centres
    for first, last in zip(starts[:-1], starts[1:], strict=True):
        part = points[first:last]
        before = np.roll(part, 1, axis=0)
        swap = (part[:, 1] < before[:, 1])[:, None]
        upper, lower = np.where(swap, part, before), np.where(swap, before, part)
        row, edge = np.nonzero((upper[:, 1] <= ys[:, None]) & (ys[:, None] < lower[:, 1]))
        upper, lower = upper[edge], lower[edge]
        crossing = upper[:, 0] + (ys[row] - upper[:, 1]) * ((lower[:, 0] - upper[:, 0]) / (lower[:, 1] - upper[:, 1]))
        crossed = np.zeros((len(ys), len(xs) + 1), np.int64)
        np.add.at(crossed, (row, np.searchsorted(xs, crossing, "left")), 1)
        out |= (crossed[:, :-1].cumsum(axis=1) % 2).astype(np.uint8)


def sample_bitmap(patch: Pixels, to_patch: Floats, box: Sequence[float], out: Pixels) -> None:
    """Set the pixels of `out` whose centre lies in a set pixel of `patch`.

    Args:
        patch: (h, w).
        to_patch: (2, 3) map from the box's frame into the patch.
        box: x1 y1 x2 y2, what `out` lies over.
        out: (H, W), zeros.
    """
    native = kernels()
    if native is not None:
        native.sample_bitmap(patch, to_patch, *box, out)
        return
    centres = _centres(box, out.shape)
    if centres is None:
        return
    xs, ys = centres
    u, v = (row[0] * xs[None, :] + row[1] * ys[:, None] + row[2] for row in to_patch)
    inside = (u >= 0) & (u < patch.shape[1]) & (v >= 0) & (v < patch.shape[0])
    out[inside] = patch[v[inside].astype(np.int64), u[inside].astype(np.int64)] != 0


def _centres(box: Sequence[float], shape: tuple[int, ...]) -> tuple[Floats, Floats] | None:
    """x of every column's centre and y of every row's; None if the box is inverted or not finite."""
    x1, y1, x2, y2 = map(float, box)
    x_step, y_step = (x2 - x1) / shape[1], (y2 - y1) / shape[0]
    if not (0 <= x_step < np.inf and 0 <= y_step < np.inf):
        return None
    columns, rows = np.arange(shape[1], dtype=np.float64), np.arange(shape[0], dtype=np.float64)
    return x1 + (columns + 0.5) * x_step, y1 + (rows + 0.5) * y_step
