"""Predicted masks of M × M probabilities to COCO RLE in the image."""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from toolbox.masks.native import kernels
from toolbox.masks.rle import encode_bitmap

Convention = Literal["torchvision", "detectron2"]
FAR = 2**40  # beyond every image; keeps sums of box corners inside int64


def encode_roi_masks(
    probabilities: Tensor | NDArray[Any],
    boxes: Tensor | NDArray[Any],
    height: int,
    width: int,
    *,
    threshold: float = 0.5,
    convention: Convention = "torchvision",
) -> list[dict[str, Any]]:
    """Paste every mask into its box, threshold and encode it, without making a bitmap of the image.

    The result is, byte for byte, that of pasting on the CPU, thresholding and encoding. With `"torchvision"` as its
    `paste_masks_in_image` does: the mask, in a border of zeros, is resized to whole pixels; above the threshold is set.
    With `"detectron2"` as its own does: the mask is sampled at the centre of each pixel up to one beyond the box; not
    below the threshold is set. A box outside the image, inverted or not finite gives an empty mask.

    Args:
        probabilities: (D, M, M).
        boxes: (D, 4), x1 y1 x2 y2 in pixels of the image.
        height: of the image.
        width: of the image.

    Returns:
        D dicts `{"size": [height, width], "counts": bytes}`.
    """
    masks = torch.as_tensor(probabilities).detach().to("cpu", torch.float32).contiguous()
    corners = torch.as_tensor(boxes).detach().to("cpu", torch.float32).contiguous()
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or corners.shape != (len(masks), 4):
        raise ValueError(
            f"expected probabilities (D, M, M) and boxes (D, 4), got {tuple(masks.shape)} and {tuple(corners.shape)}"
        )
    if convention not in ("torchvision", "detectron2"):
        raise ValueError(f"convention is 'torchvision' or 'detectron2', not {convention!r}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold lies in 0 … 1, got {threshold}")
    if len(masks) == 0 or masks.shape[1] == 0:
        return [encode_bitmap(np.zeros((height, width), np.uint8)) for _ in masks]
    centres = convention == "detectron2"
    pasted = _reached_pixels(corners, height, width) if centres else _resized_pixels(corners, masks.shape[1])
    native = kernels()
    if native is None:
        paste = _sample_at_centres if centres else _resize_to_pixels
        return [
            encode_bitmap(paste(mask, reach, box, height, width, threshold))
            for mask, reach, box in zip(masks, pasted.tolist(), corners, strict=True)
        ]
    texts = native.encode_roi_masks(
        masks.numpy(), pasted.numpy(), corners.numpy(), height, width, threshold, centres, _torch_fuses_multiply_add()
    )
    return [{"size": [height, width], "counts": text} for text in texts]


def _resized_pixels(boxes: Tensor, size: int) -> Tensor:
    """Pixels that each padded mask is resized to: (D, 4) int64, first and last + 1; zeros if there are none."""
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((size + 2) / size)
    middle = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    grown = torch.cat([middle - half, middle + half], dim=1)
    pixels = grown.clamp(-FAR, FAR).to(torch.int64)
    pixels[:, 2:] += 1
    usable = grown.isfinite().all(dim=1) & (pixels[:, 2:] > pixels[:, :2]).all(dim=1)
    return torch.where(usable[:, None], pixels, 0)


def _reached_pixels(boxes: Tensor, height: int, width: int) -> Tensor:
    """Pixels of the image that Detectron2 looks at: (D, 4) int64, first and last + 1; zeros if there are none."""
    edge = torch.tensor([width, height], dtype=torch.float32)
    first = (boxes[:, :2].floor() - 1).clamp(min=0)
    last = torch.minimum(boxes[:, 2:].ceil() + 1, edge)
    usable = boxes.isfinite().all(dim=1) & (last > first).all(dim=1)
    return torch.where(usable[:, None], torch.cat([first, last], dim=1), 0.0).to(torch.int64)


def _resize_to_pixels(
    mask: Tensor, reach: list[int], box: Tensor, height: int, width: int, threshold: float
) -> NDArray[np.uint8]:
    """One mask as torchvision pastes it: (height, width) bitmap."""
    x0, y0, x1, y1 = reach
    bitmap = np.zeros((height, width), np.uint8)
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if left >= right or top >= bottom:
        return bitmap
    padded = F.pad(mask, (1, 1, 1, 1))[None, None]
    whole = F.interpolate(padded, size=(y1 - y0, x1 - x0), mode="bilinear", align_corners=False)[0, 0]
    bitmap[top:bottom, left:right] = whole[top - y0 : bottom - y0, left - x0 : right - x0] > threshold
    return bitmap


def _sample_at_centres(
    mask: Tensor, reach: list[int], box: Tensor, height: int, width: int, threshold: float
) -> NDArray[np.uint8]:
    """One mask as Detectron2 pastes it: (height, width) bitmap."""
    left, top, right, bottom = reach
    bitmap = np.zeros((height, width), np.uint8)
    if left >= right or top >= bottom:
        return bitmap
    across = (torch.arange(left, right, dtype=torch.float32) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    down = (torch.arange(top, bottom, dtype=torch.float32) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=2)
    bitmap[top:bottom, left:right] = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0] >= threshold
    return bitmap


@functools.cache
def _torch_fuses_multiply_add() -> bool:
    """Whether torch's bilinear kernels round a · b + c once; it depends on the build and on the processor.

    Asked of the kernel itself: 64 rows of two values are resized to 100 columns, and compared with the same sum rounded
    at every step.
    """
    pairs = torch.linspace(0.1, 0.9, 128).reshape(64, 2)
    resized = F.interpolate(pairs[None, None], size=(64, 100), mode="bilinear", align_corners=False)[0, 0]
    weight = ((torch.arange(100) + 0.5) * torch.tensor(2 / 100) - 0.5)[30:70]
    rounded = pairs[:, :1] * (1 - weight) + pairs[:, 1:] * weight
    return not torch.equal(resized[:, 30:70], rounded)
