"""Weights of another project into a detector of ours, with the classes that they were trained on."""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from toolbox.errors import CheckpointError, counted
from toolbox.inference.loading import LoadedDetector
from toolbox.models.backbones.weights import without_pretrained
from toolbox.models.builder import build_detector, check_wiring
from toolbox.schema import Config, load_config
from toolbox.weights.exchange.classes import (
    ClassTable,
    assumed_classes,
    classes_of_data,
    classes_of_meta,
    rows_of,
)
from toolbox.weights.exchange.settings import unlike_torchvision
from toolbox.weights.foreign_files import ForeignCheckpoint
from toolbox.weights.loading import check_fits, load_weights
from toolbox.weights.torchvision import model_name
from toolbox.weights.trained_with import check_settings
from toolbox.weights.whose import check_source

logger = logging.getLogger("toolbox")

# torchvision runs these files with norms of epsilon 0 (`overwrite_eps`), all others with 1e-5; the names of its files
# end with the first digits of their SHA-256.
_WITHOUT_EPSILON = {
    "258fb6c6": "fasterrcnn_resnet50_fpn, COCO_V1",
    "bf2d0c1e": "maskrcnn_resnet50_fpn, COCO_V1",
    "fc266e95": "keypointrcnn_resnet50_fpn, COCO_V1",
}
_BY_CLASS = {"box.head.predictor.deltas.": 4, "instance.mask.head.predictor.": 1}  # rows of each class


def import_torchvision(
    state_dict: Mapping[str, Tensor], config: Config, *, classes: ClassTable | None = None
) -> LoadedDetector:
    """Put torchvision's weights into the model of a config.

    Args:
        state_dict: of fasterrcnn_, maskrcnn_ or keypointrcnn_resnet50_fpn, or of a `_v2`.
        config: of the same model; configs/torchvision holds one for each.
        classes: in the order of the rows, or with category ids that say the row; those of the config's data if None,
            else COCO's, if the rows can be no others'.

    Raises:
        CheckpointError: other tensors than the model's, or rows that do not fit the classes.
    """
    return import_weights(state_dict, config, source="torchvision", classes=classes)


def import_checkpoint(
    checkpoint: ForeignCheckpoint, config: Config, *, source: str, classes: ClassTable | None = None
) -> LoadedDetector:
    """Put the weights of a file of another project into the model of a config.

    Args:
        checkpoint: of `read_checkpoint`.
        config, source: as `import_weights` takes them.
        classes: those that the file names, if None and it does, else as `import_weights` finds them.

    Raises:
        CheckpointError: as `import_weights` says, the weights are of another project, or the config has other settings
            than they were trained with.
    """
    check_source(checkpoint.state, source, checkpoint.path)
    if source == "torchvision" and (others := unlike_torchvision(config)):
        logger.warning(
            "%s: torchvision's models work otherwise than this config's, so detections will differ; "
            "to make them equal, add %s",
            config.path,
            " ".join(others),
        )
    classes = classes or classes_of_meta(checkpoint.meta, checkpoint.path)
    detector = import_weights(checkpoint.state, config, source=source, classes=classes, name=checkpoint.path)
    check_settings(source, checkpoint, detector.model)
    return detector


def import_weights(
    state_dict: Mapping[str, Tensor],
    config: Config,
    *,
    source: str,
    classes: ClassTable | None = None,
    name: str = "the state dict",
) -> LoadedDetector:
    """Put the weights of another project into the model of a config.

    Args:
        state_dict: under the project's own names.
        config: of the same model.
        source: whose they are, a module of toolbox.weights.
        classes: as `import_torchvision` takes them.
        name: what messages call the state dict.

    Raises:
        CheckpointError: as `import_torchvision` says.
    """
    try:
        tensors = _renamed(source, state_dict, config)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    table = _table(tensors, config, classes, name)
    tensors = _of_classes(tensors, table, name)
    names, skeleton = table.names, table.skeleton if _wants_joints(config) else None
    with without_pretrained():
        try:
            check_fits(check_wiring(config, classes=names, skeleton=skeleton, weights=False), tensors, name)
        except CheckpointError as error:
            raise CheckpointError(f"{error}{_right_config(source, state_dict, config)}") from error
        model = build_detector(config, classes=names, skeleton=skeleton)
    load_weights(model, tensors, name)
    return LoadedDetector(model.eval(), config, names, table.category_ids, skeleton)


def _renamed(source: str, state_dict: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The project's tensors under our names."""
    rename = getattr(importlib.import_module(f"toolbox.weights.{source}"), f"from_{source}")
    if source != "detectron2":
        return rename(state_dict)
    return rename(state_dict, ratios=len(config.model["rpn"]["anchors"]["ratios"]))


def config_for(file: Path, path: Path, overrides: Sequence[str]) -> tuple[Config, str | None]:
    """The config of a published file of torchvision runs its norms as torchvision does, unless it says otherwise.

    Args:
        file: the weights.
        path, overrides: of the config.

    Returns:
        The config, and which published file it is, or None.
    """
    config = load_config(path, overrides)
    published = _WITHOUT_EPSILON.get(_digest(file)[:8])
    backbone = config.model.given.get("backbone")
    if published and backbone is not None and backbone.cls.__name__ == "ResNet" and "norm_eps" not in backbone.given:
        config = load_config(path, [*overrides, "model.backbone.norm_eps=0"])
    return config, published


def _digest(file: Path) -> str:
    if not file.is_file():
        return ""  # whoever reads it says so
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _table(tensors: Mapping[str, Tensor], config: Config, classes: ClassTable | None, name: str) -> ClassTable:
    if classes is not None:
        return classes
    found = classes_of_data(config)
    if isinstance(found, ClassTable):
        return found
    joints = tensors.get("instance.keypoint.head.deconvolution.bias")
    rows = _rows(tensors, name)
    table = assumed_classes(rows, None if joints is None else len(joints))
    if table is None:
        raise CheckpointError(
            f"{name}: has rows for {counted(rows, 'class', 'classes')}, whose names it does not hold, and {found}; "
            "give them by --classes: a COCO annotation file, a file with a name a line, or names with commas between"
        )
    return table


def _rows(tensors: Mapping[str, Tensor], name: str) -> int:
    logits = tensors.get("box.head.predictor.logits.bias")
    if logits is None:
        raise CheckpointError(
            f"{name}: has no box predictor, so it is no whole detector; save the model's state_dict()"
        )
    return len(logits) - 1


def _of_classes(tensors: Mapping[str, Tensor], table: ClassTable, name: str) -> dict[str, Tensor]:
    """The rows of the table's classes, in their order, and of the background."""
    count = _rows(tensors, name)
    try:
        rows = torch.tensor(rows_of(table, count))
    except ValueError as error:
        raise CheckpointError(
            f"{name}: {error}; say by --classes what it was trained on (coco, a COCO annotation file, or names), "
            "or give the config whose data it was trained on"
        ) from error
    chosen = dict(tensors)
    for key, tensor in tensors.items():
        if key.startswith("box.head.predictor.logits."):
            chosen[key] = tensor[torch.cat((rows, torch.tensor([count])))]
        each = next((each for prefix, each in _BY_CLASS.items() if key.startswith(prefix)), 0)
        if each and len(tensor) == each * count:  # else one for all classes
            chosen[key] = tensor.unflatten(0, (count, each))[rows].flatten(0, 1)
    return chosen


def _wants_joints(config: Config) -> bool:
    branches = (config.model.given.get("instance") or {}).values()
    return any("skeleton" in branch["head"].wired for branch in branches if branch is not None)


def _right_config(source: str, state_dict: Mapping[str, Tensor], config: Config) -> str:
    """Which config the weights want, where that can be known."""
    if source != "torchvision":
        return ""
    name = model_name(state_dict)
    kind, _, rest = name.partition("rcnn_resnet50_")
    if not rest:
        return f"\nthe weights are of {name}; {config.path} describes another model"
    return f"\nthe weights are of {name}, whose config is configs/torchvision/{kind}_rcnn_r50_{rest}.yaml"
