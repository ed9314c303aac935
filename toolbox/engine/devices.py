"""What differs between devices: autocast, reading values without waiting, peak memory."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger("toolbox")


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """torch's autocast, or nothing for None."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def read_later(values: Tensor) -> Callable[[], list[float]]:
    """Start copying values to the host; the function returned waits for it, not for what is queued after."""
    if values.device.type != "cuda":
        return values.tolist
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def read() -> list[float]:
        done.synchronize()
        return host.tolist()

    return read


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory used so far: of the GPU, else of this process; None where the system does not say."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
