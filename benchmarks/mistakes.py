"""The answers to the planted mistakes of tests/mistakes, as a page of Markdown: docs/messages.md is its output.

    python benchmarks/mistakes.py > docs/messages.md

Each mistake is made in a folder of its own by the command that stands in the table; what the answer must say (where,
what is wrong, what is right) was written down before, beside the mistake.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/mistakes"))

from planted import MISTAKES, Mistake, Outcome, answer_to  # noqa: E402 - the table lies with its test

HEAD = """\
# Messages

What a user gets wrong, and the answer. Made by `python benchmarks/mistakes.py > docs/messages.md`; the mistakes stand
in tests/mistakes, with what each answer must say. *Located*: the file, line and column, the record or the argument is
named. *Suggestion right*: the wrong thing is named, and the answer says what was meant or what to do, as written down
beside the mistake. Of an answer of several lines, the one that says where is quoted. What begins with `warning:` is
what `rcnn check` only warns of; here it was asked to be strict (`--strict`), without which it goes on.
"""


def row(mistake: Mistake, outcome: Outcome) -> str:
    """One line of the table."""
    message = outcome.first_line(mistake).replace("|", "\\|").replace("`", "'")
    message = re.sub(r"[\d,]+ MB are free", "… MB are free", message)  # or the page would change with every disk
    right = outcome.names_fault(mistake) and outcome.suggests(mistake)
    cells = (mistake.name, f"`{message}`", _mark(outcome.located(mistake)), _mark(right))
    return f"| {' | '.join(cells)} |"


def _mark(good: bool) -> str:
    return "yes" if good else "**no**"


def totals(outcomes: Iterable[tuple[Mistake, Outcome]]) -> str:
    """How many are located, answered rightly, and refused as they should be."""
    known = list(outcomes)
    located = sum(outcome.located(mistake) for mistake, outcome in known)
    right = sum(outcome.names_fault(mistake) and outcome.suggests(mistake) for mistake, outcome in known)
    refused = sum(outcome.status == 2 and "Traceback" not in outcome.text for _, outcome in known)
    return (
        f"{len(known)} mistakes: {located} located, {right} with the right suggestion, "
        f"{refused} refused with exit status 2 and no traceback."
    )


def main() -> None:
    outcomes = [(mistake, answer_to(mistake)) for mistake in MISTAKES]
    lines = [HEAD, totals(outcomes)]
    for kind, rows in groupby(outcomes, key=lambda entry: entry[0].kind):
        lines += ["", f"## {kind[0].upper()}{kind[1:]}", "", "| mistake | message | located | suggestion right |"]
        lines += ["|---|---|---|---|", *(row(mistake, outcome) for mistake, outcome in rows)]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
