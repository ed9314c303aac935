"""YAML text → nodes that know where they stand, and overrides of the form `key=value` written onto them.

A config is plain data: the core types of YAML 1.2 (`1e-3` is a float and `on` is a word), no tags, no duplicate keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from toolbox.errors import ConfigError, Problem
from toolbox.yaml_hints import explained

COMMAND_LINE = "command line"

_INT = re.compile(r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CONSTANTS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    word: value for value in (True, False) for word in (str(value), str(value).lower(), str(value).upper())
}
_SECTIONS = "a config has the sections model, data, train and test"  # said of a file without any
_CORE_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}


@dataclass(frozen=True, order=True)
class Place:
    """Where something was written: a position in a file, or one override of the command line."""

    rank: int = 0  # what is written over what: 0 a config, 1 a variant of a sweep, 2 the command line
    line: int = 0  # of the command line: the number of the override
    column: int = 0
    source: str = ""
    override: str = ""  # the whole `key=value`, at the node that it sets

    @classmethod
    def on_command_line(cls, number: int, override: str = "") -> Place:
        """Place of an override; with its text, messages quote that instead of a key."""
        return cls(rank=2, line=number, source=COMMAND_LINE, override=override)

    @property
    def is_override(self) -> bool:
        return self.rank == 2

    def problem(self, key: str, message: str) -> Problem:
        """A finding here; an override's text stands in place of the key."""
        return Problem(str(self), self.override or key, message)

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line and not self.is_override else self.source


class Findings:
    """Problems of a config, collected with their places so that they come out together and in order."""

    def __init__(self) -> None:
        self._found: list[tuple[bool, Place, Problem]] = []

    def add(self, place: Place, key: str, message: str, *, cause: bool = False) -> None:
        """Note a problem at a place; a cause of others is listed before them, wherever it stands."""
        self._found.append((not cause, place, place.problem(key, message)))

    def extend(self, other: Findings) -> None:
        self._found += other._found

    def __len__(self) -> int:
        return len(self._found)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All of them, causes first, sorted by place, each once."""
        ordered = sorted(self._found, key=lambda entry: entry[:2])
        return tuple(dict.fromkeys(problem for *_, problem in ordered))

    def raise_any(self) -> None:
        """Raise a ConfigError with all of them."""
        if self._found:
            raise ConfigError(self.problems)


@dataclass
class Node:
    """A YAML value.

    Attributes:
        value: None, bool, int, float, str, a list of nodes, or a mapping from keys to nodes.
        place: where the value starts.
        key_places: where each key of a mapping is written.
        over: of a mapping that an override or a variant wrote over another, the other.
    """

    value: Any
    place: Place
    key_places: dict[Any, Place] = field(default_factory=dict)
    over: Node | None = field(default=None, repr=False, compare=False)

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.value, dict)

    @property
    def is_list(self) -> bool:
        return isinstance(self.value, list)

    def plain(self) -> Any:
        """The value as ordinary Python data."""
        if self.is_mapping:
            return {key: child.plain() for key, child in self.value.items()}
        return [child.plain() for child in self.value] if self.is_list else self.value

    def describe(self) -> str:
        """How messages quote the value: scalars as YAML writes them, the rest by kind."""
        if self.is_mapping:
            return "a mapping"
        if self.is_list:
            return "a list"
        if self.value is None or isinstance(self.value, bool):
            return {None: "null", True: "true", False: "false"}[self.value]
        return repr(self.value)

    def written_over(self) -> Node:
        """A copy that counts as written over a config."""
        value = self.value
        if self.is_mapping:
            value = {key: child.written_over() for key, child in value.items()}
        elif self.is_list:
            value = [child.written_over() for child in value]
        places = {key: replace(place, rank=1) for key, place in self.key_places.items()}
        return Node(value, replace(self.place, rank=1), places)

    def put(self, key: Any, child: Node) -> None:
        """Set an entry of a mapping."""
        self.value[key] = child
        self.key_places[key] = child.place


class _Loader(yaml.SafeLoader):
    """Finds nodes and marks; plain scalars stay text until `_scalar` reads them."""

    yaml_implicit_resolvers: dict[str, Any] = {}


class Dumper(yaml.SafeDumper):
    """Quotes every word that this module or a YAML 1.1 reader would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def write(data: Any) -> str:
    """Data → YAML text, short lists and mappings on one line."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


def write_inline(data: Any) -> str:
    """Data → one line of YAML."""
    return yaml.dump([data], Dumper=Dumper, sort_keys=False, allow_unicode=True, width=10**9, default_flow_style=True)[
        1:-2
    ]


def parse(text: str, source: str, findings: Findings, *, sections: str = _SECTIONS) -> Node:
    """Read YAML text. Duplicate keys and tags are noted in `findings`.

    Args:
        sections: said of a text that is no mapping: what it should hold.

    Raises:
        ConfigError: the text is not YAML, or not a mapping; nothing else can be said about it then.
    """
    root = _compose(text, source)
    if root is None:
        raise ConfigError([Problem(source, "", f"the file is empty; {sections}")])
    node = _Converter(lambda mark: Place(0, mark.line + 1, mark.column + 1, source), findings).convert(root, "")
    if not node.is_mapping:
        python = " (this looks like Python; a config is YAML)" if source.endswith(".py") else ""
        message = f"expected a mapping, got {node.describe()}{python}; {sections}"
        raise ConfigError([Problem(str(node.place), "", message)])
    return node


def apply_override(root: Node, override: str, number: int, findings: Findings) -> None:
    """Write `a.b.0.c=value` into the nodes; the value is YAML. Mappings on the way are made where they are missing."""
    path, separator, text = override.partition("=")
    place = Place.on_command_line(number, override)
    if not separator or not path or not all(path.split(".")):
        written = override.replace(":", "=", 1) if re.match(r"[\w.]+:", override) else "train.lr=0.01"
        findings.add(place, "", f"expected key=value without spaces, e.g. {written}")
        return
    try:
        composed = _compose(text, "")
    except ConfigError as error:
        findings.add(place, "", f"the value is not YAML: {error.problems[0].message}; quote it if it is text")
        return
    inside = Place.on_command_line(number)
    value = Node(None, place)
    if composed is not None:
        value = _Converter(lambda mark: inside, findings).convert(composed, path)
        value.place = place
    _put(root, path.split("."), value, inside, findings)


def put_value(root: Node, key: str, value: Node, findings: Findings) -> None:
    """Write a value of a sweep's variant at a dotted key, as `apply_override` writes one of the command line."""
    if not all(key.split(".")):
        findings.add(value.place, "", f"expected a dotted key, e.g. train.lr, got '{key}'")
        return
    value = value.written_over()
    _put(root, key.split("."), value, value.place, findings)


def _put(root: Node, steps: Sequence[str], value: Node, inside: Place, findings: Findings) -> None:
    node, done = root, ""
    for step in steps[:-1]:
        done = f"{done}.{step}" if done else step
        key = _key_in(node, step, value.place, findings)
        if key is None:
            return
        child = node.value[key] if node.is_list else node.value.get(key)
        if child is None or child.value is None:
            child = Node({}, inside)
            node.value[key] = child
            if node.is_mapping:
                node.key_places[key] = value.place
        if not (child.is_mapping or child.is_list):
            findings.add(value.place, "", f"{done} is {child.describe()}, which has no entries")
            return
        node = child
    key = _key_in(node, steps[-1], value.place, findings)
    if key is not None:
        before = node.value[key] if node.is_list else node.value.get(key)
        if before is not None and before.is_mapping and value.is_mapping:
            value.over = before
        if node.is_mapping:
            node.put(key, value)
        else:
            node.value[key] = value


def _key_in(node: Node, step: str, place: Place, findings: Findings) -> Any:
    """The key of a mapping or the index of a list that one step of an override's path means."""
    if node.is_mapping:
        return next((key for key in node.value if str(key) == step), step)
    if step.isdigit() and int(step) < len(node.value):
        return int(step)
    entries = f"entries 0 … {len(node.value) - 1}" if node.value else "no entries"
    findings.add(place, "", f"the list has {entries}, not '{step}'")
    return None


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line, column, message = explained(text, error)
        raise ConfigError([Problem(f"{source}:{line}:{column}" if source else "", "", message)]) from error
    except yaml.YAMLError as error:  # a character that YAML forbids: it has an offset, no mark
        before = text[: getattr(error, "position", 0)]
        where = f"{source}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        raise ConfigError([Problem(where, "", f"not YAML: {getattr(error, 'reason', error)}; remove it")]) from error


class _Converter:
    """yaml's nodes → ours."""

    def __init__(self, place_of: Any, findings: Findings) -> None:
        self._place_of = place_of
        self._findings = findings
        self._open: set[int] = set()

    def convert(self, node: yaml.Node, key: str) -> Node:
        place = self._place_of(node.start_mark)
        if node.tag not in _CORE_TAGS:
            self._findings.add(place, key, f"tag {node.tag} has no meaning here; a config is plain data, remove it")
        if isinstance(node, yaml.ScalarNode):
            return Node(_scalar(node), place)
        if id(node) in self._open:
            self._findings.add(place, key, "an alias cannot contain itself")
            return Node(None, place)
        self._open.add(id(node))
        if isinstance(node, yaml.MappingNode):
            result = self._mapping(node, place, key)
        else:
            result = Node([self.convert(child, f"{key}.{i}".lstrip(".")) for i, child in enumerate(node.value)], place)
        self._open.discard(id(node))
        return result

    def _mapping(self, node: yaml.MappingNode, place: Place, key: str) -> Node:
        result = Node({}, place)
        for key_node, value_node in node.value:
            key_place = self._place_of(key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode):
                self._findings.add(key_place, key, "a key is a name, not a list or mapping")
                continue
            if node.flow_style and _is_glued(key_node, value_node):
                word, _, text = key_node.value.partition(":")
                message = f"'{key_node.value}' is no key and value; put a space after the colon: '{word}: {text}'"
                self._findings.add(key_place, key, message)
                key_node, value_node = (
                    yaml.ScalarNode(part.tag, value, part.start_mark)
                    for part, value in ((key_node, word), (value_node, text))
                )
            name = _scalar(key_node)
            inner = f"{key}.{name}".lstrip(".")
            if name == "<<":
                self._findings.add(key_place, inner, "merge keys are not read; write the settings out")
            elif name in result.value:
                first = result.key_places[name]
                self._findings.add(key_place, inner, f"key '{name}' is given twice, first at line {first.line}")
            else:
                result.value[name] = self.convert(value_node, inner)
                result.key_places[name] = key_place
        return result


def _is_glued(key: yaml.ScalarNode, value: yaml.Node) -> bool:
    """Whether `{a:1}` was written for `{a: 1}`, which YAML reads as one word without a value."""
    between = (key.end_mark.buffer or "")[key.end_mark.pointer : value.start_mark.pointer]
    colon = value.value != "" or ":" in between  # then the word is the key that was meant
    return key.style is None and not colon and re.fullmatch(r"[\w.*]+:[^\s/:][^\s:]*", key.value) is not None


def _scalar(node: yaml.ScalarNode) -> Any:
    """The value of a scalar: quoted text is text, a plain word is read by YAML 1.2's core schema."""
    text: str = node.value
    if node.style is not None:
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        return int(text.replace("_", ""), 0 if text[:2] in ("0x", "0o") else 10)
    if _FLOAT.fullmatch(text):
        word = text.replace("_", "").lower()
        return math.nan if word == ".nan" else float(word.replace(".inf", "inf"))
    return text
