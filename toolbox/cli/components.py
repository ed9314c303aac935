"""`rcnn list` and `rcnn schema`: what YAML may hold, for people and for editors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from toolbox.errors import ToolboxError, did_you_mean

if TYPE_CHECKING:
    from toolbox.catalogue import Catalogue
    from toolbox.registry import Registry

Plugins = Annotated[list[str] | None, typer.Option("--plugin", help="A plugin's file or module; may be repeated.")]


def list_components(
    family: Annotated[str | None, typer.Argument(metavar="FAMILY", help="E.g. backbone; all if left out.")] = None,
    plugin: Plugins = None,
    style: Annotated[Literal["text", "markdown"], typer.Option("--format", help="How to write it.")] = "text",
) -> None:
    """Components, their arguments and defaults.

    Arguments in round brackets are filled in by the builder; the others are written in YAML.
    """
    known = _catalogue(plugin or ())
    if family is not None and family not in known.families:
        message = f"no family '{family}'{did_you_mean(family, known.families)} (families: {', '.join(known.families)})"
        raise ToolboxError(message)
    if style == "markdown":
        from toolbox.cli.reference import reference

        typer.echo(reference(known, family))
        return
    chosen = [known.families[family]] if family else list(known.families.values())
    for registry in chosen:
        if len(registry) or family:
            lines = [line for name in registry for line in _class_lines(registry.get(name), registry)]
            typer.echo("\n".join([registry.family, *(lines or ["  none"]), ""]))
    parts = parts_of(known, family)
    if parts:
        typer.echo("\n".join(["written without a type", *(line for part in parts for line in _class_lines(part))]))


def schema(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="A YAML whose plugins are included.", show_default=False)
    ] = None,
    plugin: Plugins = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Of the files that rcnn sweep takes, not of configs.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write, instead of the screen.")] = None,
) -> None:
    """JSON Schema of the YAML, for editors.

    Name it in a config's first line: # yaml-language-server: $schema=schema.json
    """
    from toolbox.json_schema import json_schema
    from toolbox.sweep_schema import SweepEntries

    if sweep and (config or plugin):
        raise ToolboxError("--sweep: a sweep names no components, so it takes no config and no --plugin")
    if sweep:
        written = json_schema(SweepEntries, {}, title="R-CNN toolbox sweep")
    else:
        known = _catalogue([*(plugin or ()), *_plugins_of(config)])
        written = json_schema(known.root, known.families)
    text = json.dumps(written, indent=1, ensure_ascii=False) + "\n"
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ToolboxError(f"{out}: cannot be written ({error.strerror}); name another file with --out") from error


def _plugins_of(config: Path | None) -> list[str]:
    """What a config lists under `plugins:`, files as absolute paths."""
    from toolbox.plugins import is_file, resolved
    from toolbox.precheck import read_nodes, read_text
    from toolbox.yaml_nodes import Findings

    if config is None:
        return []
    findings = Findings()
    root = read_nodes(read_text(config), str(config), (), findings)
    findings.raise_any()
    listed = root.value.get("plugins")
    entries = [str(node.value) for node in (listed.value if listed is not None and listed.is_list else ())]
    return [str(resolved(entry, config.parent)) if is_file(entry) else entry for entry in entries]


def _catalogue(plugins: Sequence[str]) -> Catalogue:
    """Every component; from the record of the built-in ones where there are no others, which spares importing them."""
    from importlib.metadata import entry_points

    from toolbox import catalogue
    from toolbox.plugins import GROUP, load_installed, load_plugin

    recorded = None if plugins or entry_points(group=GROUP) else catalogue.load()
    if recorded is not None:
        return recorded
    from toolbox.registry import FAMILIES
    from toolbox.sections import RunConfig, register_builtin

    register_builtin()
    catalogue.save(RunConfig)
    load_installed()
    for entry in plugins:
        load_plugin(entry, Path("."))
    return catalogue.Catalogue(FAMILIES, RunConfig)


def parts_of(known: Catalogue, family: str | None = None) -> list[type]:
    """The ordinary classes that arguments take, and those that their arguments take; of one family, or of the YAML."""
    from toolbox.signatures import ordinary_classes, signature_of, why_unreadable

    chosen = [known.families[family]] if family else list(known.families.values())
    queue: list[tuple[type, Registry | None]] = [
        (registry.get(name), registry) for registry in chosen for name in registry
    ]
    queue += [] if family else [(known.root, None)]
    found: dict[type, None] = {}
    while queue:
        cls, registry = queue.pop(0)
        if why_unreadable(cls, registry):
            continue
        for setting in signature_of(cls, registry).settings.values():
            fresh = [part for part in ordinary_classes(setting.annotation) if part not in found]
            found |= dict.fromkeys(fresh)
            queue += [(part, None) for part in fresh]
    return list(found)


def _class_lines(cls: type, registry: Registry | None = None) -> list[str]:
    from toolbox.docstrings import first_line
    from toolbox.signatures import signature_of, spell, why_unreadable

    if reason := why_unreadable(cls, registry):
        return [f"  {cls.__name__}: {first_line(cls)}", f"      {reason}"]
    signature = signature_of(cls, registry)
    wired = f"({', '.join(signature.wired)})" if signature.wired else ""
    lines = [f"  {cls.__name__}{wired}: {first_line(cls)}"]
    for setting in signature.settings.values():
        default = "  required" if setting.required else f" = {spell_default(setting.default, setting.annotation)}"
        lines.append(f"      {setting.name}: {spell(setting.annotation)}{default}")
    return lines


def spell_default(value: Any, annotation: Any) -> str:
    """A default as YAML writes it."""
    from toolbox.plan import plain, writable
    from toolbox.yaml_nodes import write_inline

    return write_inline(plain(value, annotation)) if writable(value) else f"{type(value).__name__}(…)"
