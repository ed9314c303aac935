"""What loader workers are doing, seen from the training process, so that a lost one can be told with its image."""

from __future__ import annotations

import re
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from toolbox.errors import DataError, ToolboxError, told

_OWN = str(Path(__file__).resolve().parents[1])
_NOTHING = -1
_live: weakref.WeakSet[Watch] = weakref.WeakSet()
_installed: list[Callable[..., Any]] = []


class Watch:
    """The image that each worker is at: a number in memory that all processes share.

    Args:
        workers: how many there are.
    """

    def __init__(self, workers: int) -> None:
        self._images = torch.full((max(1, workers),), _NOTHING, dtype=torch.int64).share_memory_()

    def at(self, index: int = _NOTHING) -> None:
        """Called by a worker when it begins with an image, or has done with all of its batch."""
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            self._images[worker.id] = index

    def listen(self) -> None:
        """Explain lost workers from now on, wherever training is: torch's handler of their end raises at any line."""
        _live.add(self)
        before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        if not callable(before) or before in _installed or threading.current_thread() is not threading.main_thread():
            return

        def handle(number: int, frame: Any) -> None:
            try:
                before(number, frame)
            except RuntimeError as error:
                raise explained(error) from None

        _installed.append(handle)
        signal.signal(signal.SIGCHLD, handle)

    def end(self) -> None:
        """No worker is at anything any more."""
        _live.discard(self)

    def busy(self) -> list[str]:
        """Which worker is at which image."""
        pairs = enumerate(self._images.tolist())
        return [f"worker {number} was at image number {index}" for number, index in pairs if index != _NOTHING]


def explained(error: RuntimeError) -> Exception:
    """What DataLoader's error about a lost or silent worker means; the error itself where it is of another kind."""
    if isinstance(error.__cause__, ToolboxError):
        return error.__cause__  # the handler spoke while DataLoader waited, which wraps all that comes up there
    said = f"{error} {error.__cause__ or ''}"
    busy = ", ".join(words for watch in _live for words in watch.busy()) or "no worker was at an image"
    if re.search(r"worker.*(exited unexpectedly|killed by signal)", said):
        return DataError(f"{_lost(said)} ({busy}, counted from 0)")
    if "timed out after" in said:
        return DataError(
            f"no batch came for {said.rpartition('after ')[2].strip()} ({busy}, counted from 0): the disk or "
            "the data set hangs or is slow; look at that image, or raise data.timeout (0 waits for ever)"
        )
    return error


def _lost(said: str) -> str:
    if "Bus error" in said or "bus error" in said:
        return (
            "a loader worker was killed (bus error): shared memory, /dev/shm, is full; give the container more of it "
            "(docker run --shm-size=8g, or --ipc=host), or lower data.workers or train.micro_batch"
        )
    if "Killed" in said:
        return (
            "a loader worker was killed, mostly by the system because memory ran out; lower data.workers or "
            "train.micro_batch, or cut very large images into tiles"
        )
    named = re.search(r"killed by signal: ([\w ]+)", said)
    how = named[1].strip() if named else "it ended by itself"
    return f"a loader worker died ({how}); data.workers=0 loads in the training process, which shows where"


def blamed(error: Exception, index: int, component: object) -> ToolboxError | None:
    """What a user's own data set or transform raised, with the image and the line; None where the code is ours.

    Args:
        error: that was raised while an image was loaded.
        index: of the image in the data set.
        component: the data set.
    """
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith((_OWN, sys.prefix, sys.base_prefix))]
    if not theirs:
        return None
    blame = DataError(f"{type(component).__name__}, image number {index}: {told(error, theirs[-1].filename)}")
    blame.add_note("".join(traceback.format_exception(error)))
    return blame
