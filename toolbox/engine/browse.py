"""Pictures of a data set as the model gets it: augmented, with boxes, masks, joints and class names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from toolbox.data.batching import Key, epoch_order
from toolbox.data.interfaces import Dataset, Sample
from toolbox.data.source import seen_samples
from toolbox.engine.channels import check_channels
from toolbox.engine.datasets import open_dataset, placed, sampling_of
from toolbox.engine.progress import counted
from toolbox.errors import DataError, did_you_mean
from toolbox.inference.pictures import write_picture
from toolbox.schema import Config
from toolbox.visualize import captioned, draw_sample, grid, picture_scale

SHEET = "sheet.jpg"
_CELL = 480  # longest side of a picture on the sheet
_COLUMNS = 4


@dataclass(frozen=True)
class Wanted:
    """Which pictures to draw.

    Attributes:
        split: `train`, as training sees it, or `val`, as evaluation does.
        count: most pictures.
        epoch: of training; the same image is augmented otherwise in each.
        image: id of the only image to draw, in `count` epochs from `epoch` on; None for many images.
        holding: name of a class that must be in a picture; None for any.
        raw: images and objects as the data set has them, at their own size.
    """

    split: Literal["train", "val"] = "train"
    count: int = 16
    epoch: int = 0
    image: int | None = None
    holding: str | None = None
    raw: bool = False


@dataclass
class Drawn:
    """What was drawn.

    Attributes:
        files: a picture each.
        sheet: the picture of all.
        objects: drawn, by class name.
    """

    files: list[Path] = field(default_factory=list)
    sheet: Path | None = None
    objects: Counter[str] = field(default_factory=Counter)


def browse(config: Config, wanted: Wanted, folder: Path) -> Drawn:
    """Draw images of a config's data set; the same ones each time.

    Those of `train` come in the order of the epoch, before wide and tall ones are put into different batches.

    Raises:
        ToolboxError: the data set or an image cannot be read, or there is no such image or class.
    """
    dataset = open_dataset(config, wanted.split)
    if wanted.split == "train":
        check_channels(config, dataset)
    if wanted.holding is not None and wanted.holding not in dataset.classes:
        known = ", ".join(dataset.classes)
        near = did_you_mean(wanted.holding, dataset.classes)
        raise DataError(f"data.{wanted.split} has no class '{wanted.holding}'{near} (classes: {known})")
    drawn, pictures = Drawn(), []
    with placed(getattr(config.data, wanted.split)):
        for key, sample in _chosen(config, dataset, wanted):
            height, width = sample.image.shape[:2]
            scale = picture_scale(height, width, target=384)
            picture = draw_sample(sample, dataset.classes, skeleton=dataset.skeleton, scale=scale)
            epoch = f", epoch {key.epoch}" if wanted.split == "train" and not wanted.raw else ""
            repeat = f".{key.repeat}" if key.repeat else ""
            text = f"image {sample.image_id}{epoch}{repeat}: {width} x {height}, {counted(len(sample), 'object')}"
            pictures.append(_fitted(captioned(picture, text)))
            name = f"{len(pictures):03}_image_{sample.image_id}_epoch_{key.epoch}.jpg"
            drawn.files.append(write_picture(folder / name, captioned(picture, text)))
            drawn.objects.update(dataset.classes[label] for label in sample.labels[~sample.crowd])
    if pictures:
        drawn.sheet = write_picture(folder / SHEET, grid(pictures, _COLUMNS))
    return drawn


def _chosen(config: Config, dataset: Dataset, wanted: Wanted) -> Iterator[tuple[Key, Sample]]:
    """The samples to draw, each with what it depends on."""
    keys = list(_keys(config, dataset, wanted))
    data = config.data
    samples: Iterable[Sample]
    if wanted.raw:
        samples = (dataset.load(key.image) for key in keys)
    else:
        samples = seen_samples(
            dataset,
            keys,
            resize=data.resize,
            transforms=[plan.build() for plan in data.transforms] if wanted.split == "train" else None,
            seed=config.train.seed,
            min_visible=data.min_visible if wanted.split == "train" else 0.0,
        )
    found = 0
    for key, sample in zip(keys, samples, strict=True):
        names = {dataset.classes[label] for label in sample.labels}
        if wanted.holding is None or wanted.holding in names:
            found += 1
            yield key, sample
        if found == wanted.count:
            return


def _keys(config: Config, dataset: Dataset, wanted: Wanted) -> Iterator[Key]:
    if wanted.image is not None:
        index = _index_of(dataset, wanted.image, wanted.split)
        changes = wanted.split == "train" and not wanted.raw
        return (Key(wanted.epoch + turn, index) for turn in range(wanted.count if changes else 1))
    if wanted.split == "val" or wanted.raw:
        return (Key(wanted.epoch, index) for index in range(len(dataset)))
    sampling = sampling_of(config, dataset)
    counts = np.ones(len(dataset), np.int64) if sampling is None else sampling.counts(wanted.epoch)
    return (Key(*key) for key in epoch_order(counts, config.train.seed, wanted.epoch).tolist())


def _index_of(dataset: Dataset, image: int, split: str) -> int:
    """The index of an image id; a data set need not list its ground truth in the order of its images."""
    ids = [record["id"] for record in dataset.ground_truth()["images"]]
    if image not in ids:
        raise DataError(f"data.{split} has no image {image}; its ids are {min(ids)} to {max(ids)}")
    guess = ids.index(image)
    order = sorted(range(len(dataset)), key=lambda index: index != guess)
    return next(index for index in order if dataset.load(index).image_id == image)


def _fitted(picture: np.ndarray) -> np.ndarray:
    """A picture shrunk so that it fits a cell of the sheet."""
    factor = _CELL / max(picture.shape[:2])
    return picture if factor >= 1 else cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
