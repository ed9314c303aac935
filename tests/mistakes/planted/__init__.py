"""The planted mistakes: what users get wrong, and what an answer to each must say.

Data, so that both the test (tests/mistakes) and the table (benchmarks/mistakes.py, docs/messages.md) are made of it.
"""

from __future__ import annotations

from planted import annotation_files, command_lines, names, plugins, runs, sweeps, values, weights, wiring, yaml_text
from planted.mistake import Mistake, Outcome, answer_to, run

MISTAKES: tuple[Mistake, ...] = (
    *yaml_text.MISTAKES,
    *names.MISTAKES,
    *values.MISTAKES,
    *command_lines.MISTAKES,
    *wiring.MISTAKES,
    *plugins.MISTAKES,
    *annotation_files.MISTAKES,
    *weights.MISTAKES,
    *runs.MISTAKES,
    *sweeps.MISTAKES,
)

__all__ = ["MISTAKES", "Mistake", "Outcome", "answer_to", "run"]
