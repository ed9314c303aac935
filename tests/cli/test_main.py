"""The command line's front: exit status, messages, and what it imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import toolbox.cli
from toolbox.cli import COMMANDS, Command, main
from toolbox.errors import ConfigError, Problem

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code or 0


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A command `fail` that raises what the test puts into the list."""
    raised: list[BaseException] = []

    def fail() -> None:
        raise raised[0]

    monkeypatch.setattr(Command, "load", lambda self: fail)
    monkeypatch.setattr(toolbox.cli, "COMMANDS", (Command("fail", "inspect_commands", "fail", "Fails."),))
    return raised


@pytest.mark.parametrize("arguments", [["--help"], ["list", "--help"], ["check", "-h"], ["show", "--help"]])
def test_help_comes_without_importing_torch(arguments: list[str]) -> None:
    code = f"""
import sys
from toolbox.cli import main
try:
    main({arguments!r})
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"


def test_every_command_whose_module_exists_is_shown_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert (f"\n  {command.name} " in shown) == command.exists


@pytest.mark.parametrize("command", [(), ("train",), ("data", "browse"), ("bench",)])
def test_the_short_option_for_help_is_the_long_one(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*command, "-h") == 0
    shown = capsys.readouterr().out
    assert run(*command, "--help") == 0
    assert shown == capsys.readouterr().out and shown.startswith(f"Usage: {' '.join(('rcnn', *command))} ")


def test_wrong_input_gives_its_message_alone_and_exit_status_2(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(ConfigError([Problem("a.yaml:1:2", "model", "wrong"), Problem("a.yaml:3:4", "data", "wrong too")]))
    assert run("fail") == 2
    output = capsys.readouterr()
    assert output.err == "a.yaml:1:2: model: wrong\na.yaml:3:4: data: wrong too\n" and output.out == ""


def test_debug_shows_the_traceback_of_wrong_input_too(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(ConfigError([Problem("a.yaml:1:2", "model", "wrong")]))
    assert run("fail", "--debug") == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_our_own_fault_gives_a_traceback_and_exit_status_1(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(RuntimeError("ours"))
    assert run("fail") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "RuntimeError: ours"


def test_an_interrupt_exits_with_130(failing: list[BaseException]) -> None:
    failing.append(KeyboardInterrupt())
    assert run("fail") == 130


def test_an_unknown_command_suggests_the_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("chekc") == 2
    assert "'check'" in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"rcnn-toolbox {toolbox.__version__}\n"


@pytest.mark.parametrize("argument", [["--train.lr=3"], ["--train.lr", "3"]])
def test_a_config_key_written_as_an_option_is_shown_as_it_should_be(
    argument: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "a.yaml", *argument) == 2
    assert "write train.lr=3" in capsys.readouterr().err


def test_overrides_are_shown_once_in_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--help") == 0
    assert " [KEY=VALUE]...\n" in capsys.readouterr().out


def test_a_benchmark_is_run_with_what_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "ops", "--", "--help") == 0
    assert "usage: ops.py" in capfd.readouterr().out


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_after_a_benchmark_s_name_is_the_script_s(
    option: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("toolbox.cli.bench.FOLDER", tmp_path)
    (tmp_path / "ops.py").write_text("import sys; print(sys.argv[1:])")
    assert run("bench", "ops", option) == 0
    assert capfd.readouterr() == (f"['{option}']\n", "")
    assert run("bench", option) == 0
    assert "NAME" in capfd.readouterr().out


def test_wrong_input_of_a_benchmark_is_said_as_of_every_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("toolbox.cli.bench.FOLDER", tmp_path)
    (tmp_path / "near.py").write_text("REASON = 'no GPU'")
    (tmp_path / "ops.py").write_text(
        "import near\nfrom toolbox.errors import ToolboxError\nraise ToolboxError(f'{__file__}: {near.REASON}')"
    )
    assert run("bench", "ops") == 2
    assert capfd.readouterr().err.splitlines()[1:] == [f"{tmp_path}/ops.py: no GPU"]


@pytest.mark.parametrize("overrides", [(), ("train.lr=0.1", "--workers", "0")])
def test_a_config_to_measure_on_is_looked_at_as_train_does(
    overrides: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    said = []
    for command in (("train",), ("bench", "data")):
        assert run(*command, "wrong.yml", *overrides[: 1 if command == ("train",) else None]) == 2
        said.append(capfd.readouterr().err)
    assert said[0] == said[1] and said[0].startswith("wrong.yml: cannot read the config: ")


def test_options_of_a_benchmark_need_no_dashes_before_them(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("toolbox.cli.bench.FOLDER", tmp_path)
    (tmp_path / "ops.py").write_text("import sys; print(sys.argv[1:])")
    assert run("bench", "ops", "first", "--repeats", "3", "-k", "--size=4") == 0
    printed = capfd.readouterr()
    assert printed.out.strip() == "['first', '--repeats', '3', '-k', '--size=4']"
    assert printed.err.strip() == "RoI operations beside torchvision's: about five minutes"
    assert run("train", "a.yaml", "--repeats", "3") == 2  # another command knows its options


def test_an_unknown_benchmark_suggests(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "opps") == 2
    assert "no benchmark 'opps'; did you mean 'ops'? (benchmarks: data, " in capsys.readouterr().err


def test_benchmarks_that_were_not_installed_say_where_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("toolbox.cli.bench.FOLDER", tmp_path)
    assert run("bench", "ops") == 2
    assert f"{tmp_path}/ops.py: not there; benchmarks are part of the sources" in capsys.readouterr().err
