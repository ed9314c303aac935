"""What a model file says of the plugins it was trained with, and how they are found again elsewhere.

A model file holds weights and text, never code: a file that is passed on must stay safe to open. What it names is
looked for on the machine that opens it; a run folder keeps a copy of the files in `plugins/`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from toolbox.errors import CheckpointError, StorageError
from toolbox.plugins import (
    code_files,
    code_of,
    digest,
    installed_plugins,
    is_file,
    load_installed,
    loaded_plugins,
    registered_by,
    resolved,
)
from toolbox.registry import FAMILIES

FOLDER = "plugins"  # in a run folder

Kind = Literal["file", "module", "installed"]

log = logging.getLogger("toolbox")


@dataclass(frozen=True)
class PluginRecord:
    """A plugin as a model file names it.

    Attributes:
        entry: as the config lists it, files by absolute path; of an installed plugin the value of its entry point.
        written: as the user wrote it.
        kind: a path, an importable module, or a package that announces itself.
        names: of the components it registered.
        sha256: of its code; None where there was no source to read.
        distribution, version: of the installed package it is part of, where that is known.
    """

    entry: str
    written: str
    kind: Kind
    names: tuple[str, ...] = ()
    sha256: str | None = None
    distribution: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        name = Path(self.entry).name if self.kind == "file" else self.entry
        return f"{name} ({', '.join(self.names)})" if self.names else name

    @property
    def remedy(self) -> str:
        """What to do where it is missing."""
        if self.kind == "file":
            beside = f"put {Path(self.entry).name} beside the model file or into {FOLDER}/ of the run"
            return f"{beside}, or name it: rcnn predict --plugin FILE, Predictor(…, plugins=[FILE])"
        if self.distribution is None:
            return f"put the folder that holds {self.entry.partition('.')[0]} on PYTHONPATH"
        return f"pip install '{self.distribution}=={self.version}'"


def records_of(listed: Sequence[str], used: Collection[str]) -> tuple[PluginRecord, ...]:
    """The plugins that a config depends on: all that it lists, and installed ones of which it uses something.

    Args:
        listed: entries of `plugins:` as `load_plugin` returned them.
        used: names of the components in the config.
    """
    records = []
    for entry in listed:
        plugin = loaded_plugins[entry]
        kind: Kind = "file" if is_file(entry) else "module"
        package, version = (None, None) if kind == "file" else _distribution_of(entry)
        records.append(PluginRecord(entry, plugin.written, kind, registered_by(entry), plugin.sha256, package, version))
    for value, plugin in installed_plugins.items():
        names = tuple(name for name in plugin.names if name in used)
        if names and not any(set(names) <= set(record.names) for record in records):
            records.append(
                PluginRecord(value, value, "installed", names, plugin.sha256, plugin.distribution, plugin.version)
            )
    return tuple(records)


def _distribution_of(module: str) -> tuple[str | None, str | None]:
    top = module.partition(".")[0]
    names = importlib.metadata.packages_distributions().get(top)
    return (names[0], importlib.metadata.version(names[0])) if names else (None, None)


def write_records(records: Sequence[PluginRecord]) -> str:
    """Records as JSON."""
    return json.dumps([asdict(record) for record in records])


def read_records(text: str) -> tuple[PluginRecord, ...]:
    """What `write_records` wrote; fields that a newer toolbox adds are passed over.

    Raises:
        ValueError, TypeError, AttributeError: it is something else.
    """
    return tuple(map(_read_record, json.loads(text)))


def _read_record(one: Any) -> PluginRecord:
    known = PluginRecord.__dataclass_fields__
    fields: dict[str, Any] = {name: value for name, value in one.items() if name in known}
    record = PluginRecord(**{**fields, "names": tuple(fields.get("names", ()))})
    texts = (record.entry, record.written, *record.names)
    optional = (record.sha256, record.distribution, record.version)
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(text, str | None) for text in optional):
        raise ValueError("a field of a plugin is no text")
    if record.kind not in get_args(Kind):
        raise ValueError(f"no kind of plugin: {record.kind}")
    return record


def keep_files(listed: Sequence[str], run: Path) -> None:
    """Copy the files among a run's plugins into its folder, so that the run is complete.

    Args:
        listed: entries of `plugins:` as `load_plugin` returned them.
        run: the run folder; files go to `plugins/` in it.

    Raises:
        StorageError: the folder takes no files.
    """
    folder = run / FOLDER
    earlier = set(folder.glob("*"))
    for entry in filter(is_file, listed):
        source = Path(entry)
        if source.is_relative_to(folder.resolve()):
            continue  # a run that goes on with the copy it kept
        target = folder / source.name
        sha256 = digest(source)
        if target.exists() and digest(target) != sha256:  # another plugin of that name, or an earlier state of this one
            changed, target = target, folder / f"{source.stem}_{sha256[:8]}{source.suffix}"
            if changed in earlier and target not in earlier:
                log.warning("plugin %s is not what the run began with, %s; both are kept", source, changed)
        for file in code_files(source):
            copy = target if source.is_file() else target / file.relative_to(source)
            try:
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
            except OSError as error:
                raise StorageError(f"{copy}: the plugin cannot be copied: {error.strerror or error}") from error


@dataclass(frozen=True)
class Search:
    """Where the plugins of a model file are looked for.

    Args:
        model: the folder that holds the model file; a run's own copies lie in `plugins/` there.
        given: files and modules that the user names now; a file takes the place of the listed one of that name.
    """

    model: Path
    given: Sequence[str] = ()

    def entries(self, listed: Sequence[str], records: Sequence[PluginRecord]) -> list[str]:
        """What to load instead of `listed`: files where they are found now.

        Raises:
            CheckpointError: plugins are missing; all of them, each with what it registered and what to do.
            PluginError: what the user names is no path.
        """
        by_entry = {record.entry: record for record in records}
        found, missing = [], []
        given = [str(resolved(entry, Path())) if is_file(entry) else entry for entry in self.given]
        for entry in listed:
            kind: Kind = "file" if is_file(entry) else "module"
            record = by_entry.get(entry, PluginRecord(entry, entry, kind))
            place = self._place(record, given)
            if place is not None:
                _warn_of_change(record, code_of(place), self.model)
                found.append(place)
            elif not given:  # what the user gives may stand for it under another name; a missing component says so
                missing.append(record)
        if missing:
            raise CheckpointError(_absent(missing))
        return [*found, *(entry for entry in given if entry not in found)]

    def _place(self, record: PluginRecord, given: Sequence[str]) -> str | None:
        """Where a listed plugin is now."""
        if record.kind == "module":
            return record.entry if _importable(record.entry.partition(".")[0]) else None
        path = self.model / record.entry  # absolute, unless someone edited a run's config
        replacement = next((entry for entry in given if is_file(entry) and Path(entry).name == path.name), None)
        if replacement is not None:
            return replacement
        if path.exists():
            return str(path)
        beside = [self.model / FOLDER / path.name, self.model / path.name]
        # A model file must not choose which script of the current folder runs: there, only the very same code is meant.
        here = [Path(record.written), Path(path.name)]
        kept = _kept_copy(record, self.model)
        same = [copy for copy in (*beside, *here) if _holds_code(copy) and digest(copy) == record.sha256]
        near = [*([kept] if kept else []), *same, *filter(_holds_code, beside)]
        if not near:
            return None
        log.info("plugin %s is no longer at %s; using %s", record, path, near[0])
        return str(near[0].resolve())


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # '', '__main__'
        return False


def _holds_code(path: Path) -> bool:
    return path.is_file() or (path / "__init__.py").is_file()


def _kept_copy(record: PluginRecord, model: Path) -> Path | None:
    """The copy that the run kept, code for code what was trained; its name may differ."""
    copies = [copy for copy in sorted((model / FOLDER).glob("*")) if _holds_code(copy)]
    return next((copy for copy in copies if digest(copy) == record.sha256), None)


def _warn_of_change(record: PluginRecord, code: Path | None, model: Path) -> None:
    if record.sha256 is None or code is None or digest(code) == record.sha256:
        return
    kept = _kept_copy(record, model)
    advice = f"; as it was then, it is {kept}" if kept else ""
    log.warning("plugin %s has changed since the model was trained with it: %s%s", record, code, advice)


def check_installed(records: Sequence[PluginRecord]) -> None:
    """See that what installed packages brought is there, and warn where it is of another version.

    Raises:
        CheckpointError: components are not registered, with the package that had them and its version.
    """
    failures = load_installed()
    known = {name for family in FAMILIES.values() for name in family}
    installed = [record for record in records if record.kind == "installed"]
    missing = [record for record in installed if not known.issuperset(record.names)]
    if missing:
        raise CheckpointError("\n".join([_absent(missing), *(f"  {failure}" for failure in failures)]))
    for record in installed:
        now = installed_plugins.get(record.entry)
        if now is not None and now.version != record.version:
            log.warning(
                "plugin %s was version %s of %s when the model was trained, and is %s now",
                record,
                record.version,
                record.distribution,
                now.version,
            )


def _absent(missing: Sequence[PluginRecord]) -> str:
    lines = []
    for record in missing:
        package = f", part of {record.distribution} {record.version}" if record.distribution else ""
        registered = f"; it registered {', '.join(record.names)}" if record.names else ""
        lines.append(f"  {record.kind} plugin {record.entry}{package}{registered}: {record.remedy}")
    return "\n".join(["the model needs what is not here:", *lines])
