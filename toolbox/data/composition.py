"""Transforms made of transforms, and how a list of them is applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from toolbox.data.interfaces import Another, Transform, View
from toolbox.data.transforms import check_probability
from toolbox.registry import TRANSFORMS


def in_order(view: View, transforms: Sequence[Transform], rng: np.random.Generator) -> View:
    """Apply transforms one after the other; another image that one of them asks for goes through those before it."""
    start = view.another
    for done, transform in enumerate(transforms):
        if start is not None:
            view = replace(view, another=partial(_after, start, transforms[:done]))
        view = transform(view, rng)
    return replace(view, another=start)


def _after(another: Another, transforms: Sequence[Transform], rng: np.random.Generator) -> View:
    # The other image has no other one itself: what is pasted into it would be pasted on as its own.
    return in_order(replace(another(rng), another=None), transforms, rng)


@TRANSFORMS.register
class RandomApply:
    """All of a list of transforms, in order, or none of them.

    Args:
        transforms: what is applied.
        prob: of applying them.
    """

    def __init__(self, *, transforms: list[Transform], prob: float = 0.5) -> None:
        self.transforms = _some(transforms)
        self.prob = check_probability(prob)

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        return in_order(view, self.transforms, rng) if rng.random() < self.prob else view


@TRANSFORMS.register
class OneOf:
    """One of a list of transforms, drawn for each image.

    Args:
        transforms: what is drawn from.
        weights: how often each is drawn, in any unit; all alike where they are left out.
    """

    def __init__(self, *, transforms: list[Transform], weights: list[float] | None = None) -> None:
        self.transforms = _some(transforms)
        shares = np.array(weights or [1.0] * len(transforms), dtype=np.float64)
        if len(shares) != len(transforms) or not (shares >= 0).all() or not 0 < shares.sum() < np.inf:
            raise ValueError(f"weights are one number for each of the {len(transforms)} transforms, got {weights}")
        self.shares = shares / shares.sum()

    def __call__(self, view: View, rng: np.random.Generator) -> View:
        chosen = int(rng.choice(len(self.transforms), p=self.shares))
        return in_order(view, self.transforms[chosen : chosen + 1], rng)


def _some(transforms: Sequence[Transform]) -> tuple[Transform, ...]:
    if not transforms:
        raise ValueError("transforms is a list of one transform or more, got none")
    return tuple(transforms)
