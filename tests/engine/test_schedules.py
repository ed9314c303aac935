"""Schedules, by hand and against torch's."""

from __future__ import annotations

import pytest
import torch

from toolbox.engine.optim import Constant, Cosine, MultiStep, Poly
from toolbox.errors import ConfigError


def test_multistep_drops_at_fractions_and_at_steps() -> None:
    for milestones in ((0.5, 0.75), (50, 75), (0.5, 75)):
        schedule = MultiStep(100, milestones=milestones, warmup_steps=0)
        assert [schedule(step) for step in (0, 49)] == [1.0, 1.0]
        assert [schedule(step) for step in (50, 74)] == pytest.approx([0.1, 0.1])
        assert [schedule(step) for step in (75, 99)] == pytest.approx([0.01, 0.01])


def test_warmup_rises_linearly_from_its_factor_to_one() -> None:
    schedule = MultiStep(100, warmup_steps=4, warmup_factor=0.2)
    assert [schedule(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_warmup_takes_a_tenth_of_a_short_run_and_1000_steps_of_a_long_one() -> None:
    assert MultiStep(90)(8) < 1 == MultiStep(90)(9)
    assert MultiStep(90_000)(999) < 1 == MultiStep(90_000)(1000)


def test_cosine_is_one_after_the_warmup_half_way_down_in_the_middle_and_final_at_the_end() -> None:
    schedule = Cosine(110, warmup_steps=10, warmup_factor=0.5, final=0.2)
    assert [schedule(step) for step in (0, 10, 60, 110)] == pytest.approx([0.5, 1.0, 0.6, 0.2])


def test_a_run_of_one_step_needs_no_other_milestones() -> None:
    assert MultiStep(1)(0) == 1.0


@pytest.mark.parametrize("milestones", [(0.9, 0.5), (50, 50), (-1, 10)])
def test_milestones_that_do_not_grow_are_refused(milestones: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="train.schedule.milestones"):
        MultiStep(100, milestones=milestones)


def test_poly_is_the_power_of_what_is_left_after_the_warmup() -> None:
    schedule = Poly(110, warmup_steps=10, warmup_factor=0.5, power=2, final=0.2)
    assert [schedule(step) for step in (0, 10, 60, 110)] == pytest.approx([0.5, 1.0, 0.2 + 0.8 * 0.25, 0.2])


def test_constant_stays_at_one_after_the_warmup() -> None:
    assert [Constant(100, warmup_steps=2, warmup_factor=0.2)(step) for step in range(4)] == pytest.approx(
        [0.2, 0.6, 1, 1]
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        (Poly(20, power=0.9, warmup_steps=0), "PolynomialLR", {"total_iters": 20, "power": 0.9}),
        (Cosine(20, final=0.1, warmup_steps=0), "CosineAnnealingLR", {"T_max": 20, "eta_min": 0.1}),
        (MultiStep(20, milestones=(8, 16), warmup_steps=0), "MultiStepLR", {"milestones": [8, 16]}),
        (Constant(20, warmup_steps=4, warmup_factor=0.2), "LinearLR", {"start_factor": 0.2, "total_iters": 4}),
    ],
)
def test_schedules_give_torchs_rates(ours: object, theirs: str, settings: dict[str, object]) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = getattr(torch.optim.lr_scheduler, theirs)(optimizer, **settings)
    for step in range(20):
        assert ours(step) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9), step
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("kind", [MultiStep, Cosine, Poly, Constant])
def test_a_warmup_longer_than_the_run_is_warned_of(kind: type, caplog: pytest.LogCaptureFixture) -> None:
    kind(100, warmup_steps=100)
    assert not caplog.text
    kind(100, warmup_steps=101)
    assert "the run ends after 100 steps, inside the warm-up of 101" in caplog.text


def test_a_power_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="power is more than 0"):
        Poly(10, power=0)
