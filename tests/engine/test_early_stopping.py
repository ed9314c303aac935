"""Early stopping: when it ends a run, from what it decides, and which metrics it takes."""

from __future__ import annotations

import importlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolbox.engine import Progress, train
from toolbox.engine.early_stopping import Patience, warn_of_endless
from toolbox.errors import ConfigError
from toolbox.sections import EarlyStopping

MakeConfig = Callable[..., Any]
training = importlib.import_module("toolbox.engine.train")  # the package's `train` is the function
validation = importlib.import_module("toolbox.engine.validate")


def ends_after(values: list[float | None], **settings: Any) -> int | None:
    """Number of the evaluation after which the run ends, from 1."""
    patience = Patience(EarlyStopping("bbox.AP", **settings))
    for number, value in enumerate(values, start=1):
        patience.see(10 * number, {"bbox": {"AP": -1.0 if value is None else value}})
        if patience.verdict is not None:
            return number
    return None


@pytest.mark.parametrize(
    ("values", "settings", "end"),
    [
        ([0.1, 0.2, 0.2, 0.2], {"patience": 2}, 4),  # as good is not better
        ([0.1, 0.2, 0.1, 0.3, 0.1, 0.1], {"patience": 2}, 6),  # a better one begins anew
        ([0.3, 0.1, 0.2, 0.25, 0.29], {"patience": 4}, 5),  # better than the last is not better than the best
        ([0.1, 0.105, 0.109, 0.2], {"patience": 2, "min_delta": 0.01}, 3),
        ([0.1, 0.105, 0.111, 0.2], {"patience": 2, "min_delta": 0.01}, None),
        ([0.1, None, None, None, 0.05], {"patience": 2}, None),  # no value is no evaluation
        ([None] * 9, {"patience": 1}, None),
        ([0.0, 0.0], {"patience": 1}, 2),
    ],
)
def test_a_run_ends_when_its_best_was_patience_evaluations_ago(
    values: list[float | None], settings: dict[str, Any], end: int | None
) -> None:
    assert ends_after(values, **settings) == end


class Scripted:
    """Takes the place of `evaluate`: what a model gives depends on its step alone."""

    def __init__(self, values: list[float]) -> None:
        self.values = values
        self.step = 0

    def __call__(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"bbox": {"AP": self.values[self.step // 2 - 1], "AP50": 0.5, "per_class": {"thing": 0.0}}}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    values = Scripted([0.1, 0.3, 0.2, 0.3, 0.4, 0.5])  # after the steps 2, 4, …; that of step 4 is not passed by step 8
    made = training.optimizer_step

    def step(job: Any, number: int, *rest: Any) -> None:
        made(job, number, *rest)
        values.step = number + 1

    monkeypatch.setattr(training, "optimizer_step", step)
    monkeypatch.setattr(validation, "evaluate", values)
    monkeypatch.setattr(validation, "draw_dataset", lambda *_, **__: None)
    return values


@pytest.fixture
def watching(tiny_config: MakeConfig, tiny_images: type) -> MakeConfig:
    """A function of early stopping's settings that gives a config."""

    def make(metric: str = "bbox.AP", *, patience: int = 2, **train: Any) -> Any:
        config = tiny_config(val=tiny_images, eval_every=2, **train)
        object.__setattr__(config.train, "early_stopping", EarlyStopping(metric, patience=patience))
        return config

    return make


def test_a_run_ends_early_and_says_so(watching: MakeConfig, tmp_path: Path, scripted: Scripted) -> None:
    result = train(watching(), tmp_path / "run")
    assert (result["step"], result["finished"]) == (8, True)
    assert result["stopped_early"] == "bbox.AP was best after step 4 (0.3000), 2 evaluations ago"
    assert "early stopping after step 8: bbox.AP was best" in (tmp_path / "run/log.txt").read_text()
    again = train(watching(), tmp_path / "run", resume=True)
    assert (again["step"], again["finished"], again["stopped_early"]) == (8, True, result["stopped_early"])


def test_a_run_that_ended_early_goes_on_with_more_patience(
    watching: MakeConfig, tmp_path: Path, scripted: Scripted
) -> None:
    train(watching(), tmp_path / "run")
    result = train(watching(patience=3), tmp_path / "run", resume=True)
    assert (result["step"], result["stopped_early"]) == (12, None)


def evaluated(run: Path) -> set[int]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"] for line in lines if "eval" in line}


@pytest.mark.parametrize("at", range(1, 9))
def test_a_run_stopped_after_any_step_ends_where_it_would_have(
    watching: MakeConfig, tmp_path: Path, scripted: Scripted, at: int
) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done == at:
            os.kill(os.getpid(), signal.SIGINT)

    assert not train(watching(), tmp_path / "run", on_progress=interrupt)["finished"]
    result = train(watching(), tmp_path / "run", resume=True)
    assert (result["step"], result["finished"], evaluated(tmp_path / "run")) == (8, True, {2, 4, 6, 8})


@pytest.mark.parametrize("at", [2, 4, 6, 8])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_killed_around_any_evaluation_ends_where_it_would_have(
    watching: MakeConfig, tmp_path: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch, at: int, when: str
) -> None:
    whole = training.validate

    def dies(*arguments: Any) -> Any:
        if (scripted.step, when) == (at, "before"):
            raise MemoryError
        result = whole(*arguments)
        if scripted.step == at:
            raise MemoryError
        return result

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(training, "validate", dies)
        train(watching(), tmp_path / "run")
    result = train(watching(), tmp_path / "run", resume=True)
    assert (result["step"], result["finished"], evaluated(tmp_path / "run")) == (8, True, {2, 4, 6, 8})


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        ("segm.AP", "data.val has no ground truth for segm"),
        ("bbox.APl", "no object of data.val counts for it"),
        ("bbox.per_class.cat", r"data.val has no such class \(it has thing\)"),
        ("bbox.AP@300", "computed only where test.detections is that number, not 100"),
    ],
)
def test_a_metric_that_can_have_no_value_is_refused_before_the_first_step(
    watching: MakeConfig, tmp_path: Path, metric: str, why: str
) -> None:
    with pytest.raises(ConfigError, match=f"train.early_stopping: {metric} would never .*{why}"):
        train(watching(metric), tmp_path / "run")


@pytest.mark.parametrize("metric", ["bbox.AP", "bbox.APs", "bbox.AR100", "bbox.per_class.thing"])
def test_what_is_watched_is_written_down(watching: MakeConfig, tmp_path: Path, metric: str) -> None:
    train(watching(metric, steps=2), tmp_path / "run")
    (line,) = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines() if "eval" in x]
    whole = json.loads((tmp_path / "run/eval.json").read_text())["bbox"]
    number = metric.removeprefix("bbox.")
    expected = whole["per_class"]["thing"] if number == "per_class.thing" else whole[number]
    assert line["watched"] == {metric: expected}


def test_without_data_to_evaluate_on_it_is_refused(watching: MakeConfig, tmp_path: Path) -> None:
    config = watching()
    object.__setattr__(config.data, "val", None)
    with pytest.raises(ConfigError, match=r"watches bbox.AP on data.val, and there is none"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"metric": "mask.AP"}, "metric: expected a kind and a number of it, e.g. segm.AP, got 'mask.AP'"),
        ({"metric": "segm.APx"}, "metric: segm has no number 'APx'"),
        ({"metric": "segm.AP", "patience": 0}, "patience is 1 evaluation or more, got 0"),
        ({"metric": "segm.AP", "min_delta": -0.1}, "min_delta is 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EarlyStopping(**settings)


def test_it_needs_evaluations(tiny_config: MakeConfig) -> None:
    with pytest.raises(ValueError, match="early_stopping needs eval_every"):
        tiny_config(early_stopping=EarlyStopping("bbox.AP"))


@pytest.mark.parametrize(("steps", "warned"), [(60, True), (61, False)])
def test_one_that_comes_too_late_to_end_the_run_is_said(
    tiny_config: MakeConfig, caplog: pytest.LogCaptureFixture, steps: int, warned: bool
) -> None:
    stopping = EarlyStopping("bbox.AP", patience=5)  # the first evaluation and five more: after step 60
    warn_of_endless(tiny_config(steps=steps, eval_every=10, early_stopping=stopping).train)
    assert ("train.early_stopping cannot end this run: that takes 6 evaluations" in caplog.text) == warned
