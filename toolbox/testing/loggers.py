"""What is asked of loggers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from toolbox.engine.loggers import RunStart
from toolbox.testing.case import Case, Check, check, expect

_SCALARS = {"loss": 0.75, "losses/box": 0.75, "lr": 0.01, "images_per_second": 9.0}
_METRICS = {"bbox/AP": 0.25, "bbox/AP50": 0.5, "bbox/per_class/a thing: é": 0.25}


@contextmanager
def _run_folder() -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """A folder, and pictures in it."""
    with tempfile.TemporaryDirectory() as name:
        files = tuple(Path(name) / "pictures" / "step_000004" / f"{image}.jpg" for image in (7, 8))
        files[0].parent.mkdir(parents=True)
        for file in files:
            cv2.imwrite(str(file), np.full((4, 6, 3), 90, np.uint8))
        yield Path(name), files


def _start(folder: Path, step: int) -> RunStart:
    return RunStart(folder, "train:\n  steps: 8\n", step, 8)


@check(
    "a whole run",
    "it takes lines of metrics, evaluations (the last may come right after a line of the same step) and pictures",
    "see Logger in toolbox/engine/loggers.py: values are numbers by name, files are JPEGs",
)
def _whole(case: Case) -> None:
    logger = case.make()
    with _run_folder() as (folder, files):
        logger.start(_start(folder, 0))
        for step in (2, 4):
            logger.scalars(step, dict(_SCALARS))
        logger.evaluation(4, dict(_METRICS))
        logger.pictures(4, files)
        logger.end("finished", "")


@check(
    "a resumed run",
    "a second instance goes on in the folder of a run that failed, where later steps come again",
    "start opens for appending, and forgets what is there of steps after run.step",
)
def _resumed(case: Case) -> None:
    with _run_folder() as (folder, files):
        first = case.make()
        first.start(_start(folder, 0))
        first.scalars(2, dict(_SCALARS))
        first.scalars(4, dict(_SCALARS))
        first.end("failed", "RuntimeError: out of memory")
        second = case.make()
        second.start(_start(folder, 2))
        second.scalars(4, dict(_SCALARS))
        second.pictures(4, files)
        second.end("stopped", "")


@check(
    "an empty run",
    "it may end before anything was logged",
    "close in end() only what start() has opened",
)
def _empty(case: Case) -> None:
    logger = case.make()
    with _run_folder() as (folder, _):
        logger.start(_start(folder, 0))
        logger.end("failed", "TrainingDiverged: step 1: the loss is not finite")


@check(
    "inputs unchanged",
    "the numbers that it is given stay as they were: the next logger gets the same ones",
    "make a new mapping: {f'train/{name}': value for name, value in values.items()}",
)
def _inputs(case: Case) -> None:
    logger = case.make()
    given: dict[str, dict[str, Any]] = {"scalars": dict(_SCALARS), "evaluation": dict(_METRICS)}
    with _run_folder() as (folder, _):
        logger.start(_start(folder, 0))
        logger.scalars(2, given["scalars"])
        logger.evaluation(2, given["evaluation"])
        logger.end("finished", "")
    for method, before in (("scalars", _SCALARS), ("evaluation", _METRICS)):
        expect(given[method] == before, f"{method} changed them to {given[method]}")


LOGGER_CHECKS: tuple[Check, ...] = (_whole, _resumed, _empty, _inputs)
