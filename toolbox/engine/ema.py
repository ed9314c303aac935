"""Averaged weights: smoother than the last ones, and what is evaluated and kept when they are on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class AveragedWeights:
    """Exponential moving average of a model's parameters and buffers.

    Args:
        model: the model to follow.
        decay: weight of the past. In the first steps it is (1 + n) / (10 + n) if that is less, so that the random start
            is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay is between 0 and 1, not {decay}")
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights that optimizer step number `step`, from 0, left behind."""
        rate = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            average = self.values[name]
            if average.is_floating_point():
                average.lerp_(value, rate)
            else:
                average.copy_(value)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, `model` holds the averages; after, its own weights again."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        try:
            model.load_state_dict(self.values)
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages, by the model's names."""
        return self.values

    @torch.no_grad()
    def load_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """Take over averages saved before."""
        for name, average in self.values.items():
            average.copy_(values[name])
