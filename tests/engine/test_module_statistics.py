"""Statistics against numpy's, and the first module and gradient that are not finite."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toolbox.engine import module_statistics
from toolbox.engine.module_statistics import Statistics, observe


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_statistics_are_those_of_numpy(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_statistics, "_PIECE", 100)  # many pieces
    values = torch.randn(7, 3, 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype) * 3
    values[2, 1, 0, 0], values[6, 2, 4, 3], values[0, 0, 0, 1] = torch.nan, torch.inf, -torch.inf
    row = Statistics("some")
    row.add(values.permute(0, 2, 3, 1))  # not contiguous
    flat = values.double().numpy()
    finite = flat[np.isfinite(flat)]
    assert (row.count, row.finite, row.dtype) == (420, 417, str(dtype).removeprefix("torch."))
    assert (row.minimum, row.maximum, row.magnitude) == (finite.min(), finite.max(), np.abs(finite).max())
    assert row.mean == pytest.approx(finite.mean(), rel=1e-12)
    assert row.rms == pytest.approx(np.sqrt((finite**2).mean()), rel=1e-12)
    assert row.not_finite == pytest.approx(3 / 420)


def test_float16_values_near_its_end_do_not_overflow_in_the_statistics() -> None:
    row = Statistics("some")
    row.add(torch.full((1000,), 60000.0, dtype=torch.float16))
    assert (row.mean, row.rms, row.not_finite) == (60000, 60000, 0)


def test_nothing_but_nan_and_nothing_at_all() -> None:
    row = Statistics("some")
    row.add(torch.zeros(0, 3))
    assert (row.count, row.not_finite) == (0, 0)
    row.add(torch.tensor(torch.nan))
    assert row.not_finite == 1 and np.isnan(row.mean) and np.isnan(row.rms) and row.magnitude == 0


@dataclass
class Pair:
    kept: Tensor
    index: Tensor


class Twist(nn.Module):
    """Gives its output in nested containers; infinite where the input is more than 10."""

    def forward(self, x: Tensor) -> dict[str, list[Pair]]:
        return {"all": [Pair(torch.where(x > 10, torch.inf, x), torch.zeros(2).long())]}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.twist = Twist()
        self.block = nn.Sequential(nn.Identity(), nn.Linear(2, 1, bias=False))
        nn.init.eye_(self.first.weight)
        nn.init.ones_(self.block[1].weight)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        out = self.block(self.twist(self.first(x))["all"][0].kept)
        return {"sum": out.sum(), "root": (out - 3).abs().sqrt().sum()}


def test_the_first_module_that_is_not_finite_is_the_innermost_that_made_it() -> None:
    model = Net()
    seen = observe(model, [(lambda: model(torch.tensor([[1.0, 2.0], [3.0, 11.0]])), 1.0)])
    assert seen.first_module == "twist" and seen.bad_losses == ["sum", "root"]
    assert [row.name for row in seen.modules] == ["first", "twist", "block.0", "block.1", "block"]
    [twist] = [row for row in seen.modules if row.name == "twist"]
    assert (twist.kind, twist.count, twist.finite, twist.maximum) == ("Twist", 4, 3, 3)
    assert seen.origin() == "the first output that is not finite is that of twist (Twist)"


def test_a_second_micro_batch_counts_into_the_same_rows_and_may_be_the_one_at_fault() -> None:
    model = Net()
    batches = [torch.tensor([[1.0, 1.0]]), torch.tensor([[20.0, 1.0], [1.0, 1.0]])]
    seen = observe(model, [(lambda x=x: model(x), 0.5) for x in batches])
    assert seen.first_module == "twist" and [np.isfinite(losses["sum"]) for losses in seen.losses] == [True, False]
    assert seen.modules[0].count == 6


def test_a_gradient_that_is_not_finite_where_every_output_is() -> None:
    model = Net()
    seen = observe(model, [(lambda: model(torch.tensor([[1.0, 2.0]])), 1.0)])  # d sqrt|3 - 3| is infinite
    assert seen.first_module is None and seen.bad_losses == [] and seen.first_gradient == "block.1.weight"
    assert "the first gradient that is not, on the way back, is block.1.weight's" in seen.origin()


def test_a_loss_that_is_not_finite_where_every_output_is() -> None:
    model = Net()
    seen = observe(model, [(lambda: {"bad": model(torch.ones(1, 2))["sum"] / 0}, 1.0)])
    assert seen.origin() == "every module's output is finite; it came up in the loss itself: bad"


def test_gradients_are_those_of_torch_without_the_scale_and_nothing_is_left_behind() -> None:
    model, x = Net(), torch.tensor([[1.0, 3.0]])
    sum(model(x).values()).backward()
    expected = {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}
    seen = observe(model, [(lambda: model(x), 0.5), (lambda: model(x), 0.5)], loss_scale=1024.0)
    assert [row.name for row in seen.gradients] == list(expected)
    for row in seen.gradients:
        assert (row.minimum, row.maximum) == (expected[row.name].min(), expected[row.name].max())
    assert all(p.grad is None and not p._post_accumulate_grad_hooks for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
