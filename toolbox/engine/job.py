"""What a training run is made of, built from its config."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from toolbox.accumulation import accumulation
from toolbox.data.cache import plan_cache
from toolbox.data.interfaces import Dataset, channels_of
from toolbox.data.loader import training_loader
from toolbox.data.spot_checks import warn_of_shared_images
from toolbox.engine.checkpoint import TrainingState, save_checkpoint, seed_step
from toolbox.engine.datasets import check_data, known_of, open_dataset, sampling_of
from toolbox.engine.distributed import ALONE, Ranks
from toolbox.engine.early_stopping import Patience
from toolbox.engine.ema import AveragedWeights
from toolbox.engine.init_from import plan_transfer, report
from toolbox.engine.kept import drop_earliest, keep_earlier
from toolbox.engine.loggers import Loggers
from toolbox.engine.model_switches import apply_switches
from toolbox.engine.nonfinite import BlackBox
from toolbox.engine.optim import build_optimizer
from toolbox.engine.precision import choose_precision
from toolbox.engine.run_folder import RunFolder
from toolbox.engine.sync_norm import synchronise
from toolbox.errors import ConfigError, DeviceError
from toolbox.inference.metadata import model_metadata
from toolbox.inference.predictor import choose_device
from toolbox.models.backbones.weights import without_pretrained
from toolbox.models.builder import build_detector, check_wiring
from toolbox.plugin_records import keep_files
from toolbox.schema import Config
from toolbox.sections import Schedule
from toolbox.structures import Batch
from toolbox.weights import save_model


@dataclass
class Job:
    """The parts of a run.

    Attributes:
        config: the checked config.
        folder: where it is kept.
        ranks: this process among those of the run.
        device: where it computes.
        autocast: type to compute in, or None for float32.
        train_set: images to train on.
        val_set: images to evaluate on, or None.
        state: what changes, and is kept in checkpoints.
        network: the state's model as it is called in training; it joins the gradients of all processes.
        schedule: factor on the learning rate by step.
        black_box: what is kept in case that a step goes wrong.
        loggers: what is told how the run goes.
        patience: when the run ends early.
        saved: step of the last checkpoint; None before the first.
        evaluation_seconds: that the last evaluation took; None before the first of this process.
    """

    config: Config
    folder: RunFolder
    ranks: Ranks
    device: torch.device
    autocast: torch.dtype | None
    train_set: Dataset
    val_set: Dataset | None
    state: TrainingState
    network: nn.Module
    schedule: Schedule
    loggers: Loggers
    patience: Patience = field(default_factory=lambda: Patience(None))
    saved: int | None = None
    evaluation_seconds: float | None = None
    black_box: BlackBox = field(init=False)

    def __post_init__(self) -> None:
        self.black_box = BlackBox(self.state.model)

    @property
    def micro_batch(self) -> int:
        """Images per process and backward pass."""
        return accumulation(self.config.train.batch, self.config.train.micro_batch, self.ranks.size).micro_batch

    @property
    def accumulation(self) -> int:
        """Backward passes per process and optimizer step."""
        return accumulation(self.config.train.batch, self.config.train.micro_batch, self.ranks.size).passes

    def lr(self, step: int) -> float:
        """Learning rate of the optimizer step number `step`, from 0; groups with an `lr_scale` multiply it."""
        return self.config.train.scaled_lr * self.schedule(step)

    def batches(self, start: int) -> Iterator[Batch]:
        """The micro-batches of the steps from `start` on."""
        data, settings = self.config.data, self.config.train
        loader = training_loader(
            self.train_set,
            resize=data.resize,
            transforms=[plan.build() for plan in data.transforms],
            batch=settings.batch,
            micro_batch=self.micro_batch,
            seed=settings.seed,
            start_step=start,
            steps=settings.steps,
            workers=data.workers,
            rank=self.ranks.rank,
            world=self.ranks.size,
            group_aspect=data.group_by_aspect,
            min_visible=data.min_visible,
            pin_memory=self.device.type == "cuda",
            timeout=data.timeout,
            cache=plan_cache(self.train_set, data.cache_gb, processes=self.ranks.here)
            if data.cache == "decoded"
            else 0,
            sampling=sampling_of(self.config, self.train_set),
        )
        return iter(loader)

    def save(self) -> None:
        """Write the trained model and the checkpoint.

        In this order: killed in between, the run goes on from before, and writes the model anew.
        """
        self.save_model(self.folder.model)
        step, count = self.state.step, self.config.train.keep_checkpoints
        if count > 1 and self.saved is not None:
            keep_earlier(self.folder, self.saved)
        save_checkpoint(self.folder.checkpoint, self.state.state_dict() | {"made_by": self.circumstances()})
        self.saved = step
        drop_earliest(self.folder, step, count)

    def save_model(self, path: Path) -> None:
        """Write the trained model."""
        data = self.train_set
        metadata = model_metadata(self.config, data.classes, data.category_ids, data.skeleton, channels_of(data))
        save_model(path, self.state.best_weights(), metadata)

    def circumstances(self) -> dict[str, str | int]:
        """What decides the last bits of a step, beside the config: as these are, a run goes on exactly."""
        on_gpu = self.device.type == "cuda"
        return {
            "torch": str(torch.__version__),
            "processes": self.ranks.size,
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            "threads": 0 if on_gpu else torch.get_num_threads(),
        }


def prepare(config: Config, folder: RunFolder, ranks: Ranks) -> Job:
    """Build data sets, detector, optimizer, schedule and loggers; the weights depend on the seed alone.

    Raises:
        ToolboxError: what a config or its data can have wrong.
    """
    settings = config.train
    if ranks.first:
        keep_files(config.plugins, folder.path)
    device = device_of(config, ranks)
    dtype = precision_of(config, device)
    check_shares(config, ranks.size)
    loggers = [plan.build() for plan in settings.loggers]
    train_set = open_dataset(config, "train")
    val_set = open_dataset(config, "val") if config.data.val is not None else None
    check_data(config, train_set, val_set)
    known = known_of(train_set)
    # A checkpoint has all weights, so that a resumed run needs neither the file nor what the backbone began with.
    resuming = folder.checkpoint.exists()
    transfer = plan_transfer(config, known) if settings.init_from is not None and not resuming else None
    filled = resuming or (transfer is not None and transfer.fills_backbone)
    # Before weights are downloaded.
    build_optimizer(config, check_wiring(config, **known, weights=not filled))
    if val_set is not None:
        warn_of_shared_images(train_set, val_set)

    seed_step(settings.seed, -1)  # the moment before the first step
    with without_pretrained() if filled else nullcontext():
        model = build_detector(config, **known)
    if transfer is not None:
        report(transfer)
        transfer.apply(model)
    if settings.sync_bn:
        _synchronise(config, model, device)
    # Maps are channels-last, and weights of another layout would be converted at every call.
    model.to(device).to(memory_format=torch.channels_last).train()
    apply_switches(config, model)
    optimizer = build_optimizer(config, model)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    ranks.join(device)  # only now, so that all processes have met what is wrong with the config, and one says so
    ema = None if settings.ema is None else AveragedWeights(model, settings.ema)
    return Job(
        config=config,
        folder=folder,
        ranks=ranks,
        device=device,
        autocast=dtype,
        train_set=train_set,
        val_set=val_set,
        state=TrainingState(model, optimizer, scaler, ema),
        network=ranks.wrapped(model),
        schedule=settings.schedule.build(steps=settings.steps),
        loggers=Loggers(loggers if ranks.first else ()),
    )


def _synchronise(config: Config, model: nn.Module, device: torch.device) -> None:
    try:
        synchronise(model, device)
    except ValueError as error:
        raise ConfigError([config.plan["train"].problem(str(error), "sync_bn")]) from error


def check_shares(config: Config, processes: int) -> None:
    """See that a step's images can be shared among the processes of a run.

    Raises:
        ConfigError: they cannot, with the numbers that fit.
    """
    try:
        accumulation(config.train.batch, config.train.micro_batch, processes)
    except ValueError as error:
        raise ConfigError([config.plan["train"].problem(str(error), "batch")]) from error


def device_of(config: Config, ranks: Ranks = ALONE) -> torch.device:
    """The device of `train.device` for this process.

    Raises:
        DeviceError: it is not there, at its place in the config.
    """
    try:
        return ranks.device(choose_device(config.train.device, instead="train.device=cpu"))
    except DeviceError as error:
        raise DeviceError(str(config.plan["train"].problem(str(error), "device"))) from error


def precision_of(config: Config, device: torch.device) -> torch.dtype | None:
    """The type of `train.precision` on a device; None for float32.

    Raises:
        DeviceError: the device has no instructions for it, at its place in the config.
    """
    try:
        return choose_precision(config.train.precision, device)
    except ValueError as error:
        raise DeviceError(str(config.plan["train"].problem(str(error), "precision"))) from error
