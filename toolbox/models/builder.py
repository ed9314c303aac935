"""The assembly, in pipeline order: each stage is told what the one before provides, so no YAML repeats a number."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import nn

from toolbox.errors import ConfigError, Problem, counted
from toolbox.models.backbones.resnet import ResNet, ResNetStage
from toolbox.models.backbones.weights import checking_pretrained
from toolbox.models.box_branch import TestSettings
from toolbox.models.detector import RCNN
from toolbox.plan import Plan
from toolbox.structures import FeatureSpec, RoIShape, Skeleton

if TYPE_CHECKING:
    from toolbox.schema import Config

T = TypeVar("T")

_LOOKED_AT = 16  # images, to see what a data set has
_REMEDIES = {
    "masks": "annotate its objects with 'segmentation' (and leave 'masks: false' out)",
    "keypoints": "annotate its objects with 'keypoints' (and leave 'keypoints: false' out)",
}


def build_detector(
    config: Config, *, classes: Sequence[str], skeleton: Skeleton | None = None, channels: int = 3
) -> nn.Module:
    """Build the model of a config, on the CPU (or under `torch.device("meta")` without memory).

    Args:
        config: of `toolbox.load_config`.
        classes: names of the K classes; they come from the data set or the checkpoint.
        skeleton: joints for keypoint heads, from the same place.
        channels: of the images, from the same place; 3 is RGB.

    Returns:
        The detector, with `classes`, `skeleton` and `channels` as attributes.

    Raises:
        ConfigError: a component refuses its arguments or what it is wired to; with file, line and key.
    """
    if isinstance(classes, (str, int)) or not classes:
        raise ValueError(f"classes are the names of at least one class, e.g. ['cat', 'dog'], got {classes!r}")
    if issubclass(config.model.cls, RCNN):
        detector: Any = _build_rcnn(config.model, config.test, len(classes), skeleton, channels)
    else:  # a plugin's own meta-architecture takes what it names
        offered = {"num_classes": len(classes), "test": config.test, "skeleton": skeleton}
        detector = config.model.build(**{name: offered[name] for name in config.model.wired})
    detector.classes = tuple(classes)
    detector.skeleton = skeleton
    detector.channels = channels
    # Channels-last is what the convolutions and our RoI operations are fastest in, on the CPU as on the GPU.
    return detector.to(memory_format=torch.channels_last)


def check_wiring(
    config: Config, *, classes: Sequence[str], skeleton: Skeleton | None = None, channels: int = 3, weights: bool = True
) -> nn.Module:
    """Build the model without memory, so that nothing is read, made or downloaded before every stage is known to fit.

    Args:
        config, classes, skeleton, channels: as `build_detector` takes them.
        weights: also see that files of pretrained weights fit, and that names of such exist.

    Returns:
        The detector on the meta device.

    Raises:
        ConfigError: what does not fit, or is not there.
    """
    checking = checking_pretrained() if weights else nullcontext()
    with torch.device("meta"), checking, warnings.catch_warnings():
        # A component that loads weights has nothing to put them into, which torch warns about tensor by tensor.
        warnings.filterwarnings("ignore", message=".*which is a no-op")
        return build_detector(config, classes=classes, skeleton=skeleton, channels=channels)


def check_ground_truth(config: Config, dataset: Any, split: Literal["train", "val"] = "train") -> None:
    """See that a data set has what heads and transforms cannot do without (their class attribute `needs`).

    Args:
        dataset: the split's; its first images with objects are loaded, which tells for any kind of data set.
        split: of the data.

    Raises:
        ConfigError: a problem at the split for each branch or transform that lacks something.
        DataError: a first image cannot be read.
    """
    parts = [*plans_in(config.model), *(plans_in(config.data.transforms) if split == "train" else ())]
    wanted = [(part, name) for part in parts for name in getattr(part.cls, "needs", ())]
    if not wanted:
        return
    sample = first_with_objects(dataset)
    if sample is None:
        return  # without objects, nobody can tell
    plan = getattr(config.data, split)
    use = "train" if split == "train" else "compute its loss (train.validation_loss)"
    problems = []
    for part, name in wanted:
        if getattr(sample, name) is None:
            place = part.key.removesuffix(".head")
            remedy = _REMEDIES.get(name, "give a data set that has them")
            message = (
                f"{type(dataset).__name__} has no {name} here, but {place} ({part.cls.__name__}) needs them to {use}; "
                f"{remedy}, or remove {place}"
            )
            problems.append(plan.problem(message) if plan else Problem("", f"data.{split}", message))
    if problems:
        raise ConfigError(problems)


def first_with_objects(dataset: Any) -> Any:
    """The first sample of a data set that has an object, or None if its first images have none."""
    first = (dataset.load(index) for index in range(min(len(dataset), _LOOKED_AT)))
    return next((sample for sample in first if len(sample)), None)


def uses_joints(config: Config) -> bool:
    """Whether a part of the model takes the skeleton."""
    return any("skeleton" in plan.wired for plan in (config.model, *plans_in(config.model)))


def attempt(problems: list[Problem], build: Callable[[], T]) -> T | None:
    """What `build` makes, or None with its problems added."""
    try:
        return build()
    except ConfigError as error:
        problems += error.problems
    return None


def plans_in(value: Any) -> Iterator[Plan]:
    """The plans in a value, from the outside in."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from plans_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from plans_in(item)
    elif isinstance(value, Plan):
        yield value
        yield from plans_in(value.given)


def _build_rcnn(
    plan: Plan, test: TestSettings, num_classes: int, skeleton: Skeleton | None, channels: int
) -> nn.Module:
    backbone = _build_backbone(plan["backbone"], channels)
    neck = plan["neck"].build(in_features=backbone.out_features) if plan["neck"] is not None else None
    features = backbone.out_features if neck is None else neck.out_features

    _check_roi_stage(plan["roi_stage"], plan["backbone"])
    # What follows depends on the maps alone, so that the problems of all of it can come together.
    problems: list[Problem] = []
    rpn = attempt(problems, lambda: _build_rpn(plan["rpn"], features))
    regions = attempt(problems, lambda: _build_regions(plan, features))
    if regions is None:
        raise ConfigError(problems)
    box_extractor, roi_stage, pooled = regions
    box = attempt(problems, lambda: _build_box(plan["box"], box_extractor, pooled, num_classes, test))
    instance = {
        name: attempt(problems, partial(_build_instance, branch, features, pooled, num_classes, skeleton))
        for name, branch in (plan["instance"] or {}).items()
        if branch is not None
    }
    if problems:
        raise ConfigError(problems)
    return plan.build(backbone=backbone, neck=neck, rpn=rpn, roi_stage=roi_stage, box=box, instance=instance)


def _check_roi_stage(stage: Plan | None, backbone: Plan) -> None:
    """A ResNet's stage on regions goes on where the backbone ends: both are of one network."""
    if stage is None or not (issubclass(stage.cls, ResNetStage) and issubclass(backbone.cls, ResNet)):
        return
    unlike = [name for name in ("depth", "groups", "width_per_group") if stage[name] != backbone[name]]
    if unlike:
        told = ", ".join(f"{name} {backbone[name]}, not {stage[name]}" for name in unlike)
        needed = " ".join(f"{stage.key}.{name}={backbone[name]}" for name in unlike)
        message = f"it goes on where the backbone ends, and that has {told}; add {needed}"
        raise ConfigError([stage.problem(message, unlike[0])])


def _build_regions(plan: Plan, features: dict[str, FeatureSpec]) -> tuple[Any, Any, RoIShape]:
    """The box branch's extractor, the RoI stage or None, and what comes out of both."""
    extractor = plan["box"]["extractor"].build(in_features=features)
    stage = plan["roi_stage"] and plan["roi_stage"].build(in_shape=extractor.out_shape)
    head: Plan = plan["box"]["head"]
    if stage is None and getattr(head.cls, "needs_roi_stage", False):
        message = (
            f"{head.cls.__name__} has no layers between the pooled regions and its predictions, and there is no "
            "model.roi_stage either; add one (C4 models: {type: ResNetStage, stage: 5, …}), or take TwoFCBoxHead"
        )
        raise ConfigError([head.problem(message)])
    return extractor, stage, (stage or extractor).out_shape


def _build_box(plan: Plan, extractor: Any, pooled: RoIShape, num_classes: int, test: TestSettings) -> nn.Module:
    head = plan["head"].build(in_shape=pooled, num_classes=num_classes)
    return plan.build(num_classes=num_classes, test=test, extractor=extractor, head=head)


def _build_backbone(plan: Plan, channels: int) -> Any:
    backbone = plan.build(**({"in_channels": channels} if "in_channels" in plan.wired else {}))
    if len(backbone.pixels.mean) != channels:
        message = (
            f"{plan.cls.__name__} reads images of {counted(len(backbone.pixels.mean), 'channel')}, "
            f"the data set's have {channels}"
        )
        raise ConfigError([plan.problem(message)])
    return backbone


def _build_rpn(plan: Plan, features: dict[str, FeatureSpec]) -> nn.Module:
    anchors = plan["anchors"].build(in_features=features)
    channels = {spec.channels for spec in features.values()}
    if len(channels) != 1:
        widths = ", ".join(f"{name}: {spec.channels}" for name, spec in features.items())
        raise ConfigError(
            [plan.problem(f"one RPN head cannot run on maps of different width ({widths}); add a neck", "head")]
        )
    head = plan["head"].build(in_channels=channels.pop(), num_anchors=anchors.num_anchors)
    return plan.build(in_features=features, anchors=anchors, head=head)


def _build_instance(
    plan: Plan, features: dict[str, FeatureSpec], shared: RoIShape, num_classes: int, skeleton: Skeleton | None
) -> nn.Module:
    extractor = plan["extractor"] and plan["extractor"].build(in_features=features)
    head: Plan = plan["head"]
    wired: dict[str, Any] = {"in_shape": extractor.out_shape if extractor else shared, "num_classes": num_classes}
    if "skeleton" in head.wired:
        if skeleton is None:
            name = head.cls.__name__
            raise ConfigError([head.problem(f"{name} needs joints, but the data set's categories have no 'keypoints'")])
        wired["skeleton"] = skeleton
    return plan.build(extractor=extractor, head=head.build(**wired))
