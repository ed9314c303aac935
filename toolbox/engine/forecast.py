"""A few real training steps, measured before a run, and what they say of its time, memory and disk."""

from __future__ import annotations

import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from toolbox.accumulation import accumulation
from toolbox.data.loader import evaluation_loader
from toolbox.engine.checkpoint import size_of
from toolbox.engine.distributed import Ranks
from toolbox.engine.job import Job, prepare
from toolbox.engine.precision import tf32
from toolbox.engine.run_folder import RunFolder
from toolbox.engine.step import optimizer_step
from toolbox.engine.window import Window
from toolbox.schema import Config
from toolbox.structures import Batch

_STEPS = 3


@dataclass(frozen=True)
class Forecast:
    """What was measured, and what follows for the run.

    Attributes:
        passes: backward passes that were measured.
        step: seconds per optimizer step.
        images_per_second: trained on.
        loader_share: part of the time spent waiting for the loader.
        evaluation: seconds per evaluation of `data.val`, by an untrained model; 0 without one.
        evaluations: how many the run has.
        steps: optimizer steps of the run.
        memory: most bytes used so far: of the GPU, else of this process; None where the system does not say.
        available: bytes that the device has left beside that; None where the system does not say.
        checkpoint: bytes of the checkpoints that are kept and the models beside them.
        free: bytes that are free where the run would be written.
    """

    passes: int
    step: float
    images_per_second: float
    loader_share: float
    evaluation: float
    evaluations: int
    steps: int
    memory: int | None
    available: int | None
    checkpoint: int
    free: int

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return self.steps * self.step + self.evaluations * self.evaluation


def forecast(config: Config, run: Path, *, limit: float) -> Forecast:
    """Train on the config's first batches, in a folder that is thrown away, and evaluate an image or two.

    Args:
        config: checked, with data that can be read.
        run: where the run would be written; only its disk is asked.
        limit: seconds after which no further step begins; the first is measured too where there is time for no other.

    Raises:
        ToolboxError: what training would raise.
    """
    settings = config.train
    share = accumulation(settings.batch, settings.micro_batch)
    # One backward pass a step: of a batch of many passes, one tells as much as all.
    alone: dict[str, Any] = {
        "batch": share.micro_batch,
        "micro_batch": None,
        "steps": _STEPS + 1,
        "scale_lr_from": None,
    }
    small = replace(config, train=replace(settings, **alone, loggers=[], on_nonfinite="stop"))
    with tempfile.TemporaryDirectory() as folder, tf32(settings.tf32):
        job = prepare(small, RunFolder(folder), Ranks())
        reset_peak(job.device)
        seconds, window = _measured(job, time.monotonic() + limit)
        peak, available = memory_of(job.device)
        models = 1 if settings.keep_best is None else 2
        saved = settings.keep_checkpoints * size_of(job.state.state_dict())
        saved += models * size_of(job.state.best_weights())
        evaluation = _evaluation(job)
    return Forecast(
        passes=len(seconds),
        step=statistics.median(seconds) * share.passes,
        images_per_second=window.images / window.seconds,
        loader_share=window.waited / window.seconds,
        evaluation=evaluation,
        evaluations=0
        if config.data.val is None
        else math.ceil(settings.steps / (settings.eval_every or math.inf)) or 1,
        steps=settings.steps,
        memory=peak,
        available=available,
        checkpoint=saved,
        free=shutil.disk_usage(next(part for part in (run.absolute(), *run.absolute().parents) if part.exists())).free,
    )


def _measured(job: Job, until: float) -> tuple[list[float], Window]:
    """Seconds of each step; the first, in which loader and allocator start up, counts only where it is alone."""
    batches: Iterator[Batch] = job.batches(start=0)
    seconds: list[float] = []
    window = Window()
    for step in range(_STEPS + 1):
        if step and time.monotonic() > until:
            break
        if step == 1:
            seconds, window = [], Window()
        began = time.perf_counter()
        optimizer_step(job, step, batches, window)
        if job.device.type == "cuda":
            torch.cuda.synchronize(job.device)
        seconds.append(time.perf_counter() - began)
    return seconds, window


def _evaluation(job: Job) -> float:
    """Seconds that an evaluation takes, from its first two images."""
    if job.val_set is None:
        return 0.0
    loader = evaluation_loader(job.val_set, resize=job.config.data.resize, batch=1, workers=0, pin_memory=False)
    model = job.state.model.eval()
    seconds = []
    with torch.inference_mode():
        for _, images in zip(range(2), loader, strict=False):
            began = time.perf_counter()
            model.predict(images.images, images.original_sizes, images.image_ids)  # type: ignore[operator]
            seconds.append(time.perf_counter() - began)
    return min(seconds) * len(job.val_set)


def reset_peak(device: torch.device) -> None:
    """Count the peak of memory anew, where the system lets us."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def memory_of(device: torch.device) -> tuple[int | None, int | None]:
    """The most bytes used so far, and how many there are beside."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device)
        peak = torch.cuda.max_memory_allocated(device)
        return peak, free + cached - peak
    return _of_lines("/proc/self/status", "VmHWM"), _of_lines("/proc/meminfo", "MemAvailable")


def _of_lines(file: str, key: str) -> int | None:
    """Bytes of a line `key:  123 kB` of Linux's accounts; None on other systems."""
    if not os.path.exists(file):
        return None
    found = [line for line in Path(file).read_text(encoding="utf-8").splitlines() if line.startswith(f"{key}:")]
    return int(found[0].split()[1]) * 1024 if found else None
