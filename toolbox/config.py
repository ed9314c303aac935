"""The checker: nodes against constructor signatures, every problem noted at its place with what fits.

What an annotation takes in YAML: a family's protocol takes `{type: Name, settings…}`; an ordinary class or dataclass
a mapping of its arguments; `Mapping[str, X]`, sequences, `X | None`, `Literal[…]`, int, float, bool and str mean what
they say.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Union

from toolbox.config_messages import (
    absent,
    as_mapping,
    left_over,
    needed,
    replaced,
    unfinished,
    unknown_argument,
    unquoted,
    wired_argument,
    with_article,
)
from toolbox.errors import counted, did_you_mean
from toolbox.plan import Plan, base_of
from toolbox.registry import ADVICE, FAMILIES, Registry, RegistryError
from toolbox.signatures import (
    MISSING,
    Component,
    Setting,
    component_of,
    members,
    ordinary_classes,
    signature_of,
    spell,
    why_unreadable,
)
from toolbox.yaml_nodes import Findings, Node, write_inline

INVALID: Any = object()  # stands for a value whose problem has been noted


def check(
    node: Node,
    cls: type,
    findings: Findings,
    *,
    advice: str = ADVICE,
    key: str = "",
    families: Mapping[str, Registry] = FAMILIES,
) -> Plan:
    """Check a mapping against the constructor of `cls`, and everything below it.

    Args:
        findings: where problems are noted; the plan is only of use when there are none.
        advice: said with every name that is not registered, e.g. which plugin failed to import.
        families: where a name of another family is looked for.
    """
    return _Checker(findings, advice, families, (cls, node)).plan(node, cls, key)


class _Checker:
    def __init__(
        self, findings: Findings, advice: str, families: Mapping[str, Registry], root: tuple[type, Node]
    ) -> None:
        self.findings = findings
        self.advice = advice
        self.families = families
        self.root = root

    # Classes

    def plan(
        self,
        node: Node,
        cls: type,
        key: str,
        *,
        family: Registry | None = None,
        default: Any = MISSING,
        deferred: bool = False,
    ) -> Plan:
        """Check a mapping of arguments; with a family, `type` is already known to name `cls`."""
        try:
            signature = signature_of(cls, family)
        except TypeError as error:
            self.findings.add(node.place, key, f"{error}; so YAML cannot set it")
            return INVALID
        base = base_of(cls, default)
        given, places = {}, {}
        for name, child in node.value.items():
            place = node.key_places.get(name, child.place)
            inner = f"{key}.{name}".lstrip(".")
            places[name] = child.place
            if name in signature.settings:
                given[name] = self.value(child, signature.settings[name], inner)
            elif name in signature.wired:
                self.findings.add(place, key, wired_argument(str(name), self.root))
            elif not (family and name == "type"):
                message = unknown_argument(cls, family, name, node, signature, self.root)
                self.findings.add(place, key, message + left_over(cls, key, node, place))
        for name, setting in signature.settings.items():
            inner = f"{key}.{name}".lstrip(".")
            component = component_of(setting.annotation)
            if name in given or name in base:
                continue
            if component and component.default and not setting.required:
                given[name] = self.value(Node({}, node.place), setting, inner)
            elif setting.required:
                self.findings.add(node.place, key, absent(cls, family, setting) + replaced(node, key, name))
        return Plan(cls, given, key=key, place=node.place, family=family, places=places, base=base, deferred=deferred)

    def component(self, node: Node, component: Component, key: str, *, default: Any, deferred: bool) -> Any:
        """Check `{type: Name, settings…}`."""
        family, noun = component.family, with_article(component.family.family)
        registered = ", ".join(family) or "none"
        if not node.is_mapping:
            meant = next((name for name in family if name.lower() == str(node.value).lower()), None)
            known = f"; write {{type: {meant}}}" if meant else ""
            message = f"expected {noun}, {{type: …}} with one of {registered}, got {node.describe()}{known}"
            return self._wrong(node, key, message)
        named = node.value.get("type")
        if named is None:
            if component.default is None:
                message = f"{noun} needs a 'type' (registered: {registered})"
                return self._wrong(node, key, message + replaced(node, key, "type"))
            named = Node(component.default, node.place)
        if not isinstance(named.value, str):
            return self._expected(named, f"{key}.type", f"the name of {noun}, one of {registered}")
        try:
            cls = family.get(named.value, advice=self.advice)
        except RegistryError as error:
            self.findings.add(named.place, f"{key}.type", f"{error}{self._elsewhere(named.value, family)}")
            return INVALID
        for method in family.missing_methods(cls)[:1]:
            self.findings.add(named.place, f"{key}.type", unfinished(cls, family, method))
        return self.plan(node, cls, key, family=family, default=default, deferred=deferred)

    def _elsewhere(self, name: Any, family: Registry) -> str:
        other = next((f for f in self.families.values() if f is not family and name in f), None)
        return f"; '{name}' is {with_article(other.family)}" if other else ""

    # Values

    def value(self, node: Node, setting: Setting, key: str) -> Any:
        """Check one argument."""
        return self.annotated(node, setting.annotation, key, setting.default)

    def annotated(self, node: Node, annotation: Any, key: str, default: Any = MISSING) -> Any:
        """Check a node against an annotation; returns the value to pass, or INVALID."""
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        component = component_of(annotation)
        if component:
            return self.component(node, component, key, default=default, deferred=origin is Annotated)
        if annotation in (Any, object):
            return node.plain()
        if origin is Annotated:
            return self.annotated(node, arguments[0], key, default)
        if origin in (Union, types.UnionType):
            return self._union(node, annotation, key, default)
        if origin is Literal:
            return self._literal(node, arguments, key)
        if annotation in (None, type(None), bool, int, float, str):
            return self._scalar(node, annotation, key)
        kind = origin or annotation
        if isinstance(kind, type) and issubclass(kind, Mapping):
            return self._mapping(node, arguments, annotation, key)
        if isinstance(kind, type) and issubclass(kind, Sequence):
            return self._sequence(node, kind, arguments, annotation, key)
        if isinstance(kind, type) and issubclass(kind, PurePath):
            text = self._scalar(node, str, key)
            return text if text is INVALID else Path(text)
        if isinstance(annotation, type) and issubclass(annotation, Enum):
            names = ", ".join(annotation.__members__)
            return self._wrong(node, key, f"an enum cannot be set in YAML; annotate it as a Literal of {names}")
        if isinstance(annotation, type):
            if reason := why_unreadable(annotation):
                return self._wrong(node, key, f"{reason}; so YAML cannot set it")
            if node.value is None:
                return self._wrong(node, key, f"is empty; {needed(annotation, None, key.rpartition('.')[2])}")
            if not node.is_mapping:
                return self._expected(node, key, f"a mapping of the arguments of {annotation.__name__}")
            return self.plan(node, annotation, key, default=default)
        return self._wrong(node, key, f"an argument of type {spell(annotation)} cannot be set in YAML")

    def _union(self, node: Node, annotation: Any, key: str, default: Any) -> Any:
        choices = [member for member in members(annotation) if member is not type(None)]
        if node.value is None and len(choices) < len(members(annotation)):
            return None
        trials = []
        for choice in choices:
            trial = _Checker(Findings(), self.advice, self.families, self.root)
            value = trial.annotated(node, choice, key, default)
            if not trial.findings:
                return value
            trials.append((choice, trial.findings))
        fitting = sorted((found for choice, found in trials if _shape(choice) == _shape_of(node)), key=len)
        nearest = len(fitting) == 1 or (len(fitting) > 1 and len(fitting[0]) < len(fitting[1]))
        if nearest and (node.is_mapping or node.is_list):
            self.findings.extend(fitting[0])
            return INVALID
        parts = [part for part in choices if part in ordinary_classes(part)]
        more = "".join(map(as_mapping, parts))
        return self._expected(node, key, spell(annotation).replace(" | ", " or "), more)

    def _literal(self, node: Node, choices: tuple[Any, ...], key: str) -> Any:
        for choice in choices:
            if type(choice) is type(node.value) and choice == node.value:
                return choice
        near = did_you_mean(str(node.value), [choice for choice in choices if isinstance(choice, str)])
        expected = " or ".join(map(repr, choices)) if len(choices) < 3 else f"one of {', '.join(map(repr, choices))}"
        numbers = [choice for choice in choices if str(choice) == node.value]
        return self._expected(node, key, expected, unquoted(node.value) if numbers else near)

    def _scalar(self, node: Node, kind: Any, key: str) -> Any:
        value = node.value
        if kind in (None, type(None)):
            return None if value is None else self._expected(node, key, "null")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if type(value) is kind:
            return value
        if kind is bool:
            return self._expected(node, key, "bool (true or false)")
        hint = f"; quote it: '{value}'" if kind is str and isinstance(value, (bool, int, float)) else unquoted(value)
        return self._expected(node, key, kind.__name__, hint)

    def _mapping(self, node: Node, arguments: tuple[Any, ...], annotation: Any, key: str) -> Any:
        if not node.is_mapping:
            return self._expected(node, key, spell(annotation))
        key_type, value_type = arguments if len(arguments) == 2 else (Any, Any)
        result = {}
        for name, child in node.value.items():
            if key_type in (str, int) and type(name) is not key_type:
                what = "a name" if key_type is str else "a whole number"
                self.findings.add(node.key_places.get(name, child.place), key, f"expected {what} as key, got {name!r}")
                continue
            result[name] = self.annotated(child, value_type, f"{key}.{name}".lstrip("."))
        return result

    def _sequence(self, node: Node, kind: type, arguments: tuple[Any, ...], annotation: Any, key: str) -> Any:
        fixed = kind is tuple and arguments and arguments[-1] is not Ellipsis
        expected = f"{spell(annotation)}, a list of {len(arguments)}" if fixed else spell(annotation)
        if not node.is_list:
            hint = self._as_entry(node, arguments[0]) if arguments and not fixed else ""
            return self._expected(node, key, expected if arguments else "a list", hint)
        if fixed and len(arguments) != len(node.value):
            got = counted(len(node.value), "entry", "entries")
            return self._wrong(node, key, f"expected {expected}, got {got}")
        types_of = arguments if fixed else (arguments[:1] or (Any,)) * len(node.value)
        values = [
            self.annotated(child, item, f"{key}.{i}")
            for i, (child, item) in enumerate(zip(node.value, types_of, strict=True))
        ]
        return values if kind is list else tuple(values)

    def _as_entry(self, node: Node, item: Any) -> str:
        """What to write instead of what would be the list's only entry."""
        component = component_of(item)
        if component and isinstance(node.value, str):
            near = next((name for name in component.family if name.lower() == node.value.lower()), "…")
            return f"; write [{{type: {near}}}]" + (
                "" if near != "…" else f" with one of {', '.join(component.family)}"
            )
        trial = _Checker(Findings(), self.advice, self.families, self.root)
        if node.value is not None:
            trial.annotated(node, item, "")
        return "" if trial.findings or node.value is None else f"; write [{write_inline(node.plain())}]"

    # Messages

    def _expected(self, node: Node, key: str, what: str, more: str = "") -> Any:
        got = "" if node.place.override else f", got {node.describe()}"  # an override is quoted in full already
        return self._wrong(node, key, f"expected {what}{got}{more}")

    def _wrong(self, node: Node, key: str, message: str) -> Any:
        self.findings.add(node.place, key, message)
        return INVALID


def _shape(annotation: Any) -> str:
    kind = typing.get_origin(annotation) or annotation
    if component_of(annotation) or not isinstance(kind, type):
        return "mapping"
    if issubclass(kind, (bool, int, float, str, PurePath)) or kind is type(None):
        return "scalar"
    return "list" if issubclass(kind, Sequence) else "mapping"


def _shape_of(node: Node) -> str:
    return "mapping" if node.is_mapping else "list" if node.is_list else "scalar"
