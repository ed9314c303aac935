"""Learning-rate schedules: pure functions of the step, so that a resumed run has nothing to restore."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

from toolbox.errors import ConfigError, Problem, counted
from toolbox.registry import SCHEDULES

logger = logging.getLogger("toolbox")


@SCHEDULES.register
@dataclass(frozen=True)
class MultiStep:
    """Drop the learning rate at milestones, after a linear warm-up.

    Attributes:
        steps: length of the run.
        milestones: where to drop; a number below 1 is a fraction of the run, else a step.
        gamma: factor of each drop.
        warmup_steps: length of the warm-up; by default a tenth of the run, at most 1000 steps.
        warmup_factor: factor at step 0.
    """

    steps: int
    _: KW_ONLY
    milestones: Sequence[float] = (0.75, 0.92)
    gamma: float = 0.1
    warmup_steps: int | None = None
    warmup_factor: float = 0.001

    def __post_init__(self) -> None:
        _check_warmup(self.steps, self.warmup_steps, self.warmup_factor)
        at = self.drops()
        if any(m < 0 for m in self.milestones) or list(at) != sorted(at) or len({*self.milestones}) < len(at):
            raise ConfigError(
                [
                    Problem(
                        "",
                        "train.schedule.milestones",
                        f"got {list(self.milestones)}, which are the steps {list(at)} of {self.steps}; "
                        "expected growing steps, or fractions of the run below 1",
                    )
                ]
            )
        late = [m for m in self.milestones if m >= max(1, self.steps)]
        if late:
            logger.warning(
                "train.schedule.milestones: the run ends after %s, so the learning rate does not drop at %s",
                counted(self.steps, "step"),
                ", ".join(f"{m:g}" for m in late),
            )

    def drops(self) -> tuple[int, ...]:
        """The milestones as steps."""
        return tuple(round(m * self.steps) if m < 1 else int(m) for m in self.milestones)

    def __call__(self, step: int) -> float:
        """Factor on the base learning rate for the optimizer step number `step`, from 0."""
        factor = self.gamma ** sum(step >= drop for drop in self.drops())
        return factor * _warmup(step, self.steps, self.warmup_steps, self.warmup_factor)


@SCHEDULES.register
@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 to `final`, after a linear warm-up.

    Attributes:
        steps: length of the run.
        final: factor at the end.
        warmup_steps: length of the warm-up; by default a tenth of the run, at most 1000 steps.
        warmup_factor: factor at step 0.
    """

    steps: int
    _: KW_ONLY
    final: float = 0.0
    warmup_steps: int | None = None
    warmup_factor: float = 0.001

    def __post_init__(self) -> None:
        _check_warmup(self.steps, self.warmup_steps, self.warmup_factor)

    def __call__(self, step: int) -> float:
        """Factor on the base learning rate for the optimizer step number `step`, from 0."""
        done = _done(step, self.steps, self.warmup_steps)
        factor = self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))
        return factor * _warmup(step, self.steps, self.warmup_steps, self.warmup_factor)


@SCHEDULES.register
@dataclass(frozen=True)
class Poly:
    """A power of the part of the run that is left, from 1 to `final`, after a linear warm-up.

    Attributes:
        steps: length of the run.
        power: 1 is a straight line; 0.9 is what segmentation networks take (Liu et al., *ParseNet*, arXiv:1506.04579).
        final: factor at the end.
        warmup_steps: length of the warm-up; by default a tenth of the run, at most 1000 steps.
        warmup_factor: factor at step 0.
    """

    steps: int
    _: KW_ONLY
    power: float = 0.9
    final: float = 0.0
    warmup_steps: int | None = None
    warmup_factor: float = 0.001

    def __post_init__(self) -> None:
        _check_warmup(self.steps, self.warmup_steps, self.warmup_factor)
        if self.power <= 0:
            raise ValueError(f"power is more than 0 (1 is a straight line), got {self.power:g}")

    def __call__(self, step: int) -> float:
        """Factor on the base learning rate for the optimizer step number `step`, from 0."""
        done = _done(step, self.steps, self.warmup_steps)
        factor = self.final + (1 - self.final) * (1 - done) ** self.power
        return factor * _warmup(step, self.steps, self.warmup_steps, self.warmup_factor)


@SCHEDULES.register
@dataclass(frozen=True)
class Constant:
    """One learning rate, after a linear warm-up.

    Attributes:
        steps: length of the run.
        warmup_steps: length of the warm-up; by default a tenth of the run, at most 1000 steps.
        warmup_factor: factor at step 0.
    """

    steps: int
    _: KW_ONLY
    warmup_steps: int | None = None
    warmup_factor: float = 0.001

    def __post_init__(self) -> None:
        _check_warmup(self.steps, self.warmup_steps, self.warmup_factor)

    def __call__(self, step: int) -> float:
        """Factor on the base learning rate for the optimizer step number `step`, from 0."""
        return _warmup(step, self.steps, self.warmup_steps, self.warmup_factor)


def _check_warmup(steps: int, warmup_steps: int | None, warmup_factor: float) -> None:
    wrong = []
    if warmup_steps is not None and warmup_steps < 0:
        wrong.append(f"warmup_steps is 0 (no warm-up) or more, got {warmup_steps}")
    if not 0 <= warmup_factor <= 1:
        wrong.append(f"warmup_factor lies between 0 and 1, got {warmup_factor:g}")
    if wrong:
        raise ValueError("\n".join(wrong))
    if warmup_steps is not None and warmup_steps > steps:
        logger.warning(
            "train.schedule.warmup_steps: the run ends after %s, inside the warm-up of %d, so the learning rate "
            "never reaches train.lr",
            counted(steps, "step"),
            warmup_steps,
        )


def _done(step: int, steps: int, warmup_steps: int | None) -> float:
    """Part of the run after its warm-up that is over at a step, 0 to 1."""
    start = _warmup_length(steps, warmup_steps)
    return min(1.0, max(0, step - start) / max(1, steps - start))


def _warmup_length(steps: int, warmup_steps: int | None) -> int:
    return min(1000, steps // 10) if warmup_steps is None else warmup_steps


def _warmup(step: int, steps: int, warmup_steps: int | None, warmup_factor: float) -> float:
    length = _warmup_length(steps, warmup_steps)
    return 1.0 if step >= length else warmup_factor + (1 - warmup_factor) * step / length
