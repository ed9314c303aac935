"""Capsules: a step in one file, replayed anywhere, and refused with a reason where the file is damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from toolbox import plugins
from toolbox.engine import TrainingDiverged, train
from toolbox.engine.capsule import load_capsule, save_capsule
from toolbox.engine.distributed import ALONE
from toolbox.engine.job import prepare
from toolbox.engine.replay import Replay, replay
from toolbox.engine.run_folder import RunFolder
from toolbox.errors import CheckpointError, ConfigError
from toolbox.masks import BitmapMask, InstanceMasks, PolygonMask
from toolbox.registry import FAMILIES
from toolbox.schema import load_config
from toolbox.weights import load_model, save_model

CONFIG = """
plugins: [brittle.py]
model:
  backbone: {type: ResNet, depth: 18, norm: bn}
  neck: {type: FPN, out_channels: 8}
  rpn: {head: {type: ConvRPNHead}, anchors: {sizes: [12, 24, 48, 96, 192]}}
  box:
    extractor: {type: RoIAlign, output_size: 3}
    head: {type: TwoFCBoxHead, channels: 16}
  instance:
    mask: {extractor: {type: RoIAlign, output_size: 4}, head: {type: FCNMaskHead, convolutions: 1, channels: 8}}
    brittle: {extractor: {type: RoIAlign, output_size: 2}, head: {type: BrittleHead, breaks_at: 3}}
data:
  train: {type: Shapes, length: 8, seed: 0}
  resize: {short: 64, max: 64}
  workers: 0
train: {steps: 4, batch: 2, micro_batch: 1, lr: 0.001}
"""
PLUGIN = """
import torch
from torch import nn
from toolbox.registry import INSTANCE_HEADS


class Crack(nn.Module):
    # Breaks in the step of that number: two micro-batches a step, counted in a buffer.
    def __init__(self, breaks_at):
        super().__init__()
        self.breaks_at = breaks_at
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return torch.where(self.calls == 2 * self.breaks_at, torch.nan, x)


@INSTANCE_HEADS.register
class BrittleHead(nn.Module):
    def __init__(self, in_shape, num_classes, *, breaks_at: int = 1):
        super().__init__()
        self.squeeze = nn.Conv2d(in_shape.channels, 1, 1)
        self.crack = Crack(breaks_at)
        self.after = nn.Dropout(0.5)

    def forward(self, regions):
        return self.after(self.crack(self.squeeze(regions)))

    def loss(self, prediction, regions, targets):
        return {"brittle": prediction.square().sum() / 100}

    def predict(self, prediction, labels):
        return prediction.mean((1, 2, 3))

    def to_image(self, values, boxes, height, width):
        return {"brittle": values.tolist()}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of a run that stopped in step 3, and what it said."""
    folder = tmp_path_factory.mktemp("crack")
    before = {family: dict(registry._classes) for family, registry in FAMILIES.items()}
    (folder / "brittle.py").write_text(PLUGIN)
    (folder / "run.yaml").write_text(CONFIG)
    with pytest.raises(TrainingDiverged) as error:
        train(load_config(folder / "run.yaml"), folder / "run")
    yield folder / "run", str(error.value)
    plugins.loaded_plugins.clear()
    for family, registry in FAMILIES.items():
        # Built-ins may have been imported in the meantime, and are not imported twice.
        own = {name: cls for name, cls in registry._classes.items() if cls.__module__.startswith("toolbox.")}
        registry._classes = before[family] | own


@pytest.fixture
def capsule(run: tuple[Path, str]) -> Path:
    return run[0] / "capsules/step_000003.safetensors"


def test_the_run_names_the_module_where_it_began(run: tuple[Path, str]) -> None:
    said = "the first output that is not finite is that of instance.brittle.head.crack (Crack)"
    assert said in run[1] and run[1].startswith("step 3: the loss is not finite: ")


def test_a_replay_gives_the_very_losses_and_statistics_of_the_run(capsule: Path) -> None:
    done = replay(capsule)
    assert done.reproduced and done.now.first_module == "instance.brittle.head.crack"
    assert done.now.bad_losses == ["brittle"] and np.isnan(done.losses["brittle"])
    for name, value in done.then.step.losses.items():
        assert done.losses[name] == value or name == "brittle"
    assert done.then.seen is not None and done.now.modules == done.then.seen.modules
    assert [row.name for row in done.now.gradients] == [row.name for row in done.then.seen.gradients]
    assert done.verdict().startswith("reproduced: the loss is not finite here (cpu, float32); the first output that")
    assert [line["step"] for line in done.then.step.recent] == [1, 2]


def test_the_weights_and_running_statistics_are_those_of_before_the_step(capsule: Path) -> None:
    """The step's own passes, and those of the second look, counted up the buffers of crack and batch norm."""
    weights = load_capsule(capsule).weights
    assert weights["instance.brittle.head.crack.calls"] == 4  # two steps of two micro-batches
    assert weights["backbone.bn1.num_batches_tracked"] == 4


def test_the_batch_is_the_loaders_own(run: tuple[Path, str], capsule: Path, tmp_path: Path) -> None:
    kept = load_capsule(capsule).batches
    given = list(prepare(load_config(run[0].parent / "run.yaml"), RunFolder(tmp_path), ALONE).batches(start=2))[:2]
    assert len(kept) == 2
    for one, other in zip(kept, given, strict=True):
        assert one.image_ids == other.image_ids and one.original_sizes == other.original_sizes
        assert all(map(torch.equal, one.images, other.images))
        assert one.targets is not None and other.targets is not None
        for entry in fields(one.targets):
            a, b = getattr(one.targets, entry.name), getattr(other.targets, entry.name)
            if isinstance(a, torch.Tensor):
                assert torch.equal(a, b) and a.dtype == b.dtype, entry.name
            elif entry.name == "masks":
                rois = torch.tensor([[0.0, 5.0, 5.0, 50.0, 40.0]])
                assert torch.equal(*(m.rasterise(rois, torch.tensor([0]), (28, 28)) for m in (a, b)))
            else:
                assert a is b is None


def test_masks_in_a_capsule_come_back_equal(capsule: Path, tmp_path: Path) -> None:
    whole = load_capsule(capsule)
    turn = [[0.0, -2.0, 9.5], [2.0, 0.0, 1.25]]
    polygon = PolygonMask([[[1, 2], [9, 3], [4, 8]], [[20, 20], [30, 20], [30, 30]]]).transformed(turn)
    bitmap = BitmapMask(np.eye(5, 7, dtype=np.uint8), 3, 4, turn)
    targets = replace(whole.batches[0].targets, masks=InstanceMasks([[polygon, bitmap]]))
    batches = [replace(whole.batches[0], targets=targets), whole.batches[1]]
    save_capsule(tmp_path / "c.safetensors", replace(whole, batches=batches))
    [[one, other]] = load_capsule(tmp_path / "c.safetensors").batches[0].targets.masks.images
    assert isinstance(one, PolygonMask) and isinstance(other, BitmapMask)
    assert all(map(np.array_equal, one.parts, polygon.parts)) and np.array_equal(one.matrix, polygon.matrix)
    assert (other.x, other.y) == (3, 4) and np.array_equal(other.patch, bitmap.patch)
    assert np.array_equal(other.matrix, turn)


def test_a_copied_capsule_replays_in_a_fresh_process_without_run_and_data(capsule: Path, tmp_path: Path) -> None:
    shutil.copy(capsule, tmp_path / "mailed.safetensors")
    (tmp_path / "brittle.py").write_text(PLUGIN)
    hidden = capsule.parents[1].with_name("hidden")
    shutil.move(capsule.parents[1], hidden)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "toolbox.cli", "train", "--replay", "mailed.safetensors"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        shutil.move(hidden, capsule.parents[1])
    assert done.returncode == 0, done.stderr
    marked = [line.split() for line in done.stdout.splitlines() if line.startswith("> ")]
    assert [line[1:4] for line in marked] == [["instance.brittle.head.crack", "Crack", "float32"]]
    assert 0 < float(marked[0][-1].rstrip("%")) < 100  # of two micro-batches one broke
    assert ["brittle", "nan", "nan"] in [line.split() for line in done.stdout.splitlines()]


def test_an_override_tries_another_setting_on_the_very_same_step(capsule: Path) -> None:
    done = replay(capsule, overrides=["model.instance.brittle.head.breaks_at=9"])
    assert not done.reproduced and done.now.first_module is None
    assert done.verdict().splitlines()[0] == (
        "not reproduced: the loss was not finite on cpu in float32, and is finite here (cpu, float32)"
    )
    assert done.losses["mask"] == done.then.step.losses["mask"]


def test_an_override_that_changes_nothing_of_a_step_is_refused(run: tuple[Path, str], capsule: Path) -> None:
    plugin = f"plugins.0={run[0].parent / 'brittle.py'}"
    with pytest.raises(ConfigError) as caught:
        replay(capsule, overrides=["train.tf32=false", "train.seed=1", "model.box.score_threshold=0", "test={}"])
    assert "score_threshold" in str(caught.value)  # what the config does not know comes first
    with pytest.raises(ConfigError) as caught:
        replay(capsule, overrides=["train.tf32=false", plugin, "train.seed=1", "test={}"])
    assert [problem.key for problem in caught.value.problems] == ["train.seed", "test"]


def test_a_float16_overflow_is_told_by_the_largest_magnitude(capsule: Path) -> None:
    whole = load_capsule(capsule)
    whole.step.autocast, whole.step.device = "float16", "NVIDIA Something"
    now = replay(capsule, overrides=["model.instance.brittle.head.breaks_at=9"]).now
    for largest, beyond in ((7e4, "more than"), (6e4, "less than")):
        now.modules[3].maximum = largest
        said = Replay(capsule, whole, now, torch.device("cpu")).verdict()
        assert said.startswith(
            "not reproduced: the loss was not finite on NVIDIA Something in float16, and is finite here"
        )
        assert f"is {largest:.4g}, of {now.modules[3].name} (" in said
        assert f"{beyond} the 65504 at which float16 ends" in said


def test_a_capsule_is_values_and_text_no_pickle(capsule: Path) -> None:
    tensors, metadata = load_model(capsule)
    record = json.loads(metadata["capsule"], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert record["step"]["losses"]["brittle"] == "nan"
    assert {name.split(".")[0] for name in tensors} == {"model", "batch"}


def rewritten(capsule: Path, to: Path, **changes: object) -> Path:
    tensors, metadata = load_model(capsule)
    record = json.loads(metadata["capsule"])
    for name in changes.pop("without", ()):  # type: ignore[attr-defined]
        del tensors[name]
    step = record["step"] | changes.pop("step", {})  # type: ignore[operator]
    save_model(to, tensors, {**metadata, "capsule": json.dumps(record | {"step": step} | changes)})
    return to


@pytest.mark.parametrize(
    "changes",
    [
        {"without": ["batch.0.image.0"]},
        {"without": ["batch.1.masks.points"]},
        {"without": ["batch.0.targets.boxes"]},
        {"step": {"shares": [0.5]}},
        {"step": {"autocast": "int3"}},
        {"step": {"recent": [7]}},
        {"batches": []},
        {"batches": 5},
        {"seen": {"losses": []}},
        {"version": None},
    ],
    ids=str,
)
def test_a_capsule_whose_parts_contradict_each_other_is_refused(
    capsule: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    damaged = rewritten(capsule, tmp_path / "damaged.safetensors", **changes)
    with pytest.raises(CheckpointError, match=r"damaged.safetensors: the capsule is damaged, or .*copy it again"):
        load_capsule(damaged)


def test_other_files_are_named_for_what_they_are(run: tuple[Path, str], capsule: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(capsule.read_bytes()[:-1000])
    tensors, metadata = load_model(capsule)
    del metadata["capsule"]
    save_model(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, metadata)
    newer = rewritten(capsule, tmp_path / "newer.safetensors", version=2)
    torch.save({}, tmp_path / "checkpoint.pt")
    for path, said in (
        (tmp_path / "cut.safetensors", "not a whole safetensors file"),
        (tmp_path / "model.safetensors", "this is a trained model, not a capsule: where a loss is not finite, a run"),
        (
            tmp_path / "checkpoint.pt",
            r"this is a checkpoint \(or .*\), not a capsule: where .* into its folder capsules/",
        ),
        (tmp_path / "none.safetensors", "no such file"),
        (newer, "a newer toolbox wrote this capsule"),
        (run[0], f"this is a folder; its capsules are {capsule}"),
        (tmp_path, "this is a folder; there is no capsule in it"),
    ):
        with pytest.raises(CheckpointError, match=said):
            replay(path)


def test_a_plugin_that_is_not_there_is_named_with_what_to_do(capsule: Path, tmp_path: Path) -> None:
    shutil.copy(capsule, tmp_path / "mailed.safetensors")
    plugin, kept = capsule.parents[2] / "brittle.py", tmp_path / "elsewhere.txt"
    shutil.move(plugin, kept)
    try:
        with pytest.raises(
            CheckpointError, match=r"file plugin .*brittle.py; it registered BrittleHead: put brittle.py"
        ):
            replay(tmp_path / "mailed.safetensors")
    finally:
        shutil.move(kept, plugin)
