"""Training to the last bit on a GPU: what torch must be told, and the error of an operation that cannot."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import torch

from toolbox.errors import ToolboxError

_REFUSAL = re.compile(r"(\S+) does not have a deterministic implementation")


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, torch takes deterministic operations only, if that is wanted; after, what it took before.

    Raises:
        ToolboxError: an operation has no deterministic form on this device.
    """
    if not wanted:
        yield
        return
    # cuBLAS reads it when it is first used; without it torch refuses every product of matrices.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filler: Any = torch.utils.deterministic
    benchmark, filling = torch.backends.cudnn.benchmark, filler.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # it chooses by time
    filler.fill_uninitialized_memory = False  # finds mistakes, and costs a pass over all memory
    try:
        yield
    except RuntimeError as error:
        found = _REFUSAL.search(str(error))
        if found is None:
            raise
        raise ToolboxError(
            f"train.deterministic: {found[1]} has no deterministic form on this device; train without it "
            "(train.deterministic=false), then a resumed run agrees but for rounding, or replace the component that "
            "uses it"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
        filler.fill_uninitialized_memory = filling
