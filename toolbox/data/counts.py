"""How many objects of each class a data set holds, for those who look before they train."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolbox.data.coco import CocoDataset
from toolbox.data.interfaces import Dataset
from toolbox.errors import DataError


@dataclass(frozen=True)
class ObjectCounts:
    """Objects by class; crowds are none.

    Attributes:
        images: how many images were counted, from the first.
        objects: (K,) int64.
    """

    images: int
    objects: np.ndarray


def count_objects(dataset: Dataset, most: int = 100) -> ObjectCounts:
    """Count the objects of a data set.

    Args:
        most: images to load where the data set has no index to count in.

    Raises:
        DataError: an image cannot be loaded.
    """
    classes = len(dataset.classes)
    if isinstance(dataset, CocoDataset):
        labels = dataset.index.labels[~dataset.index.crowd]
        return ObjectCounts(len(dataset), np.bincount(labels, minlength=classes))
    images = min(len(dataset), most)
    objects = np.zeros(classes, dtype=np.int64)
    for index in range(images):
        sample = dataset.load(index)
        objects += np.bincount(sample.labels[~sample.crowd], minlength=classes)
    return ObjectCounts(images, objects)


def labels_by_image(dataset: Dataset) -> list[np.ndarray]:
    """Per image, the labels of its objects (crowds are none), without loading it.

    Raises:
        DataError: the data set cannot tell.
    """
    labels = getattr(dataset, "labels", None)
    if labels is None:
        name = type(dataset).__name__
        raise DataError(
            f"{name} does not say which classes are in an image, and data.repeat_factors and data.negatives choose by "
            "them; give it a method 'labels(self, index)' that returns the labels of an image's objects as an array "
            "(0, 1, …, no crowds; empty for one without objects) and reads no pixels, or leave both settings out"
        )
    return [np.asarray(labels(index), dtype=np.int64).reshape(-1) for index in range(len(dataset))]
