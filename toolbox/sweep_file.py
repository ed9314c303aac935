"""Reading a sweep: a base config and its variants, each a few values written over it, whose runs make one table.

What its YAML may hold stands in `toolbox.sweep_schema`, what it becomes once its configs are checked in
`toolbox.engine.sweep`. Nothing here needs torch: a misspelt key of a variant is reported as quickly as one of a config.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolbox.config import check
from toolbox.errors import ConfigError, Problem, did_you_mean
from toolbox.metric_names import split_metric
from toolbox.precheck import precheck_nodes, read_text
from toolbox.sweep_messages import absent_base, note_forms, refuse_config
from toolbox.sweep_schema import SmallForm, SweepEntries, Variant
from toolbox.yaml_nodes import Findings, Node, Place, apply_override, parse, put_value

_SECTIONS = "a sweep has base, metrics and variants"
_SEED = "train.seed"


@dataclass(frozen=True)
class VariantText:
    """A variant as it was read; its config is not checked yet.

    Attributes:
        name: in the table.
        slug: name of its folder.
        paper: published values by metric, in percent.
        only_paper: why it is not trained, or None.
        base: the file that plugins are relative to, and that messages name.
        root: its whole config, or None if it is not trained, or could not be read.
    """

    name: str
    slug: str
    paper: Mapping[str, float]
    only_paper: str | None
    base: Path
    root: Node | None

    def nodes(self, seed: int) -> Node:
        """The config of one run, to be checked."""
        root = copy.deepcopy(self.root)
        assert root is not None, f"{self.name} is not trained"
        put_value(root, _SEED, Node(seed, Place(source="seeds")), Findings())
        return root


@dataclass(frozen=True)
class SweepText:
    """A sweep as it was read.

    Attributes:
        path: of the file.
        title: of the table.
        small: whether it is the small form.
        metrics: column → (kind, name) of the evaluation.
        metric_places: column → where it is written.
        seeds: of the runs.
        reference: name of the variant that others are compared with.
        variants: in the order of the file.
        problems: of the sweep's own text; whoever checks the configs raises them with theirs.
    """

    path: Path
    title: str
    small: bool
    metrics: Mapping[str, tuple[str, str]]
    metric_places: Mapping[str, Place]
    seeds: tuple[int, ...]
    reference: str
    variants: tuple[VariantText, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def trained(self) -> tuple[VariantText, ...]:
        """The variants that are not the paper's alone."""
        return tuple(variant for variant in self.variants if variant.only_paper is None)

    @property
    def readable(self) -> tuple[VariantText, ...]:
        """Those of them whose config can be looked at."""
        return tuple(variant for variant in self.trained if variant.root is not None)


def read_sweep(path: str | Path, overrides: Sequence[str] = (), *, small: bool = False) -> SweepText:
    """Read a sweep and write each variant's values over its base.

    Args:
        overrides: `key=value`, written over every variant.
        small: the small form.

    Raises:
        ConfigError: the YAML has another form than a sweep's: every problem, each with its place.
    """
    path = Path(path)
    findings = Findings()
    root = parse(read_text(path), str(path), findings, sections=_SECTIONS)
    refuse_config(root, path)
    note_forms(root, findings)
    plan = check(root, SweepEntries, findings)
    findings.raise_any()
    return _Reader(path, root, plan.build(), tuple(overrides), small, findings).sweep()


def precheck_sweep(sweep: SweepText) -> None:
    """Refuse a sweep with a variant whose text is wrong.

    Raises:
        ConfigError: every problem of every variant, each with its place.
    """
    found: dict[str, Sequence[Problem]] = {}
    for variant in sweep.readable:
        findings = Findings()
        try:
            if precheck_nodes(variant.nodes(seed=0), findings) is None:
                return  # the whole check says all that is wrong
            findings.raise_any()
        except ConfigError as error:
            found[variant.name] = error.problems
    raise_gathered(found, len(sweep.trained), sweep.problems)


def raise_gathered(found: Mapping[str, Sequence[Problem]], variants: int, own: Sequence[Problem] = ()) -> None:
    """Raise the problems of several variants, each once; with the variants that have it, where those are not all.

    Args:
        found: problems by the variant's name.
        variants: how many have been looked at.
        own: problems of the sweep itself.
    """
    having: dict[Problem, list[str]] = {}
    for name, problems in found.items():
        for problem in dict.fromkeys(problems):
            having.setdefault(problem, []).append(name)
    if having or own:
        raise ConfigError([*own, *(_told_of(problem, names, variants) for problem, names in having.items())])


def _told_of(problem: Problem, names: Sequence[str], variants: int) -> Problem:
    if len(names) == variants > 1:
        return problem
    listed = ", ".join(f"'{name}'" for name in names)
    return Problem(
        problem.where, problem.key, f"{problem.message} (in variant{'s' if len(names) > 1 else ''} {listed})"
    )


class _Reader:
    """The steps of `read_sweep` after the form of the YAML has been checked."""

    def __init__(
        self, path: Path, root: Node, said: SweepEntries, overrides: tuple[str, ...], small: bool, findings: Findings
    ) -> None:
        self.path = path
        self.root = root
        self.said = said
        self.overrides = overrides
        self.small = small
        self.findings = findings
        self.form: SweepEntries | SmallForm = said
        self.form_node = root
        if small:
            if said.small is None:
                raise ConfigError([Problem(str(path), "", "the sweep has no section 'small:', which --small trains")])
            self.form, self.form_node = said.small, root.value["small"]

    def sweep(self) -> SweepText:
        for number, override in enumerate(self.overrides):
            self._refuse_seed(override.partition("=")[0], Place.on_command_line(number, override))
        metrics = {name: self._metric(name, value) for name, value in self.said.metrics.items()}
        variants = tuple(self._variant(name, entry) for name, entry in self.said.variants.items())
        self._check_names(variants)
        seeds, reference = self._seeds(), self._reference(variants)
        places = {name: self.root.value["metrics"].value[name].place for name in metrics}
        found = self.findings.problems
        return SweepText(self.path, self.said.title, self.small, metrics, places, seeds, reference, variants, found)

    # Rows

    def _variant(self, name: str, said: Variant | None) -> VariantText:
        own = self.root.value["variants"].value[name]
        changes = _entry(_entry(self.form_node, "variants"), name) if self.small else None
        paper = said.paper if said is not None else {}
        for metric in paper:
            if metric not in self.said.metrics:
                near = did_you_mean(metric, self.said.metrics) or f"; there are {', '.join(self.said.metrics)}"
                place = own.value["paper"].key_places[metric]
                self.findings.add(place, f"variants.{name}.paper", f"'{metric}' is none of the sweep's metrics{near}")
        reason = _entry(own, "only_paper") or _entry(changes, "only_paper")
        base, root = self.path, None
        if reason is None:
            base, root = self._config(name, own, changes)
        slug = re.sub(r"[^\w.]+", "-", name.casefold()).strip("-.")
        return VariantText(name, slug, paper, None if reason is None else reason.value, base, root)

    def _config(self, name: str, own: Node, changes: Node | None) -> tuple[Path, Node | None]:
        """The variant's first base file, and its values written over the base."""
        base = _entry(changes, "base")
        if base is None and self.small and _entry(own, "base") is not None:
            message = f"it has a base of its own; small.variants.{name} needs one too"
            self.findings.add(own.value["base"].place, f"variants.{name}", message)
        base = base or (None if self.small else _entry(own, "base")) or self.form_node.value["base"]
        known = len(self.findings)
        path, root = self._base(base)
        if root is not None:
            self._write(root, _entry(self.form_node, "set"))
            self._write(root, _entry(changes, "set") or _entry(own, "set"))
            for number, override in enumerate(self.overrides):
                apply_override(root, override, number, self.findings)
        return path, root if len(self.findings) == known else None

    def _base(self, node: Node) -> tuple[Path, Node | None]:
        """The first of a base's files, and the nodes of all as one config."""
        entries = node.value if node.is_list else [node]
        if not entries:
            self.findings.add(node.place, "base", "expected a file, or a list of files, got an empty list")
            return self.path, None
        merged: Node | None = None
        for entry in entries:
            file = self.path.parent / entry.value
            if not file.exists():
                self.findings.add(entry.place, "base", absent_base(self.path, entry.value))
                continue
            try:
                part = parse(read_text(file), str(file), self.findings)
            except ConfigError as error:
                for problem in error.problems:  # of the YAML, where it has a line; else of the path
                    inside = problem.where != str(file)
                    place = Place(source=problem.where) if inside else entry.place
                    self.findings.add(place, "" if inside else "base", problem.message)
                continue
            merged = part if merged is None else self._joined(merged, part)
        return self.path.parent / entries[0].value, merged

    def _joined(self, merged: Node, part: Node) -> Node:
        for section, child in part.value.items():
            place = part.key_places[section]
            if section in merged.value:
                message = f"it also stands in {merged.key_places[section]}; a base's files have different sections"
                self.findings.add(place, str(section), message)
            else:
                merged.put(section, child)
        return merged

    def _write(self, root: Node, values: Node | None) -> None:
        for key, value in values.value.items() if values is not None else ():
            self._refuse_seed(key, value.place)
            put_value(root, key, value, self.findings)

    def _refuse_seed(self, key: str, place: Place) -> None:
        if key == _SEED:
            self.findings.add(place, key, "each variant is trained with each of the sweep's seeds; set those (--seeds)")

    # Columns, and what holds for all rows

    def _metric(self, name: str, value: str) -> tuple[str, str]:
        try:
            return split_metric(value)
        except ValueError as error:
            self.findings.add(self.root.value["metrics"].value[name].place, f"metrics.{name}", str(error))
        return "", ""

    def _seeds(self) -> tuple[int, ...]:
        seeds = self.form.seeds
        if not seeds or min(seeds) < 0 or len({*seeds}) < len(seeds):
            place = self.form_node.value["seeds"].place
            self.findings.add(place, "seeds", f"expected different whole numbers from 0 on, got {seeds}")
        return tuple(seeds)

    def _check_names(self, variants: Sequence[VariantText]) -> None:
        rows = self.root.value["variants"]
        if not self.said.metrics:
            self.findings.add(self.root.value["metrics"].place, "metrics", "name at least one, e.g. {AP: segm.AP}")
        if all(variant.only_paper is not None for variant in variants):
            self.findings.add(rows.place, "variants", "there is none to train")
        slugs: dict[str, str] = {}
        for variant in (variant for variant in variants if variant.only_paper is None):
            other = slugs.setdefault(variant.slug, variant.name)
            if not variant.slug or other != variant.name:
                why = f"would share its folder with '{other}'" if variant.slug else "makes no name of a folder"
                self.findings.add(rows.key_places[variant.name], "variants", f"'{variant.name}' {why}; rename it")
        for name in self.said.small.variants if self.said.small is not None else ():
            if name not in self.said.variants:
                place = self.root.value["small"].value["variants"].key_places[name]
                near = did_you_mean(name, self.said.variants)
                self.findings.add(place, "small.variants", f"there is no variant '{name}'{near}")

    def _reference(self, variants: Sequence[VariantText]) -> str:
        wanted = self.said.reference
        trained = [variant.name for variant in variants if variant.only_paper is None]
        if wanted is None or wanted in trained:
            return wanted or next(iter(trained), "")
        known = any(variant.name == wanted for variant in variants)
        why = "is not trained" if known else f"is no variant{did_you_mean(wanted, [v.name for v in variants])}"
        self.findings.add(self.root.value["reference"].place, "reference", f"'{wanted}' {why}")
        return ""


def _entry(node: Node | None, name: str) -> Node | None:
    """An entry of a mapping that may be left out, as may the entry."""
    child = node.value.get(name) if node is not None and node.is_mapping else None
    return None if child is None or child.value is None else child
