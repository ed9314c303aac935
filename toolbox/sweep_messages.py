"""What is said of a sweep whose YAML has another form: a config, lists in place of names, a base that is not there."""

from __future__ import annotations

import os
from pathlib import Path

from toolbox.errors import ConfigError, Problem, near_path
from toolbox.yaml_nodes import Findings, Node

_FORMS = {
    "variants": "a name for each, with no dash before it, e.g. 'small: {set: {train.lr: 0.01}}'",
    "variant": "what is set in it, e.g. {set: {train.lr: 0.02}}, or nothing",
    "metrics": "a column's name and what stands in it, e.g. {mask AP: segm.AP}",
    "set": "dotted keys and their values, e.g. {train.lr: 0.02}",
}


def refuse_config(root: Node, path: Path) -> None:
    """Say of a config that it is none of a sweep.

    Raises:
        ConfigError: it is one.
    """
    if "model" in root.value and not {"base", "variants"} & root.value.keys():
        message = f"this is a config, not a sweep: rcnn train {path} trains it; a sweep has base, metrics and variants"
        raise ConfigError([Problem(str(path), "", message)])


def note_forms(root: Node, findings: Findings) -> None:
    """Note what is no mapping where one belongs, and what a variant sets without `set:`; both are taken out."""
    _mapping(root, "metrics", "metrics", "", findings)
    for part, key in ((root, ""), (root.value.get("small"), "small.")):
        if part is None or not part.is_mapping:
            continue
        _mapping(part, "set", "set", key, findings)
        _mapping(part, "variants", "variants", key, findings)
        variants = part.value.get("variants")
        for name in variants.value if variants is not None and variants.is_mapping else ():
            _mapping(variants, name, "variant", f"{key}variants.", findings)
            _variant(variants.value[name], f"{key}variants.{name}", findings)


def _variant(variant: Node, key: str, findings: Findings) -> None:
    if not variant.is_mapping:
        return
    _mapping(variant, "set", "set", f"{key}.", findings)
    for name in [name for name in variant.value if isinstance(name, str) and "." in name]:
        findings.add(variant.key_places[name], key, f"write '{name}' under set: {{set: {{{name}: …}}}}")
        del variant.value[name]


def _mapping(parent: Node, name: str, form: str, before: str, findings: Findings) -> None:
    child = parent.value.get(name)
    if child is None or child.value is None or child.is_mapping:
        return
    findings.add(child.place, f"{before}{name}", f"expected {_FORMS[form]}, got {child.describe()}")
    child.value, child.key_places = {}, {}


def absent_base(sweep: Path, written: str) -> str:
    """The message about a base file that is not there: where it was looked for, and what was probably meant."""
    file = sweep.parent / written
    message = f"there is no file {file} (a base is relative to the sweep's own folder)"
    if Path(written).is_file():
        return f"{message}; write {Path(os.path.relpath(written, sweep.parent)).as_posix()}"
    return message + near_path(file)
