"""Which of a run's checkpoints and models stay: the last few, and the best by a metric."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from toolbox.engine.run_folder import RunFolder
from toolbox.errors import StorageError


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


def keep_last(folder: RunFolder, step: int, count: int) -> None:
    """Keep the checkpoint just written beside the earlier ones, `count` in all; one of them costs no space.

    Args:
        step: of the checkpoint.
        count: 1 keeps none but `checkpoint.pt`.
    """
    if count > 1:
        give_name(folder.checkpoint, folder.earlier(step))
    known = sorted(folder.checkpoints.glob(folder.earlier("*").name), key=lambda file: file.name)
    # After a return to an earlier one, later ones may lie there: they are not of this history.
    of_this = [file for file in known if file.name <= folder.earlier(step).name]
    for file in of_this[:-count] if count > 1 else of_this:
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
