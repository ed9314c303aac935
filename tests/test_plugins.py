"""Plugins: files beside the YAML, modules, installed packages, and what is said when one cannot be imported."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolbox import plugins
from toolbox.errors import ConfigError
from toolbox.plugins import PluginError, digest, load_installed, load_plugin, registered_by
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
    reason += "; install it into this environment, or remove the import of 'no_such_package'"
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
    (tmp_path / "my_heads").mkdir()
    (tmp_path / "my_heads" / "__init__.py").touch()
    with pytest.raises(PluginError, match=r"a folder is written as a path, e\.g\. \./my_heads$"):
        load_plugin("my_heads", tmp_path)


def test_a_plugin_named_on_the_command_line_is_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "run.yaml").write_text(RUN.format(plugin="", transform="Pale"))
    (tmp_path / "pale.py").write_text(TRANSFORM.format(name="Pale"))
    monkeypatch.chdir(tmp_path)
    config = load_config("elsewhere/run.yaml", ["plugins=[./pale.py]"])
    assert config.plugins == (str(tmp_path / "pale.py"),)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages; what they announce is loaded afresh, and forgotten after the test."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(plugins, "installed_plugins", {})
    load_installed.cache_clear()
    yield folder
    load_installed.cache_clear()


def install(site: Path, name: str, version: str, module: str, code: str | None) -> None:
    """What pip leaves of a distribution: its module, and the folder that says what it announces."""
    if code is not None:
        (site / f"{module}.py").write_text(code)
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[toolbox.plugins]\n{name} = {module}\n")
    importlib.invalidate_caches()


def test_an_installed_package_announces_itself_with_its_name_and_version(site: Path) -> None:
    install(site, "pink", "1.4", "pink_package", TRANSFORM.format(name="Pink"))
    assert not [failure for failure in load_installed() if "pink" in failure]
    assert "Pink" in TRANSFORMS
    known = plugins.installed_plugins["pink_package"]
    assert (known.distribution, known.version, known.names) == ("pink", "1.4", ("Pink",))


def test_a_broken_installed_package_stops_only_the_run_that_misses_its_component(
    site: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(site, "torn", "2.0", "torn_package", "import math\n\nraise OSError('no licence file')\n")
    install(site, "gone", "0.1", "gone_package", None)
    (tmp_path / "run.yaml").write_text(RUN.format(plugin="", transform="HorizontalFlip"))
    load_config(tmp_path / "run.yaml")
    reason = f"OSError: no licence file ({site / 'torn_package.py'}, line 3)"
    torn = f"installed plugin 'torn' (torn_package, of torn 2.0) failed to import: {reason}"
    gone = "installed plugin 'gone' (gone_package, of gone 0.1) failed to import: ModuleNotFoundError: No module named "
    assert torn in caplog.messages and f"{gone}'gone_package'" in caplog.text
    (tmp_path / "run.yaml").write_text(RUN.format(plugin="", transform="Torn"))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml")
    assert torn in str(caught.value) and gone in str(caught.value)


def test_the_reason_names_the_installed_package_s_own_line_where_another_package_raised(site: Path) -> None:
    install(site, "deep", "1.0", "deep_package", "import json\n\n\njson.loads('{')\n")
    (failure,) = [failure for failure in load_installed() if "'deep'" in failure]
    assert f"({site / 'deep_package.py'}, line 4)" in failure


def test_a_name_that_two_plugins_register_is_told_with_both_files(tmp_path: Path) -> None:
    for folder, amount in (("one", 0.1), ("two", 0.2)):
        (tmp_path / folder).mkdir()
        code = TRANSFORM.format(name="Twice").replace("0.5", str(amount))
        (tmp_path / folder / "twice.py").write_text(code)
    load_plugin("one/twice.py", tmp_path)
    with pytest.raises(PluginError) as caught:
        load_plugin("two/twice.py", tmp_path)
    first, second = tmp_path / "one" / "twice.py", tmp_path / "two" / "twice.py"
    assert f"transform 'Twice' is already registered by {first}; rename the class in {second}" in str(caught.value)


def test_a_module_that_was_imported_by_name_may_be_listed_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "both_ways.py").write_text(TRANSFORM.format(name="BothWays"))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("both_ways")
    assert registered_by(load_plugin("./both_ways.py", tmp_path)) == ("BothWays",)


def test_a_copy_of_a_loaded_file_is_the_same_plugin(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "copied.py").write_text(TRANSFORM.format(name="Copied"))
    load_plugin("here/copied.py", tmp_path)
    loaded = TRANSFORMS.get("Copied")
    assert registered_by(load_plugin("there/copied.py", tmp_path)) == ("Copied",)
    assert TRANSFORMS.get("Copied") is loaded


def test_the_digest_of_a_package_is_of_its_python_files_wherever_it_lies(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "inner").mkdir(parents=True)
        (tmp_path / folder / "__init__.py").write_text("x = 1")
        (tmp_path / folder / "inner" / "__init__.py").write_text("y = 1")
    (tmp_path / "b" / "notes.txt").write_text("no code")
    (tmp_path / "b" / "runs").mkdir()
    (tmp_path / "b" / "runs" / "script.py").write_text("no part of the package")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    (tmp_path / "b" / "inner" / "__init__.py").write_text("y = 2")
    assert digest(tmp_path / "a") != digest(tmp_path / "b")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ('"a\\0.py"', "is no path: embedded null byte"),
        ('"~nobody-of-this-name/heads.py"', "is no path: Could not determine home directory"),
    ],
)
def test_an_entry_that_is_no_path_is_named(entry: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config_from_text(RUN.format(plugin=entry, transform="HorizontalFlip"), "run.yaml")


def test_a_plugin_that_ends_the_process_does_not(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys\nsys.exit('usage: script.py')\n")
    with pytest.raises(PluginError, match=r"SystemExit: usage: script\.py \(.*script\.py, line 2\)"):
        load_plugin("script.py", tmp_path)


def test_a_file_that_is_gone_is_looked_for_among_the_runs_copies(tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "gone.py").write_text("")
    with pytest.raises(PluginError, match=f"no file /far/gone.py; did you mean '{tmp_path}/plugins/gone.py'?"):
        load_plugin("/far/gone.py", tmp_path)


def test_the_digest_is_that_of_the_code_that_runs(tmp_path: Path) -> None:
    """A file that is edited after it was imported is not imported again."""
    (tmp_path / "early.py").write_text(TRANSFORM.format(name="Early"))
    loaded, imported = load_plugin("early.py", tmp_path), digest(tmp_path / "early.py")
    (tmp_path / "early.py").write_text(TRANSFORM.format(name="Early") + "# edited\n")
    assert load_plugin("early.py", tmp_path) == loaded
    assert plugins.loaded_plugins[loaded].sha256 == imported
