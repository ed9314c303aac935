"""`Plan`: a constructor call that was read from YAML and checked, but not made yet."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any, Union

from toolbox.errors import CheckpointError, ConfigError, DataError, Problem, ToolboxError, told
from toolbox.registry import Registry
from toolbox.signatures import MISSING, Setting, StandIn, component_of, members, signature_of
from toolbox.yaml_nodes import Place

NOWHERE = Place()


class Plan:
    """A checked constructor call.

    Attributes:
        cls: the class.
        given: what YAML or the command line sets, checked; nested components are plans.
        key: dotted key in the config.
        place: where it was written; `where` is its text.
        family: of a registered component, else None.
        wired: names of the arguments that whoever builds it must or may fill in.
    """

    def __init__(
        self,
        cls: type,
        given: Mapping[str, Any],
        *,
        key: str = "",
        place: Place = NOWHERE,
        family: Registry | None = None,
        places: Mapping[str, Place] | None = None,
        base: Mapping[str, Any] | None = None,
        deferred: bool = False,
    ) -> None:
        self.cls = cls
        self.given = dict(given)
        self.key = key
        self.place = place
        self.family = family
        self.wired = tuple(signature_of(cls, family).wired)
        self._places = dict(places or {})
        self._base = dict(base or {})  # the enclosing constructor's default for this argument, field by field
        self._deferred = deferred

    @property
    def where(self) -> str:
        """`file:line:column`, or `command line`."""
        return str(self.place)

    def problem(self, message: str, name: str | None = None) -> Problem:
        """A finding about this plan or its setting `name`, at the place where that is written."""
        place = self._places.get(name, self.place) if name else self.place
        return place.problem(f"{self.key}.{name}".lstrip(".") if name else self.key, message)

    def place_of(self, name: str) -> Place | None:
        """Where a setting is written; None where its default stands."""
        return self._places.get(name)

    def inherits(self, name: str) -> bool:
        """Whether a setting that is not written comes from the enclosing constructor's default, not this one's."""
        return name not in self.given and name in self._base

    def __getitem__(self, name: str) -> Any:
        """The plan or value of a setting, or its default."""
        if name in self.given:
            return self.given[name]
        if name in self._base:
            return self._base[name]
        setting = signature_of(self.cls, self.family).settings.get(name)
        if setting is None or setting.required:
            raise KeyError(f"{self.cls.__name__} has no setting '{name}'")
        return setting.default

    def __repr__(self) -> str:
        return f"Plan({self.cls.__name__}, {self.given})"

    def build(self, **arguments: Any) -> Any:
        """Call the constructor. Keywords fill in what is wired and replace what is given; nested plans are built.

        A constructor refuses values by a ValueError. Where every line of its text begins with the name of a setting
        (`nms lies between 0 and 1, got 9`), each line is placed at that setting; any other text at the component.

        Raises:
            ConfigError: the constructor refuses a value, or fails, or weights that a setting names cannot be used.
            TypeError: a wired argument is missing (a fault of the caller, not of the config).
        """
        wired = signature_of(self.cls, self.family).wired
        missing = [name for name, required in wired.items() if required and name not in arguments]
        if missing:
            raise TypeError(f"{self.key or self.cls.__name__}: build() lacks the wired {', '.join(missing)}")
        settings = {name: value for name, value in {**self._base, **self.given}.items() if name not in arguments}
        values, problems = _built_each(settings)
        if problems:
            own = self._own_refusals({**values, **arguments}, settings.keys() - values.keys())
            raise ConfigError([*own, *problems])
        try:
            made = self.cls(**values, **arguments)
        except ConfigError as error:
            raise ConfigError([self._placed(problem) for problem in error.problems]) from error
        except CheckpointError as error:
            raise ConfigError([self.problem(str(error), self._known("weights"))]) from error
        except DataError:
            raise  # it says which file
        except (ValueError, ToolboxError) as error:
            raise ConfigError(self._refusals(str(error))) from error
        except Exception as error:  # a value that nobody thought of, or a plugin's fault; either way, this is the place
            message = f"{self.cls.__name__} cannot be built with these settings: {told(error)}"
            raise ConfigError([self.problem(f"{message}; --debug shows the whole traceback")]) from error
        self._check_promises(made)
        return made

    def _own_refusals(self, values: Mapping[str, Any], refused: Set[str]) -> Sequence[Problem]:
        """What a section has against its other values, where those of the settings `refused` cannot be built.

        Components may do anything while they are made; a section only looks at its values.
        """
        required = any(setting.required and name in refused for name, setting in self._settings.items())
        if self.family is not None or required:
            return ()
        try:
            self.cls(**values)
        except ValueError as error:
            return self._refusals(str(error))
        except Exception:  # a plugin's fault, or one of a value that is refused: told when that is mended
            return ()
        return ()

    @property
    def _settings(self) -> Mapping[str, Setting]:
        return signature_of(self.cls, self.family).settings

    def _known(self, name: str) -> str | None:
        return name if name in self._settings else None

    def _placed(self, problem: Problem) -> Problem:
        """A constructor's own finding does not know where its arguments were written."""
        return problem if problem.where else self.problem(problem.message, self._known(problem.key.rpartition(".")[2]))

    def _refusals(self, text: str) -> list[Problem]:
        """What a constructor says of its values, line by line if each line begins with a setting's name."""
        lines = text.splitlines()
        names = [self._known(re.split(r"\W", line, maxsplit=1)[0]) for line in lines]
        if not all(names):
            return [self.problem(text)]
        return [self.problem(line.removeprefix(f"{name}: "), name) for line, name in zip(lines, names, strict=True)]

    def _check_promises(self, made: Any) -> None:
        """A component states what the next one is wired to (`out_features`, …); forgotten, it would fail elsewhere."""
        if self.family is None or self.family.protocol is None:
            return
        protocol = self.family.protocol
        for name in inspect.get_annotations(protocol):
            if not hasattr(made, name):
                file = f"{protocol.__module__.replace('.', '/')}.py"
                message = f"{self.cls.__name__} sets no '{name}'; every {self.family.family} does ({file})"
                raise ConfigError([self.problem(message)])

    def to_dict(self) -> dict[str, Any]:
        """Every setting with its value, defaults included, as plain data that loads to the same plan."""
        result: dict[str, Any] = {"type": self.cls.__name__} if self.family else {}
        for name, setting in signature_of(self.cls, self.family).settings.items():
            value = self[name] if not setting.required or name in self.given or name in self._base else MISSING
            if writable(value):
                result[name] = plain(value, setting.annotation)
        return result


def built(value: Any) -> Any:
    """Build the plans inside a value; those that an annotation keeps as plans stay.

    Raises:
        ConfigError: the problems of all of them.
    """
    if isinstance(value, Plan):
        return value if value._deferred else value.build()
    if isinstance(value, (list, tuple, dict)):
        made, problems = _built_each(value if isinstance(value, dict) else dict(enumerate(value)))
        if problems:
            raise ConfigError(problems)
        return made if isinstance(value, dict) else type(value)(made.values())
    return value


def _built_each(values: Mapping[Any, Any]) -> tuple[dict[Any, Any], list[Problem]]:
    """The values that can be built, and the problems of the others."""
    made: dict[Any, Any] = {}
    problems: list[Problem] = []
    for name, value in values.items():
        try:
            made[name] = built(value)
        except ConfigError as error:
            problems += error.problems
    return made, problems


def writable(value: Any) -> bool:
    """Whether YAML can say this value; a default that it cannot say is left to the constructor."""
    if isinstance(value, (list, tuple)):
        return all(map(writable, value))
    if isinstance(value, Mapping):
        return all(map(writable, value.values()))
    if isinstance(type(value), StandIn):
        return True
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return all(map(writable, _fields(value).values()))
    return value is None or isinstance(value, (bool, int, float, str, PurePath, Plan))


def plain(value: Any, annotation: Any = Any) -> Any:
    """A writable value as plain data; a whole number where only a float fits becomes one, as reading it back would."""
    choices = members(annotation)
    if isinstance(value, Plan):
        return value.to_dict()
    if isinstance(value, (list, tuple)):
        return [plain(item, _item_annotation(choices, index)) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        inner = next((typing.get_args(choice)[1] for choice in choices if len(typing.get_args(choice)) == 2), Any)
        return {key: plain(item, inner) for key, item in value.items()}
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(type(value), StandIn):
        return dict(value.fields)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        component = next(filter(None, map(component_of, choices)), None)
        settings = signature_of(type(value), component.family if component else None).settings
        fields = {name: plain(getattr(value, name), setting.annotation) for name, setting in settings.items()}
        return {"type": type(value).__name__, **fields} if component else fields
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_whole and float in choices and int not in choices else value


def _item_annotation(choices: tuple[Any, ...], index: int) -> Any:
    """The annotation of one entry of a sequence, over all alternatives that are sequences."""
    found: list[Any] = []
    for choice in choices:
        arguments = typing.get_args(choice)
        if typing.get_origin(choice) is tuple and arguments[-1] is not Ellipsis:
            arguments = arguments[index : index + 1]
        found += arguments[:1]
    return Union[tuple(found)] if found else Any  # noqa: UP007 (the members are known only now)


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}


def base_of(cls: type, default: Any) -> dict[str, Any]:
    """The fields of a dataclass default: what a mapping that gives only some of them leaves unchanged."""
    if isinstance(cls, StandIn):
        return dict(default.fields) if type(default) is cls else {}
    return _fields(default) if type(default) is cls and dataclasses.is_dataclass(cls) else {}
