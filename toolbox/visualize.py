"""Draw detections and ground truth: masks, boxes, keypoints, labels.

Masks are decoded and blended only inside their own extent: a hundred of them cost little more than their pixels.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from toolbox.data.skeletons import sides
from toolbox.masks import Mask
from toolbox.masks.rle import decode_box, read_counts
from toolbox.structures import Detections, Skeleton

if TYPE_CHECKING:
    from toolbox.data.interfaces import Sample

Image = np.ndarray  # (h, w, 3) uint8, RGB
Colour = tuple[int, int, int]

MASK_OPACITY = 0.45
SIDE_COLOURS: dict[str, Colour] = {"left": (0, 220, 90), "right": (255, 140, 0)}
GRID_GREY = 48
CAPTION_HEIGHT = 22


@dataclass
class _Instance:
    """One object to draw, in pixels of the picture.

    Attributes:
        box: x1 y1 x2 y2, whole pixels, inside the picture.
        mask: (m, k) uint8 of 0 and 1 and the x, y of its first pixel, or None.
        joints: (J, 3), x y and whether to draw it, or None.
    """

    box: tuple[int, int, int, int]
    colour: Colour
    label: str
    mask: tuple[np.ndarray, int, int] | None = None
    joints: np.ndarray | None = None


def draw_detections(
    image: Image,
    detections: Detections,
    classes: Sequence[str],
    *,
    skeleton: Skeleton | None = None,
    threshold: float = 0.5,
    joint_threshold: float = 0.0,
    labels: bool = True,
    scale: int = 1,
) -> Image:
    """Draw what a model found on a copy of its image.

    Colours follow the class; a model of a single class gets a colour per object instead. Joints and limbs of the left
    are green, of the right orange, and those of the middle have the object's colour.

    Args:
        image: (h, w, 3) uint8 RGB, the original image; of other channels, see `as_colours`.
        detections: of that image.
        classes: name of each label.
        skeleton: limbs between the joints; without it the joints are drawn alone.
        threshold: lowest score that is drawn.
        joint_threshold: joints are drawn whose own score is above it; a heat map's score is a logit.
        labels: write class and score at each box, where there is room.
        scale: enlarge the picture by this whole factor first (`picture_scale` suggests one for small images).

    Returns:
        (h · scale, w · scale, 3) uint8 RGB.
    """
    _check(image, detections.image_size)
    image = as_colours(image)
    rows = [i for i, score in enumerate(detections.scores.tolist()) if score >= threshold]
    instances = []
    for i in rows:
        label, score = int(detections.labels[i]), float(detections.scores[i])
        text = f"{score:.2f}" if len(classes) == 1 else f"{classes[label]} {score:.2f}"
        keypoints = None if detections.keypoints is None else _shown(detections.keypoints[i].numpy(), joint_threshold)
        mask = None if detections.masks is None else _decode(detections.masks[i])
        colour = colour_of(i if len(classes) == 1 else label)
        instances.append(_instance(detections.boxes[i].tolist(), colour, text, mask, keypoints, image, scale))
    return _draw(image, instances, skeleton, labels, scale)


def draw_sample(
    sample: Sample, classes: Sequence[str], *, skeleton: Skeleton | None = None, labels: bool = True, scale: int = 1
) -> Image:
    """Draw the ground truth of one image of a data set; crowd regions are marked in their label.

    In a data set of a single class only those have a label: on every object it would say the same, and cover others.

    Returns:
        (h · scale, w · scale, 3) uint8 RGB.
    """
    height, width = sample.image.shape[:2]
    image = as_colours(sample.image)
    instances = []
    for i, box in enumerate(np.asarray(sample.boxes).tolist()):
        label = int(sample.labels[i])
        text = "" if len(classes) == 1 else classes[label]
        text = f"{text} (crowd)".strip() if sample.crowd[i] else text
        keypoints = None if sample.keypoints is None else _shown(sample.keypoints[i], 0)
        mask = None if sample.masks is None else _fill(sample.masks[i], _pixel_box(box, height, width))
        colour = colour_of(i if len(classes) == 1 else label)
        instances.append(_instance(box, colour, text, mask, keypoints, image, scale))
    return _draw(image, instances, skeleton, labels, scale)


def as_colours(image: np.ndarray) -> Image:
    """An image (h, w, C) as (h, w, 3) to look at: its first three channels, or its first one as grey."""
    if image.shape[2] == 3:
        return image
    return np.ascontiguousarray(image[..., :3]) if image.shape[2] > 3 else np.repeat(image[..., :1], 3, axis=2)


def captioned(picture: Image, text: str) -> Image:
    """Put a strip with a line of text above a picture; text that is too wide is cut.

    Returns:
        (h + CAPTION_HEIGHT, w, 3) uint8 RGB.
    """
    strip = np.full((CAPTION_HEIGHT, picture.shape[1], 3), GRID_GREY, np.uint8)
    cv2.putText(strip, text, (6, CAPTION_HEIGHT - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([strip, picture])


def grid(images: Sequence[Image], columns: int, *, gap: int = 4) -> Image:
    """Lay pictures of any sizes out in rows: a contact sheet. Each cell is as large as the largest picture.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    if not images or columns < 1:
        raise ValueError(f"grid needs at least one picture and one column, got {len(images)} and {columns}")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell_h, cell_w = (max(image.shape[axis] for image in images) + gap for axis in (0, 1))
    sheet = np.full((rows * cell_h - gap, columns * cell_w - gap, 3), GRID_GREY, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * cell_h, i % columns * cell_w
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def picture_scale(height: int, width: int, *, target: int = 512) -> int:
    """Whole factor that brings the short edge of a small image near `target`, so that its labels can be read."""
    short, long = min(height, width), max(height, width)
    return max(1, min(round(target / max(1, short)), 4 * target // max(1, long)))


@lru_cache(maxsize=4096)
def colour_of(index: int) -> Colour:
    """A clear colour for a class or an object, always the same for the same index; neighbours differ in hue."""
    hue = (0.58 + index * 0.618033988749895) % 1.0  # golden ratio: any first n hues are spread out
    saturation, value = ((0.85, 1.0), (0.65, 0.9), (1.0, 0.8))[index // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _shown(keypoints: np.ndarray, threshold: float) -> np.ndarray:
    """(J, 3) x y score, or visibility, as float32 x y and whether it is above the threshold."""
    return np.column_stack([keypoints[:, :2], keypoints[:, 2] > threshold]).astype(np.float32)


def _decode(rle: Mapping[str, Any]) -> tuple[np.ndarray, int, int] | None:
    """The set pixels of an RLE as (m, k) uint8 of 0 and 1, and x and y of the first; None for an empty mask."""
    patch, x, y = decode_box(read_counts(rle), rle["size"][0])
    return (patch, x, y) if patch.size else None


def _fill(mask: Mask, box: tuple[int, int, int, int]) -> tuple[np.ndarray, int, int]:
    """A ground-truth mask inside a box of whole pixels."""
    x1, y1, x2, y2 = box
    pixels = np.zeros((y2 - y1, x2 - x1), np.uint8)
    mask.fill(box, pixels)
    return pixels, x1, y1


def _pixel_box(box: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """The pixels that a box touches, at least one, inside the image."""
    x1, y1 = min(max(int(np.floor(box[0])), 0), width - 1), min(max(int(np.floor(box[1])), 0), height - 1)
    x2, y2 = max(min(int(np.ceil(box[2])), width), x1 + 1), max(min(int(np.ceil(box[3])), height), y1 + 1)
    return x1, y1, x2, y2


def _check(image: Image, size: tuple[int, int]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or not image.shape[2]:
        raise ValueError(f"image must be (h, w, 3) uint8 RGB, or of other channels, got {image.shape} {image.dtype}")
    if image.shape[:2] != tuple(size):
        raise ValueError(f"image is {image.shape[0]} x {image.shape[1]}, its detections are for {size[0]} x {size[1]}")


def _instance(
    box: Sequence[float],
    colour: Colour,
    label: str,
    mask: tuple[np.ndarray, int, int] | None,
    keypoints: np.ndarray | None,
    image: Image,
    scale: int,
) -> _Instance:
    """Bring one object from image pixels to pixels of the picture."""
    x1, y1, x2, y2 = (side * scale for side in _pixel_box(box, *image.shape[:2]))
    if mask is not None and scale > 1:
        mask = (mask[0].repeat(scale, axis=0).repeat(scale, axis=1), mask[1] * scale, mask[2] * scale)
    joints = None
    if keypoints is not None:
        joints = keypoints * np.array([scale, scale, 1], np.float32)
    return _Instance((x1, y1, x2, y2), colour, label, mask, joints)


def _draw(image: Image, instances: list[_Instance], skeleton: Skeleton | None, labels: bool, scale: int) -> Image:
    """Masks, boxes, joints and labels, in this order; large objects below small ones."""
    picture = np.ascontiguousarray(image) if scale == 1 else cv2.resize(image, None, fx=scale, fy=scale)
    picture = picture.copy() if picture is image else picture
    thickness = max(1, round(min(picture.shape[:2]) / 400))
    by_area = sorted(instances, key=lambda o: (o.box[0] - o.box[2]) * (o.box[3] - o.box[1]))
    for instance in by_area:
        if instance.mask is not None:
            _blend_mask(picture, instance.mask, instance.colour, thickness)
    for instance in by_area:
        _draw_box(picture, instance.box, instance.colour, 1 if instance.mask is not None else thickness)
        if instance.joints is not None:
            _draw_joints(picture, instance.joints, instance.colour, skeleton, thickness)
    if labels:
        _draw_labels(picture, instances)
    return picture


def _blend_mask(picture: Image, mask: tuple[np.ndarray, int, int], colour: Colour, thickness: int) -> None:
    pixels, x, y = mask
    region = picture[y : y + pixels.shape[0], x : x + pixels.shape[1]]
    ramp = np.arange(256, dtype=np.float32)[:, None] * (1 - MASK_OPACITY)
    table = (ramp + np.array(colour, np.float32) * MASK_OPACITY).astype(np.uint8).reshape(1, 256, 3)
    cv2.copyTo(cv2.LUT(region, table), pixels, region)
    contours, _ = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(region, contours, -1, colour, thickness)


def _draw_box(picture: Image, box: tuple[int, int, int, int], colour: Colour, thickness: int) -> None:
    x1, y1, x2, y2 = box
    inside = picture[y1:y2, x1:x2]  # a view: the lines grow inwards and cannot leave the box
    for edge in (inside[:thickness], inside[-thickness:], inside[:, :thickness], inside[:, -thickness:]):
        edge[:] = colour


def _draw_joints(picture: Image, joints: np.ndarray, colour: Colour, skeleton: Skeleton | None, thickness: int) -> None:
    points = [(int(x), int(y)) for x, y in np.floor(joints[:, :2])]
    shown = joints[:, 2] > 0
    side = sides(skeleton) if skeleton is not None else ("middle",) * len(points)
    colours = {**SIDE_COLOURS, "middle": colour}
    for a, b in skeleton.limbs if skeleton is not None else ():
        if shown[a] and shown[b]:
            both = {side[a], side[b]} - {"middle"}
            limb = colours[both.pop() if len(both) == 1 else "middle"]
            cv2.line(picture, points[a], points[b], limb, thickness + 1, cv2.LINE_AA)
    for point, show, own in zip(points, shown, side, strict=True):
        if show:
            cv2.circle(picture, point, thickness + 2, (255, 255, 255), -1, cv2.LINE_AA)
            cv2.circle(picture, point, thickness + 1, colours[own], -1, cv2.LINE_AA)


def _draw_labels(picture: Image, instances: list[_Instance]) -> None:
    """Write each label beside its box where no other label stands; best-scored objects come first and choose first.

    A label that finds no free place is left out: text over text cannot be read, and the box still shows its colour.
    """
    height, width = picture.shape[:2]
    taken = np.zeros((height, width), bool)
    for instance in instances:
        if not instance.label:
            continue
        tag = _tag(instance.label, instance.colour)
        h, w = tag.shape[:2]
        if h > height or w > width:
            continue
        x1, y1, x2, y2 = instance.box
        for x, y in ((x1, y1 - h), (x1, y1), (x2 - w, y1 - h), (x1, y2 - h), (x1, y2)):
            x = min(max(x, 0), width - w)
            if 0 <= y <= height - h and not taken[y : y + h, x : x + w].any():
                taken[y : y + h, x : x + w] = True
                picture[y : y + h, x : x + w] = tag
                break


@lru_cache(maxsize=1024)
def _tag(text: str, colour: Colour) -> Image:
    """Text on a plate of the object's colour, black or white, whichever can be read."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, 0.42
    (w, h), below = cv2.getTextSize(text, font, size, 1)
    tag = np.full((h + below + 4, w + 6, 3), colour, np.uint8)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    ink = (0, 0, 0) if bright else (255, 255, 255)
    cv2.putText(tag, text, (3, h + 2), font, size, ink, 1, cv2.LINE_AA)
    return tag
