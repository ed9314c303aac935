"""Losses, samplers, data sets, transforms, optimizers and schedules."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolbox.data import transforms
from toolbox.data.interfaces import Sample, View
from toolbox.data.shapes import Shapes
from toolbox.models.boxes import RandomSampler


class SummedLoss:
    """Sums."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs().sum()


class ExplosiveLoss:
    """Overflows."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction.exp() - target).abs()


class DetachedLoss:
    """Cuts the gradient."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction.detach() - target).abs() + 0 * prediction


class WritingLoss:
    """Writes into the target."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction.float() - target.mul_(2)).abs()


class GreedySampler(RandomSampler):
    """Calls everything foreground."""

    def sample(self, foreground: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index, valid, _ = super().sample(foreground, background)
        return index, valid, valid


class InventiveSampler(RandomSampler):
    """Takes rows that are no candidates where it has too few."""

    def sample(self, foreground: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index, valid, chosen = super().sample(foreground, background)
        return index, valid | (valid.sum(dim=1, keepdim=True) < 2), chosen


class OwnDiceSampler(RandomSampler):
    """Draws from a generator of its own."""

    def sample(self, foreground: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(np.random.randint(1 << 30))
        return super().sample(foreground, background)


class SmallShapes(Shapes):
    """A few small pictures."""

    def __init__(self) -> None:
        super().__init__(length=5, height=64, width=64)


class TwinClassShapes(SmallShapes):
    """Two classes of one name."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = ("circle",) * len(self.classes)


class TurnedShapes(SmallShapes):
    """Gives width before height."""

    def __init__(self) -> None:
        super().__init__()
        self.height = 96

    def size(self, index: int) -> tuple[int, int]:
        return super().size(index)[::-1]


class OutsideShapes(SmallShapes):
    """Boxes that leave the image."""

    def load(self, index: int) -> Sample:
        sample = super().load(index)
        return replace(sample, boxes=sample.boxes + np.float32(30))


class RandomShapes(SmallShapes):
    """Another image each time."""

    def load(self, index: int) -> Sample:
        return super().load(np.random.randint(len(self)))


class LambdaShapes(SmallShapes):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.name = lambda index: index


class TruthlessShapes(SmallShapes):
    """Leaves an object out of the ground truth."""

    def ground_truth(self) -> dict[str, Any]:
        truth = super().ground_truth()
        return {**truth, "annotations": truth["annotations"][1:]}


class FlatteningTransform:
    """A map without an inverse."""

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        return view.moved(np.zeros((2, 3)), view.height, view.width)


class GlobalDiceTransform:
    """Draws from numpy's global generator."""

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        shift = np.random.randint(5)
        return view.moved(np.array([[1.0, 0, shift], [0, 1, 0]]), view.height, view.width)


class WritingTransform:
    """Writes into the matrix that comes in."""

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        view.matrix[0, 2] += 3
        return view


class LambdaTransform(transforms.HorizontalFlip):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.chance = lambda: 0.5


class UphillOptimizer(torch.optim.SGD):
    """Climbs."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr, maximize=True)


class StubbornOptimizer(torch.optim.SGD):
    """Keeps the rate that it was made with."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)
        self.first = lr

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] = self.first
        return super().step(closure)


class LevellingOptimizer(torch.optim.SGD):
    """Decays every group alike."""

    def __init__(self, params: Any, lr: float, *, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr, weight_decay=weight_decay)
        for group in self.param_groups:
            group["weight_decay"] = weight_decay


class AmnesicOptimizer(torch.optim.SGD):
    """Has a momentum that its state dict leaves out."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr, momentum=0.9)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "state": {}}


@dataclass(frozen=True)
class ShortRunSchedule:
    """Divides by the steps after the first."""

    steps: int

    def __call__(self, step: int) -> float:
        return 1 - step / (self.steps - 1)


class CountingSchedule:
    """Counts its calls."""

    def __init__(self, steps: int) -> None:
        self.calls = 0

    def __call__(self, step: int) -> float:
        self.calls += 1
        return 1 / self.calls
