"""Which of a run's checkpoints and models stay: the last few, and the best by a metric."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from toolbox.engine.run_folder import RunFolder
from toolbox.errors import StorageError

logger = logging.getLogger("toolbox")


def give_name(file: Path, name: Path) -> None:
    """Let a file be known by another name too, which it replaces atomically; copied where links are unknown.

    Raises:
        StorageError: the system does not let it be done.
    """
    temporary = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    try:
        name.parent.mkdir(exist_ok=True)
        try:
            os.link(file, temporary)
        except OSError:  # a file system without hard links
            shutil.copy2(file, temporary)
        os.replace(temporary, name)
    except OSError as error:
        raise StorageError(f"{name}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def keep_earlier(folder: RunFolder, step: int) -> None:
    """Name the last checkpoint by its step before a new one takes its place, so that each is a file of its own.

    Args:
        step: of the last checkpoint.
    """
    try:
        give_name(folder.checkpoint, folder.earlier(step))
    except StorageError as error:
        logger.error("%s; the checkpoint of step %d is not kept", error, step)


def drop_earliest(folder: RunFolder, step: int, count: int) -> None:
    """Remove the earliest of the checkpoints that were kept.

    Args:
        step: of the last one.
        count: that stay, the last one among them.
    """
    known = sorted(folder.checkpoints.glob(folder.earlier("*").name), key=lambda file: file.name)
    # After a return to an earlier one, later ones may lie there: they are not of this history.
    of_this = [file for file in known if file.name <= folder.earlier(step).name]
    for file in of_this[: max(0, len(of_this) - (count - 1))]:
        file.unlink(missing_ok=True)


def is_best(records: Iterable[Mapping[str, Any]], name: str, value: float | None) -> bool:
    """Whether a metric's value is above all that are on record; of equal ones the first is the best.

    Args:
        records: lines of `metrics.jsonl`.
        name: of the metric, e.g. `segm.AP`.
        value: of the present evaluation.
    """
    before = [record.get("watched", {}).get(name) for record in records]
    return value is not None and all(other is None or value > other for other in before)
