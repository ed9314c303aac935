"""One process or several under torchrun: who this one is, and the few things that all of them do together.

Between two steps all processes hold the same state: weights and optimizer because their gradients are the same,
buffers because the first process's are handed round. What steers the run (losses, whether to stop, metrics) goes over
the host by gloo, gradients over the device by DistributedDataParallel. With one process every method gives back what it
was given.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from toolbox.errors import DeviceError
from toolbox.orphans import die_with_torchrun

T = TypeVar("T")

# Others wait this long while the first process computes metrics, draws and writes.
PATIENCE = timedelta(hours=1)
# torchrun's store is there before its processes are; after this long, it is taken for dead.
CONNECTING = timedelta(minutes=2)
# After a failure the others may be gone, and a gradient that is on its way would wait for them.
TAKING_LEAVE = timedelta(seconds=5)
# The interpreter is free meanwhile, for threads that wait for it.
LETTING_GO = timedelta(seconds=0.2)

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        rank: its number.
        size: how many there are.
        local: its number on this machine.
        here: how many there are on this machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    here: int = 1

    @property
    def first(self) -> bool:
        """Whether this one writes, logs and decides."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """A GPU of its own for each process of a machine; the device itself where there is one process.

        Raises:
            DeviceError: the machine has fewer GPUs than processes.
        """
        if device.type != "cuda" or self.size == 1:
            return device
        count = torch.cuda.device_count()
        if self.local >= count:
            raise DeviceError(
                f"process {self.local} of this machine has no GPU of its own, PyTorch sees {count}; start torchrun "
                f"with --nproc-per-node {count}, or train on the CPU with train.device=cpu"
            )
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)

    def join(self, device: torch.device) -> None:
        """Meet the others."""
        if self.size == 1:
            return
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        # torchrun may keep its store over a restart, with the addresses of processes that are dead.
        store, rank, size = next(dist.rendezvous("env://", self.rank, self.size, timeout=CONNECTING))
        store.set_timeout(PATIENCE)
        store = dist.PrefixStore(f"start_{_restarts()}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        total = torch.tensor(float(flag))
        dist.all_reduce(total)
        return bool(total)

    def wait_for_all(self) -> None:
        """Go on only when every process has come here."""
        self.any(False)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each value over the processes; all have the same names."""
        if self.size == 1:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(total)
        return dict(zip(values, (total / self.size).tolist(), strict=True))

    def from_first(self, value: T) -> T:
        """What the first process gave; what the others give is dropped."""
        if self.size == 1:
            return value
        box = [value if self.first else None]
        dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """What each process gave, by rank; an empty list on all but the first."""
        if self.size == 1:
            return [value]
        boxes: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(value, boxes)
        return boxes or []

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model to call in training: its backward pass leaves the mean of all processes' gradients."""
        if self.size == 1:
            return model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its successor's name is unknown to torch 2.11
            return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def joining_gradients(self, network: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[object]:
        """For a step's forward and backward passes: only the last joins what all of them left."""
        return network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the first one's running statistics, where batch norms update them."""
        if self.size == 1 or not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
            return
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


ALONE = Ranks()


def ranks_of_environment() -> Ranks:
    """Who this process is by torchrun's variables; alone without them."""
    if not all(name in os.environ for name in _VARIABLES):
        return ALONE
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Ranks(rank, size, local, here=int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextlib.contextmanager
def taking_part() -> Iterator[Ranks]:
    """Who this process is. Inside, all but the first log only errors; at the end the group is left if it was joined."""
    die_with_torchrun()
    ranks, logger, silence = ranks_of_environment(), logging.getLogger("toolbox"), _ErrorsOnly()
    if not ranks.first:
        logger.addFilter(silence)
    try:
        yield ranks
    except BaseException:
        leaving = threading.Thread(target=_leave, daemon=True)
        leaving.start()
        leaving.join(TAKING_LEAVE.total_seconds())
        raise
    else:
        _leave()
    finally:
        logger.removeFilter(silence)


def _leave() -> None:
    """Leave the group, if it was joined.

    A thread of gloo's needs the interpreter to let go of a tensor, and when Python is shutting down by then it aborts
    the process. With the group its threads end; but whoever still holds a model for training holds the group too.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(LETTING_GO.total_seconds())


class _ErrorsOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR
