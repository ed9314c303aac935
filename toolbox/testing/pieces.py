"""What is asked of losses and samplers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolbox.testing.case import Case, Check, check, difference, expect, not_finite


def _examples(loss: Any, rows: int = 6) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """A prediction, a target that this loss takes, and the shape that comes out.

    A loss is element-wise over values, or takes logits (R, K) with one class index per row.
    """
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(rows, 4, generator=generator)
    values, classes = torch.rand(rows, 4, generator=generator), torch.arange(rows) % 4
    if rows == 0:
        return prediction, classes if len(_examples(loss)[2]) == 1 else values, _examples(loss)[2]
    try:
        out = loss(prediction, values)
        if out.shape == values.shape:
            return prediction, values, (rows, 4)
    except (RuntimeError, ValueError, TypeError, IndexError):
        pass
    return prediction, classes, (rows,)


@check(
    "element-wise",
    "values of shape (R, 4) give (R, 4), or logits (R, K) and class indices (R,) give (R,); no sum, no mean",
    "reduction='none': the stage that uses the loss sums and normalises",
)
def _element_wise(case: Case) -> None:
    loss = case.make()
    prediction, target, shape = _examples(loss)
    got = tuple(loss(prediction, target).shape)
    expect(got == shape, f"{got} for {shape}")
    empty, nothing, _ = _examples(loss, 0)
    got = tuple(loss(empty, nothing).shape)
    expect(got == (0, *shape[1:]), f"{got} for R = 0")


@check(
    "gradient",
    "the gradient reaches the prediction",
    "do not detach the prediction",
)
def _loss_gradient(case: Case) -> None:
    loss = case.make()
    prediction, target, _ = _examples(loss)
    loss(prediction.requires_grad_(), target).sum().backward()
    grad = prediction.grad
    expect(grad is not None and bool(grad.any()) and bool(grad.isfinite().all()), f"{grad}")


@check(
    "finite",
    "predictions of ±10000, and of bfloat16, give finite values and gradients",
    "compute in float32 (prediction.float()), from logits rather than from probabilities",
)
def _loss_finite(case: Case) -> None:
    loss = case.make()
    prediction, target, _ = _examples(loss)
    for what, given in (("±10000", prediction.sign() * 1e4), ("bfloat16", prediction.bfloat16())):
        given = given.requires_grad_()
        value = loss(given, target)
        expect(not_finite(value) is None, f"{value.flatten()[:4].tolist()} for {what}")
        value.sum().backward()
        expect(given.grad is not None and not_finite(given.grad) is None, f"a gradient not finite for {what}")


@check("inputs unchanged", "prediction and target stay as they were", "no in-place operation on either")
def _loss_inputs(case: Case) -> None:
    loss = case.make()
    prediction, target, _ = _examples(loss)
    kept = (prediction.clone(), target.clone())
    loss(prediction, target)
    changed = difference(kept, (prediction, target))
    expect(changed is None, f"changed: {changed}")


def _candidates() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    foreground = torch.rand(2, 600, generator=generator) > 0.6
    return foreground, ~foreground & (torch.rand(2, 600, generator=generator) > 0.5)


@check(
    "draw",
    "index, valid and foreground are (N, S), S at most `size`; valid rows are candidates, none of them twice; "
    "foreground rows are foreground candidates and lie among the first `capacity`",
    "see RandomSampler in toolbox/models/boxes/sampler.py",
)
def _draw(case: Case) -> None:
    sampler = case.make()
    foreground, background = _candidates()
    index, valid, chosen = sampler.sample(foreground, background)
    expect(index.shape == valid.shape == chosen.shape, f"shapes {index.shape}, {valid.shape}, {chosen.shape}")
    expect(index.ndim == 2 and len(index) == 2, f"index is {tuple(index.shape)} for 2 images")
    expect(index.shape[1] <= sampler.size, f"{index.shape[1]} rows, size is {sampler.size}")
    expect(valid.any().item() and chosen.any().item(), "nothing was drawn of hundreds of candidates")
    expect(bool((foreground | background).gather(1, index)[valid].all()), "a valid row that is no candidate")
    expect(bool(foreground.gather(1, index)[chosen].all()), "a foreground row that is no foreground candidate")
    expect(not (background.gather(1, index) & chosen).any(), "a background candidate that is called foreground")
    expect(not (chosen & ~valid).any(), "a foreground row that is not valid")
    expect(not chosen[:, sampler.capacity :].any(), f"foreground beyond the first {sampler.capacity} rows (capacity)")
    for rows, kept in zip(index, valid, strict=True):
        expect(len(rows[kept].unique()) == int(kept.sum()), "a candidate that is drawn twice")


@check(
    "few candidates",
    "with fewer candidates than `size`, or none at all, the rest is not valid",
    "topk(min(size, R)), and valid only where a candidate was drawn",
)
def _few(case: Case) -> None:
    sampler = case.make()
    no = torch.zeros(2, 5, dtype=torch.bool)
    one = no.clone()
    one[0, 2] = True
    _, valid, chosen = sampler.sample(no, no)
    expect(not valid.any() and not chosen.any(), "valid rows without a candidate")
    index, valid, chosen = sampler.sample(one, no)
    drawn = index[valid].tolist()
    expect(drawn == [2] and int(chosen.sum()) == 1, f"drew {drawn} where 2 is the only candidate")
    _, valid, _ = sampler.sample(no[:, :0], no[:, :0])
    expect(not valid.any(), "valid rows of no regions")


@check(
    "repeatable",
    "the same seed of torch draws the same, and the candidates stay as they were",
    "draw from torch's generator: torch.rand(…, device=foreground.device)",
)
def _sampler_repeatable(case: Case) -> None:
    sampler = case.make()
    candidates = _candidates()
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(sampler.sample(*candidates))
    differs = difference(draws[0], draws[1])
    expect(differs is None, f"two draws of one seed: {differs}")
    fresh = _candidates()
    changed = any(not torch.equal(a, b) for a, b in zip(candidates, fresh, strict=True))
    expect(not changed, "the candidates were changed")


LOSS_CHECKS: tuple[Check, ...] = (_element_wise, _loss_gradient, _loss_finite, _loss_inputs)
SAMPLER_CHECKS: tuple[Check, ...] = (_draw, _few, _sampler_repeatable)
