"""The first lines of a run's log: where it runs, on what, and how much there is to do."""

from __future__ import annotations

import logging

import torch

from toolbox.data.counts import count_objects
from toolbox.data.interfaces import Dataset
from toolbox.data.sampling import ImageSampling
from toolbox.engine.job import Job, sampling_of
from toolbox.errors import counted

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
    micro = f" in micro-batches of {job.micro_batch}" if job.accumulation > 1 else ""
    sampling = sampling_of(job.config, job.train_set)
    epoch = len(job.train_set) if sampling is None else sampling.images_per_epoch
    if sampling is not None:
        logger.info("data.train: %s", sampled(sampling))
    epochs = settings.steps * settings.batch / epoch
    steps, batch = counted(settings.steps, "step"), counted(settings.batch, "image")
    logger.info("train: %s of %s%s (%.1f epochs)", steps, batch, micro, epochs)
    for pattern, factor in settings.lr_factors.items():
        logger.info("train: learning rate %.3g for %s (lr_factors %g)", settings.lr * factor, pattern, factor)
    if settings.layer_decay is not None:
        slowest = settings.lr * min(group["lr_scale"] for group in job.state.optimizer.param_groups)
        how = f"layer_decay {settings.layer_decay:g}"
        logger.info("train: learning rate %.3g, down to %.3g towards the image (%s)", settings.lr, slowest, how)


def _device(job: Job) -> str:
    if job.device.type == "cuda":
        precision = "float32" if job.autocast is None else str(job.autocast).removeprefix("torch.")
        return f"device {job.device} ({torch.cuda.get_device_name(job.device)}), {precision}"
    return f"device {job.device}, {counted(torch.get_num_threads(), 'thread')}"


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
