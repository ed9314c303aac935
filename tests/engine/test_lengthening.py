"""More steps for a run that was started with fewer: only where it is then what it would have been."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from toolbox.engine import train
from toolbox.engine.checkpoint import load_checkpoint
from toolbox.engine.optim import Constant, MultiStep
from toolbox.errors import ConfigError
from toolbox.plan import Plan
from toolbox.registry import SCHEDULES
from toolbox.sections import EarlyStopping


def scheduled(config: Any, kind: type, **settings: Any) -> Any:
    object.__setattr__(config.train, "schedule", Plan(kind, settings, family=SCHEDULES))
    return config


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(Constant, {"warmup_steps": 2}), (MultiStep, {"milestones": [4, 8], "warmup_steps": 0})],
)
def test_a_schedule_in_steps_can_be_lengthened_and_gives_the_longer_run(
    tiny_config: Callable[..., Any], tmp_path: Path, kind: type, settings: dict[str, Any]
) -> None:
    train(scheduled(tiny_config(steps=6, model={"dropout": 0.5}), kind, **settings), tmp_path / "parts")
    longer = scheduled(tiny_config(steps=10, model={"dropout": 0.5}), kind, **settings)
    assert train(longer, tmp_path / "parts", resume=True)["step"] == 10
    train(longer, tmp_path / "whole")
    one, other = (load_checkpoint(tmp_path / name / "checkpoint.pt")["model"] for name in ("parts", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_end_of_a_run_that_is_made_longer_leaves_no_trace_in_what_decides(
    tiny_config: Callable[..., Any], tiny_images: type, tmp_path: Path
) -> None:
    """Lines of the log, the state to roll back to and early stopping, at an end where none of them is due."""

    def go(steps: int, run: str, **how: Any) -> dict[str, Any]:
        watched = {"metric": "bbox.AP", "patience": 3, "min_delta": 0.5}  # 4 is the best; 8, 12 and 16 are waited for
        made = tiny_config(
            val=tiny_images,
            steps=steps,
            log_every=3,
            eval_every=4,
            checkpoint_every=8,
            on_nonfinite="roll_back",
            early_stopping=EarlyStopping(**watched),
            pictures=0,
        )
        return train(scheduled(made, Constant, warmup_steps=2), tmp_path / run, **how)

    def lines(run: str) -> list[dict[str, Any]]:
        records = map(json.loads, (tmp_path / run / "metrics.jsonl").open())
        return [{name: record.get(name) for name in ("step", "losses", "eval")} for record in records]

    go(10, "parts")
    assert load_checkpoint(tmp_path / "parts/checkpoint_good.pt")["step"] == 8
    go(10, "parts", resume=True)
    assert load_checkpoint(tmp_path / "parts/checkpoint_good.pt")["step"] == 8
    assert go(20, "parts", resume=True)["step"] == go(20, "whole")["step"] == 16
    assert [line for line in lines("parts") if line["step"] != 10] == lines("whole")


def test_a_schedule_in_parts_of_the_run_cannot_and_the_way_is_named(
    tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    settings = {"milestones": [0.5], "warmup_steps": 0}
    train(scheduled(tiny_config(steps=6), MultiStep, **settings), tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        train(scheduled(tiny_config(steps=10), MultiStep, **settings), tmp_path / "run", resume=True)
    (problem,) = caught.value.problems
    assert problem.key == "train.steps"
    assert "the schedule of 10 steps has another learning rate from step 4 on" in problem.message
    assert f"rcnn train CONFIG train.init_from={tmp_path / 'run'} train.steps=… --run NEW" in problem.message


def test_a_run_is_not_resumed_for_fewer_steps_than_it_has_done(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    train(scheduled(tiny_config(steps=6), Constant, warmup_steps=2), tmp_path / "run")
    with pytest.raises(ConfigError, match="6 steps are done already"):
        train(scheduled(tiny_config(steps=5), Constant, warmup_steps=2), tmp_path / "run", resume=True)


def test_other_keys_are_refused_beside_the_steps(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    train(scheduled(tiny_config(steps=6), Constant, warmup_steps=2), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train\.lr: the run has 0\.05, now it is 0\.1"):
        train(scheduled(tiny_config(steps=9, lr=0.1), Constant, warmup_steps=2), tmp_path / "run", resume=True)
