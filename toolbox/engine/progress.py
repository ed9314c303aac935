"""What long work tells its caller while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Progress:
    """One step forward.

    Attributes:
        phase: what is being done.
        done: steps or images finished.
        total: of how many.
        record: the line of `metrics.jsonl` that this step wrote, or empty.
    """

    phase: Literal["train", "eval"]
    done: int
    total: int
    record: Mapping[str, Any] = field(default_factory=dict)


OnProgress = Callable[[Progress], None]
