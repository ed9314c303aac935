"""Sweeps: each variant with each seed is an ordinary run in a folder of its own, and together they are one table.

sweep = load_sweep("configs/paper/table_2c.yaml", small=True)
runs = runs_of(sweep, "runs/table_2c-small")
check_runs(runs)  # data sets, wiring, and what lies in the folders already
train_runs(runs)  # goes on where it stopped
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from toolbox.data.interfaces import Dataset
from toolbox.data.skeletons import COCO_SIGMAS
from toolbox.engine.datasets import check_data, known_of, open_dataset
from toolbox.engine.early_stopping import Patience
from toolbox.engine.job import device_of
from toolbox.engine.nonfinite import TrainingDiverged
from toolbox.engine.optim import build_optimizer
from toolbox.engine.progress import OnProgress
from toolbox.engine.run_folder import RunFolder
from toolbox.engine.run_lock import RunLocked
from toolbox.engine.sweep_metrics import check_metrics, lacking_in_data, lacking_in_model
from toolbox.engine.train import train
from toolbox.errors import ConfigError, Problem, ToolboxError, counted, did_you_mean
from toolbox.models.builder import check_wiring
from toolbox.schema import Config, config_from_nodes
from toolbox.structures import Skeleton
from toolbox.sweep_file import SweepText, VariantText, raise_gathered, read_sweep
from toolbox.yaml_nodes import Findings, write

logger = logging.getLogger("toolbox")

# Stands for a data set that cannot be read, so that the model can be looked at all the same.
_ANY_DATA = {
    "classes": ("object",),
    "skeleton": Skeleton(names=tuple(COCO_SIGMAS), sigmas=tuple(COCO_SIGMAS.values())),
}


@dataclass(frozen=True)
class Sweep:
    """A sweep whose configs have been checked.

    Attributes:
        text: as it was read.
        same: variants → the one before them with the same config, whose runs are theirs too; itself if there is none.
    """

    text: SweepText
    same: Mapping[str, VariantText]


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        variant: its row in the table.
        seed: of the run.
        config: checked.
        folder: where it is kept.
    """

    variant: VariantText
    seed: int
    config: Config
    folder: RunFolder

    @property
    def finished(self) -> bool:
        """Whether it has done all its steps, or as many as early stopping lets it, and was evaluated after them."""
        done = self.folder.evaluated(self.config.train.steps)
        ended = Patience(self.config.train.early_stopping, self.folder.records()).verdict is not None
        return self.folder.evaluation.exists() and (done or ended)

    def __str__(self) -> str:
        return f"{self.variant.name}, seed {self.seed}"


@dataclass
class Outcome:
    """What became of the runs.

    Attributes:
        finished: runs that are done, of this call or of an earlier one.
        stopped: whether a signal ended it.
        locked: runs that another process is writing.
        diverged: runs whose loss is no longer finite, and what was said of it.
    """

    finished: list[Run] = field(default_factory=list)
    stopped: bool = False
    locked: list[Run] = field(default_factory=list)
    diverged: list[tuple[Run, str]] = field(default_factory=list)


def load_sweep(path: str | Path, overrides: Sequence[str] = (), *, small: bool = False) -> Sweep:
    """Read a sweep and check the config of each variant.

    Args:
        overrides: `key=value`, written over every variant.
        small: the form that trains in minutes.

    Raises:
        ConfigError: every problem of every variant, each with its place.
    """
    text = read_sweep(path, overrides, small=small)
    found: dict[str, Sequence[Problem]] = {}
    same: dict[str, VariantText] = {}
    first: dict[str, VariantText] = {}
    configs: dict[str, Config] = {}
    for variant in text.readable:
        try:
            config = config_of(variant, seed=0)
        except ConfigError as error:
            found[variant.name] = error.problems
        else:
            configs[variant.name] = config
            same[variant.name] = first.setdefault(config.to_yaml(), variant)
    raise_gathered(found, len(text.trained), text.problems)
    check_metrics(text, configs, lacking_in_model)
    return Sweep(text, same)


def config_of(variant: VariantText, seed: int) -> Config:
    """The checked config of one run.

    Raises:
        ConfigError: its problems.
    """
    return config_from_nodes(variant.nodes(seed), str(variant.base), Findings(), folder=variant.base.parent)


def runs_of(
    sweep: Sweep, folder: str | Path, *, only: Sequence[str] = (), seeds: Sequence[int] | None = None
) -> list[Run]:
    """The runs of a sweep: all variants of the first seed, then all of the next.

    Args:
        folder: of the sweep; a run's is `variant/seed-N` in it.
        only: names of variants; all if there are none.
        seeds: instead of the sweep's.

    Raises:
        ToolboxError: `only` names no variant, or one that is not trained.
    """
    chosen = {sweep.same[_named(sweep.text, name)].name for name in only}
    runs = []
    for seed in sweep.text.seeds if seeds is None else seeds:
        for variant in sweep.text.trained:
            if sweep.same[variant.name] is variant and (not only or variant.name in chosen):
                place = RunFolder(Path(folder) / variant.slug / f"seed-{seed}", resumed_by="the same command")
                runs.append(Run(variant, seed, config_of(variant, seed), place))
    return runs


def _named(text: SweepText, name: str) -> str:
    """The variant's name that was meant; its folder's name will do."""
    for variant in text.variants:
        if name in (variant.name, variant.slug):
            if variant.only_paper is not None:
                raise ToolboxError(f"variant '{variant.name}' is not trained: {variant.only_paper}")
            return variant.name
    names = [variant.name for variant in text.trained]
    raise ToolboxError(f"{text.path} has no variant '{name}'{did_you_mean(name, names)} (variants: {', '.join(names)})")


def check_runs(runs: Sequence[Run], text: SweepText | None = None) -> None:
    """See that every run can be trained: its data sets, its model, and what its folder holds.

    Args:
        text: of the sweep; also see that the data gives its metrics.

    Raises:
        ConfigError: every problem of every variant.
    """
    check_folders(runs)
    opened: dict[str, Dataset | ToolboxError] = {}
    configs = {run.variant.name: run.config for run in runs}
    raise_gathered({name: _problems(config, opened) for name, config in configs.items()}, len(configs))
    if text is not None:
        check_metrics(text, configs, lambda config, *metric: lacking_in_data(_opened(config, "val", opened), *metric))


def check_folders(runs: Sequence[Run]) -> None:
    """See that the runs that are there already were started with the sweep's configs.

    Raises:
        ConfigError: the keys that differ, of all of them.
    """
    found: dict[tuple[str, str], list[Problem]] = {}
    for run in runs:
        if run.folder.held() and run.folder.config.exists():
            try:
                run.folder.check_same(run.config.to_yaml())
            except ConfigError as error:
                for problem in error.problems:
                    found.setdefault((problem.key, problem.message), []).append(problem)
    if found:
        raise ConfigError([_first(problems) for problems in found.values()])


def _first(problems: Sequence[Problem]) -> Problem:
    first, others = problems[0], len(problems) - 1
    more = f" ({counted(others, 'other run')} alike)" if others else ""
    return Problem(first.where, first.key, first.message + more)


def _problems(config: Config, opened: dict[str, Dataset | ToolboxError]) -> Sequence[Problem]:
    """What is wrong with a variant, the model apart from the data, so that neither hides the other."""
    problems: list[Problem] = []

    def note(step: Callable[[], Any]) -> Any:
        try:
            return step()
        except ConfigError as error:
            problems.extend(error.problems)
        except ToolboxError as error:
            problems.append(Problem("", "", str(error)))
        return None

    note(lambda: device_of(config))
    for component in (*config.data.transforms, *config.train.loggers):
        note(component.build)
    note(lambda: config.train.schedule.build(steps=config.train.steps))
    train_set = note(lambda: _opened(config, "train", opened))
    val_set = note(lambda: _opened(config, "val", opened))
    if train_set is not None and val_set is not None:
        note(lambda: check_data(config, train_set, val_set))
    known = _ANY_DATA if train_set is None else known_of(train_set)
    note(lambda: build_optimizer(config, check_wiring(config, **known)))
    return problems


def _opened(config: Config, split: Literal["train", "val"], opened: dict[str, Dataset | ToolboxError]) -> Dataset:
    """A data set that variants share is read once."""
    plan = getattr(config.data, split)
    key = split if plan is None else write(plan.to_dict())
    if key not in opened:
        try:
            opened[key] = open_dataset(config, split)
        except ToolboxError as error:
            opened[key] = error
    found = opened[key]
    if isinstance(found, ToolboxError):
        raise found
    return found


def train_runs(
    runs: Sequence[Run],
    *,
    on_run: Callable[[int, Run], None] | None = None,
    on_progress: OnProgress | None = None,
) -> Outcome:
    """Train what is not finished, each run as `train` does it; a run that was stopped goes on.

    Other processes may do the same at the same time: a run that one of them is writing is passed over.

    Args:
        on_run: called before each run that is trained, with its number from 0.
        on_progress: passed to `train`.
    """
    outcome = Outcome()
    for number, run in enumerate(runs):
        if not run.finished:
            if on_run is not None:
                on_run(number, run)
            logger.info("run %d of %d: %s", number + 1, len(runs), run)
            try:
                done = train(run.config, run.folder, resume=bool(run.folder.held()), on_progress=on_progress)
            except RunLocked as error:
                logger.info("passed over: %s", error)
                outcome.locked.append(run)
                continue
            except TrainingDiverged as error:
                logger.error("%s: %s", run, error)
                outcome.diverged.append((run, str(error)))
                continue
            if not done["finished"]:
                outcome.stopped = True
                break
        outcome.finished.append(run)
    return outcome
