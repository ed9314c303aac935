"""Samples by their keys, augmented and resized, and what a worker hands over: whole batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from toolbox.data.batching import Key
from toolbox.data.cache import SampleCache
from toolbox.data.composition import in_order
from toolbox.data.geometry import apply_view, scaling
from toolbox.data.interfaces import Dataset, Sample, Transform, View, channels_of
from toolbox.data.packing import PackedBatch, packed
from toolbox.data.resize import Resize
from toolbox.data.watch import Watch, blamed
from toolbox.errors import DataError, ToolboxError, counted
from toolbox.masks import InstanceMasks
from toolbox.plugins import Loaded
from toolbox.structures import Batch, Targets


def seen_samples(
    dataset: Dataset,
    keys: Iterable[Key],
    *,
    resize: Resize | None,
    transforms: Sequence[Transform] | None,
    seed: int,
    min_visible: float = 0.1,
) -> Iterator[Sample]:
    """Single images as a loader's batches hold them, one by one.

    Args:
        dataset: images and objects.
        keys: which appearances of which images.
        resize: network size; None keeps the image's own.
        transforms: augmentations in order; None for what evaluation sees.
        seed: of augmentation.
        min_visible: see `training_loader`.
    """
    source = Source(dataset, resize, None if transforms is None else tuple(transforms), seed, min_visible)
    return (source[key] for key in keys)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples to a batch: images as tensors, objects padded to the most in an image (none at all gives G = 0)."""
    counts = [len(sample) for sample in samples]
    shape = (len(samples), max(counts, default=0))

    def padded(arrays: Sequence[np.ndarray], dtype: torch.dtype) -> torch.Tensor:
        out = torch.zeros((*shape, *arrays[0].shape[1:]), dtype=dtype)
        for row, array in zip(out, arrays, strict=True):
            row[: len(array)] = torch.from_numpy(np.ascontiguousarray(array))
        return out

    keypoints = [sample.keypoints for sample in samples if sample.keypoints is not None]
    masks = [sample.masks for sample in samples if sample.masks is not None]
    targets = Targets(
        boxes=padded([sample.boxes for sample in samples], torch.float32),
        labels=padded([sample.labels for sample in samples], torch.int64),
        valid=padded([np.ones(count, dtype=bool) for count in counts], torch.bool),
        crowd=padded([sample.crowd for sample in samples], torch.bool),
        area=padded([sample.area for sample in samples], torch.float32),
        keypoints=padded(keypoints, torch.float32) if len(keypoints) == len(samples) else None,
        masks=InstanceMasks(masks) if len(masks) == len(samples) else None,
    )
    return Batch(
        # Seen as (C, h, w) and left as they lie: a copy with channels outermost costs as much as decoding, and the
        # batch that the model makes of them is channels-last as they are.
        images=[torch.from_numpy(np.ascontiguousarray(sample.image)).permute(2, 0, 1) for sample in samples],
        original_sizes=[sample.original_size or sample.image.shape[:2] for sample in samples],
        image_ids=[sample.image_id for sample in samples],
        targets=targets,
    )


class Source(torch.utils.data.Dataset[Any]):
    """Loads whole batches by their keys; `transforms` is None in evaluation."""

    def __init__(
        self,
        dataset: Dataset,
        resize: Resize | None,
        transforms: tuple[Transform, ...] | None,
        seed: int,
        min_visible: float,
        workers: int = 0,
        cache: int = 0,
    ) -> None:
        self.dataset = dataset
        self.resize = resize
        self.transforms = transforms
        self.seed = seed
        self.min_visible = min_visible
        self.watch = Watch(workers)
        self.cache = SampleCache(len(dataset), cache, workers) if cache else None

    def __reduce__(self) -> tuple[Any, ...]:
        # The plugins come first, as pickle reads in order: the data set or a transform may be of one.
        return _restored, (Loaded(), vars(self))

    def __getitem__(self, key: Key) -> Sample:
        sample = self.load(key.image)
        view = _view_of(sample)
        if self.transforms is None:
            view = _resized(view, self.resize, None)
        else:
            rng = np.random.default_rng([self.seed, *key])
            view = _resized(replace(view, another=partial(self.another, key.image)), self.resize, rng)
            view = in_order(view, self.transforms, rng)
        method = "cv2" if self.resize is None else self.resize.method
        skeleton = self.dataset.skeleton
        return apply_view(sample, view, skeleton=skeleton, method=method, min_visible=self.min_visible)

    def load(self, index: int) -> Sample:
        """An image as the data set gives it."""
        self.watch.at(index)
        kept = None if self.cache is None else self.cache.get(index)
        if kept is not None:
            return kept
        sample = self.dataset.load(index)
        _check_channels(sample, self.dataset)
        if self.cache is not None:
            self.cache.put(index, sample)
        return sample

    def another(self, index: int, rng: np.random.Generator) -> View:
        """An image other than `index`, where there is one, brought to network size by draws of its own."""
        others = len(self.dataset) - 1
        drawn = int(rng.integers(others)) if others else index
        sample = self.load(drawn + (drawn >= index and others > 0))
        return _resized(_view_of(sample), self.resize, rng)

    def __getitems__(self, keys: list[Key]) -> Batch | PackedBatch | ToolboxError:
        try:
            batch = collate([self._made(key) for key in keys])
            return batch if torch.utils.data.get_worker_info() is None else packed(batch)
        except ToolboxError as error:
            return error
        finally:
            self.watch.at()

    def _made(self, key: Key) -> Sample:
        try:
            return self[key]
        except ToolboxError:
            raise
        except Exception as error:
            blame = blamed(error, key.image, self.dataset)
            if blame is None or torch.utils.data.get_worker_info() is None:
                error.add_note(f"loading image number {key.image} of {type(self.dataset).__name__}")
                raise
            raise blame from error


def _check_channels(sample: Sample, dataset: Dataset) -> None:
    there, said = sample.image.shape[2], channels_of(dataset)
    if there != said:
        raise DataError(
            f"image {sample.image_id}: {type(dataset).__name__} gives {counted(there, 'channel')}, "
            f"but its 'channels' says {said}; set the attribute 'channels' of the data set to {there}, "
            f"or give images of {said}"
        )


def _restored(_: Loaded, state: dict[str, Any]) -> Source:
    source = Source.__new__(Source)
    vars(source).update(state)
    return source


def _view_of(sample: Sample) -> View:
    height, width = sample.image.shape[:2]
    return View(height, width, sample=sample)


def _resized(view: View, resize: Resize | None, rng: np.random.Generator | None) -> View:
    if resize is None:
        return view
    short = None if rng is None else resize.draw_short(rng)
    height, width = resize.size(view.height, view.width, short)
    return view.moved(scaling(height / view.height, width / view.width), height, width)
