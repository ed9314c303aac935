"""One optimizer step: forward and backward passes over its micro-batches, then the weights."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain

import torch

from toolbox.engine.checkpoint import seed_step
from toolbox.engine.devices import autocast, read_later
from toolbox.engine.job import Job
from toolbox.engine.nonfinite import all_finite, on_nonfinite
from toolbox.engine.window import Window
from toolbox.structures import Batch


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


def settled(job: Job, batches: Iterator[Batch]) -> Iterator[Batch]:
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
