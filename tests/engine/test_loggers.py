"""Loggers: what they are told of a run, what becomes of one that fails, and TensorBoard's files by its own reader."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import yaml

from toolbox.engine import Progress, TrainingDiverged, train
from toolbox.engine.loggers import Loggers, Outcome, RunStart
from toolbox.errors import ConfigError, ToolboxError
from toolbox.plan import Plan
from toolbox.registry import LOGGERS
from toolbox.sections import EarlyStopping, TrainConfig

MakeConfig = Callable[..., Any]


class Recorder:
    """Keeps what it is told; raises in the method `broken`."""

    told: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, *, broken: str | None = None) -> None:
        self.broken = broken
        self.told.clear()

    def _take(self, *what: Any) -> None:
        if what[0] == self.broken:
            raise ConnectionError("the service is down\nfor long")
        self.told.append(what)

    def start(self, run: RunStart) -> None:
        self._take("start", run)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._take("scalars", step, values)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        self._take("evaluation", step, values)

    def pictures(self, step: int, files: Sequence[Path]) -> None:
        self._take("pictures", step, files)

    def end(self, outcome: Outcome, reason: str) -> None:
        self._take("end", outcome, reason)


def plan(cls: type, **settings: Any) -> Plan:
    return Plan(cls, settings, family=LOGGERS, key="train.loggers[0]")


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def named(method: str) -> list[tuple[Any, ...]]:
    return [entry[1:] for entry in Recorder.told if entry[0] == method]


def die_at(step: int) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.phase == "train" and progress.done == step:
            raise MemoryError("no more")

    return on_progress


def test_a_logger_is_told_of_the_whole_run(tiny_config: MakeConfig, tmp_path: Path, tiny_images: type) -> None:
    watched = {"eval_every": 6, "log_every": 4, "pictures": 2, "validation_loss": True}
    config = tiny_config(loggers=[plan(Recorder)], val=tiny_images, **watched)
    result = train(config, tmp_path / "run")
    told = [(entry[0], entry[1]) for entry in Recorder.told[1:-1]]
    assert told == [
        ("scalars", 4),
        ("evaluation", 6),
        ("pictures", 6),
        ("scalars", 8),
        ("scalars", 12),
        ("evaluation", 12),
        ("pictures", 12),
    ]
    [(start,)] = named("start")
    assert start == RunStart(tmp_path / "run", config.to_yaml(), 0, 12)
    assert named("end") == [("finished", "")]
    written = [line for line in lines(tmp_path / "run") if "eval" not in line]
    for (step, values), line in zip(named("scalars"), written, strict=True):
        assert step == line["step"] and values["loss"] == line["loss"]
        assert values["losses/corner"] == line["losses"]["corner"] and "step" not in values
    box = result["metrics"]["bbox"]
    _, values = named("evaluation")[-1]
    assert values["bbox/AP"] == box["AP"] and values["bbox/per_class/thing"] == box["per_class"]["thing"]
    last = lines(tmp_path / "run")[-1]
    assert (values["val_loss"], values["val_losses/size"]) == (last["val_loss"], last["val_losses"]["size"])
    assert box["APl"] == -1 and "bbox/APl" not in values  # there are no large objects


def test_a_resumed_run_says_where_it_goes_on_and_how_it_ended_before(tiny_config: MakeConfig, tmp_path: Path) -> None:
    config = tiny_config(loggers=[plan(Recorder)], checkpoint_every=4)
    with pytest.raises(MemoryError):
        train(config, tmp_path / "run", on_progress=die_at(7))
    assert named("end") == [("failed", "MemoryError: no more")]
    train(config, tmp_path / "run", resume=True)
    assert named("start")[0][0].step == 4
    assert [step for step, _ in named("scalars")] == [6, 9, 12]

    def interrupt(progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    train(config, tmp_path / "other", on_progress=interrupt)
    assert named("end") == [("stopped", "")]


def test_a_finished_run_that_is_resumed_logs_its_last_evaluation_once(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type
) -> None:
    config = tiny_config(loggers=[plan(Recorder)], val=tiny_images, steps=3)
    train(config, tmp_path / "run")
    assert train(config, tmp_path / "run", resume=True)["finished"]
    assert [entry[0] for entry in Recorder.told] == ["start", "end"]
    assert [line["step"] for line in lines(tmp_path / "run") if "eval" in line] == [3]


def test_a_run_that_diverges_is_ended_with_the_reason(tiny_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged):
        train(tiny_config(loggers=[plan(Recorder)], model={"nan_at": 2}), tmp_path / "run")
    [(outcome, reason)] = named("end")
    assert outcome == "failed" and reason.startswith("TrainingDiverged: step 2: the loss is not finite")


@pytest.mark.parametrize("method", ["scalars", "evaluation", "pictures", "end"])
def test_a_logger_that_raises_is_reported_once_and_switched_off(
    method: str, tiny_config: MakeConfig, tmp_path: Path, tiny_images: type, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(loggers=[plan(Recorder, broken=method)], val=tiny_images, eval_every=3)
    with caplog.at_level(logging.ERROR, logger="toolbox"):
        assert train(config, tmp_path / "run")["finished"]
    [said] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert f"Recorder.{method} failed; it is switched off, and training goes on: ConnectionError: the service" in said
    before = {"scalars": 1, "evaluation": 2, "pictures": 3, "end": 13}  # 1 start, 4 lines, 4 evaluations with pictures
    assert len(Recorder.told) == before[method]


def test_the_others_go_on_where_one_fails(tmp_path: Path) -> None:
    loggers = Loggers([Recorder(broken="scalars"), Recorder()])
    with loggers.running(RunStart(tmp_path, "", 0, 1), stopped=lambda: False):
        loggers.scalars(1, {"step": 1, "loss": 0.5, "losses": {"a": 0.5}, "peak_memory_mb": None})
    assert named("scalars") == [(1, {"loss": 0.5, "losses/a": 0.5})]
    assert len(named("start")) == 2 and len(named("end")) == 1


def test_a_logger_that_cannot_start_ends_the_run_before_training_and_those_that_have_started(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    config = tiny_config(loggers=[plan(Recorder), plan(Recorder, broken="start")])
    with pytest.raises(ToolboxError, match=r"Recorder cannot start: ConnectionError: the service is down .*mend that"):
        train(config, tmp_path / "run")
    assert named("start")[0][0].step == 0 and len(named("end")) == 1
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_the_same_logger_twice_is_refused() -> None:
    twice = [plan(Recorder), plan(Recorder)]
    with pytest.raises(ValueError, match="^loggers has Recorder twice with the same settings"):
        TrainConfig(steps=1, lr=0.1, loggers=twice)
    assert TrainConfig(steps=1, lr=0.1, loggers=[plan(Recorder), plan(Recorder, broken="end")]).loggers


def test_a_negative_number_of_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="^pictures is 0 or more, got -1$"):
        TrainConfig(steps=1, lr=0.1, pictures=-1)


def test_each_evaluation_draws_the_same_images_into_a_folder_of_its_own(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type
) -> None:
    train(tiny_config(val=tiny_images, eval_every=6, pictures=3, loggers=[plan(Recorder)]), tmp_path / "run")
    drawn = sorted(file.relative_to(tmp_path / "run/pictures").as_posix() for file in (tmp_path / "run").rglob("*.jpg"))
    images = ("100.jpg", "106.jpg", "111.jpg")  # the first, the middle and the last of 12
    assert drawn == [f"step_{step:06}/{image}" for step in (6, 12) for image in images]
    assert [sorted(file.name for file in files) for _, files in named("pictures")] == [list(images)] * 2


def test_no_pictures_are_drawn_where_none_are_asked_for(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type
) -> None:
    train(tiny_config(val=tiny_images, steps=2, pictures=0, loggers=[plan(Recorder)]), tmp_path / "run")
    assert not (tmp_path / "run/pictures").exists() and named("pictures") == []


def test_pictures_that_cannot_be_written_do_not_end_the_run(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type, caplog: pytest.LogCaptureFixture
) -> None:
    def be_in_the_way(progress: Progress) -> None:
        (tmp_path / "run/pictures").touch()

    assert train(tiny_config(val=tiny_images, steps=2), tmp_path / "run", on_progress=be_in_the_way)["finished"]
    assert "100.jpg: cannot be written: " in caplog.text and "; training goes on" in caplog.text
    assert [line["step"] for line in lines(tmp_path / "run") if "eval" in line] == [2]


@pytest.fixture
def tensorboard() -> type:
    pytest.importorskip("tensorboard", reason="extra 'tensorboard' is not installed")
    from toolbox.engine.tensorboard import TensorBoard

    return TensorBoard


def read(run: Path) -> Any:
    """A run's events, as TensorBoard's own reader gives them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return events.Reload()


def curve(events: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_holds_the_curves_the_pictures_and_the_config(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type, tensorboard: type
) -> None:
    config = tiny_config(loggers=[plan(tensorboard)], val=tiny_images, eval_every=6, pictures=2)
    train(config, tmp_path / "run")
    events = read(tmp_path / "run")
    written = [line for line in lines(tmp_path / "run") if "eval" not in line]
    for tag, of in (
        ("loss", lambda line: line["loss"]),
        ("losses/size", lambda line: line["losses"]["size"]),
        ("lr", lambda line: line["lr"]),
        ("images_per_second", lambda line: line["images_per_second"]),
        ("peak_memory_mb", lambda line: line["peak_memory_mb"]),
    ):
        expected = [(line["step"], np.float32(of(line))) for line in written]
        assert curve(events, f"train/{tag}") == expected
    evaluated = [(line["step"], np.float32(line["eval"]["bbox"]["AP50"])) for line in lines(tmp_path / "run")[2::3]]
    assert [step for step, _ in evaluated] == [6, 12] and curve(events, "eval/bbox/AP50") == evaluated
    metrics = json.loads((tmp_path / "run/eval.json").read_text())["bbox"]
    assert curve(events, "eval_per_class/bbox/thing")[-1] == (12, np.float32(metrics["per_class"]["thing"]))
    assert "eval/bbox/APl" not in events.Tags()["scalars"]  # -1: there are no large objects
    assert sorted(events.Tags()["images"]) == ["pictures/100", "pictures/111"]
    for event in events.Images("pictures/111"):
        file = tmp_path / f"run/pictures/step_{event.step:06}/111.jpg"
        assert event.encoded_image_string == file.read_bytes()
        assert cv2.imread(str(file)).shape[:2] == (event.height, event.width)
    [text] = events.Tensors("config/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert yaml.safe_load(shown.removeprefix("```yaml\n").removesuffix("```")) == yaml.safe_load(config.to_yaml())


def test_tensorboard_leaves_out_classes_and_pictures_on_request(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type, tensorboard: type
) -> None:
    quiet = plan(tensorboard, pictures=False, per_class=False)
    train(tiny_config(loggers=[quiet], val=tiny_images, steps=3), tmp_path / "run")
    tags = read(tmp_path / "run").Tags()
    assert "eval/bbox/AP" in tags["scalars"] and tags["images"] == []
    assert not [tag for tag in tags["scalars"] if "thing" in tag]


KILLED = """\
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from conftest import TinyDetector, TinyImages, tiny_config
from toolbox.engine import train
from toolbox.engine.tensorboard import TensorBoard
from toolbox.plan import Plan
from toolbox.registry import LOGGERS

config = tiny_config.__wrapped__()(
    loggers=[Plan(TensorBoard, {}, family=LOGGERS)], val=TinyImages, eval_every=5, checkpoint_every=4, log_every=1
)
def kill(progress):
    if progress.phase == "train" and progress.done == 11:
        os.kill(os.getpid(), signal.SIGKILL)
train(config, sys.argv[2], on_progress=kill)
"""


def test_after_a_kill_tensorboard_and_metrics_hold_what_an_uninterrupted_run_holds(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type, tensorboard: type
) -> None:
    settings: dict[str, Any] = {"eval_every": 5, "checkpoint_every": 4, "log_every": 1}
    config = tiny_config(loggers=[plan(tensorboard)], val=tiny_images, **settings)
    train(config, tmp_path / "whole")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path / "parts")], capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    before = read(tmp_path / "parts")
    assert [step for step, _ in curve(before, "train/loss")] == list(range(1, 11 + 1))  # nothing was left in a buffer
    train(config, tmp_path / "parts", resume=True)  # from step 10, where it evaluated

    whole, parts = read(tmp_path / "whole"), read(tmp_path / "parts")
    assert len(list((tmp_path / "parts/tensorboard").iterdir())) == 2
    timed = re.compile("images_per_second|loader_share|peak_memory")
    assert whole.Tags()["scalars"] == parts.Tags()["scalars"]
    for tag in whole.Tags()["scalars"]:
        one, other = curve(whole, tag), curve(parts, tag)
        if timed.search(tag):
            one, other = [step for step, _ in one], [step for step, _ in other]  # type: ignore[assignment]
        assert one == other, tag
    assert [e.step for e in parts.Images("pictures/100")] == [5, 10, 12]
    assert len(parts.Tensors("config/text_summary")) == 1
    same = [
        [{name: value for name, value in line.items() if not timed.search(name)} for line in lines(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    assert same[0] == same[1]


def test_without_the_package_the_run_ends_before_training_with_the_line_to_install_it(
    tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolbox.engine.tensorboard import TensorBoard

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as if importing it failed
    with pytest.raises(ConfigError, match=r"TensorBoard needs tensorboard: pip install 'rcnn-toolbox\[tensorboard\]'"):
        train(tiny_config(loggers=[plan(TensorBoard)]), tmp_path / "run")
    assert not (tmp_path / "run/metrics.jsonl").exists()


ROOT = Path(__file__).resolve().parents[2]


def test_the_guide_names_every_field_of_metrics(tiny_config: MakeConfig, tmp_path: Path, tiny_images: type) -> None:
    watched = EarlyStopping(metric="bbox.AP", patience=2)
    settings = {"clip_norm": 1.0, "eval_every": 3, "validation_loss": True, "early_stopping": watched}
    train(tiny_config(val=tiny_images, steps=4, **settings), tmp_path / "run")
    guide = (ROOT / "docs/training.md").read_text(encoding="utf-8").partition("## Watching a run")[2]
    table = guide.partition("| field |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == {
        name for line in lines(tmp_path / "run") for name in line
    }


def test_the_guides_logger_for_weights_and_biases_speaks_to_it_as_it_expects(
    tiny_config: MakeConfig, tmp_path: Path, tiny_images: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    [code] = re.findall(r"```python\n(# weights_and_biases.py\n.*?)```", (ROOT / "docs/plugins.md").read_text(), re.S)
    registered = dict(LOGGERS._classes)
    monkeypatch.setattr(LOGGERS, "_classes", registered)
    exec(compile(code, "weights_and_biases.py", "exec"), {"__name__": __name__})
    service = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", service)
    config = tiny_config(
        loggers=[plan(registered["WeightsAndBiases"], project="cats")], val=tiny_images, log_every=6, pictures=1
    )
    train(config, tmp_path / "night")
    assert service.init_with == {
        "project": "cats",
        "config": yaml.safe_load(config.to_yaml()),
        "id": "night",
        "resume": "allow",
    }
    steps = [(step, next(iter(values))) for step, values in service.logged]
    assert steps == [(6, "train/loss"), (12, "train/loss"), (12, "eval/bbox/AP"), (12, "pictures")]
    [picture] = service.logged[-1][1]["pictures"]
    assert picture == (str(tmp_path / "night/pictures/step_000012/100.jpg"), "100")
    assert service.exit_code == 0


class FakeWandb:
    """The part of `wandb` that the guide uses, and a run of it."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []

    def init(self, **settings: Any) -> FakeWandb:
        self.init_with = settings
        return self

    def Image(self, path: str, *, caption: str) -> tuple[str, str]:
        return path, caption

    def log(self, values: dict[str, Any], *, step: int) -> None:
        self.logged.append((step, values))

    def finish(self, *, exit_code: int) -> None:
        self.exit_code = exit_code
