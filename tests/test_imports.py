"""Imports go down only: the floors of docs/architecture.md, read from the source of every module."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "toolbox"
MODULES = sorted(PACKAGE.rglob("*.py"))


def read_floors(text: str) -> dict[str, int]:
    """`0. \\`errors\\`` … under the heading Floors → module or package name without `toolbox.` → floor."""
    section = text.split("## Floors")[1].split("\n## ")[0]
    floors = {}
    for number, line in re.findall(r"^(\d+)\. (.+)$", section, flags=re.MULTILINE):
        for entry in re.findall(r"`([^`]+)`", line):
            parent, _, last = entry.rpartition(".")
            for name in last.split("|"):
                floors[f"{parent}.{name}" if parent else name] = int(number)
    return floors


FLOORS = read_floors((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    """`toolbox/models/boxes/iou.py` → `models.boxes.iou`; the package itself is ``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def home(name: str) -> str | None:
    """The longest entry of the floors that holds a module."""
    while name:
        if name in FLOORS:
            return name
        name = name.rpartition(".")[0]
    return None


def is_package(name: str) -> bool:
    return (PACKAGE / Path(*name.split(".")) / "__init__.py").exists() if name else True


def type_checking_only(tree: ast.Module) -> set[ast.AST]:
    """Nodes under `if TYPE_CHECKING:`, which never run."""
    return {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for statement in branch.body
        for node in ast.walk(statement)
    }


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name, without `toolbox.`, of every module of the toolbox that a file imports, at any depth."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = type_checking_only(tree)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the full name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, inside = name.partition(".")
            if package == "toolbox" and inside:
                yield node.lineno, inside


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_module_imports_nothing_from_a_higher_floor(path: Path) -> None:
    name = module_name(path)
    if not name or (is_package(name) and home(name) is None):
        return  # `toolbox` itself loads its names on first use; `toolbox.models` is only a folder
    own = home(name)
    assert own is not None, f"{name} is on no floor of docs/architecture.md"
    wrong = []
    for line, imported in imports(path):
        other = home(imported)
        if other is not None and FLOORS[other] > FLOORS[own]:
            wrong.append(f"{path.name}:{line}: {own} (floor {FLOORS[own]}) imports {imported} (floor {FLOORS[other]})")
    assert not wrong, "\n".join(wrong)


def test_data_and_models_do_not_import_each_other() -> None:
    wrong = [
        f"{path}:{line} imports {imported}"
        for path in MODULES
        for line, imported in imports(path)
        if (first := module_name(path).split(".")[0]) in ("data", "models")
        and imported.split(".")[0] == {"data": "models", "models": "data"}[first]
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_builder_of_the_models_reads_configs() -> None:
    components = [p for p in MODULES if module_name(p).split(".")[0] in ("models", "data", "ops", "masks")]
    wrong = [
        f"{path}:{line} imports {imported}"
        for path in components
        if module_name(path) != "models.builder"
        for line, imported in imports(path)
        if imported.split(".")[0] in ("config", "schema", "sections")
    ]
    assert not wrong, "\n".join(wrong)


def test_only_ops_and_masks_import_the_compiled_modules() -> None:
    wrong = [
        f"{path}:{line} imports {imported}"
        for path in MODULES
        if module_name(path).split(".")[0] not in ("ops", "masks")
        for line, imported in imports(path)
        if any(part.startswith("_native") or part.startswith("_C") for part in imported.split("."))
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_command_line_prints() -> None:
    calls = [
        f"{path}:{node.lineno}"
        for path in MODULES
        if module_name(path).split(".")[0] != "cli"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not calls, "print outside toolbox/cli: " + ", ".join(calls)


def test_the_floors_are_read_from_the_architecture_page() -> None:
    assert FLOORS["errors"] == 0 and FLOORS["structures"] == 1 and FLOORS["models.boxes"] == 2
    assert FLOORS["models.rpn"] == FLOORS["data"] == 3 and FLOORS["cli"] == max(FLOORS.values())


def test_importing_the_package_or_its_command_line_does_not_load_torch() -> None:
    code = "import sys, toolbox, toolbox.cli; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"torch was loaded: {done.stderr}"
