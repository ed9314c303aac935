"""`rcnn sweep`: from a file to a table, stopped and gone on with, and what it refuses."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolbox.cli import main

ROOT = Path(__file__).resolve().parents[2]
BASE = """\
model:
  backbone: {type: ResNet, depth: 18, norm: gn}
  neck: {type: FPN, out_channels: 8}
  rpn: {head: {type: ConvRPNHead}, anchors: {sizes: [12, 24, 48, 96, 192]}}
  box: {extractor: {type: RoIAlign, output_size: 3}, head: {type: TwoFCBoxHead, channels: 16}}
data:
  train: {type: Shapes, length: 8, seed: 0}
  val: {type: Shapes, length: 2, seed: 1}
  resize: {short: 64, max: 64}
  workers: 0
train: {steps: 100000, batch: 1, lr: 0.001, log_every: 1}
"""
SWEEP = """\
title: A toy
base: base.yaml
metrics: {AP: bbox.AP}
variants:
  RoIAlign: {paper: {AP: 30.3}}
  RoIPool: {set: {model.box.extractor.type: RoIPool}, paper: {AP: 26.9}}
small: {base: base.yaml, set: {train.steps: 1}, seeds: [0, 1]}
"""


@pytest.fixture(autouse=True)
def log_handlers() -> Iterator[None]:
    """The command line adds a handler to the log; take it away again."""
    logger = logging.getLogger("toolbox")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:], logger.level = handlers, level


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)
    Path("table.yaml").write_text(SWEEP)
    return tmp_path


def sweep(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["sweep", "table.yaml", *arguments])
    return int(left.value.code or 0)


def test_a_sweep_trains_its_variants_and_prints_and_writes_their_table(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("--small", "--only", "RoIPool", "--seeds", "0") == 0
    assert "1 of 2 runs done" in capsys.readouterr().out
    assert sweep("--small") == 0
    printed = capsys.readouterr().out
    assert "2 seeds (0, 1), 4 of 4 runs done" in printed and "## Order by AP" in printed
    assert Path("runs/table-small/table.md").read_text() == printed
    content = json.loads(Path("runs/table-small/table.json").read_text())
    assert [(row["name"], sorted(row["runs"])) for row in content["variants"]] == [
        ("RoIAlign", ["0", "1"]),
        ("RoIPool", ["0", "1"]),
    ]
    written = Path("runs/table-small/roipool/seed-1/checkpoint.pt").stat().st_mtime_ns
    assert sweep("--small") == 0
    assert capsys.readouterr().out == printed
    assert Path("runs/table-small/roipool/seed-1/checkpoint.pt").stat().st_mtime_ns == written


def test_the_table_alone_trains_nothing_and_leaves_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("--table", "--run", "elsewhere") == 0
    assert "0 of 2 runs done" in capsys.readouterr().out
    assert not Path("elsewhere").exists()
    assert sweep("--table", "--run", "table.yaml") == 0  # where no sweep can have been either


def test_the_table_is_that_of_the_overrides_and_seeds_which_trained_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = ("--small", "--seeds", "3", "train.steps=2", "train.batch=2")
    assert sweep(*trained, "--only", "RoIPool") == 0
    printed = capsys.readouterr().out
    assert "1 seed (3), 1 of 2 runs done" in printed
    with_what = f"{Path('runs/table-small')}: trained with train.steps=2 train.batch=2, of which this is the table"
    for given, said in (
        ((), f"{with_what}\n"),
        (("train.steps=2", "train.batch=2"), ""),
        (("train.steps=9",), f"warning: {with_what}; train.steps=9 is left aside\n"),
    ):
        assert sweep("--small", "--table", *given) == 0
        output = capsys.readouterr()
        assert (output.out, output.err) == (printed, said)
    assert sweep("--small", "--table", "--seeds", "3,4") == 0
    assert "2 seeds (3, 4), 1 of 4 runs done" in capsys.readouterr().out
    assert sweep("--table", "--run", "runs/table-small") == 0  # the folder knows its form too
    assert capsys.readouterr().out == printed
    kept = Path("runs/table-small/call.json").read_text()
    assert sweep("--small", "--seeds", "3", "--only", "RoIAlign", "train.steps=1", "train.batch=2") == 2
    said = capsys.readouterr().err  # before it trains
    assert "train.steps: the run has 2, now it is 1" in said
    assert "table-small: the sweep was started with --small train.steps=2 train.batch=2; repeat that to go on" in said
    assert Path("runs/table-small/call.json").read_text() == kept


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"overrides": 3, "seeds": null}', '{"overrides": [], "seeds": ["a"]}']
)
def test_a_record_of_the_call_that_is_none_is_said(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/table").mkdir(parents=True)
    Path("runs/table/call.json").write_text(text)
    assert sweep("--table") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{Path('runs/table/call.json')}: not what a sweep writes (") and "remove it" in said


def test_a_signal_ends_a_sweep_with_130_and_the_same_command_goes_on(folder: Path) -> None:
    command = [sys.executable, "-c", "from toolbox.cli import main; main()", "sweep", "table.yaml", "train.device=cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = Path("runs/table/roialign/seed-0/metrics.jsonl")
    deadline = time.monotonic() + 60  # seconds, on a machine that does other things too
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "--resume" not in errors and "go on with the same command" in errors
    assert "stopped; the same command goes on" in errors and "Traceback" not in errors
    assert "0 of 2 runs done" in output
    steps = len(metrics.read_text().splitlines())
    assert Path("runs/table/roialign/seed-0/checkpoint.pt").exists() and not Path("runs/table/roipool").exists()

    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(metrics.read_text().splitlines()) <= steps and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and f"resuming after step {steps} of 100000" in errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "0,a"], "--seeds is different whole numbers with commas between, e.g. 0,1,2, not '0,a'"),
        (["--seeds", "²"], "--seeds is different whole numbers with commas between, e.g. 0,1,2, not '²'"),
        (["--seeds", "1,1"], "--seeds is different whole numbers with commas between, e.g. 0,1,2, not '1,1'"),
        (["--only", "RoIpool2"], "table.yaml has no variant 'RoIpool2'; did you mean 'RoIPool'?"),
        (["--lr", "0.1"], "no option '--lr': config keys are written without dashes; write train.lr=0.1"),
        (["--run", "table.yaml"], "table.yaml: no folder for the runs: File exists; name one with --run"),
        (["train.setps=1"], "command line: train.setps=1: there is no setting 'setps' here; did you mean 'steps'?"),
    ],
)
def test_wrong_input_is_said_in_one_line(
    folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(*arguments) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_run_that_diverges_is_named_below_the_table_and_makes_the_status_1(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("--small", "--seeds", "0", "train.lr=1e30", "train.steps=3", "--only", "RoIAlign") == 1
    printed = capsys.readouterr()
    assert "0 of 2 runs done" in printed.out and "RoIAlign, seed 0: step 2: the loss is not finite" in printed.err
