"""Processes that do not outlive the one that started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def die_with_parent(alive: Callable[[], bool]) -> None:
    """Have the system kill this process when its parent is killed; `alive` says whether it still lives."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # a libc without prctl
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if not alive():  # it was killed before the call
        os._exit(1)


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def die_with_torchrun() -> None:
    """Where torchrun started this process: once it is killed, so is this one, which would else go on writing a run.

    To be called as early as can be: a torchrun that is dead by then is noticed only when the processes meet.
    """
    if under_torchrun():
        parent = os.getppid()
        die_with_parent(lambda: os.getppid() == parent)
