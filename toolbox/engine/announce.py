"""The first lines of a run's log: where it runs, on what, and how much there is to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from toolbox.data.counts import count_objects
from toolbox.data.interfaces import Dataset
from toolbox.data.sampling import ImageSampling
from toolbox.engine.datasets import sampling_of
from toolbox.engine.job import Job
from toolbox.errors import counted
from toolbox.sections import TrainConfig

logger = logging.getLogger("toolbox")


def announce(job: Job) -> None:
    """Log device, data, model and steps."""
    logger.info("%s; %s", _device(job), counted(job.config.data.workers, "loader process", "loader processes"))
    for name, dataset in (("data.train", job.train_set), ("data.val", job.val_set)):
        logger.info("%s: %s", name, "none" if dataset is None else contents(dataset))
    parameters = list(job.state.model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    settings = job.config.train
    logger.info(
        "model: %s, %s parameters, %s of them trained%s",
        type(job.state.model).__name__,
        _amount(sum(p.numel() for p in parameters)),
        _amount(trained),
        f" (freeze: {', '.join(settings.freeze)})" if settings.freeze else "",
    )
    micro = f" in micro-batches of {job.micro_batch}" if job.accumulation > 1 or job.ranks.size > 1 else ""
    sampling = sampling_of(job.config, job.train_set)
    epoch = len(job.train_set) if sampling is None else sampling.images_per_epoch
    if sampling is not None:
        logger.info("data.train: %s", sampled(sampling))
    epochs = settings.steps * settings.batch / epoch
    steps, batch = counted(settings.steps, "step"), counted(settings.batch, "image")
    logger.info("train: %s of %s%s (%.1f epochs)", steps, batch, micro, epochs)
    logger.info("train: %s", learning_rate(settings, job.state.optimizer.param_groups))
    decays = "" if settings.layer_decay is None else "; in the backbone times layer_decay"
    for pattern, factor in settings.lr_factors.items():
        rate = settings.scaled_lr * factor
        logger.info("train: learning rate %.3g for %s (lr_factors %g%s)", rate, pattern, factor, decays)
    if settings.scale_lr_from not in (None, settings.batch):
        seen = settings.steps * settings.scale_lr_from
        logger.info(
            "train: steps are not scaled: as many images as %s of %d has train.steps=%d",
            counted(settings.steps, "step"),
            settings.scale_lr_from,
            round(seen / settings.batch),
        )
    switches = [name for name in ("compile", "activation_checkpointing") if getattr(settings, name)]
    if switches:
        logger.info("train: %s", ", ".join(switches))


def learning_rate(settings: TrainConfig, groups: Sequence[Mapping[str, Any]]) -> str:
    """`learning rate 0.01 = 0.02 × 8 / 16 (lr × batch / scale_lr_from), down to 0.001 … (layer_decay 0.75)`.

    Args:
        settings: section `train`.
        groups: of the optimizer.
    """
    text = f"learning rate {settings.scaled_lr:.3g}"
    if settings.scale_lr_from is not None:
        factors = f"{settings.lr:.3g} × {settings.batch} / {settings.scale_lr_from}"
        text += f" = {factors} (lr × batch / scale_lr_from)"
    if settings.layer_decay is not None:
        slowest = settings.scaled_lr * min(group["lr_scale"] for group in groups)
        made = f"layer_decay {settings.layer_decay:g}"
        if settings.lr_factors:
            text += f", down to {slowest:.3g} ({made}, lr_factors)"
        else:
            text += f", down to {slowest:.3g} towards the image ({made})"
    return text


def _device(job: Job) -> str:
    precision = "float32" if job.autocast is None else str(job.autocast).removeprefix("torch.")
    if job.device.type == "cuda":
        exact = " and TF32" if job.config.train.tf32 and job.autocast is None else ""
        return f"device {job.device} ({torch.cuda.get_device_name(job.device)}){_processes(job)}, {precision}{exact}"
    return f"device {job.device}{_processes(job)}, {counted(torch.get_num_threads(), 'thread')}, {precision}"


def _processes(job: Job) -> str:
    return "" if job.ranks.size == 1 else f" in each of {job.ranks.size} processes"


def contents(dataset: Dataset) -> str:
    """Images, classes, and objects where the data set has an index to count them in."""
    parts = [counted(len(dataset), "image"), counted(len(dataset.classes), "class", "classes")]
    counts = count_objects(dataset, most=0)
    if counts.images == len(dataset):
        parts.insert(1, counted(int(counts.objects.sum()), "object"))
    return ", ".join(parts)


def sampled(sampling: ImageSampling) -> str:
    """What an epoch is where images are repeated or left out."""
    rare = int((sampling.class_factors > 1).sum())
    most = float(sampling.class_factors.max())
    repeats = f", {counted(rare, 'rare class', 'rare classes')} repeated up to {most:.1f} times" if rare else ""
    length = counted(round(sampling.images_per_epoch), "image")
    return f"an epoch is about {length}{repeats}, {sampling.empty_share:.0%} of them without objects"


def _amount(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"
