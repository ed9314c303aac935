"""The conformance kit: one line in a plugin's test that tries every promise a component's family makes.

    from toolbox.testing import check_component

    def test_fill_head_keeps_its_promises():
        check_component(FillHead, settings={"weight": 0.5})

What is tried is small and takes seconds on a CPU. A broken promise is an AssertionError that says which, what came out,
and what to do. A promise that a component cannot keep is named in `skip`, so that the test says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from toolbox.errors import did_you_mean
from toolbox.plugins import load_installed
from toolbox.registry import FAMILIES, Registry
from toolbox.sections import register_builtin
from toolbox.testing.case import Case, Check
from toolbox.testing.constructors import CONSTRUCTOR_CHECKS
from toolbox.testing.data import DATASET_CHECKS, TRANSFORM_CHECKS
from toolbox.testing.detectors import DETECTOR_CHECKS
from toolbox.testing.heads import INSTANCE_HEAD_CHECKS
from toolbox.testing.loggers import LOGGER_CHECKS
from toolbox.testing.modules import MODULE_CHECKS, REGION_CHECKS
from toolbox.testing.pieces import LOSS_CHECKS, SAMPLER_CHECKS
from toolbox.testing.promises import PROMISES
from toolbox.testing.training import OPTIMIZER_CHECKS, SCHEDULE_CHECKS

__all__ = ["check_component", "checks_of"]

_CHECKS: dict[str, tuple[Check, ...]] = {
    "backbone": (PROMISES["backbone"], *MODULE_CHECKS),
    "neck": (PROMISES["neck"], *MODULE_CHECKS),
    "rpn_head": (PROMISES["rpn_head"], *MODULE_CHECKS),
    "roi_extractor": (PROMISES["roi_extractor"], *REGION_CHECKS, *MODULE_CHECKS),
    "roi_stage": (PROMISES["roi_stage"], *REGION_CHECKS, *MODULE_CHECKS),
    "box_head": (PROMISES["box_head"], *REGION_CHECKS, *MODULE_CHECKS),
    "instance_head": (*REGION_CHECKS, *MODULE_CHECKS, *INSTANCE_HEAD_CHECKS),
    "detector": DETECTOR_CHECKS,
    "loss": LOSS_CHECKS,
    "sampler": SAMPLER_CHECKS,
    "dataset": DATASET_CHECKS,
    "transform": TRANSFORM_CHECKS,
    "optimizer": OPTIMIZER_CHECKS,
    "schedule": SCHEDULE_CHECKS,
    "logger": LOGGER_CHECKS,
}


def check_component(
    component: type | str,
    *,
    family: str | None = None,
    settings: Mapping[str, Any] | None = None,
    wired: Mapping[str, Any] | None = None,
    skip: Collection[str] = (),
) -> tuple[str, ...]:
    """Try every promise that a component's family makes.

    Args:
        component: the class, or the name it is registered under.
        family: needed only where a name stands in several families.
        settings: its arguments, as YAML would give them; nested components already built. Small ones keep the test
            quick. Required for arguments without a default.
        wired: what the builder fills in, e.g. `{"in_shape": RoIShape(256, 7, 7)}`; small values of the kit's own unless
            given.
        skip: names of checks that the component is known to fail, e.g. `{"export"}`; see `checks_of`.

    Returns:
        The names of the checks that were made.

    Raises:
        AssertionError: a promise is broken; says which, what was got and what to do.
        ValueError: the arguments of this function are wrong.
    """
    register_builtin()
    load_installed()
    cls, registry = _find(component, family)
    checks = (*CONSTRUCTOR_CHECKS, *_CHECKS[registry.family])
    names = [check.name for check in checks]
    for name in skip:
        if name not in names:
            raise ValueError(f"skip: no check '{name}' for {registry.family}{did_you_mean(name, names)} ({names})")
    case = Case(cls, registry, dict(settings or {}), dict(wired or {}))
    made = [check for check in checks if check.name not in skip]
    for check in made:
        check.run(case)
    return tuple(check.name for check in made)


def checks_of(family: str) -> dict[str, str]:
    """The checks of a family: name → the promise that it tries."""
    if family not in _CHECKS:
        raise ValueError(f"no family '{family}'{did_you_mean(family, _CHECKS)} ({', '.join(_CHECKS)})")
    return {check.name: check.promise for check in (*CONSTRUCTOR_CHECKS, *_CHECKS[family])}


def _find(component: type | str, family: str | None) -> tuple[type, Registry]:
    name = component if isinstance(component, str) else component.__name__
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family: no family '{family}'{did_you_mean(family, FAMILIES)} ({', '.join(FAMILIES)})")
    chosen = [FAMILIES[family]] if family else list(FAMILIES.values())
    holders = [registry for registry in chosen if name in registry]
    if isinstance(component, str):
        if not holders:
            everything = [known for registry in chosen for known in registry]
            raise ValueError(f"nothing named '{name}' is registered{did_you_mean(name, everything)}")
        if len(holders) > 1:
            raise ValueError(f"'{name}' is in {' and '.join(r.family for r in holders)}; give family=")
        return holders[0].get(name), holders[0]
    own = [registry for registry in holders if registry.get(name) is component]
    if len(own) == 1:
        return component, own[0]
    if family is None:
        raise AssertionError(
            f"{name} is not registered, or not this class of that name: put @FAMILY.register before the class "
            f"(from toolbox.registry import …), or give family= to see what else it lacks"
        )
    return component, FAMILIES[family]
