"""Model files of a run load back with all that they were trained on."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import toolbox
from toolbox import plugin_records
from toolbox.errors import CheckpointError, ConfigError, StorageError
from toolbox.inference.loading import load_detector
from toolbox.inference.metadata import model_metadata, read_metadata
from toolbox.models.builder import build_detector
from toolbox.plugin_records import (
    PluginRecord,
    Search,
    check_installed,
    keep_files,
    read_records,
    records_of,
    write_records,
)
from toolbox.plugins import LoadedPlugin, PluginError
from toolbox.schema import config_from_text
from toolbox.structures import Skeleton
from toolbox.weights import load_model, save_model

CONFIG = """
model:
  backbone: {type: ResNet, depth: 18, norm: gn}
  neck: {type: FPN, out_channels: 8}
  rpn: {head: {type: ConvRPNHead}, anchors: {sizes: [8, 16, 32, 64, 128]}}
  box:
    extractor: {type: RoIAlign, output_size: 3}
    head: {type: TwoFCBoxHead, channels: 8}
train: {steps: 1, lr: 0.1}
"""
CLASSES = ("cat", "dog")
PATHS = {"PYTHONPATH": str(Path(toolbox.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = config_from_text(CONFIG, "test.yaml")
    model = build_detector(config, classes=CLASSES)
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    save_model(path, model.state_dict(), model_metadata(config, CLASSES, (17, 18), None))
    return path


def test_a_model_file_alone_gives_weights_config_classes_and_ids(file: Path) -> None:
    loaded = load_detector(file)
    again = load_detector(file.parent, ["test.detections=7"])  # the folder, here without a config.yaml
    assert (loaded.classes, loaded.category_ids, loaded.skeleton) == (CLASSES, (17, 18), None)
    assert not loaded.model.training
    assert (loaded.config.test.detections, again.config.test.detections) == (100, 7)
    for one, other in zip(loaded.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_override_that_changes_the_model_is_reported_with_the_shapes(file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"hidden.0.weight \(8, 72\), the model has \(9, 72\)"):
        load_detector(file, ["model.box.head.channels=9"])
    with pytest.raises(ConfigError, match="test.detection"):
        load_detector(file, ["test.detection=9"])


def test_a_folder_without_a_model_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no model.safetensors"):
        load_detector(tmp_path)
    save_model(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="no 'config' in its metadata"):
        load_detector(tmp_path / "other.safetensors")


HEAD = """\
import torch
from torch import nn

from toolbox.registry import BOX_HEADS
from toolbox.models.interfaces import BoxPrediction


@BOX_HEADS.register
class {name}(nn.Module):
    def __init__(self, in_shape, num_classes, *, bias: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(in_shape.channels, 5 * num_classes + 1)
        self.classes = num_classes

    def forward(self, regions):
        x = self.layer(regions.mean(dim=(2, 3)))
        return BoxPrediction(x[:, : self.classes + 1], x[:, self.classes + 1 :].unflatten(1, (-1, 4)))
"""


def write_run(run: Path, entry: str, name: str, folder: Path, *, keep: bool = True) -> Path:
    """A run folder with a model whose box head is a plugin's."""
    head = CONFIG.replace("{type: TwoFCBoxHead, channels: 8}", f"{{type: {name}}}")
    config = config_from_text(f"plugins: [{entry}]\n{head}", "test.yaml", folder=folder)
    run.mkdir(parents=True)
    if keep:
        keep_files(config.plugins, run)
    (run / "config.yaml").write_text(config.to_yaml())
    weights = build_detector(config, classes=CLASSES).state_dict()
    save_model(run / "model.safetensors", weights, model_metadata(config, CLASSES, (17, 18), None))
    return run / "model.safetensors"


def load_elsewhere(code: str, cwd: Path) -> str:
    """Run code in a process that has loaded no plugin yet; what it printed and logged, or the error's text."""
    start = "import logging; logging.basicConfig(format='%(message)s', level=logging.INFO)\n"
    start += "from toolbox.inference.loading import load_detector\nfrom toolbox.errors import ToolboxError\n"
    code = "try:\n    " + code + "\nexcept ToolboxError as error:\n    print(type(error).__name__, error)"
    done = subprocess.run(
        [sys.executable, "-c", start + code], cwd=cwd, capture_output=True, text=True, env={**os.environ, **PATHS}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_metadata_name_each_plugin_with_its_code_and_the_versions(tmp_path: Path) -> None:
    (tmp_path / "recorded_head.py").write_text(HEAD.format(name="RecordedHead"))
    _, metadata = load_model(write_run(tmp_path / "run", "./recorded_head.py", "RecordedHead", tmp_path))
    (record,) = json.loads(metadata["plugins"])
    assert record == {
        "entry": str(tmp_path / "recorded_head.py"),
        "written": "./recorded_head.py",
        "kind": "file",
        "names": ["RecordedHead"],
        "sha256": hashlib.sha256((tmp_path / "recorded_head.py").read_bytes()).hexdigest(),
        "distribution": None,
        "version": None,
    }
    versions = json.loads(metadata["versions"])
    assert versions["torch"] == torch.__version__ and versions["toolbox"] == toolbox.__version__
    assert versions["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")


def test_a_run_keeps_its_plugin_files_and_needs_the_originals_no_more(tmp_path: Path) -> None:
    (tmp_path / "kept_head.py").write_text(HEAD.format(name="KeptHead"))
    write_run(tmp_path / "run", "kept_head.py", "KeptHead", tmp_path)
    (tmp_path / "kept_head.py").unlink()
    (tmp_path / "run").rename(tmp_path / "moved")
    said = load_elsewhere("print(type(load_detector('moved').model.box.head).__name__)", tmp_path)
    assert "KeptHead\n" in said
    assert f"is no longer at {tmp_path / 'kept_head.py'}; using {Path('moved', 'plugins', 'kept_head.py')}" in said


@pytest.mark.parametrize("place", ["beside the model", "the current folder"])
def test_a_plugin_file_that_moved_is_found(tmp_path: Path, place: str) -> None:
    (tmp_path / "mobile_head.py").write_text(HEAD.format(name="MobileHead"))
    model = write_run(tmp_path / "run", "mobile_head.py", "MobileHead", tmp_path, keep=False)
    (tmp_path / "here").mkdir()
    target = model.parent if place == "beside the model" else tmp_path / "here"
    (tmp_path / "mobile_head.py").rename(target / "mobile_head.py")
    said = load_elsewhere(f"print(type(load_detector({str(model)!r}).model.box.head).__name__)", tmp_path / "here")
    assert "MobileHead\n" in said


def test_a_plugin_file_that_is_nowhere_is_named_with_what_it_registered_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "lost_head.py").write_text(HEAD.format(name="LostHead"))
    model = write_run(tmp_path / "run", "lost_head.py", "LostHead", tmp_path, keep=False)
    (tmp_path / "lost_head.py").rename(tmp_path / "renamed.py")
    said = load_elsewhere(f"load_detector({str(model)!r})", tmp_path)
    assert said.startswith(f"CheckpointError {model}: the model needs what is not here:")
    assert f"file plugin {tmp_path / 'lost_head.py'}; it registered LostHead: put lost_head.py beside" in said
    assert "--plugin FILE" in said
    found = load_elsewhere(
        f"print(type(load_detector({str(model)!r}, plugins=['renamed.py']).model.box.head).__name__)", tmp_path
    )
    assert found == "LostHead\n"


def test_a_plugin_that_has_changed_is_used_with_a_warning_that_names_the_copy(tmp_path: Path) -> None:
    (tmp_path / "edited_head.py").write_text(HEAD.format(name="EditedHead"))
    write_run(tmp_path / "run", "edited_head.py", "EditedHead", tmp_path)
    unchanged = load_elsewhere("load_detector('run')", tmp_path)
    (tmp_path / "edited_head.py").write_text(HEAD.format(name="EditedHead") + "# edited\n")
    changed = load_elsewhere("load_detector('run')", tmp_path)
    assert "has changed" not in unchanged
    assert "plugin edited_head.py (EditedHead) has changed since the model was trained with it" in changed
    assert f"as it was then, it is {Path('run', 'plugins', 'edited_head.py')}" in changed


def test_two_plugin_files_of_one_name_are_both_kept(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "heads.py").write_text(f"x = '{folder}'\n")
        keep_files([str(tmp_path / folder / "heads.py")], tmp_path / "run")
    kept = {path.read_text() for path in (tmp_path / "run" / "plugins").iterdir()}
    assert kept == {"x = 'a'\n", "x = 'b'\n"}


def test_a_missing_package_is_named_with_the_version_to_install(tmp_path: Path) -> None:
    record = PluginRecord("far.heads", "far.heads", "installed", ("FarHead",), None, "far-heads", "1.4.2")
    module = PluginRecord("near.heads", "near.heads", "module", ("NearHead",))
    with pytest.raises(CheckpointError) as caught:
        check_installed([record])
    assert "installed plugin far.heads, part of far-heads 1.4.2; it registered FarHead: " in str(caught.value)
    assert "pip install 'far-heads==1.4.2'" in str(caught.value)
    with pytest.raises(CheckpointError, match="module plugin near.heads; it registered NearHead: put the folder that"):
        Search(tmp_path).entries(["near.heads"], [module])
    assert read_records(write_records([record, module])) == (record, module)


def test_another_version_of_the_toolbox_is_mentioned_only_where_loading_fails(file: Path, tmp_path: Path) -> None:
    state, metadata = load_model(file)
    written = {"toolbox": "9.1.0", "versions": json.dumps({"toolbox": "9.1.0", "torch": "9.9", "python": "3.99.0"})}
    save_model(tmp_path / "newer.safetensors", state, {**metadata, **written})
    assert load_detector(tmp_path / "newer.safetensors").classes == CLASSES
    with pytest.raises(CheckpointError, match=r"shape(.|\n)*written by toolbox 9.1.0, torch 9.9, python 3.99.0, and"):
        load_detector(tmp_path / "newer.safetensors", ["model.box.head.channels=9"])
    with pytest.raises(ConfigError, match=r"'rcnn-toolbox==9.1.0' reads it"):
        load_detector(tmp_path / "newer.safetensors", ["test.detection=9"])
    with pytest.raises(ConfigError) as same:
        load_detector(file, ["test.detection=9"])
    assert "written by" not in str(same.value)


def test_a_skeleton_comes_back_as_it_was() -> None:
    skeleton = Skeleton(names=("left", "right"), pairs=((0, 1),), limbs=((0, 1),), sigmas=(0.1, 0.2))
    metadata = model_metadata(config_from_text(CONFIG, "test.yaml"), CLASSES, (1, 2), skeleton)
    assert read_metadata(metadata, Path("m.safetensors")).skeleton == skeleton


@pytest.mark.parametrize(
    "wrong",
    [
        {"entry": 5},
        {"written": 5},
        {"names": [1, 2]},
        {"kind": "download"},
        {"sha256": 5},
        {"kind": "installed", "distribution": 5, "version": [1]},
    ],
)
def test_records_of_something_else_are_a_damaged_file(wrong: dict[str, object]) -> None:
    record = {"entry": "/far/heads.py", "written": "heads.py", "kind": "file", **wrong}
    metadata = model_metadata(config_from_text(CONFIG, "test.yaml"), CLASSES, (1, 2), None)
    with pytest.raises(CheckpointError, match="cannot read 'plugins' in its metadata"):
        read_metadata({**metadata, "plugins": json.dumps([record])}, Path("m.safetensors"))


def test_a_model_file_does_not_choose_a_script_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the very code that it was trained with is taken from there, whatever its name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manage.py").write_text("raise SystemExit('deleted everything')\n")
    record = PluginRecord("/far/manage.py", "./manage.py", "file", ("Head",), sha256="0" * 64)
    with pytest.raises(CheckpointError, match="file plugin /far/manage.py; it registered Head"):
        Search(tmp_path / "run").entries(["/far/manage.py"], [record])
    same = hashlib.sha256((tmp_path / "manage.py").read_bytes()).hexdigest()
    found = Search(tmp_path / "run").entries(["/far/manage.py"], [replace(record, sha256=same)])
    assert found == [str(tmp_path / "manage.py")]


@pytest.mark.parametrize("entry", ["a\0.py", "", ".heads", "~nobody-of-this-name/heads.py"])
def test_an_entry_that_names_nothing_is_missing(entry: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the model needs what is not here"):
        Search(tmp_path).entries([entry], [])


def test_a_given_plugin_that_is_no_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="is no path"):
        Search(tmp_path, ["~nobody-of-this-name/heads.py"]).entries([], [])


def test_a_package_of_another_version_is_used_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = LoadedPlugin("far.heads", ("TwoFCBoxHead",), None, "far-heads", "2.0")
    monkeypatch.setattr(plugin_records, "installed_plugins", {"far.heads": now})
    then = PluginRecord("far.heads", "far.heads", "installed", ("TwoFCBoxHead",), None, "far-heads", "1.4.2")
    check_installed([replace(then, version="2.0")])
    assert not caplog.records
    check_installed([then])
    [warning] = caplog.messages
    assert "was version 1.4.2 of far-heads when the model was trained, and is 2.0 now" in warning


def test_an_installed_plugin_is_recorded_only_where_the_config_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    far = LoadedPlugin("far.heads", ("FarHead", "FarNeck"), "0" * 64, "far-heads", "2.0")
    monkeypatch.setattr(plugin_records, "installed_plugins", {"far.heads": far})
    assert records_of([], {"FPN"}) == ()
    [record] = records_of([], {"FPN", "FarNeck"})
    assert (record.kind, record.names, record.version) == ("installed", ("FarNeck",), "2.0")


def test_a_run_folder_that_takes_no_copy_is_named(tmp_path: Path) -> None:
    (tmp_path / "heads.py").write_text("")
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StorageError, match="the plugin cannot be copied: Not a directory"):
        keep_files([str(tmp_path / "heads.py")], tmp_path / "run")


def test_a_run_that_goes_on_with_its_own_copy_does_not_copy_it_again(tmp_path: Path) -> None:
    kept = tmp_path / "run" / "plugins" / "heads.py"
    kept.parent.mkdir(parents=True)
    kept.write_text("")
    keep_files([str(kept)], tmp_path / "run")
    assert list(kept.parent.iterdir()) == [kept]


def test_a_plugin_that_changes_within_a_run_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, run = tmp_path / "heads.py", tmp_path / "run"
    for text, warnings in (("a = 1\n", 0), ("a = 1\n", 0), ("a = 2\n", 1), ("a = 2\n", 1)):
        source.write_text(text)
        keep_files([str(source)], run)
        assert len(caplog.messages) == warnings
    assert caplog.messages[0].startswith(f"plugin {source} is not what the run began with")
    assert {path.read_text() for path in (run / "plugins").iterdir()} == {"a = 1\n", "a = 2\n"}
