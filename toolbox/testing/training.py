"""What is asked of optimizers and schedules."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from toolbox.testing.case import Case, Check, check, difference, expect

_LR = 0.01


def _problem() -> tuple[nn.Linear, list[dict[str, Any]]]:
    """A line to fit, and its parameters in the two groups that training makes."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    return model, [{"params": [model.weight]}, {"params": [model.bias], "weight_decay": 0.0}]


def _loss(model: nn.Linear) -> Tensor:
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    return ((model(x) - x.sum(dim=1, keepdim=True) - 1) ** 2).mean()


def _steps(model: nn.Linear, optimizer: Any, count: int) -> float:
    value = torch.zeros(())
    for _ in range(count):
        optimizer.zero_grad()
        value = _loss(model)
        value.backward()
        optimizer.step()
    return value.item()


@check("learns", "fifty steps lower a quadratic loss", "step() moves parameters against their gradient")
def _learns(case: Case) -> None:
    model, groups = _problem()
    optimizer = case.make(params=groups, lr=_LR)
    before, after = _loss(model).item(), _steps(model, optimizer, 50)
    expect(
        math.isfinite(after) and after < before,
        f"a loss of {after:.4g} after 50 steps at lr {_LR}, {before:.4g} before",
    )


@check(
    "learning rate",
    "param_groups have 'lr', which training sets at each step: at 0 no parameter moves",
    "read group['lr'] in step(), not the constructor's argument",
)
def _learning_rate(case: Case) -> None:
    model, groups = _problem()
    optimizer = case.make(params=groups, lr=_LR)
    rates = [group.get("lr") for group in optimizer.param_groups]
    expect(rates == [_LR, _LR], f"rates {rates} for lr = {_LR}")
    _steps(model, optimizer, 2)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    kept = copy.deepcopy(model.state_dict())
    _steps(model, optimizer, 2)
    moved = difference(kept, model.state_dict())
    expect(moved is None, f"with lr = 0: {moved}")


@check(
    "groups",
    "the weight decay of a parameter group rules: a group with 0 has none",
    "take defaults by super().__init__(params, defaults), and read group['weight_decay']",
)
def _groups(case: Case) -> None:
    if "weight_decay" not in case.registry.settings(case.cls):
        return
    case = Case(case.cls, case.registry, {**case.settings, "weight_decay": 0.5}, case.wired)
    model, groups = _problem()
    optimizer = case.make(params=groups, lr=_LR)
    decays = [group.get("weight_decay") for group in optimizer.param_groups]
    expect(decays == [0.5, 0.0], f"weight decay {decays} for groups that ask for 0.5 and 0")


@check(
    "state dict",
    "an optimizer that loads the state dict goes on exactly as the first would",
    "keep what step() remembers in self.state[parameter]",
)
def _state(case: Case) -> None:
    model, groups = _problem()
    optimizer = case.make(params=groups, lr=_LR)
    _steps(model, optimizer, 3)
    twin, twin_groups = _problem()
    twin.load_state_dict(model.state_dict())
    other = case.make(params=twin_groups, lr=_LR)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _steps(model, optimizer, 3)
    _steps(twin, other, 3)
    differs = difference(model.state_dict(), twin.state_dict())
    expect(differs is None, f"after three more steps: {differs}")


@check(
    "factors",
    "every step of runs of 1, 7 and 100 steps has a finite factor of 0 or more, and some step one above 0",
    "clamp; see that nothing divides by a part of the run that may be 0 steps long",
)
def _factors(case: Case) -> None:
    for steps in (1, 7, 100):
        schedule = case.make(steps=steps)
        factors = [schedule(step) for step in range(steps + 1)]
        wrong = [(step, f) for step, f in enumerate(factors) if not (isinstance(f, int | float) and 0 <= f < math.inf)]
        expect(not wrong, f"of {steps} steps, (step, factor) {wrong[:3]}")
        expect(max(factors) > 0, f"of {steps} steps, every factor is 0")


@check(
    "no state",
    "the factor depends on the step alone, so that a resumed run has nothing to restore",
    "compute from `step`; write to no attribute in __call__",
)
def _no_state(case: Case) -> None:
    schedule = case.make()
    forward = [schedule(step) for step in range(100)]
    backward = [schedule(step) for step in reversed(range(100))][::-1]
    differing = [step for step in range(100) if forward[step] != backward[step]]
    expect(not differing, f"asked in another order, the factor differs at step {differing[:3]}")


OPTIMIZER_CHECKS: tuple[Check, ...] = (_learns, _learning_rate, _groups, _state)
SCHEDULE_CHECKS: tuple[Check, ...] = (_factors, _no_state)
