"""A detector of ours as weights of another project."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from toolbox.errors import CheckpointError
from toolbox.inference.loading import LoadedDetector
from toolbox.weights.atomic import replacing
from toolbox.weights.exchange.classes import COCO_ROWS, coco_classes
from toolbox.weights.exchange.settings import unlike_torchvision
from toolbox.weights.torchvision import to_torchvision

logger = logging.getLogger("toolbox")

# Of a row that no class has: its probability is 0 even in float16, so the others' do not change.
_NEVER = -1e4


def export_torchvision(detector: LoadedDetector) -> dict[str, Tensor]:
    """The state dict that torchvision's model of the same architecture loads, with `num_classes` = K + 1.

    A model of COCO's 80 classes gets torchvision's 91 rows, one for every category id; the rows of ids that COCO does
    not use are never found.

    Raises:
        CheckpointError: the model has a part that torchvision's have not, or none that theirs have.
    """
    state = detector.model.state_dict()
    if "backbone.bn1.running_mean" not in state:
        raise CheckpointError("the backbone has no batch norm, as torchvision's detectors have; theirs cannot load it")
    theirs = to_torchvision(state)
    if others := unlike_torchvision(detector.config):
        logger.warning(
            "torchvision's model will work otherwise than this one, so detections will differ; "
            "its weights are trained for it with %s",
            " ".join(others),
        )
    if detector.category_ids != coco_classes().category_ids:
        return theirs
    rows = torch.tensor((0, *detector.category_ids))
    return {name: _spread(name, tensor, rows) for name, tensor in theirs.items()}


def _spread(name: str, tensor: Tensor, rows: Tensor) -> Tensor:
    """Put the rows of classes at their category ids."""
    each = {"cls_score": 1, "bbox_pred": 4, "mask_fcn_logits": 1}.get(name.split(".")[-2], 0)
    if not name.startswith("roi_heads.") or not each:
        return tensor
    spread = tensor.new_zeros(COCO_ROWS + 1, each, *tensor.shape[1:])
    if name.endswith("cls_score.bias"):
        spread.fill_(_NEVER)
    spread[rows] = tensor.unflatten(0, (len(rows), each))
    return spread.flatten(0, 1)


def write_state_dict(path: Path, state: dict[str, Tensor]) -> None:
    """Write a state dict for `torch.load`, or as safetensors where the name ends so.

    Raises:
        StorageError: it cannot be written.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(path, needed=sum(tensor.nbytes for tensor in state.values())) as temporary:
        if path.suffix == ".safetensors":
            save_file(state, temporary, {"format": "pt"})
        else:
            with temporary.open("wb") as file:
                torch.save(state, file)
