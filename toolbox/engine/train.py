"""Training: read `train` top to bottom; it is a loop over torch itself."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from toolbox.engine.announce import announce
from toolbox.engine.checkpoint import load_checkpoint
from toolbox.engine.determinism import deterministic
from toolbox.engine.devices import peak_memory_mb
from toolbox.engine.distributed import taking_part
from toolbox.engine.early_stopping import Patience
from toolbox.engine.job import Job, device_of, precision_of, prepare
from toolbox.engine.launch import Launch, restarted
from toolbox.engine.lengthening import check_length
from toolbox.engine.loggers import RunStart
from toolbox.engine.nonfinite import (
    TrainingDiverged,
    check_loss_scale,
    keep_as_good,
    nonfinite_weights,
    ready_to_roll_back,
)
from toolbox.engine.precision import tf32
from toolbox.engine.progress import ON_SCREEN, OnProgress, Progress, about
from toolbox.engine.run_folder import RunFolder
from toolbox.engine.step import optimizer_step, settled
from toolbox.engine.validate import Stopped, validate
from toolbox.engine.window import Window
from toolbox.errors import StorageError, counted
from toolbox.orphans import under_torchrun
from toolbox.schema import Config

logger = logging.getLogger("toolbox")


def train(
    config: Config, run: str | Path | RunFolder, *, resume: bool = False, on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """Train the detector of a config, evaluate it, and keep everything in a run folder.

    On the first SIGINT or SIGTERM the step is finished, a checkpoint written, and the function returns.

    Args:
        config: of `toolbox.load_config`.
        run: the folder; it must not hold a run, unless `resume`.
        resume: go on from the folder's checkpoint; the weights and the logged losses end exactly as if it had never
            stopped.
        on_progress: called after every step, and after every batch of an evaluation.

    Returns:
        `step`, how many steps are done; `finished`, whether that and the last evaluation are all; `metrics`, the last
        evaluation's, or None; `stopped_early`, why `train.early_stopping` ended the run, or None.

    Raises:
        TrainingDiverged: a loss is not finite, and `train.on_nonfinite` says to stop, or has gone on too often.
    """
    precision_of(config, device_of(config))  # before anything is written
    folder = run if isinstance(run, RunFolder) else RunFolder(run)
    resume = resume or restarted(folder.launch)
    with taking_part() as ranks, _opened(config, folder, resume) if ranks.first else nullcontext():
        if ranks.first and (launch := Launch.own()) is not None:
            launch.write(folder.launch)
        job = prepare(config, folder, ranks)
        announce(job)
        if ranks.from_first(resume):
            _go_on(job)
        if ranks.first and config.train.on_nonfinite == "roll_back":
            ready_to_roll_back(job, scheduled=_recurring(job, job.state.step))
        start = RunStart(folder.path, config.to_yaml(), job.state.step, config.train.steps)
        exact, loggers = deterministic(config.train.deterministic), job.loggers
        with _stop_signals() as stop, tf32(config.train.tf32), exact, loggers.running(start, stopped=stop.is_set):
            return _run(job, stop, on_progress)


def _run(job: Job, stop: threading.Event, on_progress: OnProgress | None) -> dict[str, Any]:
    """Do the steps that are left."""
    state, settings, ranks = job.state, job.config.train, job.ranks
    metrics: dict[str, Any] | None = None
    job.patience = Patience(settings.early_stopping, ranks.from_first(job.folder.records() if ranks.first else []))
    finished = state.step == settings.steps or job.patience.verdict is not None
    with contextlib.suppress(Stopped):
        if 0 < state.step < settings.steps and _evaluation_due(job, state.step) and not _evaluated(job):
            metrics = validate(job, stop, on_progress)  # it was stopped in this evaluation
        first, batches = state.step + 1, settled(job, job.batches(start=state.step))
        for done in range(first, settings.steps + 1):
            if job.patience.verdict is not None:
                _log_rest(job)
                logger.info("early stopping after step %d: %s", state.step, job.patience.verdict, extra=ON_SCREEN)
                finished = True
                break
            optimizer_step(job, done - 1, batches, state.window)
            finished = done == settings.steps
            record: dict[str, Any] = {}
            if not state.window.steps:
                pass  # all steps since the last line were skipped: the next line tells of those that were not
            elif finished or done % settings.log_every == 0:
                record = _log(job, state.window)
                if done % settings.log_every == 0:  # else the run may be made longer, and its next line is due later
                    state.window = Window()
            elif done == first:
                pace = (state.window.seconds - state.window.waited) / state.window.steps
                _say(job, _record(job, state.window), pace)  # without the wait: the loader was starting up
            if on_progress is not None:
                on_progress(Progress("train", done, settings.steps, record))
            evaluating, stopping = _evaluation_due(job, done), ranks.any(stop.is_set())
            if ranks.first and (_scheduled(job, done) or stopping):
                _save(job, last=finished or stopping)
            if stopping:
                stop.set()
                raise Stopped
            if evaluating:
                metrics = validate(job, stop, on_progress)
        if metrics is None:  # a run that had done all its steps, resumed
            metrics = _on_record(job)
        if metrics is None:  # it was stopped before its last evaluation, or that is no longer there
            metrics = validate(job, stop, on_progress)
    if stop.is_set():
        logger.info("stopped after step %d of %d; go on with %s", state.step, settings.steps, job.folder.resumed_by)
    elif str(state.setbacks):
        logger.warning("the loss was not always finite: %s", state.setbacks)
    return {
        "step": state.step,
        "finished": finished and not stop.is_set(),
        "metrics": metrics,
        "stopped_early": job.patience.verdict if state.step < settings.steps else None,
    }


def _go_on(job: Job) -> None:
    """Take over the state of the run's last checkpoint. The first process reads it for all."""
    file, state = job.folder.checkpoint, job.state
    kept = job.ranks.from_first(load_checkpoint(file) if job.ranks.first and file.exists() else None)
    if kept is not None:
        state.load_state_dict(kept, str(file))
        job.saved = state.step
        _say_where(job)
        _tell_changes(kept.get("made_by", {}), job)
    if job.ranks.first:
        job.folder.rewind_metrics(state.step)


def _say_where(job: Job) -> None:
    step, steps = job.state.step, job.config.train.steps
    if step < steps:
        logger.info("resuming after step %d of %d", step, steps, extra=ON_SCREEN)
    else:
        evaluated = job.val_set is None or _kept_evaluation(job) is not None
        left = "nothing is left to do" if evaluated else "what is left is its evaluation"
        way = "more train.steps make it longer where its schedule allows that"
        logger.info("all %d steps are done already, %s; %s", steps, left, way, extra=ON_SCREEN)


def _tell_changes(before: dict[str, str | int], job: Job) -> None:
    now = job.circumstances()
    changed = [f"{name} {before[name]} → {now[name]}" for name in now if name in before and before[name] != now[name]]
    if changed:
        logger.warning(
            "the run goes on under other circumstances (%s): on the same images, but not to the last bit as before",
            ", ".join(changed),
        )


def _evaluated(job: Job) -> bool:
    """Whether the evaluation after the present step is on record."""
    return job.ranks.from_first(job.ranks.first and job.folder.evaluated(job.state.step))


def _on_record(job: Job) -> dict[str, Any] | None:
    """The evaluation after the present step, where it was made and is kept."""
    return job.ranks.from_first(_kept_evaluation(job) if job.ranks.first else None)


def _kept_evaluation(job: Job) -> dict[str, Any] | None:
    return job.folder.read_evaluation(job.state.step, watched=job.config.train.keep_best)


def _opened(config: Config, folder: RunFolder, resume: bool) -> contextlib.AbstractContextManager[None]:
    """The run folder, owned; of a run that goes on, the length may be another where that is honest."""
    may_change = ["train.steps"] if resume and check_length(config, folder) else []
    return folder.opened(config.to_yaml(), resume=resume, may_change=may_change)


def _save(job: Job, *, last: bool) -> None:
    """Write a checkpoint; where the disk is full, a run that has steps to do goes on and tries again."""
    if bad := nonfinite_weights(job.state.model):
        # Nothing can go on from such weights. The next step's loss tells it too, and there on_nonfinite has its say.
        said = f"the weights after step {job.state.step} are not finite ({bad[0]}, …): no checkpoint is written of them"
        if last:
            raise TrainingDiverged(f"{said}, the last one is kept; train.clip_norm would find the gradient that did it")
        logger.error(said)
        return
    try:
        job.save()
        if job.config.train.on_nonfinite == "roll_back" and _recurring(job, job.state.step):
            keep_as_good(job.folder)
    except StorageError as error:
        way = f"once there is room, {job.folder.resumed_by} goes on from the last checkpoint that was written"
        if last:
            raise StorageError(f"{error}; {way}") from error
        logger.error("%s; training goes on, and the next checkpoint is tried again", error)


def _evaluation_due(job: Job, done: int) -> bool:
    settings = job.config.train
    return done == settings.steps or (settings.eval_every is not None and done % settings.eval_every == 0)


def _scheduled(job: Job, done: int) -> bool:
    """Whether a checkpoint is due after so many steps."""
    return done == job.config.train.steps or _recurring(job, done)


def _recurring(job: Job, done: int) -> bool:
    """Whether one is due however long the run is: only such are rolled back to, lest a run made longer be another."""
    every = (job.config.train.checkpoint_every, job.config.train.eval_every)
    return any(count is not None and done % count == 0 for count in every)


def _log(job: Job, window: Window) -> dict[str, Any]:
    check_loss_scale(job)
    record = _record(job, window)
    if not job.ranks.first:
        return record
    job.folder.append_metrics(record)
    job.loggers.scalars(record["step"], record)
    _say(job, record, window.seconds / window.steps)
    return record


def _log_rest(job: Job) -> None:
    """The losses since the last line, of a run that ends early: once, though it may be resumed."""
    step = job.state.step
    told = job.ranks.first and any("losses" in record and record["step"] == step for record in job.folder.records())
    if job.state.window.steps and not job.ranks.from_first(told):
        _log(job, job.state.window)


def _record(job: Job, window: Window) -> dict[str, Any]:
    step = job.state.step
    return window.record(step, lr=job.lr(step - 1), peak_memory_mb=peak_memory_mb(job.device))


def _say(job: Job, record: dict[str, Any], pace: float) -> None:
    """One line in the log, with a forecast from seconds per step and those of the last evaluation."""
    steps = job.config.train.steps
    losses = ", ".join(f"{name} {value:.4f}" for name, value in record["losses"].items())
    logger.info(
        "step %d/%d: loss %.4f (%s), lr %.3g, %.1f images/s%s",
        record["step"],
        steps,
        record["loss"],
        losses,
        record["lr"],
        record["images_per_second"],
        _time_left(job, pace),
    )


def _time_left(job: Job, pace: float) -> str:
    step, steps = job.state.step, job.config.train.steps
    if step == steps:
        return ""
    every = job.config.train.eval_every or steps
    evaluations = -(-steps // every) - (step - 1) // every if job.val_set is not None else 0  # this step's is to come
    if job.evaluation_seconds is None:
        beside = f" and {counted(evaluations, 'evaluation')}" if evaluations else ""
        return f", {about(pace * (steps - step))}{beside} left"
    return f", {about(pace * (steps - step) + evaluations * job.evaluation_seconds)} left"


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second SIGINT acts as always, to get out of what hangs.

    Not under torchrun, which passes both on to processes that a terminal or a scheduler has sent them already, and
    kills those that take too long.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _: object) -> None:
        stop.set()
        if number == signal.SIGINT and not under_torchrun():
            signal.signal(number, before[signal.SIGINT])
            # Not by print or a logger: the signal may have come in the midst of one.
            os.write(2, b"\nstopping after this step, with a checkpoint; Ctrl-C once more leaves at once\n")

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
