"""Sweeps: which runs there are, going on after a stop, and what is checked before anything trains."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from toolbox.data.shapes import Shapes
from toolbox.engine import Progress
from toolbox.engine.run_folder import RunFolder
from toolbox.engine.sweep import Run, check_runs, load_sweep, runs_of, train_runs
from toolbox.engine.sweep_table import read_table, seconds_trained
from toolbox.errors import ConfigError, ToolboxError

BASE = """\
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
  workers: 0
train: {steps: 2, batch: 1, lr: 0.001, log_every: 1, device: cpu}
"""
SWEEP = """\
base: base.yaml
metrics: {AP: bbox.AP, large: bbox.APl}
seeds: [0, 1]
variants:
  RoIAlign (average): {paper: {AP: 30.3}}
  RoIPool: {set: {model.box.extractor.type: RoIPool}, paper: {AP: 26.9}}
  again: {set: {model.box.extractor.mode: average}}
  theirs: {paper: {AP: 20}, only_paper: no code}
"""


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(BASE)
    Path("sweep.yaml").write_text(SWEEP)
    return Path("sweep.yaml")


def names(runs: list[Run]) -> list[str]:
    return [run.folder.path.as_posix() for run in runs]


def interrupt_in(folder: str, step: int) -> tuple[Callable[[int, Run], None], Callable[[Progress], None]]:
    """Callbacks of a Ctrl-C at a step of a run."""
    current: list[str] = []

    def on_run(number: int, run: Run) -> None:
        current[:] = [run.folder.path.as_posix()]

    def on_progress(progress: Progress) -> None:
        if current == [folder] and progress.phase == "train" and progress.done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return on_run, on_progress


def test_each_variant_and_seed_has_a_folder_and_a_config_that_stands_twice_is_trained_once(sweep: Path) -> None:
    loaded = load_sweep(sweep)
    runs = runs_of(loaded, "out")
    assert names(runs) == [
        "out/roialign-average/seed-0",
        "out/roipool/seed-0",
        "out/roialign-average/seed-1",
        "out/roipool/seed-1",
    ]
    assert [run.config.train.seed for run in runs] == [0, 0, 1, 1]
    assert names(runs_of(loaded, "out", only=["roipool"], seeds=[7])) == ["out/roipool/seed-7"]
    assert names(runs_of(loaded, "out", only=["again"], seeds=[0])) == ["out/roialign-average/seed-0"]
    with pytest.raises(ToolboxError, match="variant 'theirs' is not trained: no code"):
        runs_of(loaded, "out", only=["theirs"])
    with pytest.raises(ToolboxError, match="no variant 'RoIPol'; did you mean 'RoIPool'"):
        runs_of(loaded, "out", only=["RoIPol"])


def test_a_sweep_that_was_stopped_goes_on_where_it_was_and_ends_as_one_that_was_not(sweep: Path) -> None:
    loaded = load_sweep(sweep)
    on_run, on_progress = interrupt_in("out/roipool/seed-0", step=1)
    first = train_runs(runs_of(loaded, "out"), on_run=on_run, on_progress=on_progress)
    assert first.stopped and names(first.finished) == ["out/roialign-average/seed-0"]
    assert [row.runs.keys() for row in read_table(loaded, "out").rows] == [{0}, set(), {0}, set()]
    before = Path("out/roialign-average/seed-0/model.safetensors").stat().st_mtime_ns

    trained: list[str] = []
    second = train_runs(runs_of(loaded, "out"), on_run=lambda _, run: trained.append(run.folder.path.as_posix()))
    assert not second.stopped and len(second.finished) == 4
    assert trained == ["out/roipool/seed-0", "out/roialign-average/seed-1", "out/roipool/seed-1"]
    assert Path("out/roialign-average/seed-0/model.safetensors").stat().st_mtime_ns == before
    steps = [record["step"] for record in RunFolder("out/roipool/seed-0").records()]
    assert steps == [1, 2, 2]  # the first step once; at the end its AP
    alone = train_runs(runs_of(loaded, "whole", only=["RoIPool"], seeds=[0]))
    assert len(alone.finished) == 1
    ended, whole = (Path(folder, "roipool/seed-0/eval.json").read_text() for folder in ("out", "whole"))
    assert json.loads(ended) == json.loads(whole)

    table = read_table(loaded, "out")
    assert [row.runs.keys() for row in table.rows] == [{0, 1}, {0, 1}, {0, 1}, set()]
    align, _, again, theirs = table.rows
    assert again.runs == align.runs and again.same_as == "RoIAlign (average)" and theirs.only_paper == "no code"
    evaluation = json.loads(Path("out/roialign-average/seed-1/eval.json").read_text())
    assert align.runs[1] == {"AP": pytest.approx(100 * evaluation["bbox"]["AP"], abs=1e-6)}  # no object is large
    assert align.steps == 2 and align.seconds is not None and 0 < align.seconds < 60


def test_runs_that_another_process_writes_are_passed_over(sweep: Path) -> None:
    runs = runs_of(load_sweep(sweep), "out", seeds=[0])
    with runs[0].folder.opened(runs[0].config.to_yaml(), resume=False):
        outcome = train_runs(runs)
    assert names(outcome.locked) == ["out/roialign-average/seed-0"]
    assert names(outcome.finished) == ["out/roipool/seed-0"]


def test_a_run_that_diverges_does_not_stop_the_others(sweep: Path) -> None:
    runs = runs_of(load_sweep(sweep, ["train.lr=1e30"]), "out", only=["RoIPool"])
    sound = runs_of(load_sweep(sweep), "out", only=["RoIAlign (average)"], seeds=[0])
    outcome = train_runs([*runs, *sound])
    assert [(str(run), why.startswith("step 2: the loss is not finite")) for run, why in outcome.diverged] == [
        ("RoIPool, seed 0", True),
        ("RoIPool, seed 1", True),
    ]
    assert names(outcome.finished) == names(sound)


def test_everything_is_checked_before_anything_trains(sweep: Path) -> None:
    sweep.write_text(
        SWEEP + "  a: {set: {model.rpn.anchors.sizes: [1, 2]}}\n  b: {set: {model.box.extractor.features: [p9]}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        check_runs(runs_of(load_sweep(sweep, ["data.val={type: Shapes, classes: [circle]}"]), "out"))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("command line: data.val={type: Shapes, classes: [circle]}: the classes of data.val are")
    wrong = [line for line in lines if line.startswith("sweep.yaml:")]
    assert [line.split(": ")[:2] for line in wrong] == [
        ["sweep.yaml:9:38", "model.rpn.anchors.sizes"],
        ["sweep.yaml:10:43", "model.box.extractor.features"],
    ]
    assert wrong[0].endswith("(in variant 'a')") and wrong[1].endswith("(in variant 'b')")
    assert not Path("out").exists()


def test_the_model_is_checked_where_the_data_is_not_there(sweep: Path) -> None:
    overrides = ["data.train={type: CocoDataset, images: no, annotations: no.json}", "data.val=null"]
    with pytest.raises(ConfigError) as caught:
        check_runs(runs_of(load_sweep(sweep, [*overrides, "model.rpn.anchors.sizes=[1]"]), "out"))
    said = str(caught.value)
    assert "no.json" in said and "add data.val" in said and "sizes are given for 1 level" in said
    assert "in variant" not in said  # of all of them


def test_runs_of_another_config_are_refused_by_training_and_by_the_table(sweep: Path) -> None:
    train_runs(runs_of(load_sweep(sweep), "out", only=["RoIPool"]))
    other = load_sweep(sweep, ["train.lr=0.002"])
    for attempt in (lambda: check_runs(runs_of(other, "out")), lambda: read_table(other, "out")):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert str(caught.value) == (
            "out/roipool/seed-0/config.yaml: train.lr: the run has 0.001, now it is 0.002; a run is resumed with the "
            "config it was started with, by the same command (give another --run for another config) "
            "(1 other run alike)"
        )


def check_metric(sweep: Path, metric: str, *overrides: str) -> None:
    """Check a sweep with another second column."""
    sweep.write_text(SWEEP.replace("bbox.APl", metric))
    loaded = load_sweep(sweep, overrides)
    check_runs(runs_of(loaded, "out"), loaded.text)


NEVER = {
    "segm.AP75": "segm.AP75 (its model has no mask head)",
    "keypoints.AP": "keypoints.AP (its model has no keypoint head)",
    "bbox.AP@100": "bbox.AP@100 (AP@100 is that of test.detections: 100, above 100; it is 100)",
    "bbox.AP@300": "bbox.AP@300 (AP@300 is that of test.detections: 300, above 100; it is 100)",
    "bbox.per_class.squares": "bbox.per_class.squares (data.val has no class 'squares'; did you mean 'square'?)",
}


@pytest.mark.parametrize("metric", NEVER)
def test_a_metric_that_no_variant_gives_is_refused_before_anything_trains(sweep: Path, metric: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_metric(sweep, metric)
    assert str(caught.value) == (
        f"sweep.yaml:2:31: metrics.large: no variant gives {NEVER[metric]}: remove the column, or add what gives it"
    )


def test_a_metric_that_some_variant_gives_is_a_warning(sweep: Path, caplog: pytest.LogCaptureFixture) -> None:
    mask = "model.instance.mask: {extractor: {type: RoIAlign}, head: {type: FCNMaskHead, channels: 8}}"
    sweep.write_text(SWEEP.replace("bbox.APl", "segm.AP").replace("RoIPool}", "RoIPool, " + mask + "}"))
    loaded = load_sweep(sweep)
    said = "no segm.AP of 'RoIAlign (average)', 'again' (its model has no mask head): left empty in the table"
    assert [record.getMessage() for record in caplog.records] == [f"sweep.yaml: {said}"]
    check_runs(runs_of(loaded, "out"), loaded.text)  # the data has masks
    assert len(caplog.records) == 1


def test_a_metric_that_depends_on_settings_or_classes_is_taken(sweep: Path) -> None:
    check_metric(sweep, "bbox.AR@300", "test.detections=300")
    check_metric(sweep, "bbox.per_class.square")


def test_masks_that_only_the_model_has_are_no_metric(sweep: Path, tmp_path: Path) -> None:
    square = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 20, 20], "area": 400, "iscrowd": 0}
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "images/1.png")
    truth = {
        "images": [{"id": 1, "file_name": "1.png", "height": 64, "width": 64}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(Shapes(length=1).classes, 1)],
        "annotations": [square],
    }
    (tmp_path / "val.json").write_text(json.dumps(truth))
    mask = "model.instance.mask={extractor: {type: RoIAlign}, head: {type: FCNMaskHead, channels: 8}}"
    with pytest.raises(ConfigError, match=r"no variant gives segm.AP \(data.val has no masks\)"):
        check_metric(sweep, "segm.AP", mask, "data.val={type: CocoDataset, images: images, annotations: val.json}")


def test_the_time_of_a_run_is_that_of_its_steps(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step, speed in ((10, 4.0), (30, 8.0)):
        folder.append_metrics({"step": step, "images_per_second": speed})
    folder.append_metrics({"step": 30, "eval": {}})
    folder.metrics.open("a").write('{"step": 40, "images_per')  # as a crash leaves it
    assert seconds_trained(folder, batch=2) == 10 * 2 / 4 + 20 * 2 / 8
