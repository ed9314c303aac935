"""One writer for a run folder: a lock that the system drops with its owner."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from toolbox.errors import StorageError, ToolboxError

try:
    import fcntl
except ImportError:  # Windows has no flock; there, runs are not locked
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("toolbox")

_DYING = 10.0  # seconds


class RunLocked(ToolboxError):
    """Another process is writing the run."""


@contextlib.contextmanager
def locked(folder: Path, lock: Path, unusable: Callable[[OSError], StorageError]) -> Iterator[None]:
    """Hold the lock file. The system drops the lock of a dead process, so a stale one is simply taken over.

    Args:
        folder: for messages.
        lock: the file.
        unusable: what to say where it cannot be written.

    Raises:
        RunLocked: another process holds it.
        StorageError: it cannot be written.
    """
    try:
        file = lock.open("a+")
    except OSError as error:
        raise unusable(error) from error
    with file:
        _lock(file, folder)
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
        file.truncate(0)


def _lock(file: IO[str], path: Path) -> None:
    if fcntl is None:
        return
    deadline = time.monotonic() + _DYING
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            # The loader's workers of a killed process hold its lock for the moment in which they die.
            if _is_dead(owner) and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            raise RunLocked(
                f"{path}: another process (pid {owner}) is writing this run; "
                "wait for it, stop it, or name another folder with --run"
            ) from None
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s: cannot be locked (%s); see that no other process writes this run", path, error)
        return


def _is_dead(owner: str) -> bool:
    """Whether `<pid> on <host>` is a process of this machine that is no more."""
    pid, _, host = owner.partition(" on ")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        return False
    return False
