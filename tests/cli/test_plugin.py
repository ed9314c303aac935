"""`rcnn plugin new`: what it writes installs, passes the conformance kit, is a sound config and trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import toolbox
from toolbox.cli import main
from toolbox.cli.plugin import _PARTS, names_of
from toolbox.errors import ToolboxError

SOURCE = str(Path(toolbox.__file__).parents[1])
# In a process that has loaded no plugin yet: the generated tests, then check and two steps of training of each.
TRY = """\
import sys
import pytest
from toolbox.cli import main

def run(*arguments):
    try:
        main(arguments)
    except SystemExit as exit:
        assert not exit.code, (arguments, exit.code)

small = ["train.steps=2", "train.batch=2", "data.train.length=4", "data.val.length=2"]
small += ["data.train.height=64", "data.train.width=64", "data.resize.short=64", "data.resize.max=64"]
for module in sys.argv[1:]:
    plugin = f"plugins=[./{module}/{module}]"
    run("check", f"{module}/{module}.yaml", plugin)
    run("train", f"{module}/{module}.yaml", plugin, *small, "--run", f"runs/{module}")
assert pytest.main(["-q", "-p", "no:cacheprovider", "--import-mode=importlib", *sys.argv[1:]]) == 0
"""


def rcnn(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def run(code: str, *arguments: str, cwd: Path, path: str = SOURCE) -> str:
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_what_is_written_for_each_family_passes_its_test_and_check_and_trains(tmp_path: Path) -> None:
    modules = [f"own_{family}" for family in _PARTS]
    for family, module in zip(_PARTS, modules, strict=True):
        assert rcnn("plugin", "new", module, "--family", family, "--into", str(tmp_path)) == 0
    path = os.pathsep.join([SOURCE, *(str(tmp_path / module) for module in modules)])
    said = run(TRY, *modules, cwd=tmp_path, path=path)
    assert f"{len(modules)} passed" in said
    for module in modules:
        assert f"ok: {module}/{module}.yaml" in said and f"runs/{module}: 2 steps done" in said


def test_what_is_written_installs_with_pip_and_is_then_found_without_being_named(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", reason="no setuptools here to build a package with")
    assert rcnn("plugin", "new", "FillShare", "--into", str(tmp_path)) == 0
    site, folder = tmp_path / "site", tmp_path / "fill_share"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    done = subprocess.run([*pip, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = """\
import sys
from toolbox import load_config, build_detector
from toolbox.inference.metadata import model_metadata
import json
config = load_config(sys.argv[1], ["plugins=[]"])
head = build_detector(config, classes=["a"]).instance["fill_share"].head
(record,) = json.loads(model_metadata(config, ["a"], [1], None)["plugins"])
print(type(head).__name__, record["kind"], record["distribution"], record["version"], record["names"])
"""
    said = run(code, str(folder / "fill_share.yaml"), cwd=elsewhere, path=f"{site}{os.pathsep}{SOURCE}")
    assert "FillShare installed fill-share 0.1.0 ['FillShare']" in said


@pytest.mark.parametrize("name", ["fill-head", "fill_head", "FillHead"])
def test_the_name_gives_a_module_and_a_class(name: str) -> None:
    assert names_of(name) == ("fill_head", "FillHead")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("2fast", "cannot name a package"),
        ("a b", "cannot name a package"),
        ("../up", "cannot name a package"),
        ("-", "cannot name a package"),
        ("class", "'class' is a name of Python's own; choose another, e.g. my-class"),
        ("json", "'json' is a name of Python's own"),
        ("numpy", "there is a module 'numpy' already"),
        ("toolbox", "there is a module 'toolbox' already"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ToolboxError, match=reason):
        names_of(name)


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fill_head").mkdir()
    (tmp_path / "fill_head" / "notes.txt").write_text("mine")
    assert rcnn("plugin", "new", "fill-head", "--into", str(tmp_path)) == 2
    assert f"{tmp_path / 'fill_head'}: exists already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "fill_head").iterdir()] == ["notes.txt"]


def test_an_unknown_family_and_a_taken_class_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rcnn("plugin", "new", "mine", "--family", "backbones", "--into", str(tmp_path)) == 2
    said = capsys.readouterr().err
    assert "no template for a family 'backbones'; did you mean 'backbone'?" in said and "instance_head" in said
    assert rcnn("plugin", "new", "simple-feature-pyramid", "--family", "neck", "--into", str(tmp_path)) == 2
    assert "there is a neck 'SimpleFeaturePyramid' already" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "family", "said"),
    [
        ("none", "neck", "'none' is a name of Python's own"),  # its class would be None
        ("mapping", "neck", "imports a 'Mapping' itself"),
        ("tensor", "instance_head", "imports a 'Tensor' itself"),
    ],
)
def test_a_class_that_the_code_could_not_define_is_refused(
    name: str, family: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plugin", "new", name, "--family", family, "--into", str(tmp_path)])
    assert caught.value.code == 2 and said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as caught:
        main(["plugin", "new", "fill-head", "--into", str(tmp_path / "file")])
    assert caught.value.code == 2 and "cannot be written (Not a directory)" in capsys.readouterr().err
