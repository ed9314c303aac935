"""Where a run's numbers and pictures go, beside the console and `metrics.jsonl`: the family `logger`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from toolbox.errors import ToolboxError, told
from toolbox.registry import LOGGERS

log = logging.getLogger("toolbox")

Outcome = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class RunStart:
    """What a logger is told when a run starts, or goes on.

    Attributes:
        folder: the run's; files of a logger's own belong there.
        config: the resolved YAML.
        step: optimizer steps done: 0, or where a resumed run goes on. What was logged of later steps comes again.
        steps: of the whole run.
    """

    folder: Path
    config: str
    step: int
    steps: int


@LOGGERS.interface
class Logger(Protocol):
    """Takes what a run reports: `__init__(*, settings…)`, which refuses wrong settings and missing packages.

    The constructor is called by `rcnn check` too: it writes nothing and connects to nothing. `start` may raise, which
    ends the run before it trains. What any other method raises is reported once and switches the logger off; the run
    goes on.
    """

    def start(self, run: RunStart) -> None:
        """Open what is written to, and forget what it holds of steps after `run.step`."""
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Take a line of `metrics.jsonl` after `step` steps: `loss`, `losses/NAME`, `lr`, `images_per_second`, …"""
        ...

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Take an evaluation after `step` steps: `bbox/AP`, …, `bbox/per_class/NAME`, `val_loss`, `val_losses/NAME`.

        Of a size or a class that `data.val` has no objects of, there is no value.
        """
        ...

    def pictures(self, step: int, files: Sequence[Path]) -> None:
        """Take the JPEGs that the evaluation after `step` steps drew; the same images, by name, each time."""
        ...

    def end(self, outcome: Outcome, reason: str) -> None:
        """Close; `stopped` runs may be resumed. `reason` is empty unless the run has failed."""
        ...


class Loggers:
    """All loggers of a run, spoken to at once.

    Args:
        loggers: in the order of `train.loggers`; none for a process that does not report.
    """

    def __init__(self, loggers: Sequence[Logger] = ()) -> None:
        self._waiting = list(loggers)
        self._active: list[Logger] = []

    @contextlib.contextmanager
    def running(self, run: RunStart, *, stopped: Callable[[], bool]) -> Iterator[None]:
        """Start them, and end them however the block ends.

        Args:
            run: what they are told.
            stopped: whether a block that was left without an error was left early.

        Raises:
            ToolboxError: one cannot start.
        """
        try:
            while self._waiting:
                self._start(self._waiting.pop(0), run)
            yield
        except BaseException as error:
            self._tell("end", "failed", f"{type(error).__name__}: {error}")
            raise
        self._tell("end", "stopped" if stopped() else "finished", "")

    def scalars(self, step: int, record: Mapping[str, Any]) -> None:
        """Pass on a line of `metrics.jsonl`."""
        self._tell("scalars", step, flat({name: value for name, value in record.items() if name != "step"}))

    def evaluation(self, step: int, metrics: Mapping[str, Any], losses: Mapping[str, Any]) -> None:
        """Pass on what `eval.json` holds, without COCO's -1, which is no precision but says that there is none.

        Args:
            step: steps done.
            metrics: COCO's numbers by kind.
            losses: on `data.val`, or empty.
        """
        found = {name: value for name, value in flat(metrics).items() if value >= 0}
        self._tell("evaluation", step, found | flat(losses))

    def pictures(self, step: int, files: Sequence[Path]) -> None:
        """Pass on what was drawn, if anything was."""
        if files:
            self._tell("pictures", step, tuple(files))

    def _start(self, logger: Logger, run: RunStart) -> None:
        try:
            logger.start(run)
        except Exception as error:  # a service that is not there, a plugin's fault: now is the time to mend it
            reason = str(error) if isinstance(error, ToolboxError) else told(error)
            name = type(logger).__name__
            raise ToolboxError(f"{name} cannot start: {reason}; mend that, or take it out of train.loggers") from error
        self._active.append(logger)

    def _tell(self, method: str, *arguments: Any) -> None:
        for logger in tuple(self._active):
            try:
                getattr(logger, method)(*arguments)
            except Exception as error:  # the run is worth more than its log
                self._active.remove(logger)
                where = f"{type(logger).__name__}.{method}"
                log.error("%s failed; it is switched off, and training goes on: %s", where, told(error))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers by names joined with `/`; what is no number is left out."""
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            numbers |= flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            numbers[f"{prefix}{name}"] = float(value)
    return numbers
