"""Data sets, augmentations and loaders. Importing this registers the built-in data sets and transforms."""

from __future__ import annotations

from toolbox.data import photometry, transforms
from toolbox.data.coco import CocoDataset
from toolbox.data.geometry import apply_view
from toolbox.data.images import read_image
from toolbox.data.interfaces import Dataset, Sample, Transform, View
from toolbox.data.loader import Loader, evaluation_loader, training_loader
from toolbox.data.rendering import render
from toolbox.data.resize import Resize, resize_image, resized_size
from toolbox.data.shapes import Shapes
from toolbox.data.source import collate

__all__ = [
    "CocoDataset",
    "Dataset",
    "Loader",
    "Resize",
    "Sample",
    "Shapes",
    "Transform",
    "View",
    "apply_view",
    "collate",
    "evaluation_loader",
    "photometry",
    "read_image",
    "render",
    "resize_image",
    "resized_size",
    "training_loader",
    "transforms",
]
