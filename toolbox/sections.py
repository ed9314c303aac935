"""The sections of a run's YAML, each a dataclass: its fields are the keys, its docstring is their reference.

A component whose wired arguments are known only later (the parameters to optimize) or whose construction reads files (a
data set) stays a `Plan`.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, Protocol

from toolbox.accumulation import accumulation
from toolbox.data.resize import Resize
from toolbox.data.sampling import RepeatFactors
from toolbox.metric_names import split_metric
from toolbox.models.box_branch import TestSettings
from toolbox.plan import Plan
from toolbox.registry import DATASETS, DETECTORS, LOGGERS, OPTIMIZERS, SCHEDULES, TRANSFORMS, Registry
from toolbox.signatures import Component

_COMPONENTS = (
    "toolbox.models.backbones",
    "toolbox.models.necks",
    "toolbox.models.rpn",
    "toolbox.models.roi_extractors",
    "toolbox.models.heads",
    "toolbox.models.losses",
    "toolbox.models.boxes",
    "toolbox.models.detector",
    "toolbox.data",
    "toolbox.engine.optim",
    "toolbox.engine.loggers",
    "toolbox.engine.tensorboard",
)


@cache
def register_builtin() -> None:
    """Import every built-in component, so that its family knows it.

    By name, because this is the one place that looks up from its floor: optimizers, schedules and loggers live with the
    engine that runs them, and a config must still be checked against them.
    """
    for name in _COMPONENTS:
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(getattr(package, "__path__", ()), prefix=f"{name}."):
            importlib.import_module(module.name)


@OPTIMIZERS.interface
class Optimizer(Protocol):
    """A `torch.optim.Optimizer`: `__init__(params, lr, *, settings…)`."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


@SCHEDULES.interface
class Schedule(Protocol):
    """The learning rate over a run, without state: `__init__(steps, *, settings…)`."""

    def __call__(self, step: int) -> float:
        """Factor on the base learning rate for the optimizer step number `step`, from 0."""
        ...


def _default(family: Registry, name: str, key: str) -> Callable[[], Plan]:
    def make() -> Plan:
        register_builtin()
        return Plan(family.get(name), {}, key=key, family=family, deferred=True)

    return make


@dataclass(frozen=True)
class DataConfig:
    """Section `data`: what to train and evaluate on.

    Attributes:
        train: the data set to train on.
        val: the data set to evaluate on.
        resize: how images are brought to network size; None keeps their own.
        transforms: augmentations of training images, in order.
        min_visible: an object keeps its place in a training image while at least this part of its box is in it.
        workers: loader processes.
        timeout: seconds to wait for a training batch before the run stops and says at which image its worker is; 0
            waits for ever.
        group_by_aspect: batch wide images with wide ones and tall with tall, so that less is padded.
        cache: `decoded` keeps the images of data.train in memory once they were loaded, for all workers together.
        cache_gb: most memory of the cache of a training process, in gigabytes (10^9 bytes); by default what all images
            need.
        repeat_factors: show training images of rare classes more often, as LVIS does; an epoch grows by the repeats.
        negatives: the part of the training images that have no object (0 for none), sampled anew each epoch; by default
            each such image comes once an epoch, as any other.
    """

    _: KW_ONLY
    train: Annotated[Plan, Component(DATASETS)] | None = None
    val: Annotated[Plan, Component(DATASETS)] | None = None
    resize: Resize | None = field(default_factory=Resize)
    transforms: list[Annotated[Plan, Component(TRANSFORMS)]] = field(default_factory=list)
    min_visible: float = 0.1
    workers: int = 2
    timeout: int = 1800
    group_by_aspect: bool = True
    cache: Literal["none", "decoded"] = "none"
    cache_gb: float | None = None
    repeat_factors: RepeatFactors | None = None
    negatives: float | None = None

    def __post_init__(self) -> None:
        wrong = []
        if not 0 <= self.min_visible <= 1:
            wrong.append(f"min_visible is a part of a box, 0 to 1, got {self.min_visible}")
        if self.workers < 0:
            wrong.append(f"workers is 0 (load in the training process) or more, got {self.workers}")
        if self.timeout < 0:
            wrong.append(f"timeout is 0 (wait for ever) or more seconds, got {self.timeout}")
        if self.cache_gb is not None and not 0 < self.cache_gb < math.inf:
            wrong.append(f"cache_gb is more than 0 gigabytes, got {self.cache_gb}")
        if self.negatives is not None and not 0 <= self.negatives < 1:
            wrong.append(f"negatives is a part of the images, 0 or more and below 1, e.g. 0.1, got {self.negatives}")
        if wrong:
            raise ValueError("\n".join(wrong))


@dataclass(frozen=True)
class EarlyStopping:
    """When a run that no longer improves ends.

    Attributes:
        metric: of the evaluation, e.g. `segm.AP` or `bbox.per_class.cat`; larger is better.
        patience: evaluations in a row that may pass without a better one.
        min_delta: what is better is so by more than this (0.001 is a tenth of a percent point).
    """

    metric: str
    _: KW_ONLY
    patience: int = 5
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        wrong = []
        try:
            split_metric(self.metric)
        except ValueError as error:
            wrong.append(f"metric: {error}")
        if self.patience < 1:
            wrong.append(f"patience is 1 evaluation or more, got {self.patience}")
        if not 0 <= self.min_delta < 1:
            wrong.append(f"min_delta is 0 or more and below 1 (metrics are parts of 1), got {self.min_delta}")
        if wrong:
            raise ValueError("\n".join(wrong))


@dataclass(frozen=True)
class TrainConfig:
    """Section `train`: how to train.

    Attributes:
        steps: optimizer steps.
        batch: images per optimizer step, over all processes.
        micro_batch: images per process and backward pass; fewer than its share of `batch` means accumulation.
        lr: base learning rate, at `batch`, or at `scale_lr_from` where that is given.
        scale_lr_from: the batch that `lr` was found for: the rate is then lr × batch / scale_lr_from (Goyal et al.,
            arXiv:1706.02677). Steps stay as written: half the batch sees half the images. None takes `lr` as it is.
        optimizer: torch's, with its settings.
        schedule: the learning rate over the run, as a factor on `lr`.
        layer_decay: factor on the learning rate per layer of the backbone, from its last one towards the image, e.g.
            0.75; None trains all layers at one rate.
        lr_factors: factor on the learning rate by pattern of names, e.g. {backbone.*: 0.1}: of parameters, or of
            modules with all in them. The first pattern that means a parameter counts; times `layer_decay`.
        freeze: patterns of names, e.g. [backbone.*, rpn.head], of what does not train; batch norms and dropout in
            parts that are frozen as a whole rest.
        decay_norms: weight decay on the scales and biases of normalisation layers too.
        decay_biases: weight decay on the biases of all other layers too.
        clip_norm: largest norm of the gradient; the mean norm before clipping is logged as `grad_norm`.
        clip_value: largest size of each of the gradient's values, before `clip_norm`.
        seed: of weights, order, augmentation and sampling.
        on_nonfinite: what to do when a loss, or the gradient's norm where `clip_norm` is set, is not finite: `stop`;
            `skip` the step; or `roll_back` to the weights of the last checkpoint and go on with the next batch.
        init_from: whose weights to start from: a run folder, its model.safetensors or checkpoint.pt, of any classes,
            joints and heads; what does not fit starts as without it.
        eval_every: steps between evaluations; None evaluates at the end only.
        validation_loss: also compute the losses on `data.val` at each evaluation, logged as `val_loss`.
        early_stopping: end the run when a metric has not improved for some evaluations; needs `eval_every`.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of them stay; those before the last lie in `checkpoints/`.
        keep_best: a metric, e.g. `segm.AP`: the model that was best by it stays as `model_best.safetensors`.
        log_every: steps between lines of metrics.
        device: `auto` takes the GPU if there is one.
        precision: what products are computed in, by autocast; weights and losses stay float32. `auto` is bfloat16 on
            GPUs of compute capability 8.0 (Ampere) or more, float16 on older ones, float32 on CPUs. `bfloat16` is
            refused on a CPU that has no instructions for it.
        tf32: let a GPU round the factors of what is computed in float32 to 10 bits, which is several times faster.
        compile: compile backbone and neck by `torch.compile`, once, for images of any size.
        activation_checkpointing: keep the inputs of the backbone's blocks only, and compute what is inside again for
            the gradient: less memory, more time, the same results.
        deterministic: only operations that give the same bits each time, slower, so that a run on a GPU resumes
            exactly; one that has no such form is an error. On a CPU all are.
        sync_bn: live batch norms take their statistics over the images of all processes (where there are several).
        ema: decay of the averaged weights, or None.
        loggers: where numbers and pictures also go, e.g. `{type: TensorBoard}`; the console and `metrics.jsonl` always
            have the numbers.
        pictures: images of `data.val` that each evaluation draws into the run folder, the same ones each time; 0 for
            none.
    """

    _: KW_ONLY
    steps: int
    batch: int = 16
    micro_batch: int | None = None
    lr: float
    scale_lr_from: int | None = None
    optimizer: Annotated[Plan, Component(OPTIMIZERS, default="SGD")] = field(
        default_factory=_default(OPTIMIZERS, "SGD", "train.optimizer")
    )
    schedule: Annotated[Plan, Component(SCHEDULES, default="MultiStep")] = field(
        default_factory=_default(SCHEDULES, "MultiStep", "train.schedule")
    )
    layer_decay: float | None = None
    lr_factors: Mapping[str, float] = field(default_factory=dict)
    freeze: list[str] = field(default_factory=list)
    decay_norms: bool = False
    decay_biases: bool = False
    clip_norm: float | None = None
    clip_value: float | None = None
    seed: int = 0
    on_nonfinite: Literal["stop", "skip", "roll_back"] = "stop"
    init_from: str | None = None
    eval_every: int | None = None
    validation_loss: bool = False
    early_stopping: EarlyStopping | None = None
    checkpoint_every: int = 1000
    keep_checkpoints: int = 1
    keep_best: str | None = None
    log_every: int = 20
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    tf32: bool = True
    compile: bool = False
    activation_checkpointing: bool = False
    deterministic: bool = False
    sync_bn: bool = False
    ema: float | None = None
    loggers: list[Annotated[Plan, Component(LOGGERS)]] = field(default_factory=list)
    pictures: int = 8

    def __post_init__(self) -> None:
        # All of them in one error; each line begins with its setting, which is where Plan.build places it.
        wrong = []
        counts = ("steps", "batch", "micro_batch", "scale_lr_from", "eval_every", "log_every")
        for name in (*counts, "checkpoint_every", "keep_checkpoints"):
            value = getattr(self, name)
            if value is not None and value < 1:
                wrong.append(f"{name} is 1 or more, got {value}")
        for name in ("lr", "clip_norm", "clip_value"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                wrong.append(f"{name} is more than 0, got {value}")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            wrong.append(f"layer_decay is more than 0 and at most 1, e.g. 0.75, got {self.layer_decay}")
        for pattern, factor in self.lr_factors.items():
            if factor == 0:
                wrong.append(f"lr_factors has 0 for '{pattern}', which trains nothing; write freeze: [{pattern}]")
            elif not 0 < factor < math.inf:
                wrong.append(f"lr_factors has {factor} for '{pattern}'; a factor is more than 0")
        for name in ("seed", "pictures"):
            if getattr(self, name) < 0:
                wrong.append(f"{name} is 0 or more, got {getattr(self, name)}")
        said = [plan.to_dict() for plan in self.loggers]
        if twice := [plan["type"] for index, plan in enumerate(said) if plan in said[:index]]:
            wrong.append(f"loggers has {twice[0]} twice with the same settings, which would write everything twice")
        if self.ema is not None and not 0 < self.ema < 1:
            wrong.append(f"ema lies between 0 and 1, e.g. 0.999, got {self.ema}")
        if self.keep_best is not None:
            try:
                split_metric(self.keep_best)
            except ValueError as error:
                wrong.append(f"keep_best: {error}")
        if self.early_stopping is not None and self.eval_every is None:
            wrong.append("early_stopping needs eval_every, else the run is evaluated at its end only")
        if self.batch >= 1 and (self.micro_batch is None or self.micro_batch >= 1):
            try:
                accumulation(self.batch, self.micro_batch)
            except ValueError as error:
                wrong.append(str(error))
        if wrong:
            raise ValueError("\n".join(wrong))

    @property
    def scaled_lr(self) -> float:
        """The base learning rate at `batch`."""
        return self.lr if self.scale_lr_from is None else self.lr * self.batch / self.scale_lr_from


@dataclass(frozen=True)
class RunConfig:
    """The whole YAML.

    Attributes:
        model: the detector; `type` is RCNN unless a plugin brings another.
        train: how to train.
        data: what to train and evaluate on.
        test: which detections come out.
        plugins: files (relative to the YAML) and importable modules that register components.
    """

    plugins: list[str] = field(default_factory=list)
    _: KW_ONLY
    model: Annotated[Plan, Component(DETECTORS, default="RCNN")]
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig
    test: TestSettings = field(default_factory=TestSettings)
