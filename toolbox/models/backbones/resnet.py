"""ResNet and ResNeXt with torchvision's state-dict keys (He et al., arXiv:1512.03385; Xie et al., arXiv:1611.05431)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from toolbox.models.backbones.weights import load_backbone_weights, pretrained_sought
from toolbox.models.heads.layers import group_norm
from toolbox.registry import BACKBONES, ROI_STAGES
from toolbox.structures import FeatureSpec, PixelStats, RoIShape

logger = logging.getLogger("toolbox")

BlockNorm = Literal["frozen_bn", "bn", "gn"]
LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def conv_norm(convolution: nn.Conv2d, norm: Any, x: Tensor) -> Tensor:
    """Convolution and norm; fixed statistics are folded into the weights, which saves a pass over the activations."""
    fixed = isinstance(norm, FrozenBatchNorm2d) or (isinstance(norm, nn.BatchNorm2d) and not norm.training)
    if not fixed:
        return norm(convolution(x))
    scale: Tensor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift: Tensor = norm.bias - norm.running_mean * scale
    weight = convolution.weight * scale[:, None, None, None]
    return F.conv2d(
        x,
        weight.to(convolution.weight.dtype),
        shift.to(convolution.weight.dtype),
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )


def make_norm(norm: BlockNorm, channels: int) -> nn.Module:
    """The norm layer of a block."""
    if norm == "gn":
        return group_norm(channels)
    return FrozenBatchNorm2d(channels) if norm == "frozen_bn" else nn.BatchNorm2d(channels)


class ResidualBlock(nn.Module):
    """A basic (two 3×3) or bottleneck (1×1, 3×3, 1×1) block.

    Args:
        in_channels: channels coming in.
        planes: torchvision's `planes`, 64 to 512.
        stride: of the block.
        dilation: of its 3×3 convolution.
        bottleneck: which of the two.
        groups, width: of the bottleneck's 3×3 convolution (ResNeXt 32×8d: 32 and 8; ResNet: 1 and 64).
        norm: norm after each convolution.
        stride_in_1x1: put the bottleneck's stride on its first convolution, as Caffe's weights have it.
    """

    def __init__(
        self,
        in_channels: int,
        planes: int,
        *,
        stride: int,
        dilation: int,
        bottleneck: bool,
        groups: int,
        width: int,
        norm: BlockNorm,
        stride_in_1x1: bool,
    ) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        out_channels = planes * 4 if bottleneck else planes
        if bottleneck:
            inner = planes * width // 64 * groups
            first, second = (stride, 1) if stride_in_1x1 else (1, stride)
            self.conv1 = nn.Conv2d(in_channels, inner, 1, stride=first, bias=False)
            self.conv2 = nn.Conv2d(
                inner, inner, 3, stride=second, padding=dilation, dilation=dilation, groups=groups, bias=False
            )
            self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
            self.bn1, self.bn2, self.bn3 = (make_norm(norm, c) for c in (inner, inner, out_channels))
        else:
            self.conv1 = nn.Conv2d(
                in_channels, planes, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
            )
            self.conv2 = nn.Conv2d(planes, planes, 3, padding=dilation, dilation=dilation, bias=False)
            self.bn1, self.bn2 = (make_norm(norm, planes) for _ in range(2))
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), make_norm(norm, out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H / stride, W / stride)."""
        shortcut = x
        if self.downsample is not None:
            convolution, norm = self.downsample
            shortcut = conv_norm(convolution, norm, x)  # type: ignore[arg-type]
        out = conv_norm(self.conv1, self.bn1, x).relu_()
        out = conv_norm(self.conv2, self.bn2, out)
        if self.bottleneck:
            out = conv_norm(self.conv3, self.bn3, out.relu_())
        return out.add_(shortcut).relu_()


def make_stage(
    stage: int,
    *,
    depth: int,
    groups: int,
    width: int,
    norm: BlockNorm,
    stride_in_1x1: bool,
    dilated: bool = False,
) -> nn.Sequential:
    """Stage 2 … 5 (torchvision's layer1 … layer4); `dilated` trades its stride for dilation."""
    bottleneck = depth >= 50
    expansion = 4 if bottleneck else 1
    planes = 64 * 2 ** (stage - 2)
    stride = 1 if stage == 2 or dilated else 2
    blocks = []
    for index in range(LAYERS[depth][stage - 2]):
        before = 64 if stage == 2 else planes // 2 * expansion
        blocks.append(
            ResidualBlock(
                planes * expansion if index else before,
                planes,
                stride=1 if index else stride,
                # The first block of a dilated stage still reads undilated input, as in torchvision.
                dilation=2 if dilated and index else 1,
                bottleneck=bottleneck,
                groups=groups,
                width=width,
                norm=norm,
                stride_in_1x1=stride_in_1x1,
            )
        )
    return nn.Sequential(*blocks)


def init_residual(module: nn.Module) -> None:
    """Kaiming-normal convolutions, as torchvision initialises."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


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
        dilate_c5: keep stride 16 in c5, with dilation.
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
        dilate_c5: bool = False,
        stride_in_1x1: bool = False,
        pixels: PixelStats = PixelStats(),
    ) -> None:
        super().__init__()
        if depth < 50 and (groups, width_per_group) != (1, 64):
            raise ValueError(f"groups and width_per_group need bottleneck blocks (depth 50 or more), got depth {depth}")
        if not 0 <= frozen_stages <= 5:
            raise ValueError(f"frozen_stages is 0 (none) to 5 (all), got {frozen_stages}")
        if norm_eps < 0:
            raise ValueError(f"norm_eps is 0 or more, got {norm_eps}")
        if norm == "frozen_bn" and weights is None:
            raise ValueError(
                "norm 'frozen_bn' needs pretrained weights: frozen statistics of a random network mean nothing; "
                "set weights (IMAGENET1K_V1, or a file), or norm: gn to train from scratch"
            )
        if frozen_stages and weights is None and pretrained_sought():
            logger.warning(
                "model.backbone.frozen_stages: %d stages keep random values, as there are no pretrained weights; "
                "set weights, or frozen_stages: 0",
                frozen_stages,
            )
        self.pixels = pixels.for_channels(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = make_norm(norm, 64)
        self.last = max(int(name[1]) for name in out)
        for stage in range(2, self.last + 1):
            layer = make_stage(
                stage,
                depth=depth,
                groups=groups,
                width=width_per_group,
                norm=norm,
                stride_in_1x1=stride_in_1x1,
                dilated=dilate_c5 and stage == 5,
            )
            setattr(self, f"layer{stage - 1}", layer)
        expansion = 4 if depth >= 50 else 1
        strides = {"c2": 4, "c3": 8, "c4": 16, "c5": 16 if dilate_c5 else 32}
        self.out_features = {
            name: FeatureSpec(64 * 2 ** (int(name[1]) - 2) * expansion, strides[name]) for name in sorted(out)
        }
        for layer in self.modules():
            if isinstance(layer, FrozenBatchNorm2d | nn.BatchNorm2d):
                layer.eps = norm_eps
        init_residual(self)
        if weights is not None:
            name = f"resnet{depth}" if groups == 1 else f"resnext{depth}_{groups}x{width_per_group}d"
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
            x = getattr(self, f"layer{stage - 1}")(x)
            maps[f"c{stage}"] = x
        return {name: maps[name] for name in self.out_features}

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

    Args:
        in_shape: (R, C, P, P).
        stage: 3, 4 or 5.
        depth, groups, width_per_group, norm, stride_in_1x1: as the backbone's.
        weights: as the backbone's.
    """

    def __init__(
        self,
        in_shape: RoIShape,
        *,
        stage: Literal[3, 4, 5] = 5,
        depth: Literal[18, 34, 50, 101, 152] = 50,
        groups: int = 1,
        width_per_group: int = 64,
        norm: BlockNorm = "frozen_bn",
        weights: str | None = None,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        expansion = 4 if depth >= 50 else 1
        wanted = 64 * 2 ** (stage - 3) * expansion
        if in_shape.channels != wanted:
            raise ValueError(
                f"stage {stage} of ResNet-{depth} takes {wanted} channels, but the pooled regions have "
                f"{in_shape.channels}; pool from c{stage - 1}"
            )
        self.name = f"layer{stage - 1}"
        layer = make_stage(
            stage, depth=depth, groups=groups, width=width_per_group, norm=norm, stride_in_1x1=stride_in_1x1
        )
        setattr(self, self.name, layer)
        init_residual(self)
        if weights is not None:
            name = f"resnet{depth}" if groups == 1 else f"resnext{depth}_{groups}x{width_per_group}d"
            load_backbone_weights(self, weights, name)
        self.out_shape = RoIShape(wanted * 2, -(-in_shape.height // 2), -(-in_shape.width // 2))

    def forward(self, regions: Tensor) -> Tensor:
        """(R, C, P, P) → (R, 2 C, P / 2, P / 2)."""
        return getattr(self, self.name)(regions)
