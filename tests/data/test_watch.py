"""Workers that are killed, hang or run into a user's mistake: which image, which line, what to do."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolbox.data.interfaces import Sample
from toolbox.data.loader import training_loader
from toolbox.data.shapes import Shapes
from toolbox.errors import DataError
from toolbox.structures import Batch

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sends signals to workers")


class Troubled(Shapes):
    """Image 3 is trouble."""

    def __init__(self, trouble: str) -> None:
        super().__init__(length=4, height=32, width=32)
        self.trouble = trouble

    def load(self, index: int) -> Sample:
        if index == 3:
            if self.trouble == "hangs":
                time.sleep(60)
            if self.trouble == "mistake":
                return {}["height"]
            os.kill(os.getpid(), getattr(signal, self.trouble))
        return super().load(index)


def batches(trouble: str, **settings: float) -> Iterator[Batch]:
    settings = {"workers": 1, **settings}
    return iter(training_loader(Troubled(trouble), resize=None, batch=4, seed=0, steps=2, **settings))


@pytest.mark.parametrize(
    ("trouble", "advice"),
    [("SIGKILL", "memory ran out; lower data.workers"), ("SIGBUS", "--shm-size=8g"), ("SIGSEGV", "data.workers=0")],
)
def test_a_worker_that_is_killed_is_told_with_its_image(trouble: str, advice: str) -> None:
    with pytest.raises(DataError) as raised:
        next(batches(trouble))
    assert advice in str(raised.value)
    assert "(worker 0 was at image number 3, counted from 0)" in str(raised.value)


def test_a_worker_that_dies_while_the_model_trains_is_told_too() -> None:
    iterator = iter(training_loader(Troubled("SIGKILL"), resize=None, batch=1, seed=0, steps=4, workers=1))
    with pytest.raises(DataError, match="worker 0 was at image number 3"):
        for _ in iterator:
            time.sleep(0.5)


def test_a_worker_that_hangs_is_told_with_its_image() -> None:
    with pytest.raises(DataError, match=r"no batch came for 1 seconds \(worker 0 was at image number 3.*data\.timeout"):
        next(batches("hangs", timeout=1))


def test_a_users_mistake_in_a_worker_names_image_and_line() -> None:
    with pytest.raises(DataError) as raised:
        next(batches("mistake"))
    line = 1 + Path(__file__).read_text(encoding="utf-8").splitlines().index('                return {}["height"]')
    assert str(raised.value) == f"Troubled, image number 3: KeyError: 'height' ({__file__}, line {line})"
    assert "Traceback" in raised.value.__notes__[0]


def test_a_users_mistake_in_the_training_process_stays_what_it_is_and_names_the_image() -> None:
    with pytest.raises(KeyError) as raised:
        next(batches("mistake", workers=0))
    assert raised.value.__notes__ == ["loading image number 3 of Troubled"]
