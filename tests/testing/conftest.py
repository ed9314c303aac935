"""The broken components are a package beside the tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolbox.registry import FAMILIES
from toolbox.sections import register_builtin

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def forget_what_the_test_registers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    register_builtin()
    for registry in FAMILIES.values():
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    yield
