"""Whose weights a checkpoint holds, by the names of its tensors; and what torch's wrappers put before them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TypeVar

from toolbox.errors import CheckpointError

logger = logging.getLogger("toolbox")

V = TypeVar("V")

# DistributedDataParallel and DataParallel; torch.compile
_WRAPPERS = {"module.": "DataParallel or DistributedDataParallel", "_orig_mod.": "torch.compile"}

# Beginnings of names that every detector of a project has, and none of another.
_MARKS = {
    "torchvision": ("backbone.body.", "rpn.head.cls_logits."),
    "detectron2": ("backbone.bottom_up.", "proposal_generator.", "conv_rpn_", "rpn_cls_logits_"),
    "mmdetection": ("rpn_head.", "roi_head."),
    "toolbox": ("rpn.head.convolutions.", "rpn.head.objectness.", "box.head."),
}
_TITLES = {"torchvision": "torchvision", "detectron2": "Detectron2", "mmdetection": "MMDetection"}


def unwrapped(state: Mapping[str, V], path: str) -> dict[str, V]:
    """The tensors of a model that was saved inside a wrapper, under the model's own names; said in the log."""
    tensors = dict(state)
    while prefix := next((p for p in _WRAPPERS if tensors and all(name.startswith(p) for name in tensors)), None):
        logger.info("%s: was saved inside %s: '%s' is taken off its names", path, _WRAPPERS[prefix], prefix)
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def whose(state: Mapping[str, object]) -> str | None:
    """`torchvision`, `detectron2`, `mmdetection` or `toolbox`; None where the names do not say."""
    for project, marks in _MARKS.items():
        if any(name.startswith(marks) for name in state):
            return project
    return None


def check_source(state: Mapping[str, object], source: str, path: str) -> None:
    """Refuse weights of another project than was said.

    Args:
        state: tensors by name.
        source: whose they are said to be.
        path: of their file.

    Raises:
        CheckpointError: they are another's, or the toolbox's own.
    """
    found = whose(state)
    if found == "toolbox":
        way = f"it needs no import: rcnn predict {path} IMAGE --out found"
        raise CheckpointError(f"{path}: this is a model file of the toolbox; {way}")
    if found not in (None, source):
        raise CheckpointError(f"{path}: these are weights of {_TITLES[str(found)]}; write --from {found}")
