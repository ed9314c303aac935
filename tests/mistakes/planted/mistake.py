"""One planted mistake, and what came out when a user made it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

RUN = """\
model:
  backbone: {type: ResNet, depth: 18, norm: gn}
  neck: {type: FPN, out_channels: 8}
  rpn:
    head: {type: ConvRPNHead}
    anchors: {sizes: [12, 24, 48, 96, 192]}
    sampler: {type: RandomSampler, size: 64}
  box:
    extractor: {type: RoIAlign, output_size: 3}
    head: {type: TwoFCBoxHead, channels: 16}
  instance:
    mask:
      extractor: {type: RoIAlign, output_size: 6}
      head: {type: FCNMaskHead, convolutions: 1, channels: 8, loss: {type: BinaryCrossEntropy}}
data:
  train: {type: Shapes, length: 4}
  val: {type: Shapes, length: 2, seed: 1}
  resize: {short: 64, max: 64}
  transforms:
    - {type: HorizontalFlip}
  workers: 0
train:
  steps: 2
  batch: 1
  lr: 0.001
  optimizer: {type: SGD, momentum: 0.9}
  schedule: {type: MultiStep, milestones: [1]}
"""

ROOT = Path(__file__).resolve().parents[3]
MOST_LINES, MOST_CHARACTERS = 12, 1600  # of a message: it is one, not a wall


@dataclass(frozen=True)
class Mistake:
    """What a user does wrong, and what must be said; all three lists are written before the message is seen.

    Attributes:
        name: what the user did.
        kind: group in the table.
        command: arguments of `rcnn`, run in a folder of its own.
        at: texts that say where: `run.yaml:2:13`, an annotation's id, the override.
        fault: texts that name the wrong thing.
        suggestion: texts that say what is right or what to do; each may be a tuple of alternatives.
        plant: writes the folder's files.
        around: what else is wrong while the command runs (a full disk, no GPU).
        quotes: whether the message quotes what differs by machine or version: Python's words, free space.
    """

    name: str
    kind: str
    command: tuple[str, ...]
    at: tuple[str, ...]
    fault: tuple[str, ...]
    suggestion: tuple[str, ...]
    plant: Callable[[Path], object]
    around: Callable[[Path], AbstractContextManager[object]] = lambda folder: nullcontext()
    quotes: bool = False


@dataclass(frozen=True)
class Outcome:
    """What the command line answered.

    Attributes:
        status: exit status.
        text: what stood on stderr, without the paths of this machine.
    """

    status: int
    text: str

    def located(self, mistake: Mistake) -> bool:
        return all(part in self.text for part in mistake.at)

    def names_fault(self, mistake: Mistake) -> bool:
        return all(part in self.text for part in mistake.fault)

    def suggests(self, mistake: Mistake) -> bool:
        return all(part in self.text for part in mistake.suggestion)

    def first_line(self, mistake: Mistake) -> str:
        """The line to quote: the first that says where."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        return next((line for line in lines if mistake.at and mistake.at[0] in line), lines[0] if lines else "")

    @property
    def is_one_message(self) -> bool:
        lines = self.text.splitlines()
        return len(lines) <= MOST_LINES and len(self.text) <= MOST_CHARACTERS and len(set(lines)) == len(lines)


def run(mistake: Mistake, folder: Path) -> Outcome:
    """Plant a mistake in an empty folder and run its command there, in this process."""
    from toolbox.cli import main

    mistake.plant(folder)
    said, status = io.StringIO(), 0
    with (
        _inside(folder),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(said),
        _fresh_log(),
        _own_plugins(),
    ):
        try:
            with mistake.around(folder):
                main(mistake.command)
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else 1
    text = said.getvalue()
    for own in (str(folder.resolve()), str(folder), str(ROOT)):
        text = text.replace(f"{own}/", "").replace(own, ".")
    return Outcome(status, text)


def answer_to(mistake: Mistake) -> Outcome:
    """As `run`, in a folder that nothing lies beside: an answer may propose what does."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        project.mkdir()
        return run(mistake, project)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _fresh_log() -> Iterator[None]:
    """The command line makes its handler where stderr is now, and it is taken away again."""
    logger = logging.getLogger("toolbox")
    handlers, level, passes_on = list(logger.handlers), logger.level, logger.propagate
    logger.handlers[:], logger.propagate = [], False
    try:
        yield
    finally:
        logger.handlers[:], logger.level, logger.propagate = handlers, level, passes_on


@contextlib.contextmanager
def _own_plugins() -> Iterator[None]:
    """Only built-in components, as in a process of its own; what a plugin registers is gone afterwards."""
    from toolbox.registry import FAMILIES

    before = {family: dict(family._classes) for family in FAMILIES.values()}
    for family in before:
        family._classes = _builtin(family._classes)
    try:
        yield
    finally:
        for family, classes in before.items():
            family._classes = classes | _builtin(family._classes)


def _builtin(classes: dict[str, type]) -> dict[str, type]:
    return {name: cls for name, cls in classes.items() if cls.__module__.startswith("toolbox.")}


def write(text: str | bytes, name: str = "run.yaml") -> Callable[[Path], None]:
    """A planter of one file."""

    def plant(folder: Path) -> None:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)

    return plant


def several(*plants: Callable[[Path], object]) -> Callable[[Path], None]:
    """Planters one after the other."""

    def plant(folder: Path) -> None:
        for one in plants:
            one(folder)

    return plant


def changed(old: str, new: str, at: str = "") -> tuple[str, str]:
    """RUN with `old` replaced by `new`, and `line:column` of the caret in `new` (which is taken out), unless given."""
    assert RUN.count(old) == 1, f"{old!r} stands {RUN.count(old)} times in the config"
    text = RUN.replace(old, new)
    if at:
        return text, at
    before = text[: text.index("^")]
    return text.replace("^", ""), f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"


def in_config(
    kind: str,
    name: str,
    old: str,
    new: str,
    fault: str | Sequence[str],
    suggestion: str | Sequence[str],
    *,
    at: str = "",
    command: Sequence[str] = ("check", "run.yaml"),
    plant: Callable[[Path], object] = lambda folder: None,
    quotes: bool = False,
) -> Mistake:
    """A mistake in the YAML: `old` of RUN is written as `new`, where a caret stands before what the answer points at.

    Args:
        at: line and column, where there is nothing left to point at.
        plant: writes further files.
    """
    text, place = changed(old, new, at)
    return Mistake(
        name,
        kind,
        tuple(command),
        (f"run.yaml:{place}: ",),
        _texts(fault),
        _texts(suggestion),
        several(write(text), plant),
        quotes=quotes,
    )


def on_command_line(
    kind: str,
    name: str,
    arguments: str | Sequence[str],
    at: str | Sequence[str],
    fault: str | Sequence[str],
    suggestion: str | Sequence[str],
    **more: object,
) -> Mistake:
    """A mistake in what is typed; the YAML is right."""
    command = tuple(arguments.split()) if isinstance(arguments, str) else tuple(arguments)
    plant = more.pop("plant", write(RUN))
    return Mistake(name, kind, command, _texts(at), _texts(fault), _texts(suggestion), plant, **more)  # type: ignore[arg-type]


def _texts(texts: str | Sequence[str]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)
