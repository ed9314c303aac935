"""What long work tells its caller and the log while it runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from toolbox.errors import counted

logger = logging.getLogger("toolbox")

HEARTBEAT = 30.0  # seconds
ON_SCREEN = {"on_screen": True}  # `extra` of log lines that a terminal shows beside its progress line: results


@dataclass(frozen=True)
class Progress:
    """One step forward.

    Attributes:
        phase: what is being done.
        done: steps or images finished.
        total: of how many.
        record: the line of `metrics.jsonl` that this step wrote, or empty.
    """

    phase: Literal["train", "eval", "predict"]
    done: int
    total: int
    record: Mapping[str, Any] = field(default_factory=dict)


OnProgress = Callable[[Progress], None]


class Heartbeat:
    """Says in the log that work on images begins, and every half minute how far it is.

    Args:
        activity: what is done with them, e.g. `evaluating`.
        total: number of images.
    """

    def __init__(self, activity: str, total: int) -> None:
        self.activity = activity
        self.total = total
        self._began = self._said = time.monotonic()
        logger.info("%s: %s", activity, counted(total, "image"))

    def __call__(self, done: int) -> None:
        """Take note of the images done so far."""
        now = time.monotonic()
        if now - self._said < HEARTBEAT or done >= self.total:
            return
        self._said = now
        left = about((now - self._began) / max(1, done) * (self.total - done))
        logger.info("%s: %d of %d images done, %s left", self.activity, done, self.total, left)


def about(seconds: float) -> str:
    """A forecast in words: `about 12 min`."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
