"""What happens at an evaluation of a run: metrics, losses, pictures and the best model, all on record."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from toolbox.data.interfaces import Dataset
from toolbox.engine.evaluate import Interrupted, evaluate
from toolbox.engine.job import Job
from toolbox.engine.kept import is_best
from toolbox.engine.progress import ON_SCREEN, OnProgress, Progress
from toolbox.engine.run_folder import summary_of
from toolbox.engine.validation_loss import validation_losses
from toolbox.errors import DataError, StorageError
from toolbox.inference.pictures import draw_dataset
from toolbox.metric_names import value_of

logger = logging.getLogger("toolbox")


class Stopped(Exception):
    """The process was asked to stop while it evaluated."""


def validate(job: Job, stop: threading.Event, on_progress: OnProgress | None) -> dict[str, Any]:
    """Evaluate what would be kept as the trained model, and write it down."""
    if job.val_set is None:
        logger.info("no data.val: nothing to evaluate on")
        return {}

    def watch(progress: Progress) -> None:
        if stop.is_set() and job.ranks.size == 1:  # else the others would wait for this one
            raise Stopped
        if on_progress is not None:
            on_progress(progress)

    state, data, began = job.state, job.config.data, time.monotonic()
    with nullcontext() if state.ema is None else state.ema.applied(state.model):
        try:
            metrics = evaluate(
                state.model,
                job.val_set,
                resize=data.resize,
                device=job.device,
                workers=data.workers,
                max_detections=job.config.test.detections,
                ranks=job.ranks,
                interrupted=stop.is_set,
                on_progress=on_progress,
            )
        except Interrupted:
            stop.set()  # another process may have been asked
            raise Stopped from None
        watched = job.patience.see(state.step, metrics)
        losses = _validation_losses(job, watch)
        if not job.ranks.first:
            return metrics
        pictures = _draw(job, job.val_set)
    _write(job, metrics)
    watched |= _keep_if_best(job, metrics)
    if not job.folder.evaluated(state.step):  # a run that had done all its steps, resumed, is evaluated once more
        record = {
            "step": state.step,
            "eval": summary_of(metrics),
            **losses,
            **({"watched": watched} if watched else {}),
        }
        every = job.config.train.eval_every
        at_end = every is None or state.step % every != 0
        job.folder.append_metrics(record | {"end": True} if at_end else record)
        job.loggers.evaluation(state.step, metrics, losses)
        job.loggers.pictures(state.step, pictures)
    listed = ", ".join(f"{kind} AP {numbers['AP']:.3f} AP50 {numbers['AP50']:.3f}" for kind, numbers in metrics.items())
    if losses:
        each = ", ".join(f"{name} {value:.4f}" for name, value in losses["val_losses"].items())
        listed += f"; val_loss {losses['val_loss']:.4f} ({each})"
    logger.info("step %d: %s", state.step, listed, extra=ON_SCREEN)
    job.evaluation_seconds = time.monotonic() - began
    return metrics


def _write(job: Job, metrics: dict[str, Any]) -> None:
    """`eval.json`; a full disk costs the file, not the run, which has the metrics in its log."""
    try:
        job.folder.write_evaluation(metrics)
    except StorageError as error:
        logger.error("%s; training goes on", error)


def _keep_if_best(job: Job, metrics: dict[str, Any]) -> dict[str, float | None]:
    """Before the evaluation is on record: killed in between, it is made again.

    Returns:
        The value of `train.keep_best`'s metric by its name; nothing without one.
    """
    name, folder = job.config.train.keep_best, job.folder
    if name is None:
        return {}
    value = value_of(metrics, name)
    if is_best(folder.records(), name, value):
        try:
            job.save_model(folder.best)
            logger.info("step %d: %s %.4f is the best so far, kept as %s", job.state.step, name, value, folder.best)
        except StorageError as error:
            logger.error("%s; training goes on without keeping its best", error)
    return {name: value}


def _validation_losses(job: Job, on_progress: OnProgress) -> dict[str, Any]:
    """Entries of the evaluation's record; none where they are not asked for."""
    if not job.config.train.validation_loss or job.val_set is None:
        return {}
    losses = validation_losses(
        job.state.model,
        job.val_set,
        resize=job.config.data.resize,
        device=job.device,
        seed=job.config.train.seed,
        workers=job.config.data.workers,
        ranks=job.ranks,
        on_progress=on_progress,
    )
    return {"val_loss": sum(losses.values()), "val_losses": losses}


def _draw(job: Job, dataset: Dataset) -> list[Path]:
    """Draw `train.pictures` images into a folder of this step's; a full disk costs the pictures, not the run."""
    folder, count = job.folder.pictures / f"step_{job.state.step:06}", job.config.train.pictures
    try:
        return draw_dataset(
            job.state.model, dataset, folder, resize=job.config.data.resize, device=job.device, count=count
        )
    except (DataError, StorageError) as error:
        logger.warning("%s; training goes on", error)
        return []
