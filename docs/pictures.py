"""Make the pictures of the README and the guides, from what the toolbox itself generates and trains.

make quickstart                            # trains the model that the first picture needs
python docs/pictures.py runs/quickstart    # writes docs/pictures/*.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import PIL.Image

import toolbox
from toolbox.data import Sample, Shapes, Transform, View, apply_view
from toolbox.data.batching import Key
from toolbox.data.copy_paste import CopyPaste
from toolbox.data.source import seen_samples
from toolbox.data.transforms import HorizontalFlip, MinIoUCrop, ScaleJitter
from toolbox.data.turns import RandomRotation
from toolbox.visualize import captioned, draw_detections, draw_sample, grid

FOLDER = Path(__file__).parent / "pictures"
COLOURS = 128  # of a palette: what keeps a picture below 150 kB


def detections(run: str, count: int = 3) -> np.ndarray:
    """Annotated above, detected below: the first images of the quickstart's validation set, which it never trained on.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    images = Shapes(length=100, seed=1, difficulty="easy")
    samples = [images.load(index) for index in range(count)]
    predictor = toolbox.Predictor(run)
    found = predictor([sample.image for sample in samples])
    truth = [captioned(draw_sample(sample, images.classes, scale=2), "annotated") for sample in samples]
    guesses = [
        captioned(draw_detections(sample.image, one, predictor.classes, scale=2), "detected, score >= 0.5")
        for sample, one in zip(samples, found, strict=True)
    ]
    return grid([*truth, *guesses], count)


def augmentations(count: int = 2) -> np.ndarray:
    """Images with masks and joints as they are, and beside them how training may see them by one transform each.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    shapes = _shapes()
    ways = {
        "ScaleJitter": ScaleJitter(height=160, width=208, min_scale=0.4, max_scale=2.0),
        "RandomRotation": RandomRotation(degrees=30.0),
        "MinIoUCrop": MinIoUCrop(overlaps=(0.1, 0.3)),
    }
    flip = HorizontalFlip()
    pictures = []
    for index in range(count):
        pictures.append(captioned(_drawn(shapes, shapes.load(index)), "as it is"))
        for column, (name, transform) in enumerate(ways.items()):
            seen = _seen(shapes, index, [flip, transform], seed=10 * column + index + 4)
            pictures.append(captioned(_drawn(shapes, seen), name))
    return grid(pictures, 1 + len(ways))


def pasting(count: int = 2) -> np.ndarray:
    """Jittered images, others jittered on their own, and objects of these pasted over the first.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    shapes = Shapes(length=12, seed=3, height=160, width=208)
    jitter = ScaleJitter(height=160, width=208, min_scale=0.7, max_scale=1.6)
    pictures = []
    for index in range(count):
        looking = _Looking()
        below = _seen(shapes, index, [jitter, looking], seed=6)
        assert looking.other is not None and looking.other.sample is not None
        other = apply_view(looking.other.sample, looking.other, skeleton=shapes.skeleton)
        pasted = _seen(shapes, index, [jitter, CopyPaste(max_objects=3)], seed=6)
        for name, sample in {"an image, jittered": below, "another": other, "CopyPaste": pasted}.items():
            pictures.append(captioned(_drawn(shapes, sample), name))
    return grid(pictures, 3)


class _Looking:
    """Draws another image as CopyPaste would, and keeps it instead."""

    def __init__(self) -> None:
        self.other: View | None = None

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        rng.random()
        assert view.another is not None
        self.other = view.another(rng)
        return view


def _shapes() -> Shapes:
    return Shapes(length=12, seed=3, height=160, width=208, keypoints=True)


def _seen(shapes: Shapes, index: int, transforms: list[Transform], *, seed: int) -> Sample:
    """An image as training would see it."""
    key = Key(0, index)
    return next(seen_samples(shapes, [key], resize=None, transforms=transforms, seed=seed))


def _drawn(shapes: Shapes, sample: Sample) -> np.ndarray:
    return draw_sample(sample, shapes.classes, skeleton=shapes.skeleton, labels=False)


def main(run: str) -> None:
    """Write every picture, as a PNG of few colours."""
    FOLDER.mkdir(exist_ok=True)
    pictures = {"detections": detections(run), "augmentations": augmentations(), "pasting": pasting()}
    for name, picture in pictures.items():
        image = PIL.Image.fromarray(picture).quantize(COLOURS, dither=PIL.Image.Dither.NONE)
        image.save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
