"""The JSON Schema, read by jsonschema: it takes what the toolbox takes and underlines what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from toolbox.json_schema import json_schema
from toolbox.sections import RunConfig, register_builtin
from toolbox.sweep_schema import SweepEntries
from toolbox.yaml_nodes import Findings, parse

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(file for file in (ROOT / "configs").rglob("*.yaml") if "paper" not in file.relative_to(ROOT).parts)

SWEEPS = sorted((ROOT / "configs/paper").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Any:
    register_builtin()
    schema = json_schema(RunConfig)
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def read(text: str) -> Any:
    findings = Findings()
    data = parse(text, "test.yaml", findings).plain()
    findings.raise_any()
    return data


def set_at(data: Any, key: str, value: Any) -> None:
    *path, last = key.split(".")
    for step in path:
        data = data[int(step)] if isinstance(data, list) else data.setdefault(step, {})
    data[last] = value


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_shipped_config_fits(file: Path, validator: Any) -> None:
    assert [error.message for error in validator.iter_errors(read(file.read_text(encoding="utf-8")))] == []


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_shipped_config_names_a_schema_that_is_there(file: Path) -> None:
    first = file.read_text(encoding="utf-8").splitlines()[0]
    key, _, schema = first.partition("$schema=")
    assert key == "# yaml-language-server: " and (file.parent / schema).is_file()


def test_the_schema_of_sweeps_is_up_to_date() -> None:
    written = json.loads((ROOT / "configs/paper/schema.json").read_text(encoding="utf-8"))
    assert written == json_schema(SweepEntries, {}, title="R-CNN toolbox sweep"), "run `make docs`"


@pytest.fixture(scope="module")
def sweeps() -> Any:
    schema = json.loads((ROOT / "configs/paper/schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_table_of_the_paper_fits_and_names_the_schema(file: Path, sweeps: Any) -> None:
    text = file.read_text(encoding="utf-8")
    assert [error.message for error in sweeps.iter_errors(read(text))] == []
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")


@pytest.mark.parametrize(
    ("key", "value", "at"),
    [
        ("variants", ["RoIPool"], ["variants"]),
        ("variants.RoIPool", {"train.lr": 0.1}, ["variants", "RoIPool"]),
        ("variants.RoIPool", {"set": [1]}, ["variants", "RoIPool"]),
        ("variants.RoIPool", {"paper": {"AP": "good"}}, ["variants", "RoIPool"]),
        ("metrics", ["segm.AP"], ["metrics"]),
        ("seeds", 3, ["seeds"]),
        ("small", {"seeds": [1]}, ["small"]),
        ("metric", {}, []),
    ],
)
def test_a_wrong_value_of_a_sweep_is_underlined_where_it_is(sweeps: Any, key: str, value: Any, at: list[str]) -> None:
    data = {"base": "base.yaml", "metrics": {"AP": "segm.AP"}, "variants": {"RoIPool": None}}
    assert not list(sweeps.iter_errors(data))
    set_at(data, key, value)
    assert [list(error.path) for error in sweeps.iter_errors(data)] == [at]


@pytest.mark.parametrize(
    ("key", "value", "at"),
    [
        ("model.backbone.type", "Resnet", ["model", "backbone", "type"]),
        ("model.backbone.detph", 50, ["model", "backbone"]),
        ("model.backbone.depth", 51, ["model", "backbone", "depth"]),
        ("model.backbone.norm", "batch", ["model", "backbone", "norm"]),
        ("model.neck.out_channels", "many", ["model", "neck", "out_channels"]),
        ("model.neck.in_features", {}, ["model", "neck"]),  # wired
        ("model.instance.mask.head.type", "TwoFCBoxHead", ["model", "instance", "mask", "head", "type"]),
        ("train.lr", "fast", ["train", "lr"]),
        ("train.optimizer", {"momentom": 0.9}, ["train", "optimizer"]),  # of the default, SGD
        ("train.optimizer", {"type": "AdamW", "betas": [0.9]}, ["train", "optimizer", "betas"]),
        ("data.resize", {"shrot": 3}, ["data", "resize"]),
        ("trian", {}, []),
    ],
)
def test_a_mistake_is_underlined_where_it_is(key: str, value: Any, at: list[str], validator: Any) -> None:
    data = read((ROOT / "configs" / "mask_rcnn_r50_fpn.yaml").read_text(encoding="utf-8"))
    set_at(data, key, value)
    errors = list(validator.iter_errors(data))
    assert errors
    leaves = [leaf for error in errors for leaf in _leaves(error)]
    assert at in [list(leaf.absolute_path) for leaf in leaves]


def _leaves(error: Any) -> list[Any]:
    return [leaf for inner in error.context for leaf in _leaves(inner)] or [error]


@pytest.mark.parametrize("missing", ["model", "train"])
def test_a_missing_section_is_an_error(missing: str, validator: Any) -> None:
    data = read((ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8"))
    del data[missing]
    assert [error.message for error in validator.iter_errors(data)] == [f"'{missing}' is a required property"]


def test_arguments_have_their_docstring_and_default(validator: Any) -> None:
    depth = validator.schema["definitions"]["backbone.ResNet"]["properties"]["depth"]
    assert depth == {"enum": [18, 34, 50, 101, 152], "description": "18, 34, 50, 101 or 152.", "default": 50}
