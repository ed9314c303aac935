"""Loaded images kept in memory that all loader workers share, so that each is decoded once."""

from __future__ import annotations

import logging
import mmap
import os
import pickle
import tempfile
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolbox.data.interfaces import Dataset, Sample, channels_of
from toolbox.errors import DataError

logger = logging.getLogger("toolbox")

_GIGABYTE = 10**9
_OBJECTS = 2048  # bytes that the objects of an image take, roughly; its pixels are counted exactly


class SampleCache:
    """Keeps samples as the data set gave them, until its memory is full; what does not fit is loaded each time.

    Each worker writes into a part of its own and reads all parts, so nothing waits for a lock, and a worker that is
    killed leaves none behind. A sample that is read is a copy.

    Args:
        images: I, of the data set.
        size: bytes in all.
        workers: loader processes.
    """

    def __init__(self, images: int, size: int, workers: int) -> None:
        self._parts = max(1, workers)
        self._part = size // self._parts
        self._head = 8 * (2 * images + self._parts)  # where and how long each sample is, and what each part has used
        self._images = images
        self._open(_anonymous_file(self._head + self._part * self._parts))

    def _open(self, file: int) -> None:
        self._file = file
        self._memory = mmap.mmap(file, 0)
        numbers = np.frombuffer(self._memory, dtype=np.int64, count=self._head // 8)
        self._starts, self._lengths = numbers[: self._images], numbers[self._images : 2 * self._images]
        self._used = numbers[2 * self._images :]

    def __getstate__(self) -> dict[str, Any]:
        # For workers that start afresh; only possible while they are started.
        state = {name: vars(self)[name] for name in ("_parts", "_part", "_head", "_images")}
        return state | {"_file": DupFd(self._file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        file = state.pop("_file").detach()
        vars(self).update(state)
        self._open(file)

    def get(self, index: int) -> Sample | None:
        """The sample of an image, if it is kept."""
        start = int(self._starts[index])
        if start == 0:
            return None
        return pickle.loads(memoryview(self._memory)[start : start + int(self._lengths[index])])

    def put(self, index: int, sample: Sample) -> None:
        """Keep a sample, if there is room."""
        content = pickle.dumps(sample, protocol=pickle.HIGHEST_PROTOCOL)
        worker = torch.utils.data.get_worker_info()
        part = 0 if worker is None else worker.id
        used = int(self._used[part])
        if self._starts[index] or used + len(content) > self._part:
            return
        start = self._head + part * self._part + used
        self._memory[start : start + len(content)] = content
        self._used[part] = used + len(content)
        self._lengths[index] = len(content)
        self._starts[index] = start  # last, as it is what readers look at

    @property
    def kept(self) -> int:
        """Images that are kept."""
        return int(np.count_nonzero(self._starts))


def needed_bytes(dataset: Dataset) -> int:
    """About what a data set takes in memory, decoded."""
    sizes = np.array([dataset.size(index) for index in range(len(dataset))], dtype=np.int64).reshape(-1, 2)
    return int(sizes.prod(axis=1).sum()) * channels_of(dataset) + _OBJECTS * len(dataset)


def plan_cache(dataset: Dataset, gigabytes: float | None, *, processes: int = 1) -> int:
    """Bytes for a cache: what the data set needs, at most so many gigabytes; says what will be in it.

    Args:
        dataset: whose images are kept.
        gigabytes: 10^9 bytes; None for no limit.
        processes: of training on this machine; each has a cache of its own, as its images change with the epoch.

    Raises:
        DataError: there is not so much free memory.
    """
    if os.name != "posix":
        raise DataError("data.cache: loader workers of this system cannot share it; set data.cache: none")
    needed, free = needed_bytes(dataset), free_memory()
    size = needed if gigabytes is None else min(needed, int(gigabytes * _GIGABYTE))
    if free is not None and size * processes > free:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise DataError(
            f"data.cache would hold {size / _GIGABYTE:.1f} GB{each} of the {needed / _GIGABYTE:.1f} GB that the "
            f"decoded images of data.train need, but {free / _GIGABYTE:.1f} GB of memory are free; set data.cache_gb "
            f"to at most {0.8 * free / processes / _GIGABYTE:.1f}, so that training has room too, or data.cache: none"
        )
    logger.info(
        "data.cache: %.1f GB for about %.0f %% of the decoded images of data.train, which need %.1f GB",
        size / _GIGABYTE,
        100 * size / needed,
        needed / _GIGABYTE,
    )
    return size


def free_memory() -> int | None:
    """Bytes that can be had without swapping, in this container; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        return None
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            found.append(int(Path(limit).read_text("ascii")) - int(Path(used).read_text("ascii")))
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
    return min(found, default=None)


def _anonymous_file(size: int) -> int:
    """A file in memory without a name, which is gone with the last process that has it, however that ends."""
    if hasattr(os, "memfd_create"):  # /dev/shm is small in containers
        file = os.memfd_create("toolbox-cache")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.truncate(file, size)  # pages are taken as they are written
    return file
