"""ResNet and ResNeXt with torchvision's state-dict keys (He et al., arXiv:1512.03385; Xie et al., arXiv:1611.05431)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from toolbox.models.backbones.recompute import recomputed
from toolbox.models.backbones.residual import (
    BlockNorm,
    architecture_name,
    check_blocks,
    conv_norm,
    init_residual,
    make_norm,
    make_stage,
)
from toolbox.models.backbones.weights import load_backbone_weights, pretrained_sought
from toolbox.registry import BACKBONES, ROI_STAGES
from toolbox.structures import FeatureSpec, PixelStats, RoIShape

logger = logging.getLogger("toolbox")


@BACKBONES.register
class ResNet(nn.Module):
    """ResNet-18 to 152, and ResNeXt by `groups` and `width_per_group`.

    Args:
        depth: 18, 34, 50, 101 or 152.
        groups: groups of the 3×3 convolutions (32 for ResNeXt).
        width_per_group: their width at the first stage (8 for ResNeXt-101 32×8d).
        norm: frozen batch norm, batch norm, or group norm.
        norm_eps: added to the variance of a batch norm; torchvision's published detectors of 2019 are run with 0.
        frozen_stages: stages that do not train, counted from the stem: 0 none, 1 the stem, 2 stem and c2, … 5 all.
        weights: torchvision's name (`IMAGENET1K_V1`, `IMAGENET1K_V2`, `DEFAULT`), a file, or None for random.
        out: which maps to put out.
        dilated_c5: keep stride 16 in c5, with dilation in place of its stride; the weights are the same. `true` leaves
            a 3×3 convolution that had the stride as it is, so that the maps hold those of stride 32, as in torchvision
            and timm; `all_blocks` dilates it too, as Detectron2 does.
        stride_in_1x1: put strides on the 1×1 convolutions, as Caffe's weights have it.
        pixels: how the weights want their images; ImageNet's RGB statistics by default.
        in_channels: of the images; weights made for 3 are fitted to it.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        depth: Literal[18, 34, 50, 101, 152] = 50,
        groups: int = 1,
        width_per_group: int = 64,
        norm: BlockNorm = "frozen_bn",
        norm_eps: float = 1e-5,
        frozen_stages: int = 0,
        weights: str | None = None,
        out: Sequence[Literal["c2", "c3", "c4", "c5"]] = ("c2", "c3", "c4", "c5"),
        dilated_c5: Literal[False, True, "all_blocks"] = False,
        stride_in_1x1: bool = False,
        pixels: PixelStats = PixelStats(),
    ) -> None:
        super().__init__()
        check_blocks(depth, groups, width_per_group, norm, weights)
        if not 0 <= frozen_stages <= 5:
            raise ValueError(f"frozen_stages is 0 (none) to 5 (all), got {frozen_stages}")
        if norm_eps < 0:
            raise ValueError(f"norm_eps is 0 or more, got {norm_eps}")
        if frozen_stages and weights is None and pretrained_sought():
            logger.warning(
                "model.backbone.frozen_stages: %s random values, as there are no pretrained weights; set weights, or "
                "frozen_stages: 0",
                "the stem keeps" if frozen_stages == 1 else f"{frozen_stages} stages keep",
            )
        self.pixels = pixels.for_channels(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = make_norm(norm, 64)
        self.recompute = False
        self.last = max(int(name[1]) for name in out)
        for stage in range(2, self.last + 1):
            layer = make_stage(
                stage,
                depth=depth,
                groups=groups,
                width=width_per_group,
                norm=norm,
                stride_in_1x1=stride_in_1x1,
                dilated=dilated_c5 if stage == 5 else False,
            )
            setattr(self, f"layer{stage - 1}", layer)
        expansion = 4 if depth >= 50 else 1
        strides = {"c2": 4, "c3": 8, "c4": 16, "c5": 16 if dilated_c5 else 32}
        self.out_features = {
            name: FeatureSpec(64 * 2 ** (int(name[1]) - 2) * expansion, strides[name]) for name in sorted(out)
        }
        for module in self.modules():
            if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
                module.eps = norm_eps
        init_residual(self)
        if weights is not None:
            name = architecture_name(depth, groups, width_per_group)
            load_backbone_weights(self, weights, name, in_channels=in_channels)
        stages = [getattr(self, f"layer{stage - 1}") for stage in range(2, self.last + 1)]
        self._frozen = [self.conv1, self.bn1, *stages[: frozen_stages - 1]] if frozen_stages else []
        for module in self._frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> ResNet:
        """Frozen stages stay in evaluation mode, so that a live batch norm there keeps its statistics."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, in_channels, H, W) → {"c2": (N, 256, H / 4, W / 4), …}."""
        x = conv_norm(self.conv1, self.bn1, images).relu_()
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        maps: dict[str, Tensor] = {}
        for stage in range(2, self.last + 1):
            for block in getattr(self, f"layer{stage - 1}"):
                again = self.recompute and torch.is_grad_enabled()
                x = recomputed(block, x) if again else block(x)
            maps[f"c{stage}"] = x
        return {name: maps[name] for name in self.out_features}

    def recompute_activations(self) -> None:
        """Keep the inputs of the residual blocks only, and compute what is inside again for the gradient."""
        self.recompute = True

    def depth_of(self, name: str) -> int:
        """How deep a parameter of the state dict lies: 0 the stem, then the blocks one by one."""
        layer, _, rest = name.partition(".")
        if not layer.startswith("layer"):
            return 0
        before = sum(len(getattr(self, f"layer{index}")) for index in range(1, int(layer[5:])))
        return before + int(rest.partition(".")[0]) + 1


@ROI_STAGES.register
class ResNetStage(nn.Module):
    """One ResNet stage as a head on pooled regions: C4 models run c5 on every region (arXiv:1703.06870, figure 4 left).

    The paper reads 7 × 7 regions and leaves the stride out; before it, regions of 14 × 14 were halved by the stride.

    Args:
        in_shape: (R, C, P, P).
        stage: 3, 4 or 5.
        stride: 1 or 2.
        depth, groups, width_per_group, norm, stride_in_1x1: as the backbone's.
        weights: as the backbone's.
    """

    def __init__(
        self,
        in_shape: RoIShape,
        *,
        stage: Literal[3, 4, 5] = 5,
        stride: Literal[1, 2] = 2,
        depth: Literal[18, 34, 50, 101, 152] = 50,
        groups: int = 1,
        width_per_group: int = 64,
        norm: BlockNorm = "frozen_bn",
        weights: str | None = None,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        check_blocks(depth, groups, width_per_group, norm, weights)
        expansion = 4 if depth >= 50 else 1
        wanted = 64 * 2 ** (stage - 3) * expansion
        if in_shape.channels != wanted:
            raise ValueError(
                f"stage {stage} of ResNet-{depth} takes {wanted} channels, but the pooled regions have "
                f"{in_shape.channels}; pool from c{stage - 1}"
            )
        self.name = f"layer{stage - 1}"
        layer = make_stage(
            stage,
            depth=depth,
            groups=groups,
            width=width_per_group,
            norm=norm,
            stride_in_1x1=stride_in_1x1,
            stride=stride,
        )
        setattr(self, self.name, layer)
        init_residual(self)
        if weights is not None:
            load_backbone_weights(self, weights, architecture_name(depth, groups, width_per_group))
        self.out_shape = RoIShape(wanted * 2, -(-in_shape.height // stride), -(-in_shape.width // stride))

    def forward(self, regions: Tensor) -> Tensor:
        """(R, C, P, P) → (R, 2 C, P / stride, P / stride)."""
        return getattr(self, self.name)(regions)
