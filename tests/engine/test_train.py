"""The training loop: exact resume, accumulation, averaging, stopping, and what a run folder holds afterwards."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from toolbox.engine import Progress, TrainingDiverged, train
from toolbox.engine.checkpoint import TrainingState, load_checkpoint
from toolbox.engine.progress import counted
from toolbox.errors import CheckpointError, ConfigError, DataError, DeviceError
from toolbox.sections import EarlyStopping
from toolbox.weights import load_model

MakeConfig = Callable[..., Any]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(run / "checkpoint.pt")["model"]


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def interrupt_at(step: int, *numbers: signal.Signals) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.phase == "train" and progress.done == step:
            for number in numbers or (signal.SIGINT,):
                os.kill(os.getpid(), number)
                time.sleep(0.05)  # for its handler: two that wait for theirs are one

    return on_progress


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("optimizer", [{}, {"ema": 0.9}, {"micro_batch": 2, "clip_norm": 0.1}])
def test_a_run_stopped_by_ctrl_c_and_resumed_ends_with_the_same_bits(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type, optimizer: dict[str, Any]
) -> None:
    config = tiny_config(model={"dropout": 0.5}, val=tiny_images, **optimizer)
    whole = train(config, tmp_path / "whole")
    stopped = train(config, tmp_path / "parts", on_progress=interrupt_at(5))
    assert (stopped["step"], stopped["finished"]) == (5, False)
    torch.rand(7)  # the random state at the restart is another one
    resumed = train(config, tmp_path / "parts", resume=True)
    assert whole["finished"] and resumed["finished"] and resumed["step"] == 12
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    losses = [[line.get("losses") for line in lines(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]  # the stop lies between two lines: a mean that spans it covers both sides
    assert_same(
        load_model(tmp_path / "whole/model.safetensors")[0], load_model(tmp_path / "parts/model.safetensors")[0]
    )
    assert whole["metrics"] == resumed["metrics"]


def test_signals_that_come_twice_do_not_break_off_the_step(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler signals all processes of a job, and torchrun passes on what it gets itself."""
    twice = interrupt_at(5, signal.SIGTERM, signal.SIGTERM)
    assert train(tiny_config(), tmp_path / "alone", on_progress=twice)["step"] == 5
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs have it ignored
    try:
        with pytest.raises(KeyboardInterrupt):  # a user wants to get out
            train(tiny_config(), tmp_path / "user", on_progress=interrupt_at(5, signal.SIGINT, signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    twice = interrupt_at(5, signal.SIGINT, signal.SIGINT)
    assert train(tiny_config(), tmp_path / "torchrun", on_progress=twice)["step"] == 5


def test_a_killed_run_goes_on_from_its_last_checkpoint_and_logs_no_step_twice(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    config = tiny_config(model={"dropout": 0.5}, checkpoint_every=4, log_every=1)

    def die(progress: Progress) -> None:
        if progress.done == 7:
            raise MemoryError  # anything that no one catches

    with pytest.raises(MemoryError):
        train(config, tmp_path / "parts", on_progress=die)
    assert [line["step"] for line in lines(tmp_path / "parts")] == [1, 2, 3, 4, 5, 6, 7]
    train(config, tmp_path / "parts", resume=True)
    train(config, tmp_path / "whole")
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert [line["step"] for line in lines(tmp_path / "parts")] == list(range(1, 13))
    losses = [[line["losses"] for line in lines(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]


def test_an_evaluation_that_was_cut_short_is_made_up_for_on_resuming(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type
) -> None:
    config = tiny_config(val=tiny_images, eval_every=4)

    def die(progress: Progress) -> None:
        if progress.phase != "train":
            raise MemoryError

    with pytest.raises(MemoryError):
        train(config, tmp_path / "run", on_progress=die)
    train(config, tmp_path / "run", resume=True)
    assert [line["step"] for line in lines(tmp_path / "run") if "eval" in line] == [4, 8, 12]


def test_an_evaluation_in_between_does_not_change_the_training(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type
) -> None:
    train(tiny_config(model={"dropout": 0.5}, val=tiny_images, eval_every=2), tmp_path / "often")
    train(tiny_config(model={"dropout": 0.5}), tmp_path / "never")
    assert_same(weights(tmp_path / "often"), weights(tmp_path / "never"))
    assert [line["step"] for line in lines(tmp_path / "often") if "eval" in line] == [2, 4, 6, 8, 10, 12]
    assert not (tmp_path / "never/eval.json").exists()


def test_accumulated_micro_batches_equal_the_whole_batch(tiny_config: MakeConfig, tmp_path: Path) -> None:
    train(tiny_config(batch=4, clip_norm=0.5), tmp_path / "whole")
    train(tiny_config(batch=4, micro_batch=1, clip_norm=0.5), tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-6)
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "parts"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_another_seed_gives_other_weights(tiny_config: MakeConfig, tmp_path: Path) -> None:
    train(tiny_config(steps=1), tmp_path / "a")
    train(tiny_config(steps=1, seed=1), tmp_path / "b")
    assert not torch.equal(weights(tmp_path / "a")["box.weight"], weights(tmp_path / "b")["box.weight"])


def test_the_loss_falls_and_the_learning_rate_follows_the_schedule(tiny_config: MakeConfig, tmp_path: Path) -> None:
    train(tiny_config(steps=100, batch=12, log_every=50), tmp_path / "run")
    first, last = lines(tmp_path / "run")
    assert last["loss"] < first["loss"] / 2
    assert first["lr"] == 0.05  # long after the warm-up of 10 steps
    assert last["lr"] == pytest.approx(0.05 * 0.01)  # after both drops
    assert last["losses"].keys() == {"corner", "size"}
    assert last["loss"] == pytest.approx(sum(last["losses"].values()))
    assert last["images_per_second"] > 0 and last["peak_memory_mb"] > 10


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(TrainingDiverged, match=r"step 7: .*corner 0\.\d+, size nan.*images \[1\d\d, ") as error:
        train(tiny_config(model={"nan_at": 7}, checkpoint_every=6), tmp_path / "run")
    assert "train.lr" in str(error.value)
    assert str(error.value).endswith(
        f"the last checkpoint is kept, and 'rcnn train {tmp_path / 'run'} --resume' goes on from it (with other "
        f"settings: a new run with train.init_from={tmp_path / 'run'})"
    )
    assert (tmp_path / "run/log.txt").read_text().rstrip().endswith(str(error.value))
    assert load_checkpoint(tmp_path / "run/checkpoint.pt")["step"] == 6


def test_a_run_that_diverges_before_its_first_checkpoint_does_not_speak_of_one(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(TrainingDiverged, match=r"no checkpoint was written yet \(train.checkpoint_every is 50\)$"):
        train(tiny_config(model={"nan_at": 2}, checkpoint_every=50), tmp_path / "run")
    assert not (tmp_path / "run/checkpoint.pt").exists()


def test_the_averaged_weights_are_evaluated_and_kept(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type
) -> None:
    result = train(tiny_config(val=tiny_images, ema=0.9, steps=3), tmp_path / "run")
    state = load_checkpoint(tmp_path / "run/checkpoint.pt")
    kept, metadata = load_model(tmp_path / "run/model.safetensors")
    assert_same(kept, state["ema"])
    assert not torch.equal(kept["box.weight"], state["model"]["box.weight"])
    assert json.loads(metadata["classes"]) == ["thing"] and json.loads(metadata["category_ids"]) == [5]
    assert json.loads((tmp_path / "run/eval.json").read_text()) == result["metrics"]


def test_the_log_says_at_once_what_runs_and_after_a_step_how_long_it_will_take(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type
) -> None:
    train(tiny_config(val=tiny_images, steps=4, log_every=3, micro_batch=2), tmp_path / "run")
    said = [line.split(" INFO ")[1] for line in (tmp_path / "run/log.txt").read_text().splitlines()]
    assert said[:6] == [
        f"device cpu, {counted(torch.get_num_threads(), 'thread')}, float32; 0 loader processes",
        "data.train: 12 images, 1 class",
        "data.val: 12 images, 1 class",
        "model: TinyDetector, 0.2 k parameters, 0.2 k of them trained",
        "train: 4 steps of 4 images in micro-batches of 2 (1.3 epochs)",
        "train: learning rate 0.05",
    ]
    assert [line.partition(":")[0] for line in said[6:10]] == ["step 1/4", "step 3/4", "step 4/4", "evaluating"]
    assert said[6].endswith("about 1 s and 1 evaluation left") and "left" not in said[8]
    assert [line["step"] for line in lines(tmp_path / "run")] == [3, 4, 4]  # the first step is not a line of metrics


def test_the_time_left_counts_evaluations_as_long_as_the_last(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(step=3600)  # an evaluation looks at it twice, and takes an hour
    monkeypatch.setattr(
        importlib.import_module("toolbox.engine.validate"), "time", SimpleNamespace(monotonic=lambda: next(clock))
    )
    train(tiny_config(val=tiny_images, steps=7, log_every=2, eval_every=2), tmp_path / "run")
    said = [line for line in (tmp_path / "run/log.txt").read_text().splitlines() if " step " in line and "loss" in line]
    left = [line.rpartition(", ")[2] for line in said if "left" in line]
    assert left[1:] == ["about 1 s and 4 evaluations left", "about 3.0 h left", "about 2.0 h left"]


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_run_that_is_done_says_so_when_it_is_resumed(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type, caplog: pytest.LogCaptureFixture, evaluated: bool
) -> None:
    config = tiny_config(steps=2, val=tiny_images if evaluated else None)
    train(config, tmp_path / "run")
    assert ("1 evaluation left" in caplog.text) == evaluated
    caplog.clear()
    assert train(config, tmp_path / "run", resume=True)["finished"]
    assert "all 2 steps are done already, nothing is left to do" in caplog.text and "resuming" not in caplog.text


def test_the_last_losses_of_a_run_that_ends_early_are_logged_once(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type
) -> None:
    """With a line every 3 steps and evaluations every 4, that after step 8 ends it."""
    stopping = EarlyStopping("bbox.AP", patience=1, min_delta=0.9)
    config = tiny_config(val=tiny_images, steps=20, eval_every=4, early_stopping=stopping)
    for resume in (False, True):
        assert train(config, tmp_path / "run", resume=resume)["step"] == 8
        assert [line["step"] for line in lines(tmp_path / "run") if "losses" in line] == [3, 6, 8]


def test_a_run_that_is_done_is_evaluated_for_a_model_that_is_to_be_kept(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type
) -> None:
    train(tiny_config(steps=2, val=tiny_images), tmp_path / "run")
    train(tiny_config(steps=2, val=tiny_images, keep_best="bbox.AP"), tmp_path / "run", resume=True)
    assert (tmp_path / "run/model_best.safetensors").is_file()


@pytest.mark.parametrize("lost", [None, "absent", "cut short", "of another step"])
def test_a_run_that_is_done_is_evaluated_once_more_only_where_its_evaluation_is_lost(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type, caplog: pytest.LogCaptureFixture, lost: str | None
) -> None:
    config, kept = tiny_config(steps=2, val=tiny_images), tmp_path / "run/eval.json"
    first = train(config, tmp_path / "run")
    if lost == "absent":
        kept.unlink()
    elif lost == "cut short":
        kept.write_text(kept.read_text()[:20])
    elif lost == "of another step":  # on a full disk the last one was not written
        kept.write_text(json.dumps({kind: {**numbers, "AP": 0.5} for kind, numbers in first["metrics"].items()}))
    caplog.clear()
    phases = []
    again = train(config, tmp_path / "run", resume=True, on_progress=lambda progress: phases.append(progress.phase))
    assert again == first and bool(phases) == (lost is not None)
    assert ("what is left is its evaluation" in caplog.text) == (lost is not None)
    assert json.loads(kept.read_text()) == first["metrics"]
    assert [line["step"] for line in lines(tmp_path / "run") if "eval" in line] == [2]


def test_a_run_goes_on_where_gradients_are_scaled_and_were_not(tiny_config: MakeConfig, tmp_path: Path) -> None:
    train(tiny_config(steps=1), tmp_path / "run")
    kept = load_checkpoint(tmp_path / "run/checkpoint.pt")
    model = torch.nn.Linear(1, 1)
    state = TrainingState(model, torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", enabled=True))
    own = {**state.state_dict(), "scaler": kept["scaler"]}
    state.load_state_dict(own, "here")
    assert kept["scaler"] == {} and state.scaler.is_enabled()


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="PyTorch sees no GPU here; use train.device=cpu"):
        train(tiny_config(device="cuda"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_named(tiny_config: MakeConfig, tmp_path: Path) -> None:
    train(tiny_config(steps=2), tmp_path / "run")
    checkpoint = tmp_path / "run/checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="checkpoint.pt: the checkpoint is damaged or cut short"):
        train(tiny_config(steps=2), tmp_path / "run", resume=True)


def test_validation_classes_that_differ_are_named_before_training(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type
) -> None:
    class Misspelt(tiny_images):  # type: ignore[misc]
        classes = ("things",)

    with pytest.raises(DataError, match="spelled alike: 'things' ~ 'thing'"):
        train(tiny_config(val=Misspelt), tmp_path / "run")


def test_a_config_without_training_data_is_refused(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config()
    object.__setattr__(config.data, "train", None)
    with pytest.raises(ConfigError, match="tiny.yaml: data.train: there is none"):
        train(config, tmp_path / "run")
