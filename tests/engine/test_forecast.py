"""What a few steps say of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from toolbox.cli.forecast_lines import lines_of, print_forecast
from toolbox.engine import forecast as module
from toolbox.engine.forecast import Forecast, forecast
from toolbox.engine.train import train

MakeConfig = Callable[..., Any]
GB = 2**30
FOUND = Forecast(
    passes=3, step=0.5, images_per_second=8.0, loader_share=0.25, evaluation=30.0, evaluations=4, steps=7200,
    memory=3 * GB, available=5 * GB, checkpoint=512 * 2**20, free=100 * GB,
)  # fmt: skip


@pytest.fixture
def as_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dataclasses.replace` for the stand-in of a config, too."""

    def change(value: Any, **changes: Any) -> Any:
        return (
            type(value)(**{**vars(value), **changes})
            if not hasattr(value, "__dataclass_fields__")
            else replace(value, **changes)
        )

    monkeypatch.setattr(module, "replace", change)


@pytest.mark.usefixtures("as_config")
def test_steps_are_measured_by_backward_passes_and_nothing_is_written(
    tiny_config: MakeConfig, tiny_images: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_config(val=tiny_images, steps=100, batch=8, micro_batch=2, eval_every=30)
    found = forecast(config, Path("runs/tiny"), limit=60)
    assert not any(tmp_path.iterdir())
    assert found.passes == 3 and found.steps == 100
    # Eight images a step, so the step's time and the images per second are two words for one thing.
    assert found.step * found.images_per_second == pytest.approx(8, rel=0.8)
    assert found.evaluations == 4  # after 30, 60, 90 and 100 steps
    assert found.evaluation > 0 and found.total == 100 * found.step + 4 * found.evaluation
    assert 0 <= found.loader_share < 1 and found.free > 0

    train(tiny_config(val=tiny_images, steps=2, batch=8, micro_batch=2), tmp_path / "run")
    written = sum((tmp_path / "run" / name).stat().st_size for name in ("checkpoint.pt", "model.safetensors"))
    assert 0 < found.checkpoint < written  # the tensors; files have names in them too


@pytest.mark.usefixtures("as_config")
def test_where_time_is_short_the_first_step_counts(tiny_config: MakeConfig, tmp_path: Path) -> None:
    found = forecast(tiny_config(steps=10), tmp_path, limit=1e-9)
    assert found.passes == 1 and found.evaluations == 0 and found.evaluation == 0
    assert "from 1 backward pass, the first one" in lines_of(found)[0]


@pytest.mark.usefixtures("as_config")
def test_measuring_does_not_change_what_is_trained(tiny_config: MakeConfig, tmp_path: Path) -> None:
    losses = []
    for measured in (False, True):
        config = tiny_config(steps=3, log_every=1, model={"dropout": 0.5})
        if measured:
            forecast(config, tmp_path, limit=1)
        train(config, tmp_path / str(measured))
        lines = (tmp_path / str(measured) / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == losses[1]


def test_the_lines_say_time_memory_and_disk() -> None:
    assert lines_of(FOUND) == [
        "  step: 0.5 s, 8 images/s, 25% of it waiting for the loader (from 3 backward passes)",
        "  the run: about 62 min: 7200 steps about 60 min, 4 evaluations about 2 min (of an untrained model)",
        "  memory: 3.0 GB at the most on these batches; larger images take more, 5.0 GB more are there",
        "  disk: 512 MB for checkpoints and models, 100.0 GB are free",
    ]
    full = replace(FOUND, free=600 * 2**20, memory=None)
    assert "NOT ENOUGH" in lines_of(full)[-1] and len(lines_of(full)) == 3


@pytest.mark.usefixtures("as_config")
def test_a_device_without_room_is_told_what_to_lower(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*given: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(module, "optimizer_step", full)
    print_forecast(tiny_config(steps=1), tmp_path, 1.0)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("measuring") and "lower train.micro_batch" in said[1] and "20.00 GiB" in said[1]
