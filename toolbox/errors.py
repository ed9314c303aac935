"""What a user sees when input is wrong: where, what was got, what to do next.

Every error that a user can cause is a `ToolboxError`; the command line prints it without a traceback and exits with 2.
Anything else is our own fault.
"""

from __future__ import annotations

import difflib
import os
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from toolbox.foreign_names import REMARKS, own_name


class ToolboxError(Exception):
    """Base of all errors caused by input: YAML, annotation file, image, checkpoint, command line."""


@dataclass(frozen=True)
class Problem:
    """One finding in a config or a data set.

    Attributes:
        where: `file:line:column`, `command line`, or the file's path; may be empty.
        key: dotted key that the finding is about, e.g. `model.backbone.type`; may be empty.
        message: what was got, what fits, and what to do next.
    """

    where: str
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.message) if part)


class ConfigError(ToolboxError):
    """Everything that is wrong with a config, in one list."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class DataError(ToolboxError):
    """An annotation file or an image that cannot be used."""


class CheckpointError(ToolboxError):
    """A weight file or checkpoint that cannot be read, or that belongs to another model."""


class DeviceError(ToolboxError):
    """A device was asked for that is not there."""


class StorageError(ToolboxError):
    """A file cannot be written: the disk is full, or the folder takes no files."""


def told(error: BaseException, file: str | None = None) -> str:
    """Return `RuntimeError: … (heads.py, line 3)`: an error's first line, and where it was raised.

    Args:
        error: that was raised.
        file: a source file; its innermost line is named if the error came through it, else the innermost of all.
    """
    frames = traceback.extract_tb(error.__traceback__)
    frame = ([frame for frame in frames if frame.filename == file] or frames)[-1]
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]} ({frame.filename}, line {frame.lineno})"


def counted(number: int, noun: str, several: str | None = None) -> str:
    """`1 class`, `3 classes`."""
    return f"{number} {noun if number == 1 else several or f'{noun}s'}"


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return `"; did you mean 'ResNet'?"` for what is meant by `name`, or an empty string.

    Another project's name for one of the candidates comes before what is only spelled alike.
    """
    if name in REMARKS:
        return f"; {REMARKS[name]}"
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    own, more = own_name(name)
    if own.lower() in by_lower:
        return f"; did you mean '{by_lower[own.lower()]}'?{f' ({more})' if more else ''}"
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean '{by_lower[near[0]]}'?" if near else ""


def near_path(path: str | os.PathLike[str]) -> str:
    """Return `"; did you mean 'data/images'?"` for the file or folder beside that is spelled alike, or nothing."""
    folder, name = os.path.split(os.path.normpath(path))
    try:
        beside = os.listdir(folder or ".")
    except OSError:
        return ""
    others = [other for other in beside if other != name]  # a folder that was meant may have been made by now
    near = difflib.get_close_matches(name, others, n=1, cutoff=0.6)
    return f"; did you mean '{os.path.join(folder, near[0])}'?" if near else ""
