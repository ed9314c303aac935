"""Loads a user's components: files and modules named under `plugins:`, and installed packages that announce themselves.

Importing a plugin runs its `@FAMILY.register` lines; nothing else is asked of it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import os
import sys
import traceback
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from toolbox.errors import ToolboxError
from toolbox.registry import FAMILIES

GROUP = "toolbox.plugins"

log = logging.getLogger("toolbox")

_brought: dict[str, tuple[str, ...]] = {}  # entry as `load_plugin` returns it → what its import registered


class PluginError(ToolboxError):
    """A plugin that cannot be imported; the text says why, and where in its code."""


def is_file(entry: str) -> bool:
    """Whether an entry of `plugins:` is a path (`./heads.py`), not a module (`package.heads`)."""
    return entry.endswith(".py") or "/" in entry or os.sep in entry


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
    loaded = _load(entry, folder)
    _brought[loaded] = tuple(sorted({*_brought.get(loaded, ()), *(_registered() - before)}))
    return loaded


def registered_by(loaded: str) -> tuple[str, ...]:
    """Names of the components that a plugin has registered.

    Args:
        loaded: what `load_plugin` returned.
    """
    module = _module_name(Path(loaded)) if is_file(loaded) else loaded
    own = {
        name
        for family in FAMILIES.values()
        for name in family
        if f"{family.get(name).__module__}.".startswith(f"{module}.")  # imported earlier, by something else
    }
    return tuple(sorted({*_brought.get(loaded, ()), *own}))


class Loaded:
    """All plugins of this process; where one of these is unpickled, they are loaded.

    A component from a plugin's file pickles as a name in a module that only `load_plugin` can import. A process that
    starts afresh (a loader's worker under `spawn` or `forkserver`) has not done so; what it is sent begins with this.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_again, (tuple(_brought),)


def _load_again(entries: tuple[str, ...]) -> Loaded:
    for entry in entries:
        try:
            load_plugin(entry, Path("."))
        except PluginError as error:  # it may not be needed; if it is, unpickling what needs it fails
            log.warning("plugin '%s' cannot be loaded in process %d: %s", entry, os.getpid(), error)
    return Loaded()


def _registered() -> set[str]:
    return {name for family in FAMILIES.values() for name in family}


def _load(entry: str, folder: Path) -> str:
    if is_file(entry):
        path = (folder / Path(entry).expanduser()).resolve()
        _import_file(path)
        return str(path)
    try:
        importlib.import_module(entry)
    except ModuleNotFoundError as error:
        if error.name is not None and (entry == error.name or entry.startswith(f"{error.name}.")):
            raise PluginError(
                f"no module named '{error.name}'; a file is written as a path, e.g. ./{entry}.py"
            ) from error
        raise PluginError(_reason(error)) from error
    except Exception as error:
        raise PluginError(_reason(error)) from error
    return entry


@cache
def load_installed() -> tuple[str, ...]:
    """Import what installed packages announce under the entry point group `toolbox.plugins`.

    A broken package must not stop a run that does not use it, so failures are returned, and logged with reasons.
    """
    failures = []
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            failures.append(f"installed plugin '{entry.name}' ({entry.value}) failed to import")
            log.warning("%s: %s", failures[-1], _reason(error))
    return tuple(failures)


def _import_file(path: Path) -> None:
    source = path / "__init__.py" if path.is_dir() else path
    if not source.is_file():
        raise PluginError(
            f"no file {source}; a path is relative to the config's folder, in an override to the current folder"
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
    except Exception as error:
        del sys.modules[name]
        raise PluginError(_reason(error, path)) from error


def _module_name(path: Path) -> str:
    """The path makes the name unique, so that two files called heads.py can both be plugins."""
    return f"toolbox_plugin_{path.stem}_{hashlib.sha1(str(path).encode()).hexdigest()[:8]}"


def _reason(error: Exception, inside: Path | None = None) -> str:
    """`ModuleNotFoundError: No module named 'x' (heads.py, line 3)`: the innermost line of the plugin's own code."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}, line {error.lineno})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    own = [f for f in frames if f.filename != __file__ and f.filename != importlib.__file__]
    if inside is not None:
        own = [f for f in own if Path(f.filename).is_relative_to(inside)] or own
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{where}"
