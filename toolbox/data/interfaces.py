"""What data sets and augmentations look like: the page to read before writing one.

Arrays are numpy on the host; G objects in an image, J joints. Boxes are float32 x1 y1 x2 y2 in pixels, pixel i covers
[i, i + 1). Matrices are (2, 3) float64, act on column vectors (x, y, 1) and map source pixels to target pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from toolbox.masks import Mask
from toolbox.registry import DATASETS, TRANSFORMS
from toolbox.structures import Skeleton

PixelEdit = Callable[[np.ndarray], np.ndarray]
Another = Callable[[np.random.Generator], "View"]

IMAGENET_GREY: tuple[int, ...] = (124, 116, 104)  # close to zero once normalised


@dataclass
class Sample:
    """One image with its objects.

    Attributes:
        image: (h, w, C) uint8; RGB unless the data set says another number of `channels`.
        boxes: (G, 4) float32.
        labels: (G,) int64, 0 … K-1.
        crowd: (G,) bool, regions that hold several objects.
        area: (G,) float32, object area in pixels of `image`.
        masks: G masks, or None when the data set has none.
        keypoints: (G, J, 3) float32, x y visibility, or None when the data set has none.
        image_id: the data set's id.
        original_size: height and width before resizing; None while `image` has its own size.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    area: np.ndarray
    masks: list[Mask] | None = None
    keypoints: np.ndarray | None = None
    image_id: int = 0
    original_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.dtype != np.uint8:
            raise ValueError(f"image is (h, w, C) uint8, not {self.image.shape} {self.image.dtype}")
        count = len(self.boxes)
        for name in ("labels", "crowd", "area", "masks", "keypoints"):
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise ValueError(f"{name} has {len(value)} entries for {count} boxes")

    def __len__(self) -> int:
        return len(self.boxes)


@DATASETS.interface
class Dataset(Protocol):
    """Images with objects: `__init__(*, settings…)`.

    It is copied to the loader's workers, so it must pickle, and it keeps no random state: `load(i)` is the same each
    time.
    """

    classes: tuple[str, ...]  # label → name
    category_ids: tuple[int, ...]  # label → id in the data set's own files
    skeleton: Skeleton | None
    # channels: int, of its images, where they are not RGB
    # labels(index) -> np.ndarray: of the objects of an image but its crowds, where that is known without loading it

    def __len__(self) -> int: ...

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, without decoding it."""
        ...

    def load(self, index: int) -> Sample:
        """One image with its objects."""
        ...

    def ground_truth(self) -> dict[str, Any]:
        """All objects as a COCO dict, for the evaluator; category and image ids are the original ones."""
        ...


def channels_of(dataset: Any) -> int:
    """Channels of a data set's images; one that does not say has RGB."""
    return getattr(dataset, "channels", 3)


@dataclass(frozen=True)
class View:
    """How an image will be seen: one map from its pixels to a canvas, then edits of the canvas's colours.

    Augmentations add to it and nothing is computed until `apply_view` reads the pixels once.

    Attributes:
        height: of the canvas.
        width: of the canvas.
        matrix: (2, 3), source pixels to canvas pixels.
        fill: value of each channel where the canvas lies outside the image; three are repeated in turn for more
            channels, and averaged for one.
        edits: applied to the canvas in order, each (h, w, C) uint8 to the same.
        sample: the image and its objects as the data set gives them, for those who must look (`boxes_on` says where
            the objects are now); None where nobody knows.
        another: draws another image of the data set, as seen after the transforms so far; None where there is none.
        layers: objects of other images, pasted in order.
    """

    height: int
    width: int
    matrix: np.ndarray = field(default_factory=lambda: np.eye(2, 3))
    fill: tuple[int, ...] = IMAGENET_GREY
    edits: tuple[PixelEdit, ...] = ()
    sample: Sample | None = None
    another: Another | None = None
    layers: tuple[Layer, ...] = ()

    def moved(self, matrix: np.ndarray, height: int, width: int, *, fill: tuple[int, ...] | None = None) -> View:
        """Follow the map so far with `matrix`, onto a new canvas."""
        composed = matrix[:, :2] @ self.matrix
        composed[:, 2] += matrix[:, 2]
        layers = tuple(replace(layer, view=layer.view.moved(matrix, height, width)) for layer in self.layers)
        return replace(self, matrix=composed, height=height, width=width, fill=fill or self.fill, layers=layers)

    def edited(self, edit: PixelEdit) -> View:
        """Follow the edits so far with `edit`."""
        return replace(self, edits=(*self.edits, edit))

    def pasted(self, layer: Layer) -> View:
        """Put a layer over what is there, above the edits so far and below later ones."""
        return replace(self, layers=(*self.layers, replace(layer, above=len(self.edits))))


@dataclass(frozen=True)
class Layer:
    """Objects of another image, to be pasted over a view's canvas.

    Attributes:
        view: of the other image, onto the same canvas; all objects of its `sample` that this shows are pasted.
        sigma: standard deviation in pixels of the Gaussian that softens the pasted edges; 0 for hard ones.
        min_left: an object below is removed once less than this part of its mask shows.
        above: how many of the canvas's edits are done before.
    """

    view: View
    sigma: float = 0.0
    min_left: float = 0.0
    above: int = 0


@TRANSFORMS.interface
class Transform(Protocol):
    """A random augmentation: `__init__(*, settings…)`.

    It sees the view, not the pixels: it draws from `rng` and returns the view moved (geometry), edited (colours), with
    a layer of another image, or as it was. Boxes, masks and keypoints follow the view's map by themselves. One that can
    edit only images of some numbers of channels names them in an attribute `channels: tuple[int, ...]`; one that cannot
    do without `masks` or `keypoints` names them in `needs: tuple[str, ...]`.
    """

    def __call__(self, view: View, rng: np.random.Generator) -> View: ...
