"""Loaders: samples → augmented, resized, collated batches, the same for any number of workers and after any restart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from toolbox.data.batching import Key, global_batches
from toolbox.data.cache import SampleCache
from toolbox.data.composition import in_order
from toolbox.data.geometry import apply_view, scaling
from toolbox.data.interfaces import Dataset, Sample, Transform, View, channels_of
from toolbox.data.packing import PackedBatch, packed
from toolbox.data.resize import Resize
from toolbox.data.sampling import ImageSampling
from toolbox.data.watch import Watch, blamed, explained
from toolbox.data.worker import prepare_worker, signals_held_back
from toolbox.errors import DataError, ToolboxError, counted
from toolbox.masks import InstanceMasks
from toolbox.plugins import Loaded
from toolbox.structures import Batch, Targets


class Loader:
    """An iterable of batches. Each iteration starts at the same step and gives the same batches."""

    def __init__(self, loader: DataLoader[Any], steps: int | None) -> None:
        self._loader = loader
        self._steps = steps

    def __len__(self) -> int:
        if self._steps is None:
            raise TypeError("a training loader without 'steps' is endless")
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        with signals_held_back():  # until the workers, which start here, know what to do with them
            batches = iter(self._loader)
        watch: Watch = self._loader.dataset.watch  # type: ignore[attr-defined]
        if self._loader.num_workers:
            watch.listen()
        try:
            for batch in batches:
                # Workers hand wrong input over as a value: raised there, its message would be wrapped in the worker's
                # traceback.
                if isinstance(batch, ToolboxError):
                    raise batch
                yield batch.unpacked() if isinstance(batch, PackedBatch) else batch
        except RuntimeError as error:
            meaning = explained(error)
            if meaning is error:
                raise
            raise meaning from None
        finally:
            watch.end()


def training_loader(
    dataset: Dataset,
    *,
    resize: Resize | None,
    transforms: Sequence[Transform] = (),
    batch: int,
    micro_batch: int | None = None,
    seed: int,
    start_step: int = 0,
    steps: int | None = None,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    group_aspect: bool = True,
    min_visible: float = 0.1,
    pin_memory: bool = False,
    timeout: float = 0,
    cache: int = 0,
    sampling: ImageSampling | None = None,
) -> Loader:
    """Batches of augmented images in an order that depends on the seed alone.

    The images of a step are composed first, and then cut into micro-batches, which the ranks take in turn: a step has
    the same images, and the same micro-batches, for any number of ranks. Augmentation draws from a generator keyed by
    (seed, epoch, image index, which of its repeats), also which other image is pasted over one. So step `start_step`
    here is that of a run from 0.

    Args:
        dataset: images and objects.
        resize: network size, before the transforms; None keeps the image's own.
        transforms: augmentations in order.
        batch: images per step, over all ranks.
        micro_batch: images per batch that comes out; None for this rank's share of the step at once.
        seed: of order and augmentation.
        start_step: first step, after a restart.
        steps: last step + 1, counted from the start of the run; None for no end.
        workers: processes; 0 loads in this one.
        rank: of this process.
        world: number of processes.
        group_aspect: keep portrait and landscape images in different batches where possible.
        min_visible: an object keeps its place while at least this part of its box is on the canvas.
        pin_memory: for faster copies to a GPU.
        timeout: seconds to wait for a worker's batch before an error says where it is; 0 waits for ever.
        cache: bytes of memory for images that were loaded, shared by the workers; 0 for none.
        sampling: how often each image comes in an epoch; None for once.
    """
    if batch < 1 or not 0 <= rank < world:
        raise ValueError(f"batch is at least 1 and rank below world, not batch {batch}, rank {rank} of {world}")
    micro_batch = micro_batch or batch // world
    if micro_batch < 1 or batch % (micro_batch * world):
        raise ValueError(f"batch ({batch}) is not a multiple of micro_batch ({micro_batch}) times world ({world})")
    cuts = [slice(start, start + micro_batch) for start in range(rank * micro_batch, batch, micro_batch * world)]
    source = _Source(dataset, resize, tuple(transforms), seed, min_visible, workers, cache)
    batches = _TrainingBatches(dataset, batch, cuts, seed, start_step, steps, group_aspect, sampling)
    left = None if steps is None else max(0, steps - start_step) * len(cuts)
    return Loader(_data_loader(source, batches, workers, seed, pin_memory, timeout), left)


def evaluation_loader(
    dataset: Dataset,
    *,
    resize: Resize | None,
    batch: int = 1,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    pin_memory: bool = False,
    timeout: float = 0,
) -> Loader:
    """All images in order, each once, not augmented; ranks take turns by image, the last batch may be smaller."""
    if batch < 1 or not 0 <= rank < world:
        raise ValueError(f"batch is at least 1 and rank below world, not batch {batch}, rank {rank} of {world}")
    mine = range(rank, len(dataset), world)
    batches = [[Key(0, i) for i in mine[start : start + batch]] for start in range(0, len(mine), batch)]
    source = _Source(dataset, resize, None, 0, 0.0, workers)
    return Loader(_data_loader(source, batches, workers, 0, pin_memory, timeout), len(batches))


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
    source = _Source(dataset, resize, None if transforms is None else tuple(transforms), seed, min_visible)
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


class _Source(torch.utils.data.Dataset[Any]):
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


def _restored(_: Loaded, state: dict[str, Any]) -> _Source:
    source = _Source.__new__(_Source)
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


class _TrainingBatches:
    """The keys of this rank's micro-batches, step by step; `cuts` are its parts of a step's `batch` images."""

    def __init__(
        self,
        dataset: Dataset,
        batch: int,
        cuts: list[slice],
        seed: int,
        start_step: int,
        steps: int | None,
        group_aspect: bool,
        sampling: ImageSampling | None,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("the training data set has no images")
        sizes = np.array([dataset.size(i) for i in range(len(dataset))])
        self.upright = (sizes[:, 0] > sizes[:, 1]) & group_aspect
        self.seed = seed
        self.batch = batch
        self.cuts = cuts
        self.steps = (start_step, steps)
        self.counts = None if sampling is None else sampling.counts

    def __iter__(self) -> Iterator[list[Key]]:
        # Earlier steps are composed and thrown away: their order decides what is left for later ones, and costs
        # microseconds.
        for keys in islice(global_batches(self.upright, self.batch, self.seed, self.counts), *self.steps):
            yield from (keys[cut] for cut in self.cuts)


def _data_loader(
    source: _Source, batches: Any, workers: int, seed: int, pin_memory: bool, timeout: float
) -> DataLoader[Any]:
    return DataLoader(
        source,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=prepare_worker,
        pin_memory=pin_memory,
        timeout=timeout if workers else 0,
        # DataLoader draws a seed for its workers; from torch's global generator that would shift the model's
        # randomness.
        generator=torch.Generator().manual_seed(seed),
    )


def _as_it_is(batch: Any) -> Any:
    # `_Source.__getitems__` has collated it.
    return batch
