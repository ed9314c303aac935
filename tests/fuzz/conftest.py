"""`make fuzz`: files named fuzz_*.py, which an ordinary test run does not collect."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

_from_workers: dict[str, Counter[str]] = {}


def _own_counts() -> dict[str, Counter[str]]:
    tally = sys.modules.get("tally")
    return {} if tally is None else dict(tally.COUNTS)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker hands its counts to the process that prints them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tally"] = {name: dict(counts) for name, counts in _own_counts().items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for name, counts in getattr(node, "workeroutput", {}).get("tally", {}).items():
        _from_workers.setdefault(name, Counter()).update(counts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many inputs were tried, and what became of them."""
    tallies = {**_own_counts(), **_from_workers}
    if not tallies:
        return
    terminalreporter.section("inputs")
    for name, counts in tallies.items():
        fates = ", ".join(f"{count} {fate}" for fate, count in counts.items())
        terminalreporter.write_line(f"{name:<28} {sum(counts.values()):>6}  {fates}")
    terminalreporter.write_line(f"{'all':<28} {sum(map(Counter.total, tallies.values())):>6}")
