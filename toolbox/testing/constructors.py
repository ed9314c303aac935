"""What every family asks of a constructor."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from toolbox.signatures import signature_of
from toolbox.testing.case import Case, Check, check, expect


@check(
    "registered",
    "the class is known to its family under its own name",
    "put @FAMILY.register before the class, e.g. from toolbox.registry import INSTANCE_HEADS",
)
def _registered(case: Case) -> None:
    name = case.cls.__name__
    expect(name in case.registry, f"{case.registry.family} has no '{name}'")
    known = case.registry.get(name)
    expect(known is case.cls, f"the {case.registry.family} '{name}' is the class of {known.__module__}")


@check(
    "constructor",
    "wired arguments come first, settings are keyword-only and have a type, so that YAML can be checked",
    "write def __init__(self, <wired>, *, setting: float = 1.0) -> None",
)
def _constructor(case: Case) -> None:
    signature = signature_of(case.cls, case.registry)
    parameters = inspect.signature(case.cls).parameters
    for name, setting in signature.settings.items():
        expect(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY, f"'{name}' can be given by position")
        expect(setting.annotation is not Any, f"'{name}' has no type")
    lacking = [name for name in case.registry.wired if name not in signature.wired]
    expect(not lacking, f"it does not take {', '.join(lacking)}")


@check(
    "documented",
    "a docstring says what it does; `rcnn list` shows its first line",
    "write a class docstring: what it does, the shapes it takes and gives, the paper",
)
def _documented(case: Case) -> None:
    inherited = {base.__doc__ for base in case.cls.__mro__[1:]} | {nn.Module.__doc__}
    expect(bool(case.cls.__doc__ and case.cls.__doc__.strip()) and case.cls.__doc__ not in inherited, "none of its own")


@check(
    "interface",
    "it defines the methods of its family and sets the attributes that the next stage reads",
    "see the family in toolbox/models/interfaces.py, toolbox/data/interfaces.py or toolbox/engine/loggers.py",
)
def _interface(case: Case) -> None:
    missing = case.registry.missing_methods(case.cls)
    expect(not missing, f"no method {', '.join(missing)}")
    if case.registry.protocol is None or case.registry.family == "optimizer":
        return
    made = case.make()
    unset = [name for name in inspect.get_annotations(case.registry.protocol) if not hasattr(made, name)]
    expect(not unset, f"it sets no {', '.join(unset)}")


CONSTRUCTOR_CHECKS: tuple[Check, ...] = (_registered, _constructor, _documented, _interface)
