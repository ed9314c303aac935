"""YAML → checked plans, on small components of two families that exist only here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, Protocol

import pytest

from toolbox.config import check
from toolbox.errors import CheckpointError, ConfigError
from toolbox.plan import Plan
from toolbox.registry import FAMILIES, Registry
from toolbox.signatures import Component
from toolbox.yaml_nodes import Findings, apply_override, parse, write

ENGINES = Registry("engine")
WHEELS = Registry("wheel", wired=("in_power",))


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(FAMILIES, "engine", ENGINES)
    monkeypatch.setitem(FAMILIES, "wheel", WHEELS)
    yield


@ENGINES.interface
class Engine(Protocol):
    power: float


@WHEELS.interface
class Wheel(Protocol):
    radius: float


@ENGINES.register
class Diesel:
    def __init__(self, *, cylinders: int = 4, power: float = 90.0, fuel: Literal["b7", "hvo"] = "b7") -> None:
        if cylinders < 1:
            raise ValueError(f"cylinders is 1 or more, got {cylinders}")
        self.cylinders, self.power, self.fuel = cylinders, power, fuel


@ENGINES.register
class Electric:
    def __init__(self, *, power: float, name: str = "e", regenerate: bool = True) -> None:
        self.power, self.name, self.regenerate = power, name, regenerate


@WHEELS.register
class Alloy:
    def __init__(self, in_power: float, *, radius: float = 0.3) -> None:
        self.in_power, self.radius = in_power, radius


@dataclass(frozen=True)
class Brakes:
    discs: int = 2
    pads: int = 4


class Axle:
    wired: ClassVar[tuple[str, ...]] = ("length",)

    def __init__(self, length: float, *, wheels: Sequence[Wheel] = (), gear: int | tuple[int, int] = 1) -> None:
        self.length, self.wheels, self.gear = length, wheels, gear


@dataclass
class Car:
    engine: Engine
    wheel: Wheel | None = None
    brakes: Brakes = Brakes(discs=4, pads=8)
    axles: Mapping[str, Axle] | None = None
    gears: list[int] = field(default_factory=lambda: [1, 2, 3])
    spare: Annotated[Plan, Component(ENGINES, default="Diesel")] | None = None
    tags: tuple[str, ...] = ()
    weight: float = 1
    seats: tuple[int, int] = (2, 3)


def load(text: str, *overrides: str) -> Plan:
    findings = Findings()
    root = parse(text, "car.yaml", findings)
    for number, override in enumerate(overrides):
        apply_override(root, override, number, findings)
    plan = check(root, Car, findings)
    findings.raise_any()
    return plan


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return str(caught.value).splitlines()


# What comes out


def test_values_and_defaults_are_read_through_the_plan() -> None:
    plan = load("engine: {type: Diesel, cylinders: 6}")
    assert plan["engine"].cls is Diesel
    assert plan["engine"]["cylinders"] == 6 and "cylinders" in plan["engine"].given
    assert plan["engine"]["power"] == 90.0 and "power" not in plan["engine"].given
    assert plan["wheel"] is None and plan["gears"] == [1, 2, 3]
    assert (plan["engine"].where, plan["engine"].key) == ("car.yaml:1:9", "engine")


def test_build_makes_nested_components_and_takes_wired_arguments() -> None:
    plan = load("engine: {type: Electric, power: 5}\nwheel: {type: Alloy, radius: 1}")
    car = plan.build(wheel=plan["wheel"].build(in_power=2.0))
    assert isinstance(car.engine, Electric) and car.engine.power == 5.0
    assert (car.wheel.in_power, car.wheel.radius) == (2.0, 1.0)


def test_a_missing_wired_argument_is_the_caller_s_fault_and_says_which() -> None:
    plan = load("engine: {type: Diesel}\nwheel: {type: Alloy}")
    with pytest.raises(TypeError, match=r"wheel: build\(\) lacks the wired in_power"):
        plan.build()


def test_a_component_annotated_as_plan_is_left_to_be_built_later() -> None:
    car = load("engine: {type: Diesel}\nspare: {power: 3}").build()
    assert isinstance(car.spare, Plan) and car.spare.build().power == 3.0


def test_settings_left_out_of_a_part_keep_the_enclosing_default() -> None:
    """Brakes alone defaults to 2 discs, a Car's brakes to 4: giving the pads must not change the discs."""
    plan = load("engine: {type: Diesel}\nbrakes: {pads: 6}")
    assert plan["brakes"]["discs"] == 4
    assert plan.build().brakes == Brakes(discs=4, pads=6)


def test_numbers_words_and_quotes_are_read_by_the_core_schema() -> None:
    text = "engine: {type: Electric, power: 1e-3, name: on}\ntags: ['1', \"true\", 1_a, 2020-01-01]\nweight: .inf"
    plan = load(text)
    assert plan["engine"]["power"] == 0.001 and plan["engine"]["name"] == "on"
    assert plan["tags"] == ("1", "true", "1_a", "2020-01-01")
    assert plan["weight"] == math.inf


def test_the_resolved_plan_loads_again_to_the_same() -> None:
    plan = load(
        "engine: {type: Electric, power: 5, name: '1e-3'}\naxles: {front: {gear: [1, 2]}}\ntags: ['yes', '012']"
    )
    resolved = plan.to_dict()
    assert resolved["engine"] == {"type": "Electric", "power": 5.0, "name": "1e-3", "regenerate": True}
    assert resolved["axles"] == {"front": {"wheels": [], "gear": [1, 2]}}
    assert resolved["brakes"] == {"discs": 4, "pads": 8} and resolved["weight"] == 1.0
    again = load(write(resolved))
    assert again.to_dict() == resolved and write(again.to_dict()) == write(resolved)


# What is refused


def test_every_problem_comes_out_at_once_in_order_of_line() -> None:
    text = """\
engine:
  type: Deisel
wheel: {type: Alloy, in_power: 3}
brakes:
  dics: 2
  pads: 1.5
gears: [1, two]
wight: 3
"""
    assert problems(text) == [
        "car.yaml:2:9: engine.type: no engine named 'Deisel'; did you mean 'Diesel'? (registered: Diesel, Electric; "
        "a plugin's file or module must be listed under 'plugins:')",
        "car.yaml:3:22: wheel: 'in_power' is filled in by the builder; remove it",
        "car.yaml:5:3: brakes: there is no setting 'dics' here; did you mean 'discs'?",
        "car.yaml:6:9: brakes.pads: expected int, got 1.5",
        "car.yaml:7:12: gears.1: expected int, got 'two'",
        "car.yaml:8:1: there is no section 'wight'; did you mean 'weight'?",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("engine: {type: Electric}", "car.yaml:1:9: engine: Electric needs the argument 'power' (float)"),
        ("weight: 3", "car.yaml:1:1: 'engine' (engine) must be given"),
        (
            "engine: {power: 3}",
            "car.yaml:1:9: engine: an engine needs a 'type' (registered: Diesel, Electric)",
        ),
        (
            "engine: Diesel",
            "car.yaml:1:9: engine: expected an engine, {type: …} with one of Diesel, Electric, got 'Diesel'; "
            "write {type: Diesel}",
        ),
        (
            "engine: {type: Diesel}\nwheel: {type: Diesel}",
            "car.yaml:2:15: wheel.type: no wheel named 'Diesel' (registered: Alloy; a plugin's file or module must be "
            "listed under 'plugins:'); 'Diesel' is an engine",
        ),
        (
            "engine: {type: Diesel, fuel: b77}",
            "car.yaml:1:30: engine.fuel: expected 'b7' or 'hvo', got 'b77'; did you mean 'b7'?",
        ),
        ("engine: {type: Diesel, cylinders: true}", "car.yaml:1:35: engine.cylinders: expected int, got true"),
        ("engine: {type: Diesel, cylinders: null}", "car.yaml:1:35: engine.cylinders: expected int, got null"),
        (
            "engine: {type: Electric, power: 1, regenerate: yes}",
            "car.yaml:1:48: engine.regenerate: expected bool (true or false), got 'yes'",
        ),
        (
            "engine: {type: Electric, power: 1, name: 5}",
            "car.yaml:1:42: engine.name: expected str, got 5; quote it: '5'",
        ),
        ("engine: {type: Diesel}\ngears: 3", "car.yaml:2:8: gears: expected list of int, got 3; write [3]"),
        ("engine: {type: Diesel}\nseats: 5", "car.yaml:2:8: seats: expected [int, int], a list of 2, got 5"),
        (
            "engine: {type: Diesel}\naxles: {front: {gear: [1]}}",
            "car.yaml:2:23: axles.front.gear: expected [int, int], a list of 2, got 1 entry",
        ),
        (
            "engine: {type: Diesel}\naxles: {front: {gear: fast}}",
            "car.yaml:2:23: axles.front.gear: expected int or [int, int], got 'fast'",
        ),
        (
            "engine: {type: Diesel}\naxles: {1: {}}",
            "car.yaml:2:9: axles: expected a name as key, got 1",
        ),
        (
            "engine: {type: Diesel}\naxles: {front: {length: 2}}",
            "car.yaml:2:17: axles.front: 'length' is filled in by the builder; remove it",
        ),
        (
            "engine: {type: Diesel}\nbrakes: {type: Brakes}",
            "car.yaml:2:10: brakes: there is no setting 'type' here; it is always Brakes, remove it",
        ),
        (
            "engine: {type: Diesel}\nbrakes: 3",
            "car.yaml:2:9: brakes: expected a mapping of the arguments of Brakes, got 3",
        ),
    ],
)
def test_a_mistake_is_reported_where_it_is_with_what_fits(text: str, line: str) -> None:
    assert problems(text) == [line]


def test_an_argument_on_the_wrong_floor_is_pointed_to_where_it_belongs() -> None:
    assert problems("engine: {type: Diesel}\ncylinders: 8") == [
        "car.yaml:2:1: there is no section 'cylinders'; did you mean 'engine.cylinders'?"
    ]


def refusals(text: str, *overrides: str) -> list[str]:
    plan = load(text, *overrides)
    with pytest.raises(ConfigError) as caught:
        plan.build()
    return str(caught.value).splitlines()


def test_a_refusal_that_begins_with_a_setting_s_name_is_reported_there() -> None:
    assert refusals("engine:\n  {type: Diesel, cylinders: 0}") == [
        "car.yaml:2:29: engine.cylinders: cylinders is 1 or more, got 0"
    ]
    assert refusals("engine:\n  {type: Diesel}", "engine.cylinders=0") == [
        "command line: engine.cylinders=0: cylinders is 1 or more, got 0"
    ]


class Turbine:
    def __init__(self, *, blades: int = 9, power: float = 1.0, refuse: str = "") -> None:
        self.power = power
        if refuse == "broken":
            raise KeyError("shaft")
        if refuse == "file":
            raise CheckpointError("turbine.pth: no such weight file")
        if refuse:
            raise ValueError(refuse)


@pytest.fixture
def turbine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ENGINES, "_classes", {**ENGINES._classes, "Turbine": Turbine})


def test_a_refusal_of_several_settings_is_one_problem_each(turbine: None) -> None:
    text = 'engine: {type: Turbine, blades: -1, refuse: "blades is 1 or more\\npower is more than 0"}'
    assert refusals(text) == [
        "car.yaml:1:33: engine.blades: blades is 1 or more",
        "car.yaml:1:9: engine.power: power is more than 0",
    ]


def test_a_name_before_a_colon_is_not_said_twice(turbine: None) -> None:
    assert refusals('engine: {type: Turbine, refuse: "power: none is left"}') == [
        "car.yaml:1:9: engine.power: none is left"
    ]


@dataclass
class Hitch:
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is 1 or more, got {self.size}")


@dataclass
class Trailer:
    hitch: Hitch | None = None
    load: float = 1

    def __post_init__(self) -> None:
        if self.load > 9:
            raise ValueError(f"load is 9 or less, got {self.load}")
        if self.hitch is None:
            raise KeyError("hitch")


@pytest.mark.parametrize(
    ("load", "keys"), [(10, ["load", "hitch.size"]), (1, ["hitch.size"])], ids=["refused too", "at fault without it"]
)
def test_what_a_part_refuses_is_told_beside_the_whole_s_refusals_and_instead_of_its_faults(
    load: int, keys: list[str]
) -> None:
    findings = Findings()
    plan = check(parse(f"hitch: {{size: 0}}\nload: {load}", "trailer.yaml", findings), Trailer, findings)
    with pytest.raises(ConfigError) as caught:
        plan.build()
    assert [problem.key for problem in caught.value.problems] == keys


def test_any_other_refusal_is_reported_at_the_component(turbine: None) -> None:
    assert refusals("engine: {type: Turbine, refuse: it does not turn}") == ["car.yaml:1:9: engine: it does not turn"]


def test_weights_that_cannot_be_used_say_where_they_were_asked_for(turbine: None) -> None:
    assert refusals("engine: {type: Turbine, refuse: file}") == [
        "car.yaml:1:9: engine: turbine.pth: no such weight file"
    ]


def test_a_fault_inside_a_constructor_says_whose_it_is(turbine: None) -> None:
    (line,) = refusals("engine:\n  {type: Turbine, refuse: broken}")
    assert line.startswith("car.yaml:2:3: engine: Turbine cannot be built with these settings: KeyError: ")
    assert line.endswith("; --debug shows the whole traceback") and "test_config.py, line " in line


def test_a_component_that_does_not_state_what_its_family_does_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Steam:
        def __init__(self) -> None: ...

    monkeypatch.setattr(ENGINES, "_classes", {**ENGINES._classes, "Steam": Steam})
    (line,) = refusals("engine: {type: Steam}")
    assert line.startswith("car.yaml:1:9: engine: Steam sets no 'power'; every engine does (")


# YAML itself


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "weight: 1\nengine: {type: Diesel}\nweight: 2",
            "car.yaml:3:1: weight: key 'weight' is given twice, first at line 1",
        ),
        ("engine:\n\ttype: Diesel", "car.yaml:2:1: a tab cannot indent or begin a value in YAML; use spaces"),
        ("", "car.yaml: the file is empty; a config has the sections model, data, train and test"),
        ("- 1", "car.yaml:1:1: expected a mapping, got a list; a config has the sections model, data, train and test"),
        (
            "engine: {type: Diesel}\nweight: !!python/object:os.system 3",
            "car.yaml:2:9: weight: tag tag:yaml.org,2002:python/object:os.system has no meaning here; "
            "a config is plain data, remove it",
        ),
        (
            "engine: &e {type: Diesel, <<: *e}",
            "car.yaml:1:27: engine.<<: merge keys are not read; write the settings out",
        ),
        (
            "engine: {type: Diesel\nweight: 3",
            "car.yaml:2:7: expected ',' or '}', but got ':': the '{' that starts at 1:9 is not closed; "
            "close it with '}'",
        ),
    ],
)
def test_text_that_is_not_plain_yaml_is_refused_with_its_position(text: str, line: str) -> None:
    assert line in problems(text)


@pytest.mark.parametrize(("text", "value"), [("{1:2: }", None), ("{1:2: , b: 3}", None), ('{1:2: ""}', "")])
def test_a_colon_inside_a_key_that_has_one_of_its_own_is_no_mistake(text: str, value: str | None) -> None:
    findings = Findings()
    root = parse(f"axles: {text}", "car.yaml", findings)
    assert not findings and root.plain()["axles"]["1:2"] == value


def test_an_alias_inside_itself_is_refused() -> None:
    assert "car.yaml:1:9: engine.type: an alias cannot contain itself" in problems("engine: &e {type: *e}")


# Overrides


def test_overrides_replace_and_add_and_reach_into_lists() -> None:
    plan = load(
        "engine: {type: Diesel}\ngears: [1, 2]",
        "engine.cylinders=8",
        "gears.1=7",
        "brakes.pads=3",
        "wheel={type: Alloy}",
    )
    assert plan["engine"]["cylinders"] == 8 and plan["gears"] == [1, 7]
    assert plan["brakes"]["pads"] == 3 and plan["wheel"].cls is Alloy


def test_an_override_with_nothing_after_the_sign_is_null() -> None:
    assert load("engine: {type: Diesel}\nwheel: {type: Alloy}", "wheel=")["wheel"] is None


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("weight=fast", "command line: weight=fast: expected float"),
        ("weigth=3", "command line: weigth=3: there is no section 'weigth'; did you mean 'weight'?"),
        (
            "engine.cylindres=3",
            "command line: engine.cylindres=3: Diesel has no argument 'cylindres'; did you mean 'cylinders'?",
        ),
        ("gears.5=3", "command line: gears.5=3: the list has entries 0 … 1, not '5'"),
        ("weight.x=3", "command line: weight.x=3: weight is 2, which has no entries"),
        ("weight", "command line: weight: expected key=value without spaces, e.g. train.lr=0.01"),
        ("engine={type: Diesel, cylinders: x}", "command line: engine.cylinders: expected int, got 'x'"),
    ],
)
def test_a_wrong_override_is_quoted(override: str, line: str) -> None:
    assert problems("engine: {type: Diesel}\ngears: [1, 2]\nweight: 2", override) == [line]


def test_problems_of_the_command_line_come_after_the_file_s() -> None:
    assert problems("engine: {type: Diesel}\ngears: 1", "weight=a", "tags=b") == [
        "car.yaml:2:8: gears: expected list of int, got 1; write [1]",
        "command line: weight=a: expected float",
        "command line: tags=b: expected list of str; write [b]",
    ]


def test_an_override_that_is_not_yaml_says_so() -> None:
    (line,) = problems("engine: {type: Diesel}", "tags=[a")
    assert line.startswith("command line: tags=[a: the value is not YAML: ")
