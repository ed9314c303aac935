"""What a run's YAML may hold, and `load_config`, which reads it.

The sections that are not components are the dataclasses below. A component whose wired arguments are known only later
(the parameters to optimize) or whose construction reads files (a data set) stays a `Plan`.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from toolbox import catalogue
from toolbox.config import check
from toolbox.data.resize import Resize
from toolbox.errors import ConfigError, Problem
from toolbox.models.box_branch import TestSettings
from toolbox.plan import Plan
from toolbox.plugins import PluginError, load_installed, load_plugin, registered_by
from toolbox.precheck import read_nodes, read_text
from toolbox.registry import ADVICE, DATASETS, DETECTORS, OPTIMIZERS, SCHEDULES, TRANSFORMS, Registry
from toolbox.signatures import Component
from toolbox.yaml_nodes import COMMAND_LINE, Findings, Node, write

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
)


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
        group_by_aspect: batch wide images with wide ones and tall with tall, so that less is padded.
    """

    _: KW_ONLY
    train: Annotated[Plan, Component(DATASETS)] | None = None
    val: Annotated[Plan, Component(DATASETS)] | None = None
    resize: Resize | None = field(default_factory=Resize)
    transforms: list[Annotated[Plan, Component(TRANSFORMS)]] = field(default_factory=list)
    min_visible: float = 0.1
    workers: int = 2
    group_by_aspect: bool = True

    def __post_init__(self) -> None:
        wrong = []
        if not 0 <= self.min_visible <= 1:
            wrong.append(f"min_visible is a part of a box, 0 to 1, got {self.min_visible}")
        if self.workers < 0:
            wrong.append(f"workers is 0 (load in the training process) or more, got {self.workers}")
        if wrong:
            raise ValueError("\n".join(wrong))


@dataclass(frozen=True)
class TrainConfig:
    """Section `train`: how to train.

    Attributes:
        steps: optimizer steps.
        batch: images per optimizer step, over all processes.
        micro_batch: images per process and backward pass; fewer than its share of `batch` means accumulation.
        lr: base learning rate, at `batch`.
        optimizer: torch's, with its settings.
        schedule: the learning rate over the run, as a factor on `lr`.
        layer_decay: factor on the learning rate per layer of the backbone, from its last one towards the image, e.g.
            0.75; None trains all layers at one rate.
        clip_norm: largest norm of the gradient.
        seed: of weights, order, augmentation and sampling.
        eval_every: steps between evaluations; None evaluates at the end only.
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of metrics.
        device: `auto` takes the GPU if there is one.
        amp: bfloat16 autocast, on a GPU only.
        ema: decay of the averaged weights, or None.
    """

    _: KW_ONLY
    steps: int
    batch: int = 16
    micro_batch: int | None = None
    lr: float
    optimizer: Annotated[Plan, Component(OPTIMIZERS, default="SGD")] = field(
        default_factory=_default(OPTIMIZERS, "SGD", "train.optimizer")
    )
    schedule: Annotated[Plan, Component(SCHEDULES, default="MultiStep")] = field(
        default_factory=_default(SCHEDULES, "MultiStep", "train.schedule")
    )
    layer_decay: float | None = None
    clip_norm: float | None = None
    seed: int = 0
    eval_every: int | None = None
    checkpoint_every: int = 1000
    log_every: int = 20
    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: bool = True
    ema: float | None = None

    def __post_init__(self) -> None:
        # All of them in one error; each line begins with its setting, which is where Plan.build places it.
        wrong = []
        for name in ("steps", "batch", "micro_batch", "eval_every", "checkpoint_every", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                wrong.append(f"{name} is 1 or more, got {value}")
        for name in ("lr", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                wrong.append(f"{name} is more than 0, got {value}")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            wrong.append(f"layer_decay is more than 0 and at most 1, e.g. 0.75, got {self.layer_decay}")
        if self.seed < 0:
            wrong.append(f"seed is 0 or more, got {self.seed}")
        if self.ema is not None and not 0 < self.ema < 1:
            wrong.append(f"ema lies between 0 and 1, e.g. 0.999, got {self.ema}")
        if not wrong and self.micro_batch is not None and self.batch % self.micro_batch:
            wrong.append(f"batch ({self.batch}) is not a multiple of micro_batch ({self.micro_batch})")
        if wrong:
            raise ValueError("\n".join(wrong))


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


@dataclass(frozen=True)
class Config:
    """A checked config.

    Attributes:
        model: plan of the detector.
        data, train, test: the sections.
        plugins: what was loaded, files by absolute path.
        path: where the YAML came from, for messages.
        plan: the whole YAML as one plan.
    """

    model: Plan
    data: DataConfig
    train: TrainConfig
    test: TestSettings
    plugins: tuple[str, ...]
    path: str
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        """Everything, defaults written out, as plain data."""
        return self.plan.to_dict()

    def to_yaml(self) -> str:
        """The resolved config; it loads again to the same."""
        return write(self.to_dict())


@cache
def register_builtin() -> None:
    """Import every built-in component, so that its family knows it.

    By name, because this is the one place that looks up from its floor: optimizers and schedules live with the engine
    that runs them, and a config must still be checked against them.
    """
    for name in _COMPONENTS:
        package = importlib.import_module(name)
        for module in pkgutil.iter_modules(getattr(package, "__path__", ()), prefix=f"{name}."):
            importlib.import_module(module.name)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a config, its plugins included.

    Args:
        overrides: `key=value`, e.g. `model.backbone.depth=101`; values are YAML.

    Raises:
        ConfigError: every problem of the file and the overrides, each with its place.
    """
    path = Path(path)
    text = read_text(path)
    return config_from_text(text, str(path), overrides, folder=path.parent)


def config_from_text(
    text: str, name: str, overrides: Sequence[str] = (), *, folder: str | Path | None = None
) -> Config:
    """Check YAML text, e.g. the config stored in a checkpoint.

    Args:
        name: what messages call the text.
        folder: what plugin files are relative to; the current folder if None.
    """
    findings = Findings()
    root = read_nodes(text, name, overrides, findings)
    return config_from_nodes(root, name, findings, folder=folder)


def config_from_nodes(root: Node, name: str, findings: Findings, *, folder: str | Path | None = None) -> Config:
    """Check YAML that has been read, e.g. a variant of a sweep. The paths of plugins in it become absolute.

    Args:
        name: what messages call it.
        findings: problems that reading it found; they are raised with the others.
        folder: what plugin files are relative to; the current folder if None.
    """
    register_builtin()
    catalogue.save(RunConfig)
    advice = [*_load_plugins(root, Path(folder or "."), findings), *load_installed()]
    plan = check(root, RunConfig, findings, advice="; ".join(advice))
    findings.raise_any()
    sections = _build_sections(plan)
    return Config(model=plan["model"], **sections, plugins=tuple(plan["plugins"]), path=name, plan=plan)


def _load_plugins(root: Node, folder: Path, findings: Findings) -> list[str]:
    """Load what `plugins:` lists, and make its paths absolute; failures are noted.

    Returns:
        What became of each plugin, for whoever misses a name; advice to list one if there is none.
    """
    listed = root.value.get("plugins")
    outcomes = []
    for index, node in enumerate(listed.value if listed is not None and listed.is_list else ()):
        if not isinstance(node.value, str):
            continue  # the checker says so
        # On the command line, paths are the shell's: relative to the current folder.
        base = Path(".") if node.place.is_override else folder
        entry = node.value
        try:
            node.value = load_plugin(entry, base)
        except PluginError as error:
            failed = f"plugin '{entry}' failed to import"
            findings.add(node.place, f"plugins.{index}", f"{failed}: {error}", cause=True)
            outcomes.append(failed)
        else:
            outcomes.append(_what_it_brought(entry, registered_by(node.value)))
    return outcomes or [ADVICE]


def _what_it_brought(entry: str, names: Sequence[str]) -> str:
    if not names:
        return f"plugin '{entry}' is loaded, but it registers nothing (is @FAMILY.register missing?)"
    return f"plugin '{entry}' registers {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"


def _build_sections(plan: Plan) -> dict[str, Any]:
    sections: dict[str, Any] = {}
    problems: list[Problem] = []
    for name in ("data", "train", "test"):
        try:
            section = plan[name]
            sections[name] = section.build() if isinstance(section, Plan) else section
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.where == COMMAND_LINE))
    return sections
