"""Loader workers and signals: only the training process stops them, and they do not outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from toolbox.data.worker import prepare_worker

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="uses /proc")

SCRIPT = """
import os, sys, time
from toolbox.data import Shapes
from toolbox.data.loader import evaluation_loader
from toolbox.data.worker import signals_held_back


class Slow(Shapes):
    def load(self, index):
        time.sleep(float(sys.argv[1]) if index else 0)
        return super().load(index)


with signals_held_back():  # as the training process does, which has its own handlers
    batches = iter(evaluation_loader(Slow(length=40), resize=None, workers=1))
    next(batches)
    workers = open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read()
    print(workers, flush=True)
    sys.stdin.readline()
    print(sum(1 for batch in batches), flush=True)
"""


def start(delay: float) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(delay)],
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    children = process.stdout.readline().split()
    return process, int(children[-1])


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_signals_to_the_whole_group_leave_the_workers_at_work() -> None:
    process, worker = start(0.0)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.killpg(process.pid, number)
    time.sleep(0.2)
    output, errors = process.communicate("go on\n", timeout=60)
    assert output.split()[-1] == "39", errors
    assert gone(worker)


def test_a_worker_does_not_outlive_a_parent_that_is_killed() -> None:
    process, worker = start(30.0)  # busy with an image for half a minute
    process.kill()
    process.communicate(timeout=10)
    deadline = time.monotonic() + 5
    while not gone(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone(worker)


def hang(ready: Event) -> None:
    prepare_worker(0)
    ready.set()
    time.sleep(60)


def test_a_worker_that_hangs_ends_when_its_parent_and_no_one_else_says_so() -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hang, args=(ready,), daemon=True)
    process.start()
    assert ready.wait(10)
    subprocess.run(["kill", "-TERM", str(process.pid)], check=True)
    process.join(0.2)
    assert process.is_alive()
    process.terminate()
    process.join(10)
    assert process.exitcode == 0
