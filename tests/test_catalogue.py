"""The record of components: the same answers as the components give, without importing torch."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from toolbox import catalogue, precheck
from toolbox.cli import components
from toolbox.config import check
from toolbox.errors import ConfigError
from toolbox.json_schema import json_schema
from toolbox.registry import FAMILIES
from toolbox.schema import load_config
from toolbox.sections import RunConfig, register_builtin
from toolbox.signatures import signature_of, spell
from toolbox.yaml_nodes import Findings, parse

ROOT = Path(__file__).resolve().parents[1]
GOOD = (ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8")
BAD = {
    "component": GOOD.replace("ResNet", "Resnet"),
    "family": GOOD.replace("type: FPN", "type: ResNet"),
    "argument": GOOD.replace("out_channels", "chanels"),
    "type": GOOD.replace("lr: 0.001", "lr: fast"),
    "literal": GOOD.replace("norm: gn", "norm: batch"),
    "union": GOOD.replace("resize: {short: 128", "resize: {short: [a]"),
    "level": GOOD.replace("model:\n", "model:\n  depth: 50\n", 1),
    "section": GOOD.replace("train:", "trian:", 1),
    "default's type": GOOD + "  seed: x\n",
    "offered name": GOOD.replace("optimizer: {type: AdamW", "optimizer: {type: Lion"),
    "wired": GOOD.replace("type: FPN", "type: FPN, in_features: 3"),
    "null": GOOD.replace("steps: 600", "steps:"),
}


@pytest.fixture(scope="module")
def known() -> catalogue.Catalogue:
    register_builtin()
    return catalogue.read(json.loads(json.dumps(catalogue.record(RunConfig))))


def test_every_signature_is_kept(known: catalogue.Catalogue) -> None:
    for name, family in FAMILIES.items():
        assert list(known.families[name]) == list(family)
        for component in family:
            real = signature_of(family.get(component), family)
            kept = signature_of(known.families[name].get(component), known.families[name])
            assert dict(kept.wired) == dict(real.wired)
            assert {n: (spell(s.annotation), s.required) for n, s in kept.settings.items()} == {
                n: (spell(s.annotation), s.required) for n, s in real.settings.items()
            }, component


def test_the_schema_is_the_same(known: catalogue.Catalogue) -> None:
    assert json_schema(known.root, known.families) == json.loads(json.dumps(json_schema(RunConfig)))


@pytest.mark.parametrize("text", [GOOD, *BAD.values()], ids=["good", *BAD])
def test_problems_are_the_same_word_for_word(text: str, known: catalogue.Catalogue) -> None:
    found = []
    for root, families in ((RunConfig, FAMILIES), (known.root, known.families)):
        findings = Findings()
        check(parse(text, "run.yaml", findings), root, findings, families=families)
        found.append(findings)
    said = [[str(problem) for *_, problem in findings._found] for findings in found]
    assert said[0] == said[1]
    assert bool(said[0]) == (text != GOOD)


def rcnn(cache: Path, *arguments: str) -> tuple[int, str, bool]:
    """Exit status, output, and whether torch was imported."""
    code = (
        "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules));"
        "from toolbox.cli import main; main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        check=False,
    )
    *output, imported = done.stdout.splitlines()
    return done.returncode, "\n".join([*output, done.stderr]), imported == "True"


def test_lists_and_config_errors_do_not_import_torch(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(BAD["component"])
    cache = tmp_path / "cache"
    first = rcnn(cache, "check", str(bad))  # nothing is recorded yet
    assert first[0] == 2 and first[2] and len(list(cache.rglob("catalogue-*.json"))) == 1
    for arguments in (["check", str(bad)], ["train", str(bad)], ["eval", str(bad), "--weights", "x"]):
        status, said, imported = rcnn(cache, *arguments)
        assert (status, imported) == (2, False)
        assert said.strip() == first[1].strip() and "did you mean 'ResNet'?" in said
    misspelt = tmp_path / "misspelt.yaml"
    misspelt.write_text(GOOD.replace("steps: 600", "stepz: 600"))
    for arguments, near in (
        (["train", str(misspelt)], "no setting 'stepz' here; did you mean 'steps'?"),
        (["train", "configs/quickstart.yaml", "train.lrr=1"], "train.lrr=1: there is no setting 'lrr' here"),
        (["bench", "data", "configs/quickstart.yaml", "train.lrr=1"], "train.lrr=1: there is no setting 'lrr' here"),
        (["bench", "data", "wrong.yml"], "wrong.yml: cannot read the config"),
    ):
        status, said, imported = rcnn(cache, *arguments)
        assert (status, imported) == (2, False) and near in said
    for arguments in (["--help"], ["list"], ["schema"], ["list", "--format", "markdown"], ["--version"]):
        assert rcnn(cache, *arguments)[::2] == (0, False), arguments


def test_names_of_metrics_are_told_with_the_other_names_in_the_words_of_the_whole_check(
    known: catalogue.Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(GOOD + "  keep_best: segm.APP\n  early_stopping: {metric: AP, patience: 3}\n")
    with pytest.raises(ConfigError) as whole:
        load_config(file, ["train.eval_every=1"])
    monkeypatch.setattr(catalogue, "load", lambda: known)
    with pytest.raises(ConfigError) as caught:
        precheck.precheck(file, ["train.eval_every=1"])
    assert caught.value.problems == whole.value.problems and len(whole.value.problems) == 2
    with pytest.raises(ConfigError, match=r"'APP'(.|\n)*got 'AP'(.|\n)*'stepz'"):
        precheck.precheck(file, ["train.stepz=1"])
    assert precheck.precheck(file, ["train.keep_best=segm.AP", "train.early_stopping=null"]) is not None


def test_a_sweep_with_a_wrong_variant_does_not_import_torch(tmp_path: Path) -> None:
    bad = tmp_path / "sweep.yaml"
    bad.write_text(
        f"base: {ROOT / 'configs/quickstart.yaml'}\nmetrics: {{AP: segm.APP}}\n"
        "variants: {a: , b: {set: {train.stebs: 1, train.keep_best: AP}}}\n"
    )
    first, second = (rcnn(tmp_path / "cache", "sweep", str(bad)) for _ in range(2))
    assert first[::2] == (2, True) and second[::2] == (2, False)
    assert first[1] == second[1] and "there is no setting 'stebs' here; did you mean 'steps'?" in first[1]
    assert "metrics.AP: segm has no number 'APP'" in first[1] and "train.keep_best" in second[1]


def test_a_config_that_is_no_yaml_needs_no_record(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("model:\n\tbackbone: 3\n")
    status, said, imported = rcnn(tmp_path / "cache", "train", str(bad))
    assert (status, imported) == (2, False) and f"{bad}:2:1: a tab cannot indent" in said


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert rcnn(blocked, "list", "neck")[0] == 0


def test_a_damaged_record_is_passed_over(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    rcnn(cache, "list", "neck")
    [file] = cache.rglob("catalogue-*.json")
    file.write_text(file.read_text()[:500])
    assert rcnn(cache, "list", "neck")[::2] == (0, True)


def test_a_plugin_is_asked_itself(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    rcnn(cache, "list", "neck")
    assert rcnn(cache, "check", "plugins/boundary/boundary.yaml")[::2] == (0, True)


@pytest.mark.parametrize("text", ["[]", "null", "3", '{"families": 3}', '{"families": {}, "parts": {}, "root": "x"}'])
def test_a_record_of_something_else_is_passed_over(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch")
    file = catalogue._file()
    assert file is not None
    file.parent.mkdir()
    file.write_text(text)
    assert catalogue.load() is None


@pytest.mark.parametrize("where", ["file", "source"])
def test_what_cannot_be_looked_at_does_not_matter(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache without permission, and a broken link among the sources, such as an editor's lock."""
    register_builtin()
    monkeypatch.delitem(sys.modules, "torch")
    if where == "file":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("x" * 300)))  # longer than a file's name may be
    else:
        (tmp_path / ".#lock.py").symlink_to(tmp_path / "gone")
        monkeypatch.setattr(catalogue, "PACKAGE", tmp_path)
        monkeypatch.setattr(catalogue, "_fingerprint", catalogue._fingerprint.__wrapped__)
    assert catalogue.load() is None
    catalogue.save(RunConfig)


@pytest.mark.parametrize("change", ["size", "time", "name"])
def test_a_change_of_any_source_makes_another_record(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "PACKAGE", tmp_path)
    source = tmp_path / "inner" / "heads.py"
    source.parent.mkdir()
    source.write_text("a = 1\n")
    os.utime(source, (1, 1))
    fingerprint = catalogue._fingerprint.__wrapped__
    before = fingerprint()
    assert fingerprint() == before
    if change == "size":
        source.write_text("a = 10\n")
        os.utime(source, (1, 1))
    elif change == "time":
        os.utime(source, (2, 2))
    else:
        source.rename(source.with_name("necks.py"))
    assert fingerprint() != before


def test_what_a_plugin_has_registered_is_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    register_builtin()
    for family in FAMILIES.values():  # other tests of this process may have left theirs
        kept = {name: cls for name, cls in family._classes.items() if cls.__module__.startswith("toolbox.")}
        monkeypatch.setattr(family, "_classes", kept)
    for own in ({}, {"Own": type("Own", (), {"__module__": "mine"})}):
        FAMILIES["neck"]._classes.update(own)
        catalogue.save(RunConfig)
        written = list(tmp_path.rglob("*.json"))
        assert bool(written) == (not own)
        for file in written:
            file.unlink()


def test_records_of_other_sources_stay_but_for_the_oldest_of_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two environments side by side would else remove each other's, and wait for torch at each mistake."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(catalogue, "_only_builtin", lambda: True)
    monkeypatch.setattr(catalogue, "_KEPT", 3)
    folder = tmp_path / "rcnn-toolbox"
    folder.mkdir()
    for number, name in enumerate(("b", "c", "a")):
        (folder / f"catalogue-{name}.json").write_text("{}")
        os.utime(folder / f"catalogue-{name}.json", (number, number))
    catalogue.save(RunConfig)
    names = {file.stem for file in folder.iterdir()}
    assert len(names) == 3 and names > {"catalogue-c", "catalogue-a"}


@pytest.mark.parametrize("announced", [False, True])
def test_where_a_package_announces_itself_the_record_is_not_the_whole(
    announced: bool, known: catalogue.Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(BAD["component"])
    packages = [EntryPoint("own", "own_package", "toolbox.plugins")] if announced else []
    monkeypatch.setattr(precheck, "entry_points", lambda group: packages)
    monkeypatch.setattr(catalogue, "load", lambda: known)
    if announced:
        assert precheck.precheck(file) is None
    else:
        with pytest.raises(ConfigError, match="no backbone named 'Resnet'"):
            precheck.precheck(file)


@pytest.mark.parametrize("announced", [False, True])
def test_a_list_asks_the_packages_that_announce_themselves(
    announced: bool, known: catalogue.Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = [EntryPoint("own", "own_package", "toolbox.plugins")] if announced else []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: packages)
    monkeypatch.setattr(catalogue, "load", lambda: known)
    assert (components._catalogue(()) is known) == (not announced)
