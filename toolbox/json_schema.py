"""JSON Schema (draft 7) of the YAML, from the constructors: what editors complete and underline."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union

from toolbox.docstrings import argument_docs, summary
from toolbox.plan import plain, writable
from toolbox.registry import FAMILIES, Registry
from toolbox.signatures import (
    Component,
    Setting,
    component_of,
    members,
    ordinary_classes,
    signature_of,
    why_unreadable,
)

DRAFT = "http://json-schema.org/draft-07/schema#"

_SCALARS: Mapping[Any, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    type(None): "null",
    None: "null",
}


def json_schema(
    root: type, families: Mapping[str, Registry] = FAMILIES, *, title: str = "R-CNN toolbox config"
) -> dict[str, Any]:
    """What a YAML of `root` may hold.

    Args:
        root: the class of the whole YAML, as a rule `toolbox.sections.RunConfig`.
        families: their registered components become the choices of `type`.
        title: what editors call it.
    """
    writer = _Writer(families)
    whole = writer.arguments(root)
    return {"$schema": DRAFT, "title": title, **whole, "definitions": dict(writer.definitions())}


class _Writer:
    def __init__(self, families: Mapping[str, Registry]) -> None:
        self.families = families
        self.parts: dict[str, type] = {}
        self.uses: dict[str, Component] = {}

    def definitions(self) -> Iterator[tuple[str, Any]]:
        """Every family, component and class that was pointed at, and those that these point at."""
        done: set[str] = set()
        while pending := [name for name in (*self.uses, *self.parts) if name not in done]:
            for name in pending:
                done.add(name)
                if name in self.parts:
                    yield name, self.arguments(self.parts[name])
                    continue
                yield name, self._choice(self.uses[name])
                family = self.uses[name].family
                for component in family:
                    yield f"{name}.{component}", self.arguments(family.get(component), family)

    def arguments(self, cls: type, family: Registry | None = None) -> dict[str, Any]:
        """A mapping of the arguments of `cls`; of a component, its `type` too."""
        if reason := why_unreadable(cls, family):
            return {"type": "object", "description": reason}
        docs = argument_docs(cls)
        settings = signature_of(cls, family).settings
        properties = {name: self._property(setting, docs.get(name, "")) for name, setting in settings.items()}
        if family:
            properties = {"type": {"const": cls.__name__}, **properties}
        required = [name for name, setting in settings.items() if setting.required]
        return {
            "type": "object",
            "description": summary(cls),
            "properties": properties,
            **({"required": required} if required else {}),
            "additionalProperties": False,
        }

    def _choice(self, component: Component) -> dict[str, Any]:
        """A component of a family: the rest follows from its `type`, or from the default's where it has none."""
        family = component.family
        branches = []
        for name in family:
            chosen: dict[str, Any] = {"properties": {"type": {"const": name}}}
            if name != component.default:
                chosen["required"] = ["type"]
            branches.append({"if": chosen, "then": {"$ref": f"#/definitions/{_name(component)}.{name}"}})
        return {
            "type": "object",
            "properties": {"type": {"enum": list(family)}},
            **({} if component.default else {"required": ["type"]}),
            "allOf": branches,
        }

    def _property(self, setting: Setting, text: str) -> dict[str, Any]:
        described: dict[str, Any] = {"description": text} if text else {}
        if not setting.required and writable(setting.default):
            described["default"] = plain(setting.default, setting.annotation)
        schema = self._value(setting.annotation)
        # Beside a reference, draft 7 reads nothing.
        return {"allOf": [schema], **described} if "$ref" in schema and described else {**schema, **described}

    def _value(self, annotation: Any) -> dict[str, Any]:
        component = component_of(annotation)
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if component:
            self.uses[_name(component)] = component
            return {"$ref": f"#/definitions/{_name(component)}"}
        if origin is Annotated:
            return self._value(arguments[0])
        if origin in (Union, types.UnionType):
            return {"anyOf": [self._value(member) for member in members(annotation)]}
        if origin is Literal:
            return {"enum": list(arguments)}
        if annotation in _SCALARS:
            return {"type": _SCALARS[annotation]}
        if ordinary_classes(annotation) == [annotation]:
            return {"$ref": f"#/definitions/{self._part(annotation)}"}
        return self._collection(origin or annotation, arguments)

    def _part(self, cls: type) -> str:
        """The definition of a class without a family: its name, with its module where two have one name."""
        taken = cls.__name__ in self.families or self.parts.get(cls.__name__, cls) is not cls
        name = f"{cls.__module__}.{cls.__qualname__}" if taken else cls.__name__
        self.parts[name] = cls
        return name

    def _collection(self, kind: Any, arguments: Sequence[Any]) -> dict[str, Any]:
        if not isinstance(kind, type):
            return {}
        if issubclass(kind, PurePath):
            return {"type": "string"}
        if issubclass(kind, Mapping):
            return {"type": "object", **({"additionalProperties": self._value(arguments[1])} if arguments else {})}
        if not issubclass(kind, Sequence):
            return {}
        if kind is tuple and arguments and arguments[-1] is not Ellipsis:
            items = [self._value(argument) for argument in arguments]
            return {"type": "array", "items": items, "minItems": len(items), "maxItems": len(items)}
        return {"type": "array", **({"items": self._value(arguments[0])} if arguments else {})}


def _name(component: Component) -> str:
    return component.family.family
