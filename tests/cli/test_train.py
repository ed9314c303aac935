"""`rcnn train` and `rcnn eval` on a model that trains in seconds, and what they draw on a terminal."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from toolbox.cli import main
from toolbox.cli.progress_line import ProgressLine, describe, progress_line
from toolbox.cli.train import metrics_table
from toolbox.engine.progress import ON_SCREEN, Progress
from toolbox.weights import load_model, save_model

CONFIG = """
model:
  backbone: {type: ResNet, depth: 18, norm: gn}
  neck: {type: FPN, out_channels: 8}
  rpn: {head: {type: ConvRPNHead}, anchors: {sizes: [12, 24, 48, 96, 192]}}
  box:
    extractor: {type: RoIAlign, output_size: 3}
    head: {type: TwoFCBoxHead, channels: 16}
data:
  train: {type: Shapes, length: 8, seed: 0}
  val: {type: Shapes, length: 2, seed: 1}
  resize: {short: 64, max: 64}
  workers: 1
train: {steps: 2, batch: 1, lr: 0.001, log_every: 1}
"""


def rcnn(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture(autouse=True)
def log_handlers() -> Iterator[None]:
    """The command line adds a handler to the log; take it away again."""
    logger = logging.getLogger("toolbox")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:], logger.level = handlers, level


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def run(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert rcnn("train", config, "train.seed=3", "--run", folder) == 0
    return folder


def test_a_run_folder_holds_everything_and_its_config_the_overrides(run: Path) -> None:
    names = {"config.yaml", "metrics.jsonl", "eval.json", "model.safetensors", "checkpoint.pt", "log.txt"}
    assert names <= {file.name for file in run.iterdir()}
    assert "seed: 3" in (run / "config.yaml").read_text()
    assert "step 2/2: loss" in (run / "log.txt").read_text()
    assert {"AP", "AP50", "AR100", "per_class"} <= json.loads((run / "eval.json").read_text())["bbox"].keys()


def test_eval_of_a_run_gives_the_numbers_that_training_gave(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((run / "eval.json").read_text())
    assert rcnn("eval", run) == 0
    assert json.loads((run / "eval.json").read_text()) == before
    table = capsys.readouterr().out
    assert table.split()[:6] == ["AP", "in", "%", "AP", "AP50", "AP75"] and "circle" in table


def test_eval_of_a_config_takes_weights(run: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rcnn("eval", config, "--weights", run / "model.safetensors") == 0
    assert rcnn("eval", run, "test.score_threshold=0.99") == 0
    assert rcnn("eval", config) == 2
    assert "add --weights FILE" in capsys.readouterr().err
    assert rcnn("eval", run, "--weights", run / "checkpoint.pt") == 2
    assert "use model.safetensors beside it" in capsys.readouterr().err


def test_eval_refuses_weights_of_other_classes(
    run: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, metadata = load_model(run / "model.safetensors")
    turned = json.dumps(json.loads(metadata["classes"])[::-1])
    save_model(tmp_path / "turned.safetensors", state, {**metadata, "classes": turned})
    for source in (config, run):
        assert rcnn("eval", source, "--weights", tmp_path / "turned.safetensors") == 2
        assert "turned.safetensors" in (said := capsys.readouterr().err) and "another order" in said


def test_a_second_training_into_the_folder_is_wrong_input(
    run: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rcnn("train", config, "train.seed=3", "--run", run) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert rcnn("train", config, "train.seed=3", "--run", run, "--resume") == 0


def test_a_run_folder_in_the_configs_place_goes_on_with_all_that_the_run_was_given(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in (run, run / "config.yaml"):
        assert rcnn("train", source, "--resume") == 0
        assert f"{run}: 2 steps done" in capsys.readouterr().out
    assert rcnn("train", run) == 2
    assert f"this is a run; go on with it by rcnn train {run} --resume" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_process_group_leaves_a_checkpoint_and_says_once_how_to_go_on(
    config: Path, tmp_path: Path, number: int
) -> None:
    command = "from toolbox.cli import main; main()"
    arguments: Sequence[str] = ["train", str(config), "train.steps=100000", "--run", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-c", command, *arguments],
        cwd=Path(__file__).resolve().parents[2],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = tmp_path / "run/metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as a terminal or `timeout` does: the loader's worker gets it too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert (
        errors.count(f"go on with 'rcnn train {tmp_path / 'run'} --resume'") == 1
        and "Traceback" not in errors
        and "Error" not in errors
    )
    assert (tmp_path / "run/checkpoint.pt").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_shows_rate_and_time_left() -> None:
    assert describe(Progress("train", 30, 120), 0.25) == (
        "train [######------------------]    30/120  4.0 s each  0:06:00 left"
    )
    assert describe(Progress("eval", 0, 10), None) == "eval [------------------------]     0/10"


def test_only_a_terminal_gets_the_line() -> None:
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        line = ProgressLine(stream)
        line(Progress("train", 1, 1, {"loss": 0.5}))
        line.clear()
    assert "1/1" in terminal.getvalue() and "loss 0.500" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert file.getvalue() == ""


def test_results_and_warnings_stand_on_lines_of_their_own_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, log = Terminal(), logging.getLogger("toolbox")
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setattr("sys.stdout", terminal)
    screen = logging.StreamHandler(terminal)
    monkeypatch.setattr(log, "handlers", [screen])
    log.setLevel(logging.INFO)
    with progress_line() as line:
        line(Progress("train", 1, 2, {"loss": 0.5, "losses": {"box": 0.2, "mask": 0.3}}))
        log.info("step 1/2: every so often")
        log.info("step 1: bbox AP 0.500", extra=ON_SCREEN)
        line(Progress("train", 2, 2))
        log.warning("odd")
    shown = terminal.getvalue().split("\r\x1b[K")
    assert shown[2] == "step 1: bbox AP 0.500\n" and " 2/2" in shown[3] and shown[4] == "odd\n"
    assert "loss 0.500  box 0.200  mask 0.300" in shown[3]
    assert screen.filters == [] and "every so often" not in terminal.getvalue()


def test_the_table_is_in_percent_with_a_dash_where_nothing_was_to_be_found() -> None:
    numbers = {"AP": 0.5, "AP50": 1.0, "APs": -1.0, "per_class": {"a": 0.25, "bee": -1.0}}
    table = metrics_table({"bbox": numbers})
    assert [line.split() for line in table.splitlines()] == [
        ["AP", "in", "%", "AP", "AP50", "APs"],
        ["bbox", "50.0", "100.0", "–"],
        [],
        ["AP", "in", "%", "bbox"],
        ["a", "25.0"],
        ["bee", "–"],
    ]


def test_a_replay_takes_no_config_and_no_run_and_a_run_no_plugin(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsule = tmp_path / "step.safetensors"
    for arguments, said in (
        ([config, "--replay", capsule], f"--replay takes no CONFIG ({config}): the capsule has its own; leave it out"),
        (["--replay", capsule, "--resume"], "--replay and --resume exclude each other"),
        (["--replay", capsule, "--run", tmp_path], "--replay and --run exclude each other"),
        (["--replay", capsule], f"{capsule}: no such file"),
        ([config, "--plugin", "mine.py"], "--plugin goes with --replay"),
        ([], "Missing argument 'CONFIG': write rcnn train CONFIG.yaml, or rcnn train --replay CAPSULE"),
    ):
        assert rcnn("train", *arguments) == 2
        assert said in capsys.readouterr().err


def test_a_step_that_diverged_is_replayed_with_status_0_and_one_that_does_not_again_with_1(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hot = ["train.lr=1e30", "train.schedule={type: Constant, warmup_steps: 0}", "data.workers=0"]
    assert rcnn("train", config, *hot, "--run", tmp_path / "run") == 1
    assert "step 2: the loss is not finite" in capsys.readouterr().err
    capsule = tmp_path / "run/capsules/step_000002.safetensors"
    assert rcnn("train", "--replay", capsule) == 0
    shown = capsys.readouterr().out
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("> ")] == ["backbone.bn1"]
    assert "reproduced: " in shown and "step 1 before it: rpn_objectness 0." in shown
    state, metadata = load_model(capsule)
    healthy = {name: value.clamp(-1e-2, 1e-2) if name.startswith("model.") else value for name, value in state.items()}
    save_model(capsule, healthy, metadata)
    assert rcnn("train", "--replay", capsule, "train.lr=3", "model.box.batch=9", "data.workers=0") == 2
    assert "no argument 'batch'" in (said := capsys.readouterr().err) or "no setting 'batch'" in said
    assert rcnn("train", "--replay", capsule, "train.lr=3", "train.device=cpu", "data.workers=0") == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        "command line: train.lr: is without effect: batch, weights and seed are the capsule's; a replay takes "
        "model.…, train.device, train.tf32, plugins; leave it out"
    )
    assert second.startswith("command line: data.workers: is without effect")
    assert rcnn("train", "--replay", capsule, "train.device=cpu") == 1
    shown = capsys.readouterr().out
    assert "not reproduced: the loss was not finite on cpu in float32, and is finite here (cpu, float32)" in shown
