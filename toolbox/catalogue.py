"""A record of every component's constructor on disk, so that a list or a config error need not wait for torch.

Components are `nn.Module`s: to look at their constructors is to import torch, which takes longer than everything else
that `rcnn list` or a misspelt name needs. Whoever has imported them writes down what they take (`save`); the next
command reads that (`load`) and hands the checker stand-ins with the same signatures. A record holds for exactly the
sources that it was made from, so that it cannot be out of date, and nothing but speed depends on it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Union

from toolbox import __version__
from toolbox.plan import Plan, plain, writable
from toolbox.registry import FAMILIES, Registry
from toolbox.signatures import (
    MISSING,
    Component,
    Setting,
    Signature,
    StandIn,
    component_of,
    ordinary_classes,
    signature_of,
)

PACKAGE = Path(__file__).parent
_KEPT = 16  # records, of about 70 kB each

_SCALARS: dict[str, Any] = {kind.__name__: kind for kind in (bool, int, float, str)} | {
    "null": type(None),
    "path": Path,
    "any": Any,
    "plan": Plan,
}


@dataclass(frozen=True)
class Catalogue:
    """The families, with stand-ins for their components.

    Attributes:
        families: by name.
        root: stand-in for what the whole YAML is.
    """

    families: Mapping[str, Registry]
    root: type


def save(root: type) -> None:
    """Write down the built-in components, when no plugin has added any; a place that cannot be written is passed over.

    Args:
        root: the class of the whole YAML.
    """
    if not _only_builtin():
        return
    try:
        file = _file()
        if file is None or file.exists():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        # Other environments keep theirs here too, so only what has not been written for long goes.
        written = sorted(file.parent.glob("catalogue-*.json"), key=lambda old: old.stat().st_mtime, reverse=True)
        for old in written[_KEPT - 1 :]:
            old.unlink(missing_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(record(root)), encoding="utf-8")
        temporary.replace(file)
    except OSError:
        return


def _only_builtin() -> bool:
    return all(family.get(name).__module__.startswith("toolbox.") for family in FAMILIES.values() for name in family)


def load() -> Catalogue | None:
    """What was written down for the sources as they are now, or None.

    Also None in a process that has imported torch: there is nothing to save then, and somebody may have registered
    components of their own.
    """
    if "torch" in sys.modules:
        return None
    try:
        file = _file()
        return None if file is None else read(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # it is a file, in which anything may stand
        return None


def _file() -> Path | None:
    """Where the record is kept; None where the user has no home."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return folder / "rcnn-toolbox" / f"catalogue-{_fingerprint()}.json"


@cache
def _fingerprint() -> str:
    """Changes with any source file of the toolbox: its path, size or time."""
    stamp = hashlib.sha1(__version__.encode())
    for folder, _, names in sorted(os.walk(PACKAGE)):
        for name in sorted(name for name in names if name.endswith(".py")):
            entry = os.stat(os.path.join(folder, name))
            stamp.update(f"{folder}/{name} {entry.st_size} {entry.st_mtime_ns}\n".encode())
    return stamp.hexdigest()[:16]


# Writing


def record(root: type) -> dict[str, Any]:
    """The registry as plain data: each family with its components, and the classes that their arguments take."""
    families = {
        name: {
            "wired": list(family.wired),
            "offered": list(family.offered),
            "refused": family.refused,
            "components": {component: _class(family.get(component), family) for component in family},
        }
        for name, family in FAMILIES.items()
    }
    parts = {_path(cls): _class(cls) for cls in _parts(root)}
    return {"families": families, "parts": parts, "root": _path(root)}


def _parts(root: type) -> Iterator[type]:
    """The classes without a family that YAML can reach, each once."""
    queue: list[tuple[type, Registry | None]] = [(root, None)]
    queue += [(family.get(name), family) for family in FAMILIES.values() for name in family]
    seen = {root}
    yield root
    while queue:
        for setting in signature_of(*queue.pop()).settings.values():
            for part in ordinary_classes(setting.annotation):
                if part not in seen:
                    seen.add(part)
                    queue.append((part, None))
                    yield part


def _class(cls: type, family: Registry | None = None) -> dict[str, Any]:
    signature = signature_of(cls, family)
    return {
        "name": cls.__name__,
        "module": cls.__module__,
        "doc": cls.__doc__,
        "wired": dict(signature.wired),
        "settings": {
            name: {"annotation": _annotation(setting.annotation), **_default(setting)}
            for name, setting in signature.settings.items()
        },
    }


def _default(setting: Setting) -> dict[str, Any]:
    if setting.required:
        return {}
    if not writable(setting.default):
        return {"opaque": f"{type(setting.default).__name__}(…)"}
    part = type(setting.default) if type(setting.default) in ordinary_classes(setting.annotation) else None
    return {"default": plain(setting.default, setting.annotation), **({"of": _path(part)} if part else {})}


def _annotation(annotation: Any) -> Any:
    """An annotation as plain data."""
    component = component_of(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if component:
        return {"family": component.family.family, "type": component.default, "plan": origin is Annotated}
    if origin is Annotated:
        return _annotation(arguments[0])
    if origin in (Union, types.UnionType):
        return {"union": [_annotation(argument) for argument in arguments]}
    if origin is Literal:
        return {"literal": list(arguments)}
    inner = [_annotation(argument) for argument in arguments if argument is not Ellipsis]
    if origin is tuple:
        return {"list" if len(inner) < len(arguments) else "tuple": inner}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"mapping": inner}
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return {"list": inner}
    if isinstance(annotation, type) and issubclass(annotation, PurePath):
        return "path"
    found = next((name for name, kind in _SCALARS.items() if kind is annotation), None)
    return found or {"part": _path(annotation)}


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


# Reading


def read(data: Mapping[str, Any]) -> Catalogue:
    """The inverse of `record`, with stand-ins in place of classes."""
    families = {
        name: Registry(name, wired=tuple(entry["wired"]), offered=tuple(entry["offered"]))
        for name, entry in data["families"].items()
    }
    reader = _Reader(families, {path: _stand_in(entry) for path, entry in data["parts"].items()})
    for name, entry in data["families"].items():
        for component in entry["components"].values():
            families[name].add(reader.filled(_stand_in(component), component))
        for refused, reason in entry["refused"].items():
            families[name].refuse(refused, reason)
    for path, entry in data["parts"].items():
        reader.filled(reader.parts[path], entry)
    return Catalogue(families, reader.parts[data["root"]])


def _stand_in(entry: Mapping[str, Any]) -> StandIn:
    return StandIn(entry["name"], (), {"__module__": entry["module"], "__doc__": entry["doc"]})


@dataclass(frozen=True)
class _Reader:
    families: Mapping[str, Registry]
    parts: Mapping[str, StandIn]

    def filled(self, cls: StandIn, entry: Mapping[str, Any]) -> StandIn:
        settings = {
            name: Setting(name, self.annotation(setting["annotation"]), self.default(setting))
            for name, setting in entry["settings"].items()
        }
        cls.signature = Signature(settings, entry["wired"])
        return cls

    def default(self, setting: Mapping[str, Any]) -> Any:
        if "of" in setting:
            made = self.parts[setting["of"]]()
            made.fields = setting["default"]
            return made
        return setting.get("default", setting.get("opaque", MISSING))

    def annotation(self, data: Any) -> Any:
        if isinstance(data, str):
            return _SCALARS[data]
        [(kind, value), *more] = data.items()
        if kind == "family":
            kept: Any = Plan if data["plan"] else Any
            return Annotated[kept, Component(self.families[value], data["type"])]
        if kind == "part":
            return self.parts[value]
        if kind == "literal":
            return Literal[tuple(value)]
        inner = tuple(map(self.annotation, value))
        if kind == "union":
            return Union[inner]  # noqa: UP007 (the members are known only now)
        collection: Any = {"mapping": Mapping, "list": list, "tuple": tuple}[kind]
        return collection[inner] if inner else collection
