"""What the launcher asks of glibc's allocator, and when it keeps its hands off."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import toolbox.cli
from toolbox.cli import allocator
from toolbox.cli.allocator import keep_memory
from toolbox.errors import ToolboxError

ROOT = Path(__file__).resolve().parents[2]
# Fresh pages that ten blocks of 40 MB, one after the other, cost: Linux counts the first touch of each as a fault.
# Blocks of up to 32 MB glibc learns by itself to keep.
TOUCH = """
import resource, sys
from toolbox.cli.allocator import keep_memory
print(len(keep_memory()))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytearray(40 * 2**20)[:: 4096] = b"x" * 10240
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
pytestmark = pytest.mark.skipif(not allocator._is_glibc(), reason="the C library is not glibc")


def touched(**environment: str) -> tuple[int, int]:
    """How much was set, and how many pages were fresh."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "RCNN_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", TOUCH], cwd=ROOT, env={**own, **environment}, capture_output=True, text=True, check=True
    )
    count, faults = done.stdout.split()
    return int(count), int(faults)


def test_memory_that_was_used_is_used_again() -> None:
    count, fresh = touched()
    assert count == 3 and fresh < 30_000  # a block or two, not ten of 10,240 pages
    assert touched(RCNN_MALLOC="system")[0] == 0
    assert touched(RCNN_MALLOC="system")[1] > 90_000


def test_what_a_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []

    class Library:
        @staticmethod
        def mallopt(number: object, value: object) -> int:
            calls.append((number.value, value.value))  # type: ignore[attr-defined]
            return 1

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: Library)
    assert keep_memory({"MALLOC_TOP_PAD_": "0"}) == ["MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"]
    assert calls == [(-4, 0), (-1, -1)]  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    assert keep_memory({"GLIBC_TUNABLES": "glibc.malloc.mmap_max=9:glibc.malloc.top_pad=1"}) == [
        "MALLOC_TRIM_THRESHOLD_"
    ]
    monkeypatch.setattr(allocator, "_is_glibc", lambda: False)
    assert keep_memory({}) == []


def test_a_word_that_is_none_is_refused_with_those_that_are() -> None:
    with pytest.raises(ToolboxError, match="RCNN_MALLOC is keep .* or system, got 'jemalloc'"):
        keep_memory({"RCNN_MALLOC": "jemalloc"})


@pytest.mark.parametrize(
    ("command", "set_"), [("train", True), ("eval", True), ("predict", True), ("sweep", True), ("check", False)]
)
def test_commands_that_compute_set_it_and_others_do_not(
    command: str, set_: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(allocator, "keep_memory", lambda: calls.append("set"))
    monkeypatch.setattr(sys, "argv", ["rcnn", command, "--help"])
    with pytest.raises(SystemExit):
        toolbox.cli.main()
    assert bool(calls) is set_
    with pytest.raises(SystemExit):
        toolbox.cli.main([command, "--help"])  # called by a program, whose allocator it is
    assert len(calls) == set_
