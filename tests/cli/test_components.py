"""`rcnn list` and `rcnn schema`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolbox.cli import main
from toolbox.registry import BACKBONES
from toolbox.sections import register_builtin

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "plugins" / "boundary" / "boundary.yaml"


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return caught.value.code or 0


def test_list_shows_arguments_types_defaults_and_what_is_wired(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "box_head") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "box_head"
    assert any(line.startswith("  TwoFCBoxHead(in_shape, num_classes): Two hidden") for line in lines)
    assert "      channels: int = 1024" in lines and "      class_agnostic: bool = false" in lines


def test_list_shows_the_parts_that_have_no_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "detector") == 0
    output = capsys.readouterr().out
    assert "      backbone: backbone  required" in output
    assert "written without a type" in output and "  AnchorGenerator(in_features): " in output


def test_list_names_every_registered_component(capsys: pytest.CaptureFixture[str]) -> None:
    register_builtin()
    assert run("list") == 0
    output = capsys.readouterr().out
    assert all(f"\n  {name}(in_channels): " in output or f"\n  {name}: " in output for name in BACKBONES)


def test_list_of_an_unknown_family_suggests(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "nek") == 2
    assert "no family 'nek'; did you mean 'neck'?" in capsys.readouterr().err


def test_markdown_has_a_row_for_each_argument_with_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "neck", "--format", "markdown") == 0
    output = capsys.readouterr().out
    assert "### FPN" in output and "Filled in by the builder: `in_features`." in output
    assert "| `out_channels` | `int` | `256` | C of every level. |" in output


@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("configs/schema.json", ["schema"]),
        ("plugins/boundary/schema.json", ["schema", str(PLUGIN)]),
        ("docs/reference.md", ["list", "--format", "markdown"]),
    ],
)
def test_what_is_made_from_the_code_is_up_to_date(
    file: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Components that other tests have registered in this process are not in it."""
    import subprocess
    import sys

    made = subprocess.run(
        [sys.executable, "-m", "toolbox.cli", *arguments], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert (ROOT / file).read_text(encoding="utf-8") == made.stdout, "run `make docs`"


def test_schema_of_a_config_has_the_components_of_its_plugins(tmp_path: Path) -> None:
    out = tmp_path / "schema.json"
    assert run("schema", PLUGIN, "--out", out) == 0
    definitions = json.loads(out.read_text())["definitions"]
    assert "BoundaryHead" in definitions["instance_head"]["properties"]["type"]["enum"]
    assert definitions["instance_head.BoundaryHead"]["additionalProperties"] is False


def test_schema_into_a_folder_that_is_not_there_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema", "--out", tmp_path / "none" / "schema.json") == 2
    assert "cannot be written (No such file or directory); name another file with --out" in capsys.readouterr().err
