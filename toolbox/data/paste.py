"""Objects of one image pasted over another: the pixels, and what becomes of the objects that they cover.

Simple copy-paste of Ghiasi et al. (arXiv:2012.07177). Both images are on one canvas already: whatever moved them is
done with, and what is computed here is never resampled again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from toolbox.data.interfaces import Layer, Sample
from toolbox.errors import DataError
from toolbox.masks import BitmapMask, Mask

_REACH = 3.0  # standard deviations up to which a softened edge is computed


def paste(below: Sample, above: Sample, layer: Layer) -> Sample:
    """The objects of `above` over the image `below`.

    A pixel whose centre lies in the mask of a pasted object shows that object. Of an object below that loses pixels the
    mask becomes a bitmap of what is left, the box shrinks on the sides where the mask did, the area shrinks with the
    mask, and joints under pasted pixels become hidden (visibility 1). One that loses none stays exactly what it was.
    One of which nothing is left, or less than `layer.min_left` of its mask, is removed. Crowd regions are neither
    pasted nor cut: nobody knows which of their objects were covered.

    Args:
        below: an image with its objects.
        above: an image of the same size, of which objects are pasted.
        layer: how to paste them.

    Raises:
        DataError: one of them has no masks.
    """
    masks, pasted = list(_masks_of(below)), _masks_of(above)
    covered = np.zeros(below.image.shape[:2], np.uint8)
    shown = [i for i, mask in enumerate(pasted) if not above.crowd[i] and _cover(mask, covered)]
    if not shown:
        return below
    boxes, area, kept = below.boxes.copy(), below.area.copy(), []
    for index, mask in enumerate(masks):
        left = None if below.crowd[index] else _cut(mask, covered)
        if left is not None:
            if left.share == 0 or left.share < layer.min_left:
                continue
            masks[index], boxes[index], area[index] = left.mask, left.shrunk(boxes[index]), area[index] * left.share
        kept.append(index)
    seen = replace(below, boxes=boxes, area=area, masks=masks, keypoints=_hidden(below.keypoints, covered))
    image = blended(below.image, above.image, covered, layer.sigma)
    return replace(_joined(taken(seen, kept), taken(above, shown)), image=image)


def taken(sample: Sample, rows: list[int]) -> Sample:
    """A sample with some of its objects."""
    return replace(
        sample,
        boxes=sample.boxes[rows],
        labels=sample.labels[rows],
        crowd=sample.crowd[rows],
        area=sample.area[rows],
        masks=None if sample.masks is None else [sample.masks[row] for row in rows],
        keypoints=None if sample.keypoints is None else sample.keypoints[rows],
    )


def blended(below: np.ndarray, above: np.ndarray, covered: np.ndarray, sigma: float) -> np.ndarray:
    """`above` where `covered`, `below` elsewhere.

    Args:
        below: (h, w, C) uint8.
        above: the same.
        covered: (h, w) of 0 and 1.
        sigma: standard deviation in pixels of the Gaussian by which the one passes into the other; 0 for hard edges.
    """
    if sigma == 0:
        return np.where(covered[..., None] != 0, above, below)
    side = 2 * math.ceil(_REACH * sigma) + 1
    share = cv2.GaussianBlur(covered.astype(np.float32), (side, side), sigma)[..., None]
    return np.rint(share * above + (1 - share) * below).astype(np.uint8)


@dataclass(frozen=True)
class _Cut:
    """What a covered mask has left.

    Attributes:
        mask: a bitmap on the canvas.
        share: of the pixels that it had.
        before: (4,) box of the pixels that it had.
        after: (4,) box of those that are left.
    """

    mask: BitmapMask
    share: float
    before: np.ndarray
    after: np.ndarray

    def shrunk(self, box: np.ndarray) -> np.ndarray:
        """A box with the sides moved on which pixels were lost; others stay where the annotator put them."""
        sides = np.where(self.after != self.before, self.after, box)
        sides = np.concatenate([np.maximum(sides[:2], box[:2]), np.minimum(sides[2:], box[2:])])
        # A box that was annotated apart from its mask may have nothing in common with what is left.
        return sides if (sides[2:] > sides[:2]).all() else self.after


def _masks_of(sample: Sample) -> list[Mask]:
    if sample.masks is None:
        raise DataError(
            f"image {sample.image_id}: copy-paste needs masks, and this data set has boxes only; annotate its objects "
            "with 'segmentation', or remove CopyPaste from data.transforms"
        )
    return sample.masks


def _window(mask: Mask, height: int, width: int) -> tuple[int, int, int, int]:
    """The pixels of the canvas that a mask can reach, x1 y1 x2 y2; empty where it is off the canvas."""
    x1, y1, x2, y2 = mask.box().tolist()
    left, top = max(math.floor(x1), 0), max(math.floor(y1), 0)
    return left, top, max(min(math.ceil(x2), width), left), max(min(math.ceil(y2), height), top)


def _pixels(mask: Mask, window: tuple[int, int, int, int]) -> np.ndarray:
    """The mask inside a window: (h, w) uint8 of 0 and 1."""
    x1, y1, x2, y2 = window
    pixels = np.zeros((y2 - y1, x2 - x1), np.uint8)
    if pixels.size:
        mask.fill(window, pixels)
    return pixels


def _cover(mask: Mask, covered: np.ndarray) -> bool:
    """Add a mask to what is covered; whether it has a pixel there."""
    window = x1, y1, x2, y2 = _window(mask, *covered.shape)
    pixels = _pixels(mask, window)
    covered[y1:y2, x1:x2] |= pixels
    return bool(pixels.any())


def _cut(mask: Mask, covered: np.ndarray) -> _Cut | None:
    """What is left of a mask, or None where it loses nothing."""
    window = x1, y1, x2, y2 = _window(mask, *covered.shape)
    hidden = covered[y1:y2, x1:x2]
    if not hidden.any():
        return None
    pixels = _pixels(mask, window)
    left = pixels & (1 - hidden)
    share = float(left.sum()) / max(int(pixels.sum()), 1)
    if share == 1 or not pixels.any():
        return None
    after = _extent(left)
    patch = left[after[1] : after[3], after[0] : after[2]]
    origin = np.array([x1, y1, x1, y1])
    return _Cut(BitmapMask(patch, x1 + after[0], y1 + after[1]), share, _extent(pixels) + origin, after + origin)


def _extent(pixels: np.ndarray) -> np.ndarray:
    """(4,) box of the pixels that are set; zeros if none is."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if not len(rows):
        return np.zeros(4, np.int64)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def _hidden(keypoints: np.ndarray | None, covered: np.ndarray) -> np.ndarray | None:
    """Keypoints (G, J, 3), those seen so far and covered now marked as hidden."""
    if keypoints is None:
        return None
    seen = np.argwhere(keypoints[..., 2] > 1)
    x, y = np.floor(keypoints[seen[:, 0], seen[:, 1], :2]).astype(int).T
    under = seen[covered[y, x] != 0]
    keypoints = keypoints.copy()
    keypoints[under[:, 0], under[:, 1], 2] = 1
    return keypoints


def _joined(below: Sample, above: Sample) -> Sample:
    """The objects of both, those of `below` first."""
    keypoints = [sample.keypoints for sample in (below, above) if sample.keypoints is not None]
    return replace(
        below,
        boxes=np.concatenate([below.boxes, above.boxes]),
        labels=np.concatenate([below.labels, above.labels]),
        crowd=np.concatenate([below.crowd, above.crowd]),
        area=np.concatenate([below.area, above.area]),
        masks=[*(below.masks or ()), *(above.masks or ())],
        keypoints=np.concatenate(keypoints) if keypoints else None,
    )
