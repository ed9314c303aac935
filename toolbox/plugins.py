"""Loads a user's components: files and modules named under `plugins:`, and installed packages that announce themselves.

Importing a plugin runs its `@FAMILY.register` lines; nothing else is asked of it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from toolbox.errors import ToolboxError, did_you_mean, near_path
from toolbox.registry import FAMILIES

GROUP = "toolbox.plugins"

log = logging.getLogger("toolbox")


@dataclass(frozen=True)
class LoadedPlugin:
    """What is known of a plugin that was imported.

    Attributes:
        written: the entry as the user wrote it.
        names: of the components that its import registered.
        sha256: of its code when it was imported; None where there is no source to read.
        distribution, version: of the installed package it came with, if it announced itself.
    """

    written: str
    names: tuple[str, ...]
    sha256: str | None
    distribution: str | None = None
    version: str | None = None


loaded_plugins: dict[str, LoadedPlugin] = {}  # by the entry as `load_plugin` returns it
installed_plugins: dict[str, LoadedPlugin] = {}  # by the value of the entry point, e.g. `package.module`


class PluginError(ToolboxError):
    """A plugin that cannot be imported; the text says why, and where in its code."""


def is_file(entry: str) -> bool:
    """Whether an entry of `plugins:` is a path (`./heads.py`), not a module (`package.heads`)."""
    return entry.endswith(".py") or "/" in entry or os.sep in entry


def resolved(entry: str, folder: Path) -> Path:
    """The absolute path of an entry that is a file or folder.

    Raises:
        PluginError: no path can be like that.
    """
    try:
        return (folder / Path(entry).expanduser()).resolve()
    except (ValueError, RuntimeError, OSError) as error:  # a zero byte, a user who is not there, a loop of links
        raise PluginError(f"{entry!r} is no path: {error}") from error


def load_plugin(entry: str, folder: Path) -> str:
    """Import a plugin, once per process.

    Args:
        entry: a file or package folder, relative to `folder`, or the name of an importable module.

    Returns:
        The entry as it can be loaded from anywhere: an absolute path, or the module's name.

    Raises:
        PluginError: with the reason, file and line.
    """
    before = _registered()
    code = code_of(entry, folder)
    sha256 = None if code is None else digest(code)
    same = _loaded_elsewhere(code, sha256)
    if code is not None and same is not None:
        # The copy that a run keeps, read in the process that trained it: importing it would register all names again.
        loaded_plugins[str(code)] = same
        return str(code)
    loaded = _load(entry, folder)
    earlier = loaded_plugins.get(loaded)
    names = {*(earlier.names if earlier else ()), *(_registered() - before)}
    kept = earlier.sha256 if earlier else sha256
    loaded_plugins[loaded] = LoadedPlugin(entry, tuple(sorted(names)), kept)
    return loaded


def registered_by(loaded: str) -> tuple[str, ...]:
    """Names of the components that a plugin has registered.

    Args:
        loaded: what `load_plugin` returned.
    """
    module = _module_name(Path(loaded)) if is_file(loaded) else loaded
    known = loaded_plugins.get(loaded)
    return tuple(sorted({*(known.names if known else ()), *_names_in(module)}))


def code_of(entry: str, folder: Path = Path(".")) -> Path | None:
    """The file or package folder that an entry of `plugins:` is read from; None where there is none.

    Raises:
        PluginError: importing the package that holds a module fails.
    """
    if is_file(entry):
        path = resolved(entry, folder)
        return path if path.exists() else None
    try:
        spec = importlib.util.find_spec(entry)
    except ModuleNotFoundError:
        return None  # importing it says what is missing
    except Exception as error:
        raise PluginError(_reason(error)) from error
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return None
    return Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)


def code_files(path: Path) -> Iterator[Path]:
    """The Python files of a plugin: itself, or those of a package folder and of the packages in it."""
    if path.is_file():
        yield path
        return
    yield from sorted(path.glob("*.py"))
    for folder in sorted(inner.parent for inner in path.glob("*/__init__.py")):
        yield from code_files(folder)


def plugin_files() -> Iterator[str]:
    """The Python files of all plugins of this process."""
    for entry in (*loaded_plugins, *(value.partition(":")[0] for value in installed_plugins)):
        code = code_of(entry)
        if code is not None:
            yield from map(str, code_files(code))


def digest(path: Path) -> str:
    """SHA-256 of a plugin's code, as hexadecimal digits; for a package, of its files' names and texts."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    whole = hashlib.sha256()
    for file in code_files(path):
        whole.update(f"{file.relative_to(path).as_posix()}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\0".encode())
    return whole.hexdigest()


def _loaded_elsewhere(code: Path | None, sha256: str | None) -> LoadedPlugin | None:
    """The plugin of the same code that was loaded from another path, if all its components are still registered."""
    for entry, plugin in loaded_plugins.items():
        same = code is not None and is_file(entry) and entry != str(code) and plugin.sha256 == sha256
        if same and plugin.names and _registered().issuperset(plugin.names):
            return plugin
    return None


class Loaded:
    """All plugins of this process; where one of these is unpickled, they are loaded.

    A component from a plugin's file pickles as a name in a module that only `load_plugin` can import. A process that
    starts afresh (a loader's worker under `spawn` or `forkserver`) has not done so; what it is sent begins with this.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_again, (tuple(loaded_plugins),)


def _load_again(entries: tuple[str, ...]) -> Loaded:
    for entry in entries:
        try:
            load_plugin(entry, Path("."))
        except PluginError as error:  # it may not be needed; if it is, unpickling what needs it fails
            log.warning("plugin '%s' cannot be loaded in process %d: %s", entry, os.getpid(), error)
    return Loaded()


def _registered() -> set[str]:
    return {name for family in FAMILIES.values() for name in family}


def _names_in(module: str) -> set[str]:
    """Components of a module and what lies in it, also where something else had imported it before."""
    return {
        name
        for family in FAMILIES.values()
        for name in family
        if f"{family.get(name).__module__}.".startswith(f"{module}.")
    }


def _load(entry: str, folder: Path) -> str:
    if is_file(entry):
        path = resolved(entry, folder)
        _import_file(path, folder)
        return str(path)
    try:
        importlib.import_module(entry)
    except ModuleNotFoundError as error:
        if error.name is not None and (entry == error.name or entry.startswith(f"{error.name}.")):
            is_folder = (folder / entry / "__init__.py").is_file()
            kind, example = ("folder", entry) if is_folder else ("file", f"{entry}.py")
            raise PluginError(
                f"no module named '{error.name}'; a {kind} is written as a path, e.g. ./{example}"
            ) from error
        raise PluginError(_reason(error, _package_of(entry))) from error
    except (Exception, SystemExit) as error:
        raise PluginError(_reason(error, _package_of(entry))) from error
    return entry


@cache
def load_installed() -> tuple[str, ...]:
    """Import what installed packages announce under the entry point group `toolbox.plugins`.

    A broken package must not stop a run that does not use it, so failures are returned, and logged. They are said again
    where a name is missing, which the package might have brought.
    """
    failures = []
    for entry in entry_points(group=GROUP):
        try:
            _load_installed(entry)
        except (Exception, SystemExit) as error:
            package = f", of {entry.dist.name} {entry.dist.version}" if entry.dist else ""
            reason = _reason(error, _package_of(entry.module))
            failures.append(f"installed plugin '{entry.name}' ({entry.value}{package}) failed to import: {reason}")
            log.warning(failures[-1])
    return tuple(failures)


def _load_installed(entry: EntryPoint) -> None:
    before = _registered()
    entry.load()
    names = {*(_registered() - before), *_names_in(entry.module.partition(".")[0])}
    code = code_of(entry.module)
    installed_plugins[entry.value] = LoadedPlugin(
        written=entry.value,
        names=tuple(sorted(names)),
        sha256=None if code is None else digest(code),
        distribution=entry.dist.name if entry.dist else None,
        version=entry.dist.version if entry.dist else None,
    )


def _package_of(module: str) -> Path | None:
    """Folder or file of the package that holds a module; None where it is not there."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin:
        return None
    return Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)


def _import_file(path: Path, folder: Path) -> None:
    source = path / "__init__.py" if path.is_dir() else path
    if not source.is_file():
        kept = folder / "plugins" / path.name  # where a run keeps its copies, and people their plugins
        near = f"; did you mean '{kept}'?" if kept.exists() else near_path(path)
        raise PluginError(
            f"no file {source}{near}; a path is relative to the config's folder, in an override to the current folder"
        )
    name = _module_name(path)
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        name, source, submodule_search_locations=[str(path)] if path.is_dir() else None
    )
    if spec is None or spec.loader is None:
        raise PluginError(f"{source} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script that ends itself must not end the command
        del sys.modules[name]
        raise PluginError(_reason(error, path)) from error


def _module_name(path: Path) -> str:
    """The path makes the name unique, so that two files called heads.py can both be plugins."""
    return f"toolbox_plugin_{path.stem}_{hashlib.sha1(str(path).encode()).hexdigest()[:8]}"


def _reason(error: BaseException, inside: Path | None = None) -> str:
    """`ModuleNotFoundError: No module named 'x' (heads.py, line 3)`: the innermost line of the plugin's own code."""
    if isinstance(error, SyntaxError):
        if error.filename is None:  # zero bytes, or bytes that are no text
            return f"{inside or 'the file'} is not Python source: {error.msg}"
        return f"SyntaxError: {error.msg} ({error.filename}, line {error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    machinery = (__file__, importlib.__file__, importlib.metadata.__file__)
    own = [f for f in frames if f.filename not in machinery]
    if inside is not None:
        own = [f for f in own if Path(f.filename).is_relative_to(inside)] or own
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{where}{_remedy(error)}"


def _remedy(error: BaseException) -> str:
    """What to do about an import inside a plugin that fails."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"; install it into this environment, or remove the import of '{error.name}'"
    if isinstance(error, ImportError) and error.name in sys.modules:
        wanted = re.search(r"cannot import name '(\w+)'", str(error))
        return did_you_mean(wanted[1], dir(sys.modules[error.name])) if wanted else ""
    return ""
