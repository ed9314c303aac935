"""Every planted mistake gets one answer: where, what, and what to do next; exit status 2 and no traceback."""

from __future__ import annotations

import sys
from collections import Counter
from functools import cache
from pathlib import Path

import planted
import pytest
from planted import MISTAKES, Mistake

ROOT = Path(__file__).resolve().parents[2]
NAMES = [f"{mistake.kind}: {mistake.name}" for mistake in MISTAKES]


answer_to = cache(planted.answer_to)


@pytest.mark.parametrize("mistake", MISTAKES, ids=NAMES)
def test_a_mistake_is_located_named_and_answered(mistake: Mistake) -> None:
    outcome = answer_to(mistake)
    said = f"exit status {outcome.status}:\n{outcome.text}"
    assert outcome.status == 2 and "Traceback" not in outcome.text, said
    assert outcome.located(mistake), f"{mistake.at} is not in {said}"
    assert outcome.names_fault(mistake), f"{mistake.fault} is not in {said}"
    assert outcome.suggests(mistake), f"{mistake.suggestion} is not in {said}"
    assert outcome.is_one_message, said


def test_the_table_is_large_and_its_rows_differ() -> None:
    assert len(MISTAKES) >= 80
    assert not [name for name, count in Counter(NAMES).items() if count > 1]
    assert all(mistake.at and mistake.fault and mistake.suggestion for mistake in MISTAKES)


def test_the_page_of_messages_is_current() -> None:
    """What Python says in its own words, and how much space is free, is not compared."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from mistakes import row
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    page = (ROOT / "docs/messages.md").read_text(encoding="utf-8")
    stale = [
        line for mistake in MISTAKES if not mistake.quotes and (line := row(mistake, answer_to(mistake))) not in page
    ]
    assert not stale, "run `python benchmarks/mistakes.py > docs/messages.md`:\n" + "\n".join(stale)
