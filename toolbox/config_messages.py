"""What the checker of configs says of arguments that are missing, unknown or of another component."""

from __future__ import annotations

import re
from typing import Any

from toolbox.errors import did_you_mean
from toolbox.foreign_names import own_name
from toolbox.registry import Registry
from toolbox.signatures import Setting, Signature, component_of, members, ordinary_classes, signature_of, spell
from toolbox.yaml_nodes import Node, Place, write_inline

_DEPTH = 3  # how deep a misplaced argument is looked for


def unquoted(value: Any) -> str:
    """What to write instead of a text that was meant as a number."""
    number = value.replace(",", ".", 1) if isinstance(value, str) else ""
    return f"; write {number} without quotes" if re.fullmatch(r"[-+]?\d*\.?\d+([eE][-+]?\d+)?", number) else ""


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' or noun.startswith('rpn') else 'a'} {noun}"


def absent(cls: type, owner: Registry | None, setting: Setting) -> str:
    """The message about an argument that must be given and is not; a mapping is a section to the one who writes it."""
    component = component_of(setting.annotation)
    parts = ordinary_classes(setting.annotation)
    if component and component.default:
        part, family = component.family.get(component.default), component.family
    elif parts == [setting.annotation]:
        part, family = parts[0], None
    else:
        wanted = f"'{setting.name}' ({spell(setting.annotation)})"
        return f"{cls.__name__} needs the argument {wanted}" if owner else f"{wanted} must be given"
    return f"the section '{setting.name}:' is missing; {needed(part, family, setting.name)}"


def replaced(node: Node, key: str, name: str) -> str:
    """What to write where one value was to be changed and its whole section was replaced.

    Args:
        node: of the section, whose argument `name` is missing now.
        key: of the section.
    """
    if node.over is None or name not in node.over.value or not node.value:
        return ""
    changed, value = next(iter(node.value.items()))
    text = write_inline(value.plain())
    written = f"{key}.{changed}={text}" if node.place.is_override else f"{key}.{changed}: {text}"
    return f"; this replaces all of '{key}': to change one value of it, write {written}"


def needed(cls: type, family: Registry | None, name: str) -> str:
    """What must be written in a section."""
    settings = signature_of(cls, family).settings.values()
    needed = ", ".join(f"{setting.name} ({spell(setting.annotation)})" for setting in settings if setting.required)
    return f"it needs {needed}" if needed else f"for its defaults, write '{name}: {{}}'"


def unfinished(cls: type, family: Registry, method: str) -> str:
    """The message about a class that lacks a method of its family."""
    needed = ", ".join(family.required_methods())
    file = f"{(family.protocol or cls).__module__.replace('.', '/')}.py"
    return f"{cls.__name__} has no method '{method}'; every {family.family} needs {needed} ({file})"


def left_over(cls: type, key: str, node: Node, place: Place) -> str:
    """What to do about an argument in the file where a sweep or the command line has changed the type."""
    named = node.value.get("type")
    if named is None or named.place.rank <= place.rank:
        return ""
    return f"; it was written for another type: override the whole component, '{key}={{type: {cls.__name__}}}'"


def wired_argument(name: str, root: tuple[type, Node]) -> str:
    """The message about an argument that the builder fills in; it may be a setting elsewhere."""
    path = _belongs(name, signature_of(root[0]), root[1], depth=1)
    return f"'{name}' is filled in by the builder; remove it" + (f", or did you mean '{path}'?" if path else "")


def unknown_argument(
    cls: type, family: Registry | None, name: Any, node: Node, signature: Signature, root: tuple[type, Node]
) -> str:
    """The message about an argument that `cls` has not: where it belongs, or what is spelled like it."""
    if node is root[1]:
        message = f"there is no section '{name}'"
    elif family is None:
        message = f"there is no setting '{name}' here"
    else:
        message = f"{cls.__name__} has no argument '{name}'"
    if name == "type":
        return f"{message}; it is always {cls.__name__}, remove it"
    # Another project's name of a setting here comes first, then exactly this name elsewhere, then what is spelled alike
    # here, then another project's name of a setting elsewhere.
    own = own_name(str(name))[0]
    path = (
        ""
        if own in signature.settings
        else _belongs(str(name), signature, node) or _in_a_section(str(name), node, root)
    )
    if path:
        return f"{message}; did you mean '{path}'?"
    near = did_you_mean(str(name), signature.settings)
    path = "" if near else _in_a_section(own, node, root)
    near = f"; did you mean '{path}'?" if path else near
    return message + (near or f"; it has {', '.join(signature.settings) or 'none'}")


def _in_a_section(name: str, node: Node, root: tuple[type, Node]) -> str:
    """Dotted path of a section's setting with exactly this name; empty if there is none, or at the root itself."""
    return "" if node is root[1] else _belongs(name, signature_of(root[0]), root[1], depth=1)


def as_mapping(part: type) -> str:
    """How the arguments of a class are written, where one value stands in their place."""
    settings = signature_of(part).settings
    needed = [name for name, setting in settings.items() if setting.required] or list(settings)[:1]
    form = ", ".join(f"{name}: …" for name in needed)
    return f"; write {{{form}}} ({part.__name__} is a mapping of {', '.join(settings)})"


def _belongs(name: str, signature: Signature, node: Node | None, depth: int = _DEPTH) -> str:
    """Dotted path, below a component, of an argument with exactly this name; empty if there is none."""
    for setting in signature.settings.values():
        child = node.value.get(setting.name) if node and node.is_mapping else None
        for cls, family in _classes(setting.annotation, child):
            try:
                inner = signature_of(cls, family)
            except TypeError:
                continue
            if name in inner.settings:
                return f"{setting.name}.{name}"
            below = _belongs(name, inner, child, depth - 1) if depth > 1 else ""
            if below:
                return f"{setting.name}.{below}"
    return ""


def _classes(annotation: Any, node: Node | None) -> list[tuple[type, Registry | None]]:
    """The classes that an argument can hold: of a family, the one that YAML names."""
    found: list[tuple[type, Registry | None]] = []
    for member in members(annotation):
        component = component_of(member)
        if component:
            named = node.value.get("type") if node and node.is_mapping else None
            name = named.value if named else component.default
            if isinstance(name, str) and name in component.family:
                found.append((component.family.get(name), component.family))
        elif member in ordinary_classes(member):
            found.append((member, None))
    return found
