"""A look at data sets before training: whether images can be read, and whether both sets hold the same ones."""

from __future__ import annotations

import logging
import os
from typing import Any

from toolbox.data.coco import CocoDataset
from toolbox.data.interfaces import Dataset

logger = logging.getLogger("toolbox")

_TRIED = 8  # images, spread over the data set


def try_images(dataset: Dataset) -> None:
    """Load a few images, the first and the last among them.

    Raises:
        DataError: one of them cannot be read or is not what the annotations say.
    """
    last = len(dataset) - 1
    for index in sorted({last * step // (_TRIED - 1) for step in range(_TRIED)}) if last >= 0 else ():
        dataset.load(index)


def warn_of_shared_images(train: Any, val: Any) -> None:
    """Say when images of the training set are in the evaluation too, where both sets name their files."""
    if not (isinstance(train, CocoDataset) and isinstance(val, CocoDataset)):
        return
    known = _paths(train)
    shared = [path for path in _paths(val) if path in known]
    if shared:
        names = ", ".join(os.path.basename(path) for path in shared[:3]) + (", …" if len(shared) > 3 else "")
        logger.warning(
            "data.val: %d of its %d images are in data.train too (%s): the results will be too good; "
            "keep the images of both apart",
            len(shared),
            len(val),
            names,
        )


def _paths(dataset: CocoDataset) -> dict[str, None]:
    folder = os.path.realpath(dataset.folder)
    return dict.fromkeys(os.path.normpath(os.path.join(folder, name)) for name in dataset.index.files)
