"""One table per family of components: the only registration code.

    @INSTANCE_HEADS.register
    class BoundaryHead(nn.Module):
        def __init__(self, in_shape: RoIShape, num_classes: int, *, weight: float = 1.0) -> None: ...

The key is the class name. A constructor takes the family's wired arguments (what the stage before provides, filled in
by the builder, never written in YAML), then its settings, keyword-only, with a type and mostly with a default.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

from toolbox.errors import ToolboxError, did_you_mean

T = TypeVar("T", bound=type)

ADVICE = "a plugin's file or module must be listed under 'plugins:'"


class RegistryError(ToolboxError):
    """A component cannot be registered, or no component has that name."""


class Registry:
    """Components of one family, by class name.

    Args:
        family: name in messages and in `rcnn list`, e.g. `"backbone"`.
        wired: arguments that every constructor of the family must accept.
        offered: further wired values that a constructor may accept by naming them.
    """

    def __init__(self, family: str, *, wired: tuple[str, ...] = (), offered: tuple[str, ...] = ()) -> None:
        self.family = family
        self.wired = wired
        self.offered = offered
        self.protocol: type | None = None
        self._classes: dict[str, type] = {}
        self._refused: dict[str, str] = {}

    def interface(self, protocol: T) -> T:
        """Class decorator: the protocol that the family's components follow.

        An argument annotated with it takes a component of this family in YAML (`{type: …}`).
        """
        self.protocol = protocol
        return protocol

    def register(self, cls: T = None) -> T:  # type: ignore[assignment]
        """Class decorator: add a component under its class name.

        Raises:
            RegistryError: it is no class, the name is taken by another one, the constructor hides its arguments behind
                `*args`/`**kwargs`, or it lacks a wired argument.
        """
        if not isinstance(cls, type):  # as Detectron2's `register()` and MMDetection's `register_module("Name")` read
            form = "write .register without parentheses, in the line above the class"
            raise RegistryError(f"a {self.family} is a class, and its name is the class's own; {form}")
        name = cls.__name__
        known = self._classes.get(name)
        if known is not None and not _same_code(known, cls):
            raise RegistryError(
                f"{self.family} '{name}' is already registered by {_source(known)}; rename the class in {_source(cls)}"
            )
        parameters = inspect.signature(cls).parameters
        hidden = [str(p) for p in parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if hidden:
            raise RegistryError(
                f"{self.family} '{name}': constructor takes {', '.join(hidden)}; "
                f"name every argument, so that YAML can be checked"
            )
        missing = [argument for argument in self.wired if argument not in parameters]
        if missing:
            raise RegistryError(
                f"{self.family} '{name}': constructor lacks {', '.join(missing)}; "
                f"every {self.family} takes ({', '.join(self.wired)}) first"
            )
        self.add(cls)
        return cls

    def refuse(self, name: str, reason: str) -> None:
        """Say why a name that people bring from elsewhere is not offered, and what to write instead.

        A plugin may still register a class of that name.
        """
        self._refused[name] = reason

    @property
    def refused(self) -> dict[str, str]:
        """Names that are not offered, with the reasons."""
        return dict(self._refused)

    def add(self, cls: type) -> None:
        """Add a class that `register` has accepted elsewhere."""
        self._classes[cls.__name__] = cls

    def get(self, name: str, *, advice: str = ADVICE) -> type:
        """Return the class registered as `name`.

        Args:
            advice: what else could help, said where nothing has that name.

        Raises:
            RegistryError: none has that name; the message suggests the nearest and lists all, or says why.
        """
        if name in self._classes:
            return self._classes[name]
        if name in self._refused:
            raise RegistryError(f"{self.family} '{name}' is not offered: {self._refused[name]}")
        raise RegistryError(
            f"no {self.family} named '{name}'{did_you_mean(name, self._classes)} "
            f"(registered: {', '.join(self) or 'none'}; {advice})"
        )

    def required_methods(self) -> tuple[str, ...]:
        """What the family's protocol defines; of the pair `forward` and `__call__` a component writes `forward`."""
        members = vars(self.protocol) if self.protocol is not None else {}
        names = [name for name, value in members.items() if inspect.isfunction(value)]
        inherited = {"__init__", "__subclasshook__", *(["__call__"] if "forward" in names else [])}
        return tuple(name for name in names if name not in inherited)

    def missing_methods(self, cls: type) -> tuple[str, ...]:
        """The protocol's methods that `cls` does not define."""
        # A class that names the protocol as its base inherits bodies of `...`, which do nothing.
        bases = [vars(base) for base in cls.__mro__ if base is not self.protocol]
        return tuple(
            name
            for name in self.required_methods()
            if _is_stub(next((base[name] for base in bases if name in base), None))
        )

    def wiring(self, cls: type) -> tuple[str, ...]:
        """Names of the wired values that `cls` accepts."""
        parameters = inspect.signature(cls).parameters
        return tuple(name for name in (*self.wired, *self.offered) if name in parameters)

    def settings(self, cls: type) -> dict[str, inspect.Parameter]:
        """The arguments of `cls` that YAML may set."""
        wired = {*self.wired, *self.offered}
        return {name: p for name, p in inspect.signature(cls).parameters.items() if name not in wired}

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        return len(self._classes)


def _same_code(one: type, other: type) -> bool:
    """Whether two classes are one, imported again, or once by its module's name and once by its file's path."""
    files = [getattr(sys.modules.get(cls.__module__), "__file__", None) for cls in (one, other)]
    same_module = one.__module__ == other.__module__ or (files[0] is not None and files[0] == files[1])
    return same_module and one.__qualname__ == other.__qualname__


def _source(cls: type) -> str:
    """A class's module, or for a plugin's file, whose module has a made-up name, the file."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return str(file) if file and cls.__module__.startswith("toolbox_plugin_") else cls.__module__


def _is_stub(method: Any) -> bool:
    """Whether a method is missing; `nn.Module` has a `forward` that only says so."""
    return method is None or getattr(method, "__name__", "") == "_forward_unimplemented"


BACKBONES = Registry("backbone", offered=("in_channels",))
NECKS = Registry("neck", wired=("in_features",))
RPN_HEADS = Registry("rpn_head", wired=("in_channels", "num_anchors"))
ROI_EXTRACTORS = Registry("roi_extractor", wired=("in_features",))
BOX_HEADS = Registry("box_head", wired=("in_shape", "num_classes"))
INSTANCE_HEADS = Registry("instance_head", wired=("in_shape", "num_classes"), offered=("skeleton",))
ROI_STAGES = Registry("roi_stage", wired=("in_shape",))
DETECTORS = Registry("detector", offered=("num_classes", "test", "skeleton"))
LOSSES = Registry("loss")
SAMPLERS = Registry("sampler")
DATASETS = Registry("dataset")
TRANSFORMS = Registry("transform")
OPTIMIZERS = Registry("optimizer", wired=("params", "lr"))
SCHEDULES = Registry("schedule", wired=("steps",))
LOGGERS = Registry("logger")

FAMILIES: dict[str, Registry] = {
    registry.family: registry
    for registry in (
        BACKBONES,
        NECKS,
        RPN_HEADS,
        ROI_EXTRACTORS,
        BOX_HEADS,
        INSTANCE_HEADS,
        ROI_STAGES,
        DETECTORS,
        LOSSES,
        SAMPLERS,
        DATASETS,
        TRANSFORMS,
        OPTIMIZERS,
        SCHEDULES,
        LOGGERS,
    )
}


def family_of(annotation: Any) -> Registry | None:
    """The family whose protocol `annotation` is, or None."""
    for registry in FAMILIES.values():
        if registry.protocol is not None and registry.protocol is annotation:
            return registry
    return None
