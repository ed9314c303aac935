"""Which checkpoints and models of a run stay."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from toolbox.engine import train
from toolbox.engine.checkpoint import load_checkpoint
from toolbox.engine.kept import drop_earliest, give_name, is_best
from toolbox.engine.run_folder import RunFolder
from toolbox.errors import ConfigError
from toolbox.weights import load_model

MakeConfig = Callable[..., Any]
VALIDATION = importlib.import_module("toolbox.engine.validate")


def steps_kept(run: Path) -> list[int]:
    files = sorted((run / "checkpoints").glob("*.pt"))
    return [load_checkpoint(file)["step"] for file in files]


def test_the_last_checkpoints_stay_each_a_file_of_its_own(tiny_config: MakeConfig, tmp_path: Path) -> None:
    """Who copies an earlier one over `checkpoint.pt` writes into that file: no other name may mean it."""
    train(tiny_config(steps=10, checkpoint_every=2, keep_checkpoints=3), tmp_path)
    assert steps_kept(tmp_path) == [6, 8] and load_checkpoint(tmp_path / "checkpoint.pt")["step"] == 10
    files = [tmp_path / "checkpoint.pt", *(tmp_path / "checkpoints").iterdir()]
    assert [file.stat().st_nlink for file in files] == [1, 1, 1]
    assert not [file for file in (tmp_path / "checkpoints").iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("count", [2, 4, 5, 9])
def test_as_many_stay_as_there_are_until_there_are_too_many(
    tiny_config: MakeConfig, tmp_path: Path, count: int
) -> None:
    train(tiny_config(steps=5, checkpoint_every=1, keep_checkpoints=count), tmp_path)
    assert steps_kept(tmp_path) == [1, 2, 3, 4][-(count - 1) :]


def test_by_default_no_earlier_checkpoint_stays(tiny_config: MakeConfig, tmp_path: Path) -> None:
    train(tiny_config(steps=4, checkpoint_every=2), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_run_goes_on_from_an_earlier_checkpoint_that_takes_the_last_ones_place(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    config = tiny_config(model={"dropout": 0.5}, steps=10, checkpoint_every=2, keep_checkpoints=3)
    train(config, tmp_path)
    end = load_checkpoint(tmp_path / "checkpoint.pt")["model"]
    shutil.copyfile(tmp_path / "checkpoints/step_00000006.pt", tmp_path / "checkpoint.pt")
    assert steps_kept(tmp_path) == [6, 8]
    assert train(config, tmp_path, resume=True)["step"] == 10
    again = load_checkpoint(tmp_path / "checkpoint.pt")["model"]
    assert all(torch.equal(end[name], again[name]) for name in end)
    assert steps_kept(tmp_path) == [6, 8]


def test_later_checkpoints_of_another_history_are_left_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.checkpoint.touch()
    for step in (2, 4, 6, 90):
        give_name(folder.checkpoint, folder.earlier(step))
    drop_earliest(folder, 8, 3)
    assert [file.name for file in sorted(folder.checkpoints.iterdir())] == [
        "step_00000004.pt",
        "step_00000006.pt",
        "step_00000090.pt",
    ]
    drop_earliest(folder, 8, 1)
    assert [file.name for file in folder.checkpoints.iterdir()] == ["step_00000090.pt"]


def test_a_file_system_without_links_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_text("state")
    give_name(tmp_path / "a", tmp_path / "under/b")
    assert (tmp_path / "under/b").read_text() == "state" and not (tmp_path / "a").samefile(tmp_path / "under/b")


def test_the_best_is_above_all_before_it() -> None:
    records = [{"step": 1}, {"step": 2, "watched": {"bbox.AP": 0.2}}, {"step": 3, "watched": {"bbox.AP": None}}]
    assert is_best([], "bbox.AP", 0.0)
    assert is_best(records, "bbox.AP", 0.21)
    assert not is_best(records, "bbox.AP", 0.2)  # of equal ones the first
    assert not is_best(records, "bbox.AP", None)
    assert is_best(records, "segm.AP", 0.1)


class Fading:
    """Gives the evaluations of a run their AP: best at the second."""

    def __init__(self, values: list[float]) -> None:
        self.values = iter(values)

    def __call__(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"bbox": {"AP": next(self.values), "AP50": 0.5, "per_class": {}}}


def test_the_model_that_was_best_stays(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VALIDATION, "evaluate", Fading([0.1, 0.3, 0.2]))
    config = tiny_config(
        steps=6, eval_every=2, val=tiny_images, keep_best="bbox.AP", ema=0.9, keep_checkpoints=9, checkpoint_every=2
    )
    train(config, tmp_path)
    best, _ = load_model(tmp_path / "model_best.safetensors")
    second = load_checkpoint(tmp_path / "checkpoints/step_00000004.pt")["ema"]
    assert all(torch.equal(best[name], second[name]) for name in second)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["watched"] for line in lines if "eval" in line] == [{"bbox.AP": v} for v in (0.1, 0.3, 0.2)]


def test_a_run_killed_before_its_best_was_on_record_keeps_it_on_resuming(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(steps=4, eval_every=2, val=tiny_images, keep_best="bbox.AP")
    monkeypatch.setattr(VALIDATION, "evaluate", Fading([0.1, 0.3]))
    monkeypatch.setattr(
        RunFolder, "write_evaluation", lambda *_: (_ for _ in ()).throw(MemoryError) if _[1]["bbox"]["AP"] > 0.2 else 0
    )
    with pytest.raises(MemoryError):
        train(config, tmp_path)
    (tmp_path / "model_best.safetensors").unlink(missing_ok=True)
    monkeypatch.setattr(RunFolder, "write_evaluation", lambda *_: None)
    monkeypatch.setattr(VALIDATION, "evaluate", Fading([0.3]))
    train(config, tmp_path, resume=True)
    assert (tmp_path / "model_best.safetensors").exists()


def test_a_best_by_a_metric_that_can_have_no_value_is_refused(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type
) -> None:
    with pytest.raises(ValueError, match=r"keep_best: bbox has no number 'APP'; did you mean 'AP'\?"):
        tiny_config(keep_best="bbox.APP")
    with pytest.raises(ConfigError, match=r"keep_best: segm.AP would never have a value: data.val has no ground truth"):
        train(tiny_config(keep_best="segm.AP", val=tiny_images), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"keep_best watches bbox.AP on data.val, and there is none"):
        train(tiny_config(keep_best="bbox.AP"), tmp_path / "run")
