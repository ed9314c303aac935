"""Constructors that YAML cannot write, or that cannot be read: they are said so, and hide nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolbox.cli import main
from toolbox.errors import ConfigError
from toolbox.registry import TRANSFORMS
from toolbox.schema import config_from_text

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = (ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8")
PLUGIN = """\
from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import torch

from toolbox.registry import TRANSFORMS


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Options(TypedDict):
    a: int


@dataclass
class Resize:
    '''Of the same name as a part of the toolbox's own.'''

    foo: int = 3


@dataclass
class Deep:
    inner: Resize = field(default_factory=Resize)


@TRANSFORMS.register
class Odd:
    '''Odd.'''

    def __init__(self, *, SETTING) -> None: ...

    def __call__(self, view, rng):
        return view
"""
SETTINGS = {
    "missing": "x: Nowhere = 1",
    "attribute": "x: np.nowhere = 1",
    "no expression": "x: 'a b' = 1",
    "no type": "x=1",
    "enum": "x: Colour = Colour.RED",
    "typed dict": "x: Options | None = None",
    "function": "x: Callable[[int], int] = abs",
    "array": "x: np.ndarray | None = None",
    "set": "x: set[int] | None = None",
    "parts": "x: Deep = Deep()",
    "tensor": "x: torch.Tensor = None",
}


@pytest.fixture(autouse=True)
def forget_what_the_test_registers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(TRANSFORMS, "_classes", dict(TRANSFORMS._classes))
    yield


def plugin(folder: Path, setting: str) -> Path:
    file = folder / "odd.py"
    file.write_text(PLUGIN.replace("SETTING", setting))
    return file


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return caught.value.code or 0


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_lists_and_schemas_are_made_of_everything_else(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = plugin(tmp_path, setting)
    for style in ("text", "markdown"):
        assert run("list", "transform", "--plugin", file, "--format", style) == 0
        output = capsys.readouterr().out
        assert "Odd" in output and "VerticalFlip" in output
    assert run("schema", "--plugin", file) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"Odd", "VerticalFlip"} <= set(schema["definitions"]["transform"]["properties"]["type"]["enum"])


def test_parts_of_one_name_are_two_definitions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("schema", "--plugin", plugin(tmp_path, SETTINGS["parts"]))
    definitions = json.loads(capsys.readouterr().out)["definitions"]
    assert {"short", "max"} <= set(definitions["Resize"]["properties"])
    [own] = [name for name in definitions if name.endswith(".Resize")]
    assert set(definitions[own]["properties"]) == {"foo"}
    assert definitions["Deep"]["properties"]["inner"]["allOf"] == [{"$ref": f"#/definitions/{own}"}]


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (
            "missing",
            "{}",
            "the constructor of Odd cannot be read: name 'Nowhere' is not defined; so YAML cannot set it",
        ),
        ("attribute", "{}", "the constructor of Odd cannot be read: module 'numpy' has no attribute 'nowhere'"),
        ("enum", "RED", "an enum cannot be set in YAML; annotate it as a Literal of RED, BLUE"),
        ("typed dict", "3", "expected Options or null, got 3"),
        ("function", "abs", "cannot be set in YAML"),
        ("tensor", "null", "the constructor of Tensor cannot be read: .*; so YAML cannot set it"),
        ("array", "[1]", "expected ndarray or null, got a list"),
        ("set", "[1]", r"expected set\[int\] or null, got a list"),
    ],
)
def test_a_value_for_them_is_refused_with_the_reason(kind: str, value: str, said: str, tmp_path: Path) -> None:
    file = plugin(tmp_path, SETTINGS[kind])
    text = QUICKSTART.replace("- {type: HorizontalFlip}", f"- {{type: Odd, x: {value}}}")
    assert text != QUICKSTART
    with pytest.raises(ConfigError, match=said):
        config_from_text(f"plugins: [{file}]\n{text}", "run.yaml")
