"""What a constructor takes: settings that YAML may give, with their types and defaults, and what is wired."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union

from toolbox.registry import Registry, family_of

MISSING = inspect.Parameter.empty


@dataclass(frozen=True)
class Component:
    """Marks an argument that keeps its component as a plan: `Annotated[Plan, Component(OPTIMIZERS, default="SGD")]`.

    Attributes:
        family: of the component.
        default: the `type` where YAML gives none.
    """

    family: Registry
    default: str | None = None


@dataclass(frozen=True)
class Setting:
    """An argument that YAML may set."""

    name: str
    annotation: Any
    default: Any = MISSING

    @property
    def required(self) -> bool:
        return self.default is MISSING


@dataclass(frozen=True)
class Signature:
    """What the constructor of a class takes.

    Attributes:
        settings: what YAML may set.
        wired: what the builder fills in, and whether it must.
    """

    settings: Mapping[str, Setting]
    wired: Mapping[str, bool]


class StandIn(type):
    """A class that takes what a component takes and is none: what `toolbox.catalogue` reads back.

    Attributes:
        signature: of the component.
        fields: on an instance, which is a default: its arguments as plain data.
    """

    signature: Signature
    fields: Mapping[str, Any]


@cache
def signature_of(cls: type, family: Registry | None = None) -> Signature:
    """Read the constructor of `cls`. Wired is what its family or its class attribute `wired` names.

    Raises:
        TypeError: an annotation or a default cannot be resolved, or the constructor hides its arguments.
    """
    if isinstance(cls, StandIn):
        return cls.signature
    try:
        parameters = inspect.signature(cls).parameters
        hints = typing.get_type_hints(
            cls if dataclasses.is_dataclass(cls) else inspect.unwrap(cls.__init__),  # type: ignore[misc]
            include_extras=True,
        )
    except Exception as error:  # an annotation is a plugin's code, which may raise anything
        raise TypeError(f"the constructor of {cls.__name__} cannot be read: {error}") from error
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
        raise TypeError(f"the constructor of {cls.__name__} does not name its arguments")
    declared = getattr(cls, "wired", ())
    names = {*(family.wiring(cls) if family else ()), *(declared if isinstance(declared, tuple) else ())}
    factories = {
        field.name: field.default_factory
        for field in (dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ())
        if field.default_factory is not dataclasses.MISSING
    }
    settings = {}
    for name, parameter in parameters.items():
        if name not in names:
            default = factories[name]() if name in factories else parameter.default
            settings[name] = Setting(name, hints.get(name, Any), default)
    return Signature(settings, {name: p.default is MISSING for name, p in parameters.items() if name in names})


def why_unreadable(cls: type, family: Registry | None = None) -> str:
    """What `signature_of` has against the constructor of `cls`; empty where it can be read."""
    try:
        signature_of(cls, family)
    except TypeError as error:
        return str(error)
    return ""


def component_of(annotation: Any) -> Component | None:
    """The family that an annotation asks for, or None."""
    if typing.get_origin(annotation) is Annotated:
        return next((extra for extra in annotation.__metadata__ if isinstance(extra, Component)), None)
    family = family_of(annotation)
    return Component(family) if family else None


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union; any other annotation is its own."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def ordinary_classes(annotation: Any) -> list[type]:
    """The classes without a family that an annotation holds: what YAML writes as a mapping without `type`.

    A class that YAML cannot write (an enum, one whose constructor cannot be read) is none of them.
    """
    if component_of(annotation):
        return []
    if arguments := typing.get_args(annotation):
        return [cls for argument in arguments for cls in ordinary_classes(argument)]
    known = not isinstance(annotation, type) or annotation.__module__ in ("builtins", "types", "pathlib", "typing")
    if known or issubclass(annotation, (Mapping, Sequence, enum.Enum)) or why_unreadable(annotation):
        return []
    return [annotation]


def spell(annotation: Any) -> str:
    """An annotation as messages and `rcnn list` name it."""
    component = component_of(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if component:
        return component.family.family
    if annotation in (type(None), None):
        return "null"
    if origin is Annotated:
        return spell(arguments[0])
    if origin in (Union, types.UnionType):
        return " | ".join(map(spell, arguments))
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        return f"[{', '.join(map(spell, arguments))}]"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping of {spell(arguments[1])}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        inner = spell(arguments[0])
        return f"list of {f'({inner})' if ' ' in inner and not inner.startswith(('list', '[')) else inner}"
    if isinstance(annotation, type):
        return "str" if issubclass(annotation, PurePath) else annotation.__name__
    return str(annotation).removeprefix("typing.")
