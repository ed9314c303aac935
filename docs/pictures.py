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
from toolbox.data import Sample, Shapes, View, apply_view
from toolbox.data.transforms import HorizontalFlip, RandomCrop, ScaleJitter
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


def augmentations(count: int = 3) -> np.ndarray:
    """One image with masks and joints, and how training may see it: by ScaleJitter in the middle, a crop below.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    shapes = Shapes(length=12, seed=3, height=160, width=208, keypoints=True)
    flip = HorizontalFlip()
    ways = {
        "ScaleJitter": ScaleJitter(height=160, width=208, min_scale=0.4, max_scale=2.0),
        "RandomCrop": RandomCrop(height=112, width=144),
    }
    pictures = [captioned(_drawn(shapes, shapes.load(index)), "as it is") for index in range(count)]
    for row, (name, transform) in enumerate(ways.items()):
        for index in range(count):
            sample = shapes.load(index)
            rng = np.random.default_rng([row, index])
            view = transform(flip(View(*sample.image.shape[:2]), rng), rng)
            seen = apply_view(sample, view, skeleton=shapes.skeleton)
            pictures.append(captioned(_drawn(shapes, seen), name))
    return grid(pictures, count)


def _drawn(shapes: Shapes, sample: Sample) -> np.ndarray:
    return draw_sample(sample, shapes.classes, skeleton=shapes.skeleton, labels=False)


def main(run: str) -> None:
    """Write every picture, as a PNG of few colours."""
    FOLDER.mkdir(exist_ok=True)
    for name, picture in {"detections": detections(run), "augmentations": augmentations()}.items():
        image = PIL.Image.fromarray(picture).quantize(COLOURS, dither=PIL.Image.Dither.NONE)
        image.save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
