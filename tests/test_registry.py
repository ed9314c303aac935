"""Registration: one form, and every mistake in it is found at import."""

from __future__ import annotations

from typing import Any, Protocol

import pytest
from torch import nn

from toolbox.registry import FAMILIES, Registry, RegistryError


def test_a_component_is_found_under_its_class_name() -> None:
    heads = Registry("head")

    @heads.register
    class Linear: ...

    assert heads.get("Linear") is Linear and "Linear" in heads and list(heads) == ["Linear"]


def test_an_unknown_name_gets_the_nearest_and_the_list() -> None:
    heads = Registry("head")

    @heads.register
    class Linear: ...

    with pytest.raises(RegistryError, match=r"no head named 'Linaer'; did you mean 'Linear'\? \(registered: Linear;"):
        heads.get("Linaer")


def test_a_second_class_of_the_same_name_is_refused() -> None:
    heads = Registry("head")
    heads.register(type("Linear", (), {"__module__": "mine"}))
    with pytest.raises(RegistryError, match="head 'Linear' is already registered by mine; rename the class in yours"):
        heads.register(type("Linear", (), {"__module__": "yours"}))


def test_a_module_that_is_imported_again_may_register_again() -> None:
    heads = Registry("head")
    heads.register(type("Linear", (), {"__module__": "mine"}))
    again = heads.register(type("Linear", (), {"__module__": "mine"}))
    assert heads.get("Linear") is again


def test_hidden_arguments_are_refused() -> None:
    heads = Registry("head")

    class Sloppy:
        def __init__(self, **kwargs: int) -> None: ...

    with pytest.raises(RegistryError, match=r"constructor takes \*\*kwargs: 'int'; name every argument"):
        heads.register(Sloppy)


def test_a_constructor_without_the_wired_arguments_is_refused() -> None:
    heads = Registry("head", wired=("in_shape", "num_classes"))

    class Deaf:
        def __init__(self, in_shape: int) -> None: ...

    with pytest.raises(RegistryError, match=r"lacks num_classes; every head takes \(in_shape, num_classes\) first"):
        heads.register(Deaf)


def test_offered_values_are_wired_only_where_the_constructor_names_them() -> None:
    heads = Registry("head", wired=("in_shape",), offered=("skeleton",))

    class Mask:
        def __init__(self, in_shape: int, *, size: int = 28) -> None: ...

    class Pose:
        def __init__(self, in_shape: int, skeleton: str, *, size: int = 56) -> None: ...

    assert heads.wiring(Mask) == ("in_shape",) and heads.wiring(Pose) == ("in_shape", "skeleton")
    assert list(heads.settings(Pose)) == ["size"]


def test_a_refused_name_says_why_until_something_registers_it() -> None:
    heads = Registry("head")
    heads.refuse("Hydra", "it has nine necks; use Linear")
    with pytest.raises(RegistryError, match="^head 'Hydra' is not offered: it has nine necks; use Linear$"):
        heads.get("Hydra")
    hydra = heads.register(type("Hydra", (), {}))
    assert heads.get("Hydra") is hydra


def test_methods_of_the_protocol_must_be_written_not_inherited_from_it() -> None:
    heads = Registry("head")

    @heads.interface
    class Head(Protocol):
        size: int

        def forward(self) -> int: ...

        def __call__(self) -> int: ...

        def loss(self) -> int: ...

    class Whole(nn.Module):
        def forward(self) -> int:
            return 1

        def loss(self) -> int:
            return 2

    class Nothing(nn.Module, Head): ...

    assert heads.required_methods() == ("forward", "loss")
    assert heads.missing_methods(Whole) == ()
    assert heads.missing_methods(Nothing) == ("forward", "loss")


def test_families_are_known_by_their_names() -> None:
    assert {"backbone", "neck", "rpn_head", "roi_extractor", "box_head", "instance_head", "detector"} <= set(FAMILIES)
    assert all(registry.family == name for name, registry in FAMILIES.items())


@pytest.mark.parametrize("given", [(), ("Linear",), (lambda view, rng: view,)], ids=["nothing", "a name", "a function"])
def test_the_forms_of_other_projects_are_answered(given: tuple[Any, ...]) -> None:
    """Detectron2 writes `@R.register()`, MMDetection `@R.register_module("Name")`; functions cannot be checked."""
    with pytest.raises(RegistryError, match=r"a head is a class.*; write \.register without parentheses"):
        Registry("head").register(*given)
