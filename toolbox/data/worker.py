"""Loader workers: processes that only the training process may stop, and that do not outlive it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

import cv2

from toolbox.data.image_doubts import leave_to_another
from toolbox.orphans import die_with_parent

_STOPPING = (signal.SIGINT, signal.SIGTERM)


def prepare_worker(number: int) -> None:
    """What a loader's worker does first.

    Ctrl-C, `timeout` and cluster schedulers signal every process of a run. A worker that dies of it takes the step, and
    the checkpoint that the training process is about to write, with it. So only that process decides.
    """
    if number > 0:
        leave_to_another()
    cv2.setNumThreads(0)  # one thread per worker; the workers are the parallelism
    if os.name == "posix":
        _heed_only_the_parent()
        parent = multiprocessing.parent_process()
        if parent is not None:
            die_with_parent(parent.is_alive)  # torch's own watch only looks between two batches


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the block ends; processes that are started in it hold them back for good."""
    if os.name != "posix":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _heed_only_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:  # not a worker
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_wait_for, args=(parent.pid,), daemon=True).start()
    else:  # macOS does not say who sends a signal: there, leave the group that is signalled, and obey what still comes
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _wait_for(parent: int | None) -> None:
    """Take the signals off the queue; DataLoader's own SIGTERM, to a worker that does not end by itself, counts."""
    while True:
        received = signal.sigwaitinfo(_STOPPING)
        if received.si_signo == signal.SIGTERM and received.si_pid == parent:
            os._exit(0)
