"""How `Shapes` draws: outlines and joints of its classes, and what a difficulty looks like."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np

from toolbox.masks import PolygonMask
from toolbox.structures import Skeleton

_TAU = 2 * np.pi

SKELETON = Skeleton(
    names=("tip", "left", "right", "tail"),
    pairs=((1, 2),),
    limbs=((0, 1), (1, 3), (3, 2), (2, 0)),
    sigmas=(0.05, 0.05, 0.05, 0.05),
)


def _ring(corners: int, radii: tuple[float, ...] = (1.0,)) -> np.ndarray:
    """Vertices (V, 2) around the origin, the first on +x, their radii in turn."""
    angles = np.arange(corners) / corners * _TAU
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.resize(radii, corners)[:, None]


def _arc(radius: float, degrees: float, centre: float = 0.0) -> np.ndarray:
    """Points (33, 2) around (centre, 0), from −degrees to +degrees about the direction of +x."""
    angles = np.radians(np.linspace(-degrees, degrees, 33))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius + (centre, 0)


def _both_sides(*half: tuple[float, float]) -> np.ndarray:
    """An outline from its half with y ≥ 0, in order from the tip."""
    points = np.array(half)
    return np.concatenate([points, points[::-1] * (1, -1)])


# In a shape's own frame the tip looks along +x, left is −y and the circumcircle has radius 1. All are symmetric about
# the axis through the tip: a mirrored shape is the same shape with left and right exchanged.
OUTLINES: dict[str, np.ndarray] = {
    "circle": _ring(48),
    "square": _ring(4),
    "triangle": _ring(3),
    "star": _ring(10, (1.0, 0.45)),
    "cross": _both_sides((1, 0.2), (0.2, 0.2), (0.2, 0.98), (-0.2, 0.98), (-0.2, 0.2), (-1, 0.2)),
    "arrow": _both_sides((1, 0), (0.1, 0.8), (0.1, 0.2), (-0.98, 0.2)),
    "horseshoe": np.concatenate([_arc(1.0, 130), _arc(0.6, 130)[::-1]]),
    "moon": np.concatenate([_arc(1.0, 115), _arc(0.907, 88.2, centre=-0.45)[::-1]]),
}
PLAIN = ("circle", "square", "triangle", "star")  # the others are thin or hollow
_JOINTS: dict[str, np.ndarray] = {  # (4, 2): tip, left, right, tail
    "circle": _ring(48)[[0, 36, 12, 24]],
    "square": _ring(4)[[0, 3, 1, 2]],
    "triangle": np.concatenate([_ring(3)[[0, 2, 1]], [[-0.5, 0.0]]]),
    "star": _ring(10, (1.0, 0.45))[[0, 8, 2, 5]],
    "cross": np.array([[1, 0], [0, -0.98], [0, 0.98], [-1, 0]]),
    "arrow": np.array([[1, 0], [0.1, -0.8], [0.1, 0.8], [-0.98, 0]]),
    "horseshoe": np.concatenate([[[1.0, 0.0]], _arc(0.8, 130)[[0, -1]], [[0.6, 0.0]]]),
    "moon": np.concatenate([[[1.0, 0.0]], _arc(1.0, 115)[[0, -1]], [[0.457, 0.0]]]),
}
_MARK = np.array([[0.1, -0.09], [0.75, -0.09], [0.75, 0.09], [0.1, 0.09]])
RADIUS = {  # makes their areas alike
    **{"circle": 1.0, "square": 1.2, "triangle": 1.4, "star": 1.35},
    **{"cross": 1.4, "arrow": 1.5, "horseshoe": 1.4, "moon": 1.5},
}


@dataclass(frozen=True)
class Look:
    """What a difficulty means.

    Attributes:
        radius: smallest and largest, as a part of the image's shorter side.
        noise: standard deviation of pixel noise, in grey levels.
        relief: the same of the background's slow texture.
        contrast: least distance between a shape's colour and the background's, mean over channels, in grey levels.
        hinted: each class keeps to a range of hues of its own.
        margin: how much of a shape may lie outside the image, in radii.
        clutter: lines on the background.
    """

    radius: tuple[float, float]
    noise: float
    relief: float
    contrast: float
    hinted: bool
    margin: float
    clutter: int


LOOKS: dict[str, Look] = {
    "easy": Look((0.13, 0.22), noise=6, relief=12, contrast=60, hinted=True, margin=0.0, clutter=0),
    "medium": Look((0.10, 0.22), noise=10, relief=20, contrast=50, hinted=False, margin=0.4, clutter=3),
    "hard": Look((0.06, 0.20), noise=16, relief=30, contrast=30, hinted=False, margin=0.8, clutter=10),
}


@dataclass(frozen=True)
class Placed:
    """A shape in an image.

    Attributes:
        outline: (V, 2) in pixels.
        joints: (4, 2) in pixels.
        mark: (4, 2), the stripe that shows where the tip is.
        area: of the whole outline, in pixels.
        window: x1 y1 x2 y2, whole pixels around the part inside the image; it may be empty.
    """

    outline: np.ndarray
    joints: np.ndarray
    mark: np.ndarray
    area: float
    window: tuple[int, int, int, int]

    @classmethod
    def at(cls, name: str, centre: tuple[float, float], radius: float, turn: float, height: int, width: int) -> Placed:
        """Turn (radians) and scale a class's outline to a place in an image."""
        axis = radius * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        outline, joints, mark = (points @ axis + centre for points in (OUTLINES[name], _JOINTS[name], _MARK))
        x, y = outline.T
        area = abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
        x1, y1 = np.floor(outline.min(axis=0)).clip(0, (width, height)).astype(int)
        x2, y2 = np.ceil(outline.max(axis=0)).clip(0, (width, height)).astype(int)
        return cls(outline, joints, mark, area, (int(x1), int(y1), int(x2), int(y2)))

    def covers(self, points: np.ndarray) -> np.ndarray:
        """(h, w) bool over the window: pixels whose centre lies in the polygon `points`."""
        x1, y1, x2, y2 = self.window
        inside = np.zeros((y2 - y1, x2 - x1), dtype=np.uint8)
        if inside.size:
            PolygonMask([points]).fill(self.window, inside)
        return inside.astype(bool)

    def visible_joints(self, owner: np.ndarray, number: int) -> np.ndarray:
        """(4, 3), x y visibility: 2 where shape `number` is seen at the joint, 1 where covered, all 0 outside."""
        rows = np.zeros((len(self.joints), 3), dtype=np.float32)
        for row, (x, y) in zip(rows, self.joints, strict=True):
            if 0 <= x < owner.shape[1] and 0 <= y < owner.shape[0]:
                # Joints lie on the outline, so the pixel itself is as often as not a neighbour's.
                around = owner[max(0, int(y) - 1) : int(y) + 2, max(0, int(x) - 1) : int(x) + 2]
                row[:] = x, y, 2 if (around == number).any() else 1
        return rows


def background(height: int, width: int, look: Look, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture (h, w, 3) float32 with slow texture and clutter, and its mean colour (3,)."""
    colour = np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.4), rng.uniform(0.15, 0.85))) * 255
    coarse = rng.normal(0, look.relief, (height // 16 + 2, width // 16 + 2, 3)).astype(np.float32)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + colour.astype(np.float32)
    for x1, y1, x2, y2 in rng.integers(0, (width, height, width, height), (look.clutter, 4)).tolist():
        shade = colour + rng.uniform(-60, 60, 3)
        cv2.line(picture, (x1, y1), (x2, y2), shade.tolist(), int(rng.integers(1, 4)))
    return picture, colour


def shape_colour(label: int, classes: int, ground: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """A colour (3,) that stands off the background."""
    best, best_distance = ground, -1.0
    for _ in range(8):
        hue = (label + rng.uniform(0.1, 0.9)) / classes if look.hinted else rng.random()
        colour = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.5, 1.0), rng.uniform(0.3, 1.0))) * 255
        distance = float(np.abs(colour - ground).mean())
        if distance >= look.contrast:
            return colour
        if distance > best_distance:
            best, best_distance = colour, distance
    return best


def paint(
    picture: np.ndarray,
    owner: np.ndarray,
    number: int,
    shape: Placed,
    colour: np.ndarray,
    *,
    marked: bool,
    rng: np.random.Generator,
) -> None:
    """Draw a softly striped shape over `picture` (h, w, 3) float32, and enter `number` in `owner` (h, w) uint8."""
    x1, y1, x2, y2 = shape.window
    inside = shape.covers(shape.outline)
    angle, period, phase = rng.uniform(0, _TAU), rng.uniform(4, 16), rng.uniform(0, _TAU)
    waves = np.arange(x1, x2) * np.cos(angle) + np.arange(y1, y2)[:, None] * np.sin(angle)
    stripes = rng.uniform(5, 30) * np.sin(waves * (_TAU / period) + phase)
    picture[y1:y2, x1:x2][inside] = colour + stripes[inside][:, None]
    owner[y1:y2, x1:x2][inside] = number
    if marked:
        contrary = 0.0 if colour.mean() > 110 else 255.0
        picture[y1:y2, x1:x2][inside & shape.covers(shape.mark)] = contrary
