"""A loss or gradient that is not finite: the run stops, skips or rolls back, and resumes exactly over either."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toolbox.data.interfaces import Sample
from toolbox.engine import Progress, TrainingDiverged, nonfinite, train
from toolbox.engine.checkpoint import load_checkpoint
from toolbox.plan import Plan
from toolbox.structures import Targets
from toolbox.weights import load_model

MakeConfig = Callable[..., Any]
BAD = 5  # index of the image with a bad area; 12 images in batches of 4, so one step of each epoch's three


@pytest.fixture
def make(tiny_config: MakeConfig, tiny_images: type, tiny_detector: type) -> MakeConfig:
    """A config whose data set has one area that is not finite, and whose model has running statistics."""

    class BadImages(tiny_images):  # type: ignore[misc]
        def load(self, index: int) -> Sample:
            sample = super().load(index)
            if index == BAD:
                sample.area = np.array([np.inf], np.float32)
            return sample

    class Live(tiny_detector):  # type: ignore[misc]
        """Before each training pass, it notes its own state, in which running statistics live."""

        states: list[dict[str, Tensor]] = []

        def __init__(self, num_classes: int, *, dropout: float = 0.0, gradient_only: bool = False) -> None:
            super().__init__(num_classes, dropout=dropout)
            self.norm = nn.BatchNorm1d(16)
            self.gradient_only = gradient_only

        def forward(self, images: Sequence[Tensor], targets: Targets) -> dict[str, Tensor]:
            Live.states.append({name: value.clone() for name, value in self.state_dict().items()})
            losses = super().forward(images, targets)
            if not self.gradient_only:
                return {**losses, "area": targets.area.mean() * losses["size"] * 0}
            bad = not targets.area.isfinite().all()
            root = (losses["size"] * 0).sqrt()  # its slope is infinite, and that times 0 is no number
            return {**losses, "root": root if bad else root.detach()}

    def config(**settings: Any) -> Any:
        model = {"dropout": 0.5, **settings.pop("model", {})}
        made = tiny_config(model=model, **settings)
        made.model = Plan(Live, model)
        object.__setattr__(made.data, "train", Plan(BadImages, {}))
        Live.states = []
        config.states = Live  # type: ignore[attr-defined]
        return made

    return config


def bad_steps(seed: int = 0, steps: int = 12) -> list[int]:
    """Numbers, from 1, of the steps whose batch has the bad image, as the loader composes them."""
    from toolbox.data.batching import global_batches

    upright = np.zeros(12, bool)
    return [
        number + 1
        for number, keys in zip(range(steps), global_batches(upright, 4, seed), strict=False)
        if BAD in [key[1] for key in keys]
    ]


def checkpoint(run: Path) -> dict[str, Any]:
    return load_checkpoint(run / "checkpoint.pt")


def flat(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for name, item in value.items() for k, v in flat(item, f"{key}.{name}").items()}
    if isinstance(value, (list, tuple)):
        return flat(dict(enumerate(value)), key)
    return {key: value}


def assert_same(a: Any, b: Any, but: Sequence[str] = ()) -> None:
    a, b = ({k: v for k, v in flat(x).items() if not k.startswith(tuple(but) or ("-",))} for x in (a, b))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]) if isinstance(a[name], Tensor) else a[name] == b[name], name


def capsules(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "capsules").iterdir())


def test_every_epoch_has_a_bad_step_and_they_are_known_beforehand() -> None:
    steps = bad_steps()
    assert len(steps) == 4 and [(step - 1) // 3 for step in steps] == [0, 1, 2, 3]


def test_stop_names_the_image_and_leaves_a_capsule(make: MakeConfig, tmp_path: Path) -> None:
    first = bad_steps()[0]
    with pytest.raises(TrainingDiverged) as error:
        train(make(checkpoint_every=1), tmp_path / "run")
    said = str(error.value)
    assert said.startswith(f"step {first}: the loss is not finite: corner ")
    assert "The data is at fault: image 105: area of object 0 [inf]" in said
    assert f"`rcnn train --replay {tmp_path}/run/capsules/step_{first:06}.safetensors` computes the step again" in said
    assert capsules(tmp_path / "run") == [f"step_{first:06}.safetensors"]


def test_a_skipped_step_leaves_weights_statistics_optimizer_and_averages_and_counts(
    make: MakeConfig, tmp_path: Path
) -> None:
    bad = bad_steps()
    kept: dict[int, dict[str, Any]] = {}
    config = make(on_nonfinite="skip", ema=0.9, checkpoint_every=1, clip_norm=0.5, log_every=1)

    def watch(progress: Progress) -> None:
        if progress.phase == "train" and progress.done > 1:
            kept.setdefault(progress.done - 1, checkpoint(tmp_path / "run"))

    assert train(config, tmp_path / "run", on_progress=watch)["step"] == 12
    kept[12] = checkpoint(tmp_path / "run")
    for step in range(2, 13):
        same = all(torch.equal(kept[step]["model"][n], v) for n, v in kept[step - 1]["model"].items())
        assert same == (step in bad), step
        assert kept[step]["step"] == step
    rates = [f".optimizer.param_groups.{group}.lr" for group in range(len(kept[12]["optimizer"]["param_groups"]))]
    counted = (".step", ".setbacks", ".window", *rates)  # a step begins by setting its learning rate
    for step in bad:
        if step > 1:
            assert_same(kept[step], kept[step - 1], but=counted)
    assert kept[12]["setbacks"]["skipped"] == 4 and kept[12]["setbacks"]["in_a_row"] == int(12 in bad)
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [step for step in range(1, 13) if step not in bad]
    assert all(math.isfinite(line["loss"]) for line in logged)


def test_the_first_capsules_of_a_run_are_kept_and_the_others_counted(
    make: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="toolbox"):
        train(make(on_nonfinite="skip"), tmp_path / "run")
    assert capsules(tmp_path / "run") == [f"step_{step:06}.safetensors" for step in bad_steps()[:3]]
    assert "no capsule is written, for 3 are kept already (1 step without one)" in caplog.text
    assert caplog.messages[-1] == "the loss was not always finite: 4 steps skipped, 1 of them without a capsule"


def test_a_rollback_takes_the_last_scheduled_state_and_goes_on_with_the_next_batch(
    make: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    every, bad = 2, bad_steps()
    config = make(on_nonfinite="roll_back", checkpoint_every=every, model={"dropout": 0.0}, micro_batch=None)
    with caplog.at_level(logging.WARNING, logger="toolbox"):
        train(config, tmp_path / "run")
    states, passes = make.states.states, iter(make.states.states)  # type: ignore[attr-defined]
    before: dict[int, dict[str, Tensor]] = {}
    again = 0
    for step in range(1, 13):  # each bad step is looked at again, until there are capsules enough
        before[step] = next(passes)
        if step in bad and again < 3:
            assert_same(next(passes), before[step])
            again += 1
    assert next(passes, None) is None and len(states) == 15
    for step in bad[:-1]:
        good = (step - 1) // every * every  # steps done in the last scheduled checkpoint
        assert_same(before[step + 1], before[good + 1])
        assert f"Rolled back to the state after step {good}; the next batch follows" in caplog.text
    assert any(step - 1 != (step - 1) // every * every for step in bad[:-1]), "no rollback gave up a good step"
    assert checkpoint(tmp_path / "run")["step"] == 12


@pytest.mark.parametrize("way", ["skip", "roll_back"])
@pytest.mark.parametrize("stops", [(1,), (2, 3), (7, 10)])
def test_a_run_stopped_around_bad_steps_and_resumed_ends_with_the_same_bits(
    make: MakeConfig, tmp_path: Path, way: str, stops: tuple[int, ...]
) -> None:
    settings = {"on_nonfinite": way, "checkpoint_every": 4, "ema": 0.9, "log_every": 5}
    train(make(**settings), tmp_path / "whole")

    def interrupt(progress: Progress) -> None:
        if progress.done in stops and progress.done not in done:
            done.append(progress.done)
            os.kill(os.getpid(), signal.SIGINT)

    done: list[int] = []
    for _ in (*stops, 0):
        result = train(make(**settings), tmp_path / "parts", resume=True, on_progress=interrupt)
    assert result["finished"] and done == list(stops)
    whole, parts = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    assert_same(whole, parts, but=(".window",))
    kept = [load_model(tmp_path / name / "model.safetensors")[0] for name in ("whole", "parts")]
    assert_same(*kept)


@pytest.mark.parametrize("way", ["skip", "roll_back"])
def test_a_killed_run_meets_the_bad_steps_again_and_ends_with_the_same_bits(
    make: MakeConfig, tmp_path: Path, way: str
) -> None:
    settings = {"on_nonfinite": way, "checkpoint_every": 4}
    train(make(**settings), tmp_path / "whole")

    def die(progress: Progress) -> None:
        if progress.done == bad_steps()[2] + 1:
            raise MemoryError

    with pytest.raises(MemoryError):
        train(make(**settings), tmp_path / "parts", on_progress=die)
    train(make(**settings), tmp_path / "parts", resume=True)
    assert_same(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts"), but=(".window",))


def test_a_run_that_stopped_can_go_on_by_skipping(make: MakeConfig, tmp_path: Path) -> None:
    bad = bad_steps()
    with pytest.raises(TrainingDiverged, match="go on over such steps with train.on_nonfinite"):
        train(make(checkpoint_every=1, on_nonfinite="stop"), tmp_path / "run")
    result = train(make(checkpoint_every=1, on_nonfinite="skip"), tmp_path / "run", resume=True)
    assert result["finished"] and checkpoint(tmp_path / "run")["setbacks"]["skipped"] == len(bad)


@pytest.fixture
def all_bad(tiny_images: type) -> type:
    """Images of which every one has areas that are not finite."""

    class AllBad(tiny_images):  # type: ignore[misc]
        def load(self, index: int) -> Sample:
            sample = super().load(index)
            sample.area = sample.area * np.nan
            return sample

    return AllBad


def test_skips_in_a_row_and_returns_to_the_same_state_have_an_end(
    make: MakeConfig, tmp_path: Path, all_bad: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    for way, every, steps, said in (
        ("skip", 1000, 10, "These were 10 steps in a row"),
        ("roll_back", 1000, 4, "after step 0 3 times"),
        ("roll_back", 1, 10, "These were 10 steps in a row"),  # each step's state is another one to go back to
    ):
        config = make(on_nonfinite=way, steps=30, checkpoint_every=every)
        object.__setattr__(config.data, "train", Plan(all_bad, {}))
        with pytest.raises(TrainingDiverged, match=rf"^step {steps}: .*{said}"):
            train(config, tmp_path / f"{way}_{every}")


def test_a_gradient_that_is_not_finite_is_found_where_it_is_clipped_before_it_reaches_the_weights(
    make: MakeConfig, tmp_path: Path
) -> None:
    first = bad_steps()[0]
    said = (
        rf"^step {first}: the gradient is not finite \(norm nan\), though the loss is: .*the first gradient that is not"
    )
    with pytest.raises(TrainingDiverged, match=said):
        train(make(model={"gradient_only": True}, clip_norm=1.0), tmp_path / "stopped")
    train(make(model={"gradient_only": True}, clip_norm=1.0, on_nonfinite="skip"), tmp_path / "skipped")
    assert all(torch.isfinite(value).all() for value in checkpoint(tmp_path / "skipped")["model"].values())
    assert checkpoint(tmp_path / "skipped")["setbacks"]["skipped"] == 4


def test_weights_that_are_not_finite_are_not_kept_and_not_skipped_over_but_rolled_back_behind(
    make: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without clipping, a gradient that is not finite is found one step late."""
    first = bad_steps()[0]
    model = {"gradient_only": True}
    with pytest.raises(TrainingDiverged, match=rf"^step {first + 1}: .*not finite before the step already .*roll_back"):
        train(make(model=model, on_nonfinite="skip", checkpoint_every=1), tmp_path / "skip")
    assert f"the weights after step {first} are not finite" in caplog.text
    if first > 1:
        assert checkpoint(tmp_path / "skip")["step"] == first - 1
    last = 11 if 12 in bad_steps() else 12
    train(make(model=model, on_nonfinite="roll_back", checkpoint_every=1, steps=last), tmp_path / "back")
    assert all(torch.isfinite(value).all() for value in checkpoint(tmp_path / "back")["model"].values())


def test_a_disk_that_is_full_hides_neither_the_divergence_nor_its_cause(
    make: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("toolbox.weights.files.save_file", full)
    with pytest.raises(TrainingDiverged, match=r"the loss .*capsule could not be written: .*No space left .*Try a"):
        train(make(), tmp_path / "run")
    assert capsules(tmp_path / "run") == []


def test_a_second_look_that_fails_costs_the_statistics_only(
    make: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(nonfinite, "look_again", fail)
    with pytest.raises(TrainingDiverged, match="the step could not be looked at again: OutOfMemoryError: no memory"):
        train(make(), tmp_path / "run")
    assert len(capsules(tmp_path / "run")) == 1


def test_infinite_float16_gradients_are_left_to_the_scaler(
    make: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are how it finds its scale."""

    class Scaler(torch.amp.GradScaler):
        def __init__(self, *_: object, **__: object) -> None:
            super().__init__("cpu", init_scale=2.0**127, growth_interval=1000)

    monkeypatch.setattr(torch.amp, "GradScaler", Scaler)
    settings = {"clip_norm": 1.0, "steps": 40, "on_nonfinite": "skip"}
    train(make(**settings), tmp_path / "run")
    state = checkpoint(tmp_path / "run")
    assert state["scaler"]["scale"] < 2.0**127  # it met infinite gradients
    assert state["setbacks"]["skipped"] == len(bad_steps(steps=40))  # and only the bad areas are setbacks


def test_float16_gradients_that_no_scale_makes_finite_end_the_run(
    make: MakeConfig, tmp_path: Path, all_bad: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GradScaler would leave out every step to the end, and the losses, all finite, would be logged."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-20)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *_, **__: scaler)
    config = make(model={"gradient_only": True}, steps=30, log_every=3)
    object.__setattr__(config.data, "train", Plan(all_bad, {}))
    said = r"^step 6: float16's loss scale has fallen to 1\.49e-08: .* not finite at any scale; .*train.precision"
    with pytest.raises(TrainingDiverged, match=said):  # halved in each step: 2 ** -26
        train(config, tmp_path / "run")


def test_a_state_that_was_given_up_is_not_rolled_back_to(tiny_config: MakeConfig, tmp_path: Path) -> None:
    """A run that was stopped after step 5 and has ended is taken back to that state, which no schedule had written."""

    def stop_at(step: int) -> Callable[[Progress], None]:
        def act(progress: Progress) -> None:
            if progress.done == step:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.05)  # for its handler

        return act

    config = tiny_config(on_nonfinite="roll_back", checkpoint_every=4)
    last, good = tmp_path / "checkpoint.pt", tmp_path / "checkpoint_good.pt"
    train(config, tmp_path, on_progress=stop_at(5))
    stopped = last.read_bytes()
    assert load_checkpoint(good)["step"] == 4
    train(config, tmp_path, resume=True)
    assert load_checkpoint(good)["step"] == 12
    last.unlink()
    last.write_bytes(stopped)
    train(config, tmp_path, resume=True, on_progress=stop_at(6))
    assert load_checkpoint(good)["step"] == 5


def test_a_rollback_works_where_files_have_one_name_only(
    make: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"on_nonfinite": "roll_back", "checkpoint_every": 2}
    train(make(**settings), tmp_path / "linked")

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    train(make(**settings), tmp_path / "copied")
    assert_same(checkpoint(tmp_path / "linked"), checkpoint(tmp_path / "copied"), but=(".window",))
    assert not [path.name for path in (tmp_path / "linked").iterdir() if path.name.endswith(".tmp")]
