"""Writing a file so that a crash leaves the old one or the new one, never half of it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from toolbox.errors import StorageError


@contextlib.contextmanager
def replacing(path: str | Path, *, needed: int = 0) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, on failure removed.

    Args:
        path: the file.
        needed: its size in bytes where that is known, for the message.

    Raises:
        StorageError: the system does not let it be written; what was there before is whole.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        usual = temporary.stat().st_mode
        yield temporary
        temporary.chmod(usual)  # safetensors makes its files for the owner only
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)  # the rename itself is only durable once the folder is
    except Exception as error:
        cause = _system_error(error)
        if cause is None:
            raise
        raise StorageError(_unwritable(path, cause, needed)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _system_error(error: BaseException | None) -> OSError | None:
    """What the system said: writers follow it with errors of their own about what is then inconsistent."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _unwritable(path: Path, error: OSError, needed: int) -> str:
    sizes = []
    if needed:
        sizes.append(f"about {_megabytes(needed)} are needed")
    with contextlib.suppress(OSError):
        sizes.append(f"{_megabytes(shutil.disk_usage(path.parent).free)} are free in {path.parent}")
    kept = f"; the {path.name} of before is whole" if path.exists() else ""
    return f"{path}: cannot be written: {error.strerror or error} ({', '.join(sizes)}); free some space{kept}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size / 1e6:.1f} MB"


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
