"""Pretrained backbone weights: by torchvision's name, or from a file."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn

from toolbox.errors import CheckpointError, counted, did_you_mean
from toolbox.weights import kind_of_file, not_weights
from toolbox.weights.detectron2 import from_detectron2
from toolbox.weights.foreign_files import read_checkpoint
from toolbox.weights.trained_with import warn_of_settings
from toolbox.weights.whose import unwrapped

logger = logging.getLogger("toolbox")

_use: ContextVar[Literal["read", "check", "none"]] = ContextVar("use_of_pretrained_weights", default="read")


@contextmanager
def _used(use: Literal["check", "none"]) -> Iterator[None]:
    token = _use.set(use)
    try:
        yield
    finally:
        _use.reset(token)


def without_pretrained() -> AbstractContextManager[None]:
    """Build models inside this without reading pretrained weights: a checkpoint is about to overwrite them."""
    return _used("none")


def checking_pretrained() -> AbstractContextManager[None]:
    """Build models inside this without filling them, but see that files of weights fit and that names exist."""
    return _used("check")


def pretrained_wanted() -> bool:
    """Whether a backbone under construction should read its weights; not on the meta device, where it has none."""
    return _use.get() == "read" and not torch.empty(0).is_meta


def pretrained_sought() -> bool:
    """Whether weights that do not exist or fit matter: they are to be read, or to be checked."""
    return _use.get() == "check" or pretrained_wanted()


def load_backbone_weights(backbone: nn.Module, weights: str, architecture: str, *, in_channels: int = 3) -> None:
    """Fill a backbone in place.

    Args:
        backbone: its state-dict keys are a subset of torchvision's.
        weights: a file, or the name of torchvision weights (`IMAGENET1K_V1`, `DEFAULT`).
        architecture: torchvision's name of the network, e.g. `resnet50`.
        in_channels: of the images.

    Raises:
        CheckpointError: no such file or name, the download fails, or keys or shapes do not fit.
    """
    is_file = Path(weights).suffix in (".pth", ".pt", ".pkl", ".safetensors") or Path(weights).is_file()
    if not pretrained_sought():
        return
    if Path(weights).suffix == ".pkl":
        checkpoint = read_checkpoint(weights)
        fit_state_dict(backbone, from_detectron2(checkpoint.state), weights, in_channels=in_channels)
        if in_channels == 3 and pretrained_wanted():
            warn_of_settings(checkpoint, backbone)
    elif is_file:
        fit_state_dict(backbone, read_state_dict(Path(weights)), weights, in_channels=in_channels)
    elif pretrained_wanted():
        state = _torchvision_weights(architecture, weights)
        fit_state_dict(backbone, state, f"{weights} of {architecture}", in_channels=in_channels)
    else:
        _torchvision_entry(architecture, weights)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors`, `.pth` or `.pt` file, by name; of a `.pkl` of Detectron2, under our names."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weight file")
    if path.suffix == ".pkl":
        return from_detectron2(read_checkpoint(path).state)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return unwrapped(load_file(path), str(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise a dozen kinds for a damaged file
        raise CheckpointError(f"{path}: {_why_unreadable(path, error)}") from error
    return unwrapped(state.get("state_dict", state), str(path)) if isinstance(state, dict) else {}


def _why_unreadable(path: Path, error: Exception) -> str:
    kind = kind_of_file(path)
    if kind == "empty":
        return "the file is empty; copy it again"
    if kind == "other":
        return f"{not_weights(path)}; expected .safetensors, or .pth or .pt of PyTorch"
    if (kind == "safetensors") != (path.suffix == ".safetensors"):
        right = ".safetensors" if kind == "safetensors" else ".pth"
        return f"holds weights in another format than its name says; rename it to {path.stem}{right}"
    if "unsupported" in str(error).lower():
        return (
            "holds Python objects beside its weights, which are not loaded, since they could run code; "
            "save the model's state_dict() alone"
        )
    return "the file is damaged or cut short; compare its size with the original's and copy it again"


def fit_state_dict(module: nn.Module, state: dict[str, Tensor], source: str, *, in_channels: int = 3) -> None:
    """Copy every tensor that `module` has from `state`; what is left over in `state` (the classifier) is not used.

    Where weights are only to be checked (`checking_pretrained`), nothing is copied.

    Args:
        module: what is filled.
        state: tensors by name, or a whole detector's, whose backbone is taken; a first convolution made for RGB is
            fitted to `in_channels`.
        source: what to call them in messages.
        in_channels: of the images.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    own = module.state_dict()
    state = beneath("backbone.", state, own)
    wanted = {name: tensor for name, tensor in own.items() if not name.endswith("num_batches_tracked")}
    missing = [name for name in wanted if name not in state]
    if missing:
        raise CheckpointError(
            f"{source}: {len(missing)} of {len(wanted)} tensors of the backbone are not in it, first '{missing[0]}'; "
            f"it has {counted(len(state), 'tensor')}, first '{next(iter(state), 'none')}'; "
            "give weights of this network, its tensors named as torchvision or timm name them"
        )
    # A frozen batch norm does not count batches, so those entries of a file never have a place.
    counters = {name for name in state if name.endswith("num_batches_tracked")}
    deeper = [name for name in state if re.match(r"layer\d\.\d", name) and name not in own and name not in counters]
    deeper = [name for name in deeper if any(known.startswith(name.partition(".")[0]) for known in own)]
    if deeper:
        raise CheckpointError(
            f"{source}: these are weights of a deeper network: {len(deeper)} of its tensors have no place in this one, "
            f"first '{deeper[0]}'; set the 'depth' that they were trained with"
        )
    fitted = {name: inflate(state[name], tensor.shape, in_channels) for name, tensor in wanted.items()}
    for name, tensor in wanted.items():
        if fitted[name].shape != tensor.shape:
            raise CheckpointError(
                f"{source}: '{name}' is {tuple(state[name].shape)}, the backbone needs {tuple(tensor.shape)}"
            )
    if pretrained_wanted():
        module.load_state_dict(fitted, strict=False)
        unused = dict.fromkeys(name.partition(".")[0] for name in state if name not in own and name not in counters)
        rest = f"; not used: {', '.join(unused)}" if unused else ""
        logger.info("%s: %s loaded into %s%s", source, counted(len(fitted), "tensor"), type(module).__name__, rest)


def beneath(prefix: str, state: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors under a prefix, without it, where `names` are there and not at the top; else all as they are."""
    names = list(names)
    if any(name in state for name in names) or not any(prefix + name in state for name in names):
        return state
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def inflate(weight: Tensor, shape: torch.Size, in_channels: int) -> Tensor:
    """A first convolution's weight made for RGB, for images of other channels; any other weight unchanged.

    The responses keep their size: the sum over RGB for one channel, else RGB repeated in turn, times 3 / C.

    Args:
        weight: (O, 3, h, w) of the file.
        shape: what the backbone has in its place, (O, C, h, w).
        in_channels: C, of the images.
    """
    first = weight.ndim == 4 and weight.shape[1] == 3 and in_channels != 3
    if not first or shape != (weight.shape[0], in_channels, *weight.shape[2:]):
        return weight
    if in_channels == 1:
        return weight.float().sum(dim=1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, -(-in_channels // 3), 1, 1)[:, :in_channels]
    return (repeated * (3 / in_channels)).to(weight.dtype)


def _torchvision_entry(architecture: str, name: str) -> Any:
    """A member of the `WeightsEnum` of an architecture."""
    try:
        choices = torchvision.models.get_model_weights(architecture)
    except ValueError as error:
        raise CheckpointError(f"torchvision has no weights for {architecture}; give a file") from error
    if name not in choices.__members__:
        raise CheckpointError(
            f"torchvision has no {architecture} weights named '{name}'{did_you_mean(name, choices.__members__)} "
            f"(there are {', '.join(choices.__members__)}); a file ends in .pth, .pt or .safetensors"
        )
    return choices[name]


def _torchvision_weights(architecture: str, name: str) -> dict[str, Tensor]:
    entry = _torchvision_entry(architecture, name)
    try:
        return entry.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError) as error:
        raise CheckpointError(
            f"weights {name} of {architecture} cannot be downloaded ({error}); put the file {entry.url} "
            f"on this machine and give its path as 'weights', or set weights: null with norm: gn"
        ) from error
