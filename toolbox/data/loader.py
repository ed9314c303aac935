"""Loaders: batches of images, the same for any number of workers and after any restart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from toolbox.data.batching import Key, global_batches
from toolbox.data.interfaces import Dataset, Transform
from toolbox.data.packing import PackedBatch
from toolbox.data.resize import Resize
from toolbox.data.sampling import ImageSampling
from toolbox.data.source import Source
from toolbox.data.watch import Watch, explained
from toolbox.data.worker import prepare_worker, signals_held_back
from toolbox.errors import ToolboxError
from toolbox.structures import Batch


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
    source = Source(dataset, resize, tuple(transforms), seed, min_visible, workers, cache)
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
    source = Source(dataset, resize, None, 0, 0.0, workers)
    return Loader(_data_loader(source, batches, workers, 0, pin_memory, timeout), len(batches))


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
    source: Source, batches: Any, workers: int, seed: int, pin_memory: bool, timeout: float
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
    # `Source.__getitems__` has collated it.
    return batch
