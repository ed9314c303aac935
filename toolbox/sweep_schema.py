"""What a sweep's YAML may hold; `toolbox.sweep_file` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        set: values by dotted key, written over the base.
        base: instead of the sweep's.
        paper: published values by metric, in percent.
        only_paper: why it is not trained: its row shows the published values alone.
    """

    _: KW_ONLY
    set: Mapping[str, Any] | None = None
    base: str | list[str] | None = None
    paper: Mapping[str, float] = field(default_factory=dict)
    only_paper: str | None = None


@dataclass(frozen=True)
class SmallVariant:
    """What is otherwise in a variant's small form.

    Attributes:
        set: instead of the variant's.
        base: instead of the small form's.
        only_paper: why it is not trained.
    """

    _: KW_ONLY
    set: Mapping[str, Any] | None = None
    base: str | list[str] | None = None
    only_paper: str | None = None


@dataclass(frozen=True)
class SmallForm:
    """The same variants on a base that trains in minutes.

    Attributes:
        base: instead of the sweep's.
        set: instead of the sweep's.
        seeds: instead of the sweep's.
        variants: those that differ in more than the base.
    """

    _: KW_ONLY
    base: str | list[str]
    set: Mapping[str, Any] | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    variants: Mapping[str, SmallVariant | None] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepEntries:
    """A sweep's YAML.

    Attributes:
        base: the config, relative to this file; or several files, each with other sections of it.
        metrics: columns of the table, by what stands above them; the first decides the order of the variants.
        variants: rows of the table.
        title: of the table.
        set: values by dotted key, written over the base of all variants.
        seeds: of the runs of each variant.
        reference: the variant that others are compared with; the first that is trained.
        small: what `--small` trains.
    """

    _: KW_ONLY
    base: str | list[str]
    metrics: Mapping[str, str]
    variants: Mapping[str, Variant | None]
    title: str = ""
    set: Mapping[str, Any] | None = None
    seeds: list[int] = field(default_factory=lambda: [0])
    reference: str | None = None
    small: SmallForm | None = None
