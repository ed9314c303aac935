"""Where a value of a config comes from: a line of the file, the command line, or a default, and of which class."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from toolbox.docstrings import argument_docs, first_line
from toolbox.errors import ToolboxError, did_you_mean
from toolbox.plan import Plan, base_of, plain, writable
from toolbox.signatures import Setting, StandIn, signature_of, spell
from toolbox.yaml_nodes import Place, write_inline

_WIDEST = 48  # characters of a value


def explain(plan: Plan, key: str) -> list[str]:
    """Lines about one key: its value, where that was given, what else it takes; of a section, all its settings.

    Args:
        plan: the whole YAML.
        key: dotted, e.g. `model.backbone.depth`.

    Raises:
        ToolboxError: the config has no such key; the nearest is suggested.
    """
    owner, value, name, done = plan, plan, "", ""
    for step in key.split("."):
        if isinstance(value, Plan):
            if step in value.wired:
                return [f"{key}: filled in by the builder; it cannot be set in YAML"]
            if step == "type" and value.family:
                return [f"{key}: {value.cls.__name__}", f"  from: {_type_source(owner, value)}"]
            owner, name = value, step
        inside = _inside(value, step, done)
        done = f"{done}.{step}".lstrip(".")
        value = _as_section(inside, done)
    whole = done == f"{owner.key}.{name}".lstrip(".")  # not an entry of a list or mapping
    setting = signature_of(owner.cls, owner.family).settings.get(name) if whole else None
    lines = [f"{key}: {_spell(value, setting)}", f"  from: {_source(owner, name, value)}"]
    lines += _about(owner, setting) if setting else []
    return lines + (_settings(value) if isinstance(value, Plan) else [])


def _as_section(value: Any, key: str) -> Any:
    """A default that nothing was changed in, as the section that it stands for."""
    if isinstance(type(value), StandIn) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return Plan(type(value), {}, key=key, base=base_of(type(value), value))
    return value


def _inside(value: Any, step: str, key: str) -> Any:
    """One step down."""
    where = f"'{key}'" if key else "the config"
    if isinstance(value, Plan):
        names: Any = signature_of(value.cls, value.family).settings
        if step in names:
            return value[step] if not names[step].required or step in value.given else None
        what = f"{where} ({value.cls.__name__})" if key else where
    elif isinstance(value, Mapping):
        names = list(map(str, value))
        if step in names:
            return next(item for name, item in value.items() if str(name) == step)
        what = where
    elif isinstance(value, (list, tuple)):
        names = [str(index) for index in range(len(value))]
        if step in names:
            return value[int(step)]
        what = where
    else:
        raise ToolboxError(f"{where} is {_spell(value)}, which has no entries; explain '{key}'")
    raise ToolboxError(f"{what} has no '{step}'{did_you_mean(step, names)} (it has {', '.join(names) or 'no entries'})")


def _source(owner: Plan, name: str, value: Any) -> str:
    place = value.place if isinstance(value, Plan) and str(value.place) else owner.place_of(name)
    if owner.place_of(name) is None and name in owner.given:
        place = None  # a component that was completed by its family's default
    if place is not None:
        return _written(place)
    if owner.inherits(name):
        return f"default of '{owner.key}', which is a {owner.cls.__name__} unless told"
    return _default_of(owner)


def _default_of(owner: Plan) -> str:
    return f"default of {owner.cls.__name__} ({owner.cls.__module__})"


def _type_source(owner: Plan, component: Plan) -> str:
    place = component.place_of("type")
    return _written(place) if place else _default_of(owner)


def _written(place: Place) -> str:
    return f"{place} ({place.override})" if place.override else str(place)


def _about(owner: Plan, setting: Setting) -> list[str]:
    default = "must be given" if setting.required else f"default {_spell(setting.default, setting)}"
    text = argument_docs(owner.cls).get(setting.name)
    return [f"  takes: {spell(setting.annotation)}, {default}", *([f"  {text}"] if text else [])]


def _settings(plan: Plan) -> list[str]:
    rows = [
        (name, _spell(plan[name], setting), _source(plan, name, plan[name]))
        for name, setting in signature_of(plan.cls, plan.family).settings.items()
        if not setting.required or name in plan.given
    ]
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    table = [f"    {name:<{widths[0]}}  {value:<{widths[1]}}  {source}" for name, value, source in rows]
    return [f"  {plan.cls.__name__}: {first_line(plan.cls)}", *table]


def _spell(value: Any, setting: Setting | None = None) -> str:
    if isinstance(value, Plan):
        return value.cls.__name__
    if isinstance(value, Mapping) and "type" in value:  # a component as the record of components keeps it
        return str(value["type"])
    if isinstance(value, Mapping) and any(isinstance(item, Plan) for item in value.values()):
        return ", ".join(value)
    text = (
        write_inline(plain(value, setting.annotation if setting else Any))
        if writable(value)
        else f"{type(value).__name__}(…)"
    )
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"
