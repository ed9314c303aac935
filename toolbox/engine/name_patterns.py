"""Which parameters a pattern of names means: of a parameter, or of a module with all that lies in it."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase

from torch import nn


def parameters_named(model: nn.Module, pattern: str) -> dict[str, nn.Parameter]:
    """The parameters that a pattern names, by their own name.

    Args:
        model: whose state-dict names count.
        pattern: the name of a parameter or a module; `*` stands for any text, dots included, `?` for a character.

    Raises:
        ValueError: there is none; names that are spelled alike, or the model's parts.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = {name: parameter for name, parameter in parameters.items() if _means(pattern, name)}
    if not found:
        raise ValueError(f"'{pattern}', which names no parameter or module of the model{_near(model, pattern)}")
    return found


def _means(pattern: str, name: str) -> bool:
    """Whether a pattern is a parameter's name, or that of a module around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:count]), pattern) for count in range(len(parts), 0, -1))


def _near(model: nn.Module, pattern: str) -> str:
    names = {name for name, parameter in model.named_parameters()}
    for name in tuple(names):
        parts = name.split(".")
        names |= {".".join(parts[:count]) for count in range(1, len(parts))}
    near = difflib.get_close_matches(pattern.replace("*", "").strip("."), sorted(names), n=3, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f" (its parts are {', '.join(dict.fromkeys(name.partition('.')[0] for name in sorted(names)))})"
