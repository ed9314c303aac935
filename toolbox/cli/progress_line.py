"""How long work shows itself: one line that is redrawn on a terminal; elsewhere the log's lines do."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import TextIO

from toolbox.engine.distributed import ranks_of_environment
from toolbox.engine.progress import Progress

_REDRAW = 0.1  # seconds
_BAR = 24  # characters


class ProgressLine:
    """`train [########----]  120/600  3.4/s  0:02:21 left  loss 0.83  mask 0.31`, while the output is a terminal.

    Args:
        stream: where to draw; anything but a terminal gets nothing.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stdout if stream is None else stream
        self.shown = self.stream.isatty()
        self._phase = ""
        self._recent: deque[tuple[float, int]] = deque(maxlen=50)  # time and count of the last steps
        self._note = ""
        self._drawn = 0.0

    def __call__(self, progress: Progress) -> None:
        """Take note of one step, and redraw if the last drawing is old enough."""
        if not self.shown:
            return
        now = time.monotonic()
        if progress.phase != self._phase:
            self._phase = progress.phase
            self._recent.clear()
        self._recent.append((now, progress.done))
        if "loss" in progress.record:
            losses = {"loss": progress.record["loss"], **progress.record.get("losses", {})}
            self._note = "".join(f"  {name} {value:.3f}" for name, value in losses.items())
        if now - self._drawn >= _REDRAW or progress.done == progress.total:
            self._drawn = now
            self._draw(f"{describe(progress, self._rate())}{self._note if progress.phase == 'train' else ''}")

    def clear(self) -> None:
        """Remove the line, before something else is printed."""
        if self.shown:
            self._draw("")

    def _rate(self) -> float | None:
        (first, before), (last, now) = self._recent[0], self._recent[-1]
        return (now - before) / (last - first) if last > first else None

    def _draw(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        self.stream.write(f"\r\x1b[K{text[:width]}")
        self.stream.flush()


@contextlib.contextmanager
def progress_line() -> Iterator[ProgressLine]:
    """A progress line on a terminal; the log's lines are then left to log.txt, except for results and warnings."""
    line = ProgressLine()
    line.shown &= ranks_of_environment().first
    screens = [h for h in logging.getLogger("toolbox").handlers if type(h) is logging.StreamHandler]

    def make_room(record: logging.LogRecord) -> bool:
        shown = record.levelno >= logging.WARNING or getattr(record, "on_screen", False)
        if shown:
            line.clear()  # else it would be written behind the bar
        return shown

    if line.shown:
        for handler in screens:
            handler.addFilter(make_room)
    try:
        yield line
    finally:
        line.clear()
        for handler in screens:
            handler.removeFilter(make_room)


def describe(progress: Progress, rate: float | None) -> str:
    """The line without its note; `rate` is in steps or images per second, None while unknown."""
    filled = _BAR * progress.done // max(1, progress.total)
    line = f"{progress.phase} [{'#' * filled}{'-' * (_BAR - filled)}] {progress.done:>5}/{progress.total}"
    if not rate:
        return line
    seconds = round((progress.total - progress.done) / rate)
    speed = f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"
    return f"{line}  {speed}  {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"
