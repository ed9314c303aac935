"""Means over the steps since the last line of metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any


class Window:
    """Losses, images and time of some steps."""

    def __init__(self) -> None:
        self.steps = 0
        self.images = 0
        self.seconds = 0.0
        self.waited = 0.0
        self.losses: Counter[str] = Counter()
        self.norm = 0.0
        self.norms = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint: a mean that spans a stop is then the same as one that does not."""
        return {**vars(self), "losses": dict(self.losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        vars(self).update(state, losses=Counter(state["losses"]))

    def add(
        self, losses: Mapping[str, float], *, images: int, seconds: float, waited: float, norm: float | None = None
    ) -> None:
        """Count one step.

        Args:
            losses: of the step.
            images: trained on.
            seconds: that it took.
            waited: part of `seconds` spent waiting for the loader.
            norm: of the gradient before it was clipped, where that is known.
        """
        self.steps += 1
        self.images += images
        self.seconds += seconds
        self.waited += waited
        if norm is not None:
            self.norm += norm
            self.norms += 1
        for name, value in losses.items():
            self.losses[name] += value  # type: ignore[assignment]  # Counter counts in floats as well

    def record(self, step: int, *, lr: float, peak_memory_mb: float | None) -> dict[str, Any]:
        """The line of metrics after `step`."""
        losses = {name: value / self.steps for name, value in self.losses.items()}
        return {
            "step": step,
            "loss": sum(losses.values()),
            "losses": losses,
            "lr": lr,
            **({"grad_norm": self.norm / self.norms} if self.norms else {}),
            "images_per_second": round(self.images / self.seconds, 3),
            "loader_share": round(self.waited / self.seconds, 3),
            "peak_memory_mb": peak_memory_mb,
        }
