"""Checkpoints of other projects: their tensors, and what they say of themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolbox.errors import CheckpointError, near_path
from toolbox.weights.files import kind_of_file, load_model, not_weights
from toolbox.weights.pickled_arrays import PickledArray
from toolbox.weights.pickles import read_pickle
from toolbox.weights.whose import unwrapped

_SUFFIXES = (".pth", ".pt", ".pkl", ".safetensors")
# Where a checkpoint keeps its weights: Detectron2, Caffe2's detectors, MMDetection; torchvision's is the state dict.
_PLACES = ("model", "blobs", "state_dict")


@dataclass(frozen=True)
class ForeignCheckpoint:
    """A checkpoint of another project.

    Attributes:
        state: its tensors under its own names.
        author: who made it, as far as it says: `Detectron2 Model Zoo`, `Caffe2`, `torchvision`; or empty.
        meta: what MMDetection writes beside the weights: `mmdet_version`, `config` and more; or empty.
        path: the file.
    """

    state: Mapping[str, Tensor]
    author: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""


def read_checkpoint(path: str | Path) -> ForeignCheckpoint:
    """Read a checkpoint of Detectron2 (`.pkl`, `.pth`), MMDetection or torchvision (`.pth`, `.pt`), or safetensors.

    Nothing that a file holds is run: of a pickle only plain data is read.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it holds no weights or anything but data.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: {_of_folder(path)}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weight file{near_path(path)}")
    kind = kind_of_file(path)
    if kind == "safetensors":
        return ForeignCheckpoint(unwrapped(load_model(path)[0], str(path)), path=str(path))
    if kind == "empty":
        raise CheckpointError(f"{path}: the file is empty; copy it again")
    if path.suffix.lower() == ".pkl":
        return _from_pickle(path)
    content = _torch_load(path)
    state = _weights_in(content, path)
    tensors = {name: tensor.detach() for name, tensor in state.items() if isinstance(tensor, Tensor)}
    tensors, meta = unwrapped(tensors, str(path)), content.get("meta")
    return _checked(ForeignCheckpoint(tensors, _author(content), meta if isinstance(meta, dict) else {}, str(path)))


def _of_folder(path: Path) -> str:
    """What to give instead of a folder."""
    if (path / "model.safetensors").is_file():
        return f"this is a run folder, which needs no import: rcnn predict {path} IMAGE --out found"
    inside = sorted(file.name for file in path.iterdir() if file.suffix in _SUFFIXES)
    return f"this is a folder; give the file, e.g. {path / inside[0]}" if inside else "this is a folder without weights"


def _from_pickle(path: Path) -> ForeignCheckpoint:
    content = read_pickle(path)
    state = _weights_in(content, path)
    # Files of Caffe2 (all of Detectron's, and the ImageNet backbones made from them) name no author.
    author = _author(content, "" if "model" in content else "Caffe2")
    tensors = {}
    for name, value in state.items():
        if isinstance(value, PickledArray) and value.value is not None:
            tensors[name] = torch.from_numpy(value.value)
        elif isinstance(value, int | float):
            tensors[name] = _number(value, f"{path}: '{name}'")
    return _checked(ForeignCheckpoint(unwrapped(tensors, str(path)), author, path=str(path)))


def _number(value: float, what: str) -> Tensor:
    try:
        return torch.tensor(value)
    except (OverflowError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{what} is a number that no tensor holds ({error}); the file is damaged") from error


def _author(content: Mapping[str, Any], unnamed: str = "") -> str:
    author = content.get("__author__", unnamed)
    return author if isinstance(author, str) else unnamed


def _weights_in(content: Any, path: Path) -> Mapping[str, Any]:
    place = next(
        (place for place in _PLACES if isinstance(content, dict) and isinstance(content.get(place), dict)), None
    )
    state = content if place is None else content[place]
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{path}: holds no weights by name, but a {type(state).__name__}; give a checkpoint")
    return state


def _checked(checkpoint: ForeignCheckpoint) -> ForeignCheckpoint:
    if not checkpoint.state:
        raise CheckpointError(f"{checkpoint.path}: holds no weights; give a checkpoint of a trained model")
    return checkpoint


class _Inert:
    """Stands in for what a training log is made of, which nobody reads here: takes anything and does nothing."""

    def __init__(self, *_: Any) -> None:
        """Arguments are dropped."""

    def __setstate__(self, state: Any) -> None:
        """So is the state."""


# MMEngine's checkpoints carry their training log in a class of its own, those of torchvision's training script their
# options, for which torch refuses the whole file.
_LOGS: list[Any] = [
    (_Inert, name)
    for name in (
        *("mmengine.logging.history_buffer.HistoryBuffer", "argparse.Namespace"),
        *("builtins.getattr", "__builtin__.getattr", "numpy.dtype", "numpy.ndarray"),
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    )
]


def _torch_load(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(_LOGS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        if kind_of_file(path) == "other":
            raise CheckpointError(f"{path}: {not_weights(path)}; expected .pth of PyTorch or .pkl") from None
        raise CheckpointError(f"{path}: {_why(error)}") from error
    return content if isinstance(content, dict) else {}


def _why(error: Exception) -> str:
    text = str(error)
    if found := re.search(r"GLOBAL (\S+)", text):
        return (
            f"asks for {found[1]}, which is not loaded, since it could run code; "
            "save the weights alone by torch.save(model.state_dict(), …)"
        )
    return "the file is damaged or cut short; compare its size with the original's and copy it again"
