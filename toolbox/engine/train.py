"""Training: read `train` top to bottom; it is a loop over torch itself."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from toolbox.data.interfaces import Dataset
from toolbox.engine.announce import announce
from toolbox.engine.checkpoint import load_checkpoint, seed_step
from toolbox.engine.determinism import deterministic
from toolbox.engine.devices import autocast, peak_memory_mb, read_later
from toolbox.engine.distributed import restarted, taking_part
from toolbox.engine.early_stopping import Patience
from toolbox.engine.evaluate import Interrupted, evaluate
from toolbox.engine.job import Job, device_of, precision_of, prepare
from toolbox.engine.kept import is_best
from toolbox.engine.lengthening import check_length
from toolbox.engine.loggers import RunStart
from toolbox.engine.nonfinite import (
    TrainingDiverged,
    all_finite,
    keep_as_good,
    nonfinite_weights,
    on_nonfinite,
    ready_to_roll_back,
)
from toolbox.engine.precision import tf32
from toolbox.engine.progress import ON_SCREEN, OnProgress, Progress, about
from toolbox.engine.run_folder import RunFolder
from toolbox.engine.validation_loss import validation_losses
from toolbox.engine.window import Window
from toolbox.errors import DataError, StorageError
from toolbox.inference.pictures import draw_dataset
from toolbox.metric_names import value_of
from toolbox.schema import Config
from toolbox.structures import Batch

logger = logging.getLogger("toolbox")


class Stopped(Exception):
    """The process was asked to stop while it evaluated."""


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
    folder, resume = run if isinstance(run, RunFolder) else RunFolder(run), resume or restarted()
    with taking_part() as ranks, _opened(config, folder, resume) if ranks.first else nullcontext():
        job = prepare(config, folder, ranks)
        announce(job)
        if resume:
            _go_on(job)
        if ranks.first and config.train.on_nonfinite == "roll_back":
            ready_to_roll_back(job, scheduled=_scheduled(job, job.state.step))
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
            metrics = _evaluate(job, stop, on_progress)  # it was stopped in this evaluation
        first, batches = state.step + 1, _settled(job, job.batches(start=state.step))
        for done in range(first, settings.steps + 1):
            if job.patience.verdict is not None:
                logger.info("early stopping after step %d: %s", state.step, job.patience.verdict, extra=ON_SCREEN)
                finished = True
                break
            optimizer_step(job, done - 1, batches, state.window)
            finished = done == settings.steps
            record: dict[str, Any] = {}
            if not state.window.steps:
                pass  # all steps since the last line were skipped: the next line tells of those that were not
            elif finished or done % settings.log_every == 0:
                record, state.window = _log(job, state.window), Window()
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
                metrics = _evaluate(job, stop, on_progress)
        if metrics is None:  # a run that had done all its steps, resumed
            metrics = _evaluate(job, stop, on_progress)
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


def _settled(job: Job, batches: Iterator[Batch]) -> Iterator[Batch]:
    """Several processes: the same batches, once the gradients are summed in the order that they keep.

    DistributedDataParallel orders them by its first backward pass, and sums of three and more depend on it; so what a
    process does first when it is started or started anew is a pass that changes nothing.
    """
    batch = next(batches, None) if job.ranks.size > 1 else None
    if batch is None:
        return batches
    job.black_box.keep_buffers()
    with autocast(job.device, job.autocast):
        losses = job.network(batch.images, batch.targets)
    sum(losses.values()).backward()
    job.black_box.restore_buffers()
    job.state.optimizer.zero_grad(set_to_none=True)
    return chain([batch], batches)


def _go_on(job: Job) -> None:
    """Take over the state of the run's last checkpoint. The first process reads it for all."""
    file, state = job.folder.checkpoint, job.state
    kept = job.ranks.from_first(load_checkpoint(file) if job.ranks.first and file.exists() else None)
    if kept is not None:
        state.load_state_dict(kept, str(file))
        logger.info("resuming after step %d of %d", state.step, job.config.train.steps, extra=ON_SCREEN)
        _tell_changes(kept.get("made_by", {}), job)
    if job.ranks.first:
        job.folder.rewind_metrics(state.step)


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
        if job.config.train.on_nonfinite == "roll_back" and _scheduled(job, job.state.step):
            keep_as_good(job.folder)
    except StorageError as error:
        way = f"once there is room, {job.folder.resumed_by} goes on from the last checkpoint that was written"
        if last:
            raise StorageError(f"{error}; {way}") from error
        logger.error("%s; training goes on, and the next checkpoint is tried again", error)


def optimizer_step(job: Job, step: int, batches: Iterator[Batch], window: Window) -> None:
    """Train on `train.batch` images: one optimizer step, one or more backward passes in each process.

    The loss is the mean over the images. What a head divides by a count over its micro-batch (sampled regions,
    joints) is therefore weighed by micro-batch, not by the step's total.

    Args:
        job: its state is moved on.
        step: number of the optimizer step, from 0.
        batches: micro-batches; as many as make up the step are taken.
        window: is told what happened.
    """
    began = time.perf_counter()
    state, ranks = job.state, job.ranks
    for group in state.optimizer.param_groups:
        group["lr"] = job.lr(step) * group.get("lr_scale", 1.0)
    state.optimizer.zero_grad(set_to_none=True)
    job.black_box.keep_buffers()

    waited, batches_of_step, reads = 0.0, [], []
    for turn in range(job.accumulation):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        batches_of_step.append(batch)
        # In the order in which micro-batches are cut from a step: the same draws for any number of processes.
        seed_step(job.config.train.seed, step, turn * ranks.size + ranks.rank)
        share = len(batch) * ranks.size / job.config.train.batch  # of this process's images; the gradients are averaged
        with ranks.joining_gradients(job.network, last=turn == job.accumulation - 1):
            with autocast(job.device, job.autocast):
                losses = job.network(batch.images, batch.targets)
            # The copy is queued before the backward pass, so that reading it does not wait for that.
            reads.append((tuple(losses), share, read_later(torch.stack([x.detach().float() for x in losses.values()]))))
            state.scaler.scale(sum(losses.values()) * share).backward()

    means: Counter[str] = Counter()
    for names, share, read in reads:
        for name, value in zip(names, read(), strict=True):
            means[name] += value * share  # type: ignore[assignment]
    overall = ranks.mean(means)
    norm = _clip(job) if all_finite(overall.values()) else None
    if all_finite(overall.values()) and all_finite([norm or 0.0]):  # alike in all processes
        _update_weights(job, step)
        images, seconds = sum(map(len, batches_of_step)) * ranks.size, time.perf_counter() - began
        window.add(overall, images=images, seconds=seconds, waited=waited, norm=norm)
        job.black_box.recent.append({"step": step + 1, "losses": overall, "lr": job.lr(step)})
    else:
        on_nonfinite(job, step, batches_of_step, means, norm)
    state.step = step + 1


def _clip(job: Job) -> float | None:
    """Limit the gradient's values to `train.clip_value`, then its norm to `train.clip_norm`.

    Returns:
        Its norm before that is limited; None where it is not known. Of float16 gradients it may be infinite, and
        GradScaler leaves the step out and tries a smaller scale: that is how it finds one, and no divergence.
    """
    state, settings = job.state, job.config.train
    if settings.clip_value is None and settings.clip_norm is None:
        return None
    state.scaler.unscale_(state.optimizer)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    if settings.clip_value is not None:
        torch.nn.utils.clip_grad_value_(parameters, settings.clip_value)
    if settings.clip_norm is None:
        return None
    norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
    return None if state.scaler.is_enabled() else float(norm)


def _update_weights(job: Job, step: int) -> None:
    state = job.state
    state.scaler.step(state.optimizer)
    state.scaler.update()
    job.ranks.share_buffers(state.model)
    if state.ema is not None:
        state.ema.update(state.model, step)
    state.setbacks.in_a_row = 0


def _evaluation_due(job: Job, done: int) -> bool:
    settings = job.config.train
    return done == settings.steps or (settings.eval_every is not None and done % settings.eval_every == 0)


def _scheduled(job: Job, done: int) -> bool:
    """Whether a checkpoint is due after so many steps."""
    return _evaluation_due(job, done) or done % job.config.train.checkpoint_every == 0


def _log(job: Job, window: Window) -> dict[str, Any]:
    record = _record(job, window)
    if not job.ranks.first:
        return record
    job.folder.append_metrics(record)
    job.loggers.scalars(record["step"], record)
    _say(job, record, window.seconds / window.steps)
    return record


def _record(job: Job, window: Window) -> dict[str, Any]:
    step = job.state.step
    return window.record(step, lr=job.lr(step - 1), peak_memory_mb=peak_memory_mb(job.device))


def _say(job: Job, record: dict[str, Any], pace: float) -> None:
    """One line in the log, with a forecast from seconds per step."""
    steps = job.config.train.steps
    left = steps - record["step"]
    losses = ", ".join(f"{name} {value:.4f}" for name, value in record["losses"].items())
    logger.info(
        "step %d/%d: loss %.4f (%s), lr %.3g, %.1f images/s%s",
        record["step"],
        steps,
        record["loss"],
        losses,
        record["lr"],
        record["images_per_second"],
        f", {about(pace * left)} left" if left else "",
    )


def _evaluate(job: Job, stop: threading.Event, on_progress: OnProgress | None) -> dict[str, Any]:
    """Evaluate what would be kept as the trained model, and write it down."""
    if job.val_set is None:
        logger.info("no data.val: nothing to evaluate on")
        return {}

    def watch(progress: Progress) -> None:
        if stop.is_set() and job.ranks.size == 1:  # else the others would wait for this one
            raise Stopped
        if on_progress is not None:
            on_progress(progress)

    state, data = job.state, job.config.data
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
        if not job.ranks.first:
            return metrics
        losses = _validation_losses(job, watch)
        pictures = _draw(job, job.val_set)
    job.folder.write_evaluation(metrics)
    watched |= _keep_if_best(job, metrics)
    if not job.folder.evaluated(state.step):  # a run that had done all its steps, resumed, is evaluated once more
        summary = {kind: {k: v for k, v in numbers.items() if k != "per_class"} for kind, numbers in metrics.items()}
        record = {"step": state.step, "eval": summary, **losses}
        job.folder.append_metrics(record | {"watched": watched} if watched else record)
        job.loggers.evaluation(state.step, metrics, losses)
        job.loggers.pictures(state.step, pictures)
    listed = ", ".join(f"{kind} AP {numbers['AP']:.3f} AP50 {numbers['AP50']:.3f}" for kind, numbers in metrics.items())
    if losses:
        each = ", ".join(f"{name} {value:.4f}" for name, value in losses["val_losses"].items())
        listed += f"; val_loss {losses['val_loss']:.4f} ({each})"
    logger.info("step %d: %s", state.step, listed, extra=ON_SCREEN)
    return metrics


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
    except DataError as error:
        logger.warning("%s; training goes on", error)
        return []


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second acts as always."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
