"""A config's mistakes that its text alone shows, found before torch is imported.

The whole check (`toolbox.schema`) needs every component, and with them torch, which takes seconds; a misspelt name
should not. What passes here is checked again by the whole check, and what is refused here would be refused there in
the same words.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from toolbox import catalogue
from toolbox.config import check
from toolbox.errors import ConfigError, Problem, did_you_mean
from toolbox.metric_names import split_metric
from toolbox.plan import Plan
from toolbox.plugins import GROUP
from toolbox.yaml_hints import undecodable
from toolbox.yaml_nodes import Findings, Node, apply_override, parse


def precheck(path: str | Path, overrides: Sequence[str] = ()) -> Plan | None:
    """Refuse a config whose text is wrong.

    Returns:
        The config as a plan of stand-ins, to look at. None where plugins, or a missing record of the components, make
        it undecidable here: then nothing but the YAML's form has been checked.

    Raises:
        ConfigError: every problem of the file and the overrides, each with its place.
    """
    findings = Findings()
    root = read_nodes(read_text(Path(path)), str(path), overrides, findings)
    plan = precheck_nodes(root, findings)
    if plan is not None:
        findings.raise_any()
    return plan


def precheck_nodes(root: Node, findings: Findings) -> Plan | None:
    """What `precheck` does, of YAML that has been read: problems are noted; None where it is undecidable."""
    known = None if "plugins" in root.value or entry_points(group=GROUP) else catalogue.load()
    if known is None:
        return None
    plan = check(root, known.root, findings, families=known.families)
    note_metrics(plan, findings)
    return plan


def note_metrics(root: Plan, findings: Findings) -> None:
    """Note settings that name no metric of an evaluation: as names they are a matter of the text, like all others.

    Args:
        root: of the whole YAML.
    """
    train = root.given.get("train")
    stopping = train.given.get("early_stopping") if isinstance(train, Plan) else None
    for section, name in ((train, "keep_best"), (stopping, "metric")):
        if isinstance(section, Plan) and isinstance(metric := section.given.get(name), str):
            try:
                split_metric(metric)
            except ValueError as error:
                findings.add(section.place_of(name) or section.place, f"{section.key}.{name}", str(error))


def read_text(path: Path) -> str:
    """The text of a config.

    Raises:
        ConfigError: it cannot be read, or is an annotation file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_annotations(path, text)
        return text
    except UnicodeDecodeError as error:
        line, column, message = undecodable(path.read_bytes(), error)
        raise ConfigError([Problem(f"{path}:{line}:{column}", "", message)]) from error
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        if path.is_dir():
            inside = sorted(path.glob("*.y*ml"))
            near = f"; did you mean '{inside[0]}'?" if inside else ""
        elif not near and not path.is_absolute():
            near = f" (paths are relative to the current folder, {Path.cwd()})"
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError([Problem(str(path), "", f"cannot read the config: {reason}{near}")]) from error


def _refuse_annotations(path: Path, text: str) -> None:
    """Said before it is read as YAML, which would take minutes of a large file."""
    if not text.startswith("{"):
        return
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return  # YAML in braces, perhaps
    if {"images", "annotations"} <= content.keys():
        message = "this is an annotation file, not a config; it belongs into data.train.annotations of one"
        raise ConfigError([Problem(str(path), "", message)])


def read_nodes(text: str, name: str, overrides: Sequence[str], findings: Findings) -> Node:
    """YAML text with overrides written onto it.

    Args:
        name: what messages call the text.
        findings: where problems are noted.

    Raises:
        ConfigError: the text is not YAML, not a mapping, or a sweep's.
    """
    root = parse(text, name, findings)
    if {"base", "variants"} <= root.value.keys() and "model" not in root.value:
        raise ConfigError([Problem(name, "", f"this is a sweep, not a config: rcnn sweep {name} trains its variants")])
    for number, override in enumerate(overrides):
        apply_override(root, override, number, findings)
    return root
