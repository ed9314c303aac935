"""The data sets of a run: opened, and seen to fit the model, each other and what is to be watched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from toolbox.data.counts import count_objects, labels_by_image
from toolbox.data.interfaces import Dataset, channels_of
from toolbox.data.sampling import ImageSampling
from toolbox.engine.channels import check_channels
from toolbox.engine.early_stopping import check_watched, warn_of_endless
from toolbox.engine.evaluate import check_classes, check_skeleton
from toolbox.errors import ConfigError, DataError, Problem
from toolbox.models.builder import check_ground_truth, uses_joints
from toolbox.plan import Plan
from toolbox.schema import Config


def open_dataset(config: Config, split: Literal["train", "val"]) -> Dataset:
    """The data set of a split.

    Raises:
        ConfigError: the config names none.
        DataError: it cannot be read.
    """
    plan = getattr(config.data, split)
    if plan is None:
        message = f"there is none; add data.{split}: {{type: CocoDataset, images: …, annotations: …}}"
        raise ConfigError([Problem(config.path, f"data.{split}", message)])
    with placed(plan):
        return plan.build()


def check_data(config: Config, train_set: Dataset, val_set: Dataset | None) -> None:
    """See that the data sets fit each other and what is to be trained.

    Raises:
        ToolboxError: what does not fit.
    """
    if len(train_set) == 0:
        raise DataError("data.train has no images to train on; see 'images', 'annotations' and 'skip_empty'")
    if val_set is not None:
        with placed(config.data.val):
            check_classes(train_set.classes, val_set, "data.train", "data.val")
            if uses_joints(config):
                check_skeleton(train_set.skeleton, val_set, "data.train", "data.val")
    check_channels(config, train_set, val_set)
    check_objects(config, train_set)
    check_ground_truth(config, train_set)
    check_watching(config, val_set)
    with placed(config.data.train):
        sampling_of(config, train_set)


def check_objects(config: Config, dataset: Dataset) -> None:
    """Refuse a training set without objects, where it has an index to count them in.

    Raises:
        DataError: at `data.train`.
    """
    counts = count_objects(dataset, most=0)
    if counts.images == len(dataset) and not counts.objects.any():
        with placed(config.data.train):
            raise DataError("it has no objects, so there is nothing to learn")


def check_watching(config: Config, val_set: Dataset | None) -> None:
    """See that what is to be watched during the run can be.

    Raises:
        ConfigError: there is nothing to evaluate on, or it lacks what a metric or a loss needs.
    """
    if config.train.early_stopping is not None:
        check_watched(config, config.train.early_stopping.metric, "early_stopping", val_set)
        warn_of_endless(config.train)
    if config.train.keep_best is not None:
        check_watched(config, config.train.keep_best, "keep_best", val_set)
    if config.train.validation_loss and val_set is None:
        message = "validation_loss needs images to compute it on; add data.val"
        raise ConfigError([config.plan["train"].problem(message, "validation_loss")])
    if config.train.validation_loss and val_set is not None:
        check_ground_truth(config, val_set, "val")


def sampling_of(config: Config, train_set: Dataset) -> ImageSampling | None:
    """How often each training image comes in an epoch; None for once.

    Raises:
        DataError: the data set cannot tell the classes in its images, or has none of the images asked for.
    """
    data = config.data
    if data.repeat_factors is None and data.negatives is None:
        return None
    return ImageSampling(
        labels_by_image(train_set),
        len(train_set.classes),
        repeat=data.repeat_factors,
        negatives=data.negatives,
        seed=config.train.seed,
    )


def known_of(train_set: Dataset) -> dict[str, Any]:
    """What `build_detector` and `check_wiring` want to know of the data."""
    return {"classes": train_set.classes, "skeleton": train_set.skeleton, "channels": channels_of(train_set)}


@contextmanager
def placed(plan: Plan | None) -> Iterator[None]:
    """Put file, line and key of a data set's plan before what it says is wrong."""
    try:
        yield
    except DataError as error:
        if plan is None:
            raise
        raise DataError(str(data_problem(plan, str(error)))) from error


def data_problem(plan: Plan, message: str) -> Problem:
    """What is wrong with a data set, at the setting that names the file or folder of which it tells."""
    named = [
        # The longest: an annotation file may lie in the folder of images. Of equal ones the one that is spoken of.
        (len(str(value)), f"'{name}'" in message, name)
        for name, value in plan.given.items()
        if isinstance(value, (str, Path)) and message.startswith((f"{Path(value)}:", f"{Path(value)}/"))
    ]
    return plan.problem(message, max(named)[-1] if named else None)
