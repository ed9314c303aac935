"""docs/reference.md: every section, component and argument of the YAML, from the constructors and their docstrings."""

from __future__ import annotations

from toolbox.catalogue import Catalogue
from toolbox.cli.components import parts_of, spell_default
from toolbox.docstrings import argument_docs, summary
from toolbox.registry import Registry
from toolbox.signatures import component_of, members, signature_of, spell, why_unreadable

_HEAD = """# Config reference

Made from the code by `make docs`; do not edit. Where the type of an argument is a family (`backbone`, `neck`, …), it
takes `{type: Name, arguments…}` with one of that family's components; where it is the name of a part (`Resize`, …), a
mapping of that part's arguments. What has no default must be given."""


def reference(known: Catalogue, family: str | None = None) -> str:
    """Markdown of everything, or of one family."""
    if family:
        return "\n\n".join(_family(known.families[family]))
    sections = [_HEAD, "## The file", _table(known.root, None)]
    sections.append("## Sections and parts, written without a type")
    for part in sorted(parts_of(known), key=lambda part: part.__name__):
        sections += _class(part, None)
    for registry in known.families.values():
        if len(registry):
            sections += _family(registry)
    return "\n\n".join(sections)


def _family(registry: Registry) -> list[str]:
    return [f"## Family `{registry.family}`", *(s for name in registry for s in _class(registry.get(name), registry))]


def _class(cls: type, registry: Registry | None) -> list[str]:
    sections = [f"### {cls.__name__}", summary(cls)]
    if reason := why_unreadable(cls, registry):
        return [*sections, reason]
    wired = signature_of(cls, registry).wired
    if wired:
        sections.append(f"Filled in by the builder: {', '.join(f'`{name}`' for name in wired)}.")
    return [*sections, _table(cls, registry)]


def _table(cls: type, registry: Registry | None) -> str:
    settings = signature_of(cls, registry).settings.values()
    if not settings:
        return "No arguments."
    docs = argument_docs(cls)
    rows = [("argument", "type", "default", ""), ("---", "---", "---", "---")]
    for setting in settings:
        default = "" if setting.required else f"`{spell_default(setting.default, setting.annotation)}`"
        if any(map(component_of, members(setting.annotation))) and len(default) > 40:
            default = "see its family"
        rows.append((f"`{setting.name}`", f"`{spell(setting.annotation)}`", default, docs.get(setting.name, "")))
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
