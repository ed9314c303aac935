"""What to do about text that is not YAML: the parser says what it met, this says what was probably meant."""

from __future__ import annotations

import re

import yaml

_KEY = re.compile(r"""^\s*(?:-\s+)?[\w.'"]+\s*:(?:\s|$)""")
_GLUED = re.compile(r"^\s*[A-Za-z_]\w*:[^\s/\\]")
_CLOSERS = {"sequence": "]", "mapping": "}"}


def explained(text: str, error: yaml.MarkedYAMLError) -> tuple[int, int, str]:
    """Line and column from 1, and a message that says what was met, what was meant and what to do.

    The place is where the mistake is, which may be before the place where the parser noticed it.
    """
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return 1, 1, error.problem or "not YAML"
    lines = text.splitlines() or [""]
    line = lines[mark.line] if mark.line < len(lines) else ""
    problem, context = error.problem or "not YAML", error.context or ""
    here = (mark.line + 1, mark.column + 1)
    began = error.context_mark or mark
    start = f" that starts at {began.line + 1}:{began.column + 1}"
    if "'\\t'" in problem:
        return *here, "a tab cannot indent or begin a value in YAML; use spaces"
    if "scanning a simple key" in context and _GLUED.match(_line(lines, began.line)):
        glued = _line(lines, began.line).strip()
        return began.line + 1, began.column + 1, f"'{glued}' is no key and value; put a space after the colon"
    if "quoted scalar" in context and "end of stream" in problem:
        quote = _line(lines, began.line)[began.column : began.column + 1]
        return began.line + 1, began.column + 1, f"the quote opened here is never closed; close it with {quote}"
    if "escape character" in problem:
        remedy = "in double quotes \\ begins an escape: write the path in single quotes, or with / instead"
        return *here, f"{problem}; {remedy}"
    found = re.search(r"while parsing a flow (sequence|mapping)", context)
    if found:
        closer = _CLOSERS[found[1]]
        return *here, f"{problem}: the '{_opener(closer)}'{start} is not closed; close it with '{closer}'"
    if "block end" in problem or "mapping values are not allowed" in problem:
        return (*_first_of_line(lines, mark), f"{_indented(line, problem)} ({problem})")
    if "undefined alias" in problem:
        name = problem.rpartition(" ")[2].strip("'")
        return *here, f"{problem}; *{name} repeats what &{name} marks earlier: write the value out, or quote the text"
    if "cannot start any token" in problem:
        return *here, f"{problem}; quote the value if it is text"
    if "another document" in problem:
        return *here, "'---' begins a second document, but a config is one; remove the line"
    return *here, f"{problem} ({context}{start if mark.line != began.line else ''})" if context else problem


def undecodable(data: bytes, error: UnicodeDecodeError) -> tuple[int, int, str]:
    """Line and column from 1 of the first byte that is not UTF-8, and what to do."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return 1, 1, "the file is UTF-16 text; save it as UTF-8 (in Notepad: Save as, Encoding)"
    before = data[: error.start]
    column = len(before) - before.rfind(b"\n")
    return before.count(b"\n") + 1, column, f"not UTF-8 text (byte 0x{data[error.start]:02x}); save it as UTF-8"


def _line(lines: list[str], number: int) -> str:
    return lines[number] if number < len(lines) else ""


def _opener(closer: str) -> str:
    return "[" if closer == "]" else "{"


def _first_of_line(lines: list[str], mark: yaml.Mark) -> tuple[int, int]:
    """Where the line's own text begins: indentation is a matter of lines."""
    line = _line(lines, mark.line)
    return mark.line + 1, (len(line) - len(line.lstrip()) + 1) if _KEY.match(line) else mark.column + 1


def _indented(line: str, problem: str) -> str:
    if _KEY.match(line):
        return "the line is indented unlike its neighbours; keys of one mapping line up, and those inside are indented"
    return "two keys on one line, or a colon in a text; quote a text that holds ': '"
