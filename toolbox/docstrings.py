"""What a component's docstring says of its arguments: the source of `rcnn schema` and of docs/reference.md."""

from __future__ import annotations

import inspect
import re

_SECTIONS = ("Args:", "Attributes:")
_ENTRY = re.compile(r"(\w+(?:, \w+)*): (.*)")


def first_line(cls: type) -> str:
    """The summary of a class."""
    return (cls.__doc__ or "").strip().partition("\n")[0]


def summary(cls: type) -> str:
    """The text of a class before its sections, paragraphs kept."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return re.split(r"\n\n?(?=\w+:\n    )", text, maxsplit=1)[0].strip()


def argument_docs(cls: type) -> dict[str, str]:
    """Argument → its text under `Args:` or `Attributes:`, on one line; `a, b: text` counts for both."""
    found: dict[str, list[str]] = {}
    inside = False
    current: tuple[str, ...] = ()
    for line in inspect.cleandoc(cls.__doc__ or "").splitlines():
        if not line.startswith(" "):
            inside = inside and not line.strip() or line.strip() in _SECTIONS
            continue
        if not inside:
            continue
        entry = _ENTRY.match(line[4:])
        if entry:
            current = tuple(entry[1].split(", "))
            found |= {name: [entry[2]] for name in current}
        else:
            for name in current:
                found[name].append(line.strip())
    return {name: " ".join(lines) for name, lines in found.items()}
