"""`load_config`: YAML text to a checked `Config`; what may stand in it is said by sections.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolbox import catalogue
from toolbox.config import check
from toolbox.errors import ConfigError, Problem
from toolbox.models.box_branch import TestSettings
from toolbox.plan import Plan
from toolbox.plugins import PluginError, load_installed, load_plugin, registered_by
from toolbox.precheck import note_metrics, read_nodes, read_text
from toolbox.registry import ADVICE
from toolbox.sections import DataConfig, RunConfig, TrainConfig, register_builtin
from toolbox.yaml_nodes import COMMAND_LINE, Findings, Node, write


@dataclass(frozen=True)
class Config:
    """A checked config.

    Attributes:
        model: plan of the detector.
        data, train, test: the sections.
        plugins: what was loaded, files by absolute path.
        path: where the YAML came from, for messages.
        plan: the whole YAML as one plan.
    """

    model: Plan
    data: DataConfig
    train: TrainConfig
    test: TestSettings
    plugins: tuple[str, ...]
    path: str
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        """Everything, defaults written out, as plain data."""
        return self.plan.to_dict()

    def to_yaml(self) -> str:
        """The resolved config; it loads again to the same."""
        return write(self.to_dict())


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a config, its plugins included.

    Args:
        overrides: `key=value`, e.g. `model.backbone.depth=101`; values are YAML.

    Raises:
        ConfigError: every problem of the file and the overrides, each with its place.
    """
    path = Path(path)
    text = read_text(path)
    return config_from_text(text, str(path), overrides, folder=path.parent)


def config_from_text(
    text: str, name: str, overrides: Sequence[str] = (), *, folder: str | Path | None = None
) -> Config:
    """Check YAML text, e.g. the config stored in a checkpoint.

    Args:
        name: what messages call the text.
        folder: what plugin files are relative to; the current folder if None.
    """
    findings = Findings()
    root = read_nodes(text, name, overrides, findings)
    return config_from_nodes(root, name, findings, folder=folder)


def config_from_nodes(root: Node, name: str, findings: Findings, *, folder: str | Path | None = None) -> Config:
    """Check YAML that has been read, e.g. a variant of a sweep. The paths of plugins in it become absolute.

    Args:
        name: what messages call it.
        findings: problems that reading it found; they are raised with the others.
        folder: what plugin files are relative to; the current folder if None.
    """
    register_builtin()
    catalogue.save(RunConfig)
    advice = [*_load_plugins(root, Path(folder or "."), findings), *load_installed()]
    plan = check(root, RunConfig, findings, advice="; ".join(advice))
    note_metrics(plan, findings)
    findings.raise_any()
    sections = _build_sections(plan)
    return Config(model=plan["model"], **sections, plugins=tuple(plan["plugins"]), path=name, plan=plan)


def _load_plugins(root: Node, folder: Path, findings: Findings) -> list[str]:
    """Load what `plugins:` lists, and make its paths absolute; failures are noted.

    Returns:
        What became of each plugin, for whoever misses a name; advice to list one if there is none.
    """
    listed = root.value.get("plugins")
    outcomes = []
    for index, node in enumerate(listed.value if listed is not None and listed.is_list else ()):
        if not isinstance(node.value, str):
            continue  # the checker says so
        # On the command line, paths are the shell's: relative to the current folder.
        base = Path(".") if node.place.is_override else folder
        entry = node.value
        try:
            node.value = load_plugin(entry, base)
        except PluginError as error:
            failed = f"plugin '{entry}' failed to import"
            findings.add(node.place, f"plugins.{index}", f"{failed}: {error}", cause=True)
            outcomes.append(failed)
        else:
            outcomes.append(_what_it_brought(entry, registered_by(node.value)))
    return outcomes or [ADVICE]


def _what_it_brought(entry: str, names: Sequence[str]) -> str:
    if not names:
        return f"plugin '{entry}' is loaded, but it registers nothing (is @FAMILY.register missing?)"
    return f"plugin '{entry}' registers {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"


def _build_sections(plan: Plan) -> dict[str, Any]:
    sections: dict[str, Any] = {}
    problems: list[Problem] = []
    for name in ("data", "train", "test"):
        try:
            section = plan[name]
            sections[name] = section.build() if isinstance(section, Plan) else section
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.where == COMMAND_LINE))
    return sections
