"""How many inputs each target has seen, and the settings that all of them run with."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, settings

from toolbox.errors import ToolboxError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "2000"))
SLOWEST = 20  # seconds that one input may take

COUNTS: dict[str, Counter[str]] = defaultdict(Counter)

many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@contextlib.contextmanager
def refused_or_taken(target: str) -> Iterator[None]:
    """Count an input; a refusal is a ToolboxError with a text, anything else that is raised is a find."""

    def late(*_: Any) -> None:
        raise AssertionError(f"{target}: an input took more than {SLOWEST} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SLOWEST)
    try:
        yield
        COUNTS[target]["taken"] += 1
    except ToolboxError as error:
        assert str(error).strip(), f"{target}: refused without a word"
        assert "Traceback" not in str(error)
        COUNTS[target]["refused"] += 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
