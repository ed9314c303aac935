"""Loggers, each with one fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from toolbox.engine.loggers import Outcome, RunStart


class QuietLogger:
    """Keeps nothing: what the others have in common."""

    def start(self, run: RunStart) -> None:
        self.lines = 0

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.lines += 1

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        self.lines += 1

    def pictures(self, step: int, files: Sequence[Path]) -> None:
        self.lines += len(files)

    def end(self, outcome: Outcome, reason: str) -> None:
        self.lines = 0


class NestedLogger(QuietLogger):
    """Looks for AP where eval.json has it."""

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        print(values["bbox"]["AP"])  # type: ignore[index]


class FirstRunLogger(QuietLogger):
    """Does not think of a file that is there."""

    def start(self, run: RunStart) -> None:
        super().start(run)
        (run.folder / "mine.txt").open("x").close()


class AveragingLogger(QuietLogger):
    """Thinks that every run logs something."""

    def end(self, outcome: Outcome, reason: str) -> None:
        print(100 / self.lines)


class PoppingLogger(QuietLogger):
    """Takes the loss out of what the next logger gets."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        print(values.pop("loss"))  # type: ignore[attr-defined]
