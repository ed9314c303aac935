"""Plugins: files beside the YAML, modules, installed packages, and what is said when one cannot be imported."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolbox.errors import ConfigError
from toolbox.plugins import PluginError, load_installed, load_plugin
from toolbox.registry import LOSSES, TRANSFORMS
from toolbox.schema import config_from_text, load_config

TRANSFORM = """\
from toolbox.registry import TRANSFORMS

@TRANSFORMS.register
class {name}:
    def __init__(self, *, amount: float = 0.5) -> None:
        self.amount = amount

    def __call__(self, view, rng):
        return view
"""

RUN = """\
plugins: [{plugin}]
model:
  backbone: {{type: ResNet, depth: 18, norm: gn}}
  neck: {{type: FPN, out_channels: 16}}
  rpn:
    head: {{type: ConvRPNHead}}
    anchors: {{}}
  box:
    extractor: {{type: RoIAlign}}
    head: {{type: TwoFCBoxHead, channels: 16}}
data:
  transforms: [{{type: {transform}}}]
train: {{steps: 1, lr: 0.1}}
"""


@pytest.fixture(autouse=True)
def forget_what_the_test_registers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for registry in (TRANSFORMS, LOSSES):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    yield


def test_a_file_is_found_beside_the_yaml_and_written_resolved(tmp_path: Path) -> None:
    (tmp_path / "heads").mkdir()
    plugin = tmp_path / "heads" / "sepia.py"
    plugin.write_text(TRANSFORM.format(name="Sepia"))
    (tmp_path / "run.yaml").write_text(RUN.format(plugin="heads/sepia.py", transform="Sepia, amount: 0.25"))
    config = load_config(tmp_path / "run.yaml")
    assert config.data.transforms[0].build().amount == 0.25
    assert config.plugins == (str(plugin),)
    again = config_from_text(config.to_yaml(), "from elsewhere")
    assert again.to_yaml() == config.to_yaml()


def test_a_folder_with_an_init_file_is_a_plugin(tmp_path: Path) -> None:
    package = tmp_path / "warm"
    package.mkdir()
    (package / "__init__.py").write_text("from .inside import Warm")
    (package / "inside.py").write_text(TRANSFORM.format(name="Warm"))
    load_plugin("./warm", tmp_path)
    assert "Warm" in TRANSFORMS


def test_two_files_of_the_same_name_are_two_plugins(tmp_path: Path) -> None:
    for folder, name in (("a", "Cold"), ("b", "Hot")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "heads.py").write_text(TRANSFORM.format(name=name))
        load_plugin(f"{folder}/heads.py", tmp_path)
    assert "Cold" in TRANSFORMS and "Hot" in TRANSFORMS


def test_a_module_is_imported_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blue_transforms.py").write_text(TRANSFORM.format(name="Blue"))
    monkeypatch.syspath_prepend(tmp_path)
    assert load_plugin("blue_transforms", Path(".")) == "blue_transforms"
    assert "Blue" in TRANSFORMS


def test_a_plugin_that_fails_is_reported_once_with_reason_and_line_before_the_missing_name(tmp_path: Path) -> None:
    plugin = tmp_path / "broken.py"
    plugin.write_text("import math\n\nimport no_such_package\n")
    (tmp_path / "run.yaml").write_text(RUN.format(plugin="broken.py", transform="Green"))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml")
    reason = f"ModuleNotFoundError: No module named 'no_such_package' ({plugin}, line 3)"
    where = tmp_path / "run.yaml"
    first, second = str(caught.value).splitlines()
    assert first == f"{where}:1:11: plugins.0: plugin 'broken.py' failed to import: {reason}"
    assert second.startswith(f"{where}:12:23: data.transforms.0.type: no transform named 'Green'")
    assert second.endswith("; plugin 'broken.py' failed to import)")


def test_a_plugin_that_an_override_names_is_the_cause_and_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    (tmp_path / "run.yaml").write_text(RUN.format(plugin="", transform="Green"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml", ["plugins=[./broken.py]"])
    first, second = str(caught.value).splitlines()
    assert first.startswith("command line: plugins.0: plugin './broken.py' failed to import: ModuleNotFoundError: ")
    assert ": data.transforms.0.type: no transform named 'Green'" in second


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("x = 1\n", "; plugin 'mine.py' is loaded, but it registers nothing (is @FAMILY.register missing?))"),
        (TRANSFORM.format(name="Grene"), "; plugin 'mine.py' registers Grene)"),
    ],
)
def test_a_missing_name_says_what_the_listed_plugins_brought(tmp_path: Path, code: str, advice: str) -> None:
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "run.yaml").write_text(RUN.format(plugin="mine.py", transform="Groon"))
    for _ in range(2):  # the second time the module is not imported again
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path / "run.yaml")
        assert str(caught.value).endswith(advice)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def f(:\n", "SyntaxError: invalid syntax ({file}, line 1)"),
        ("x = 1\nraise ValueError('no licence')\n", "ValueError: no licence ({file}, line 2)"),
    ],
)
def test_the_reason_names_the_plugin_s_own_line(tmp_path: Path, code: str, reason: str) -> None:
    file = tmp_path / "bad.py"
    file.write_text(code)
    with pytest.raises(PluginError) as caught:
        load_plugin("./bad.py", tmp_path)
    assert str(caught.value) == reason.format(file=file)


def test_absent_plugins_say_how_to_write_them(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="a path is relative to the config's folder"):
        load_plugin("nothing.py", tmp_path)
    with pytest.raises(PluginError, match=r"no module named 'nothing_here'; a file is written as a path"):
        load_plugin("nothing_here.heads", tmp_path)


def test_a_plugin_named_on_the_command_line_is_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "run.yaml").write_text(RUN.format(plugin="", transform="Pale"))
    (tmp_path / "pale.py").write_text(TRANSFORM.format(name="Pale"))
    monkeypatch.chdir(tmp_path)
    config = load_config("elsewhere/run.yaml", ["plugins=[./pale.py]"])
    assert config.plugins == (str(tmp_path / "pale.py"),)


def test_an_installed_package_announces_itself_and_a_broken_one_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pink_package.py").write_text(TRANSFORM.format(name="Pink"))
    info = tmp_path / "pink-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pink\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[toolbox.plugins]\ngone = gone_package\npink = pink_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    load_installed.cache_clear()
    failures = load_installed()
    load_installed.cache_clear()
    assert "Pink" in TRANSFORMS
    assert [f for f in failures if f.startswith("installed plugin 'gone' (gone_package) failed to import")]
