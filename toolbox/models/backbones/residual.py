"""The residual blocks that a ResNet's stages are made of, with torchvision's state-dict keys (arXiv:1512.03385)."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from toolbox.models.heads.layers import group_norm

BlockNorm = Literal["frozen_bn", "bn", "gn"]
LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def conv_norm(convolution: nn.Conv2d, norm: Any, x: Tensor) -> Tensor:
    """Convolution and norm; fixed statistics are folded into the weights, which saves a pass over the activations."""
    fixed = isinstance(norm, FrozenBatchNorm2d) or (isinstance(norm, _BatchNorm) and not norm.training)
    if not fixed:
        return norm(convolution(x))
    scale: Tensor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift: Tensor = norm.bias - norm.running_mean * scale
    out = F.conv2d(
        x,
        _folded(convolution.weight, scale),
        shift.to(convolution.weight.dtype),
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )
    if out.requires_grad and not torch.compiler.is_compiling():
        _fold_again_for_gradient(out, convolution.weight, scale)
    return out


def _folded(weight: Tensor, scale: Tensor) -> Tensor:
    return (weight * scale[:, None, None, None]).to(weight.dtype)


def _fold_again_for_gradient(out: Tensor, weight: Tensor, scale: Tensor) -> None:
    """Keep no folded weights until the gradient: all of them are as large as the network."""
    saved = getattr(out.grad_fn, "_raw_saved_weight", None)
    if saved is None:
        return

    def fold_again(dtype: torch.dtype) -> Tensor:
        if weight._version != version:  # torch's own check sees what is kept, and this is not
            shape = tuple(weight.shape)
            raise RuntimeError(f"convolution weights {shape} were changed in place between forward and backward pass")
        return _folded(weight, scale).to(dtype)

    # Raised where nothing is kept anyway, as where activations are recomputed for the gradient.
    with contextlib.suppress(RuntimeError):
        version = weight._version
        saved.register_hooks(lambda folded: folded.dtype, fold_again)


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
        dilation: of its 3×3 convolutions behind the stride.
        first_dilation: of the 3×3 convolution that has, or had, the stride.
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
        first_dilation: int,
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
            around = dilation if stride_in_1x1 else first_dilation
            self.conv1 = nn.Conv2d(in_channels, inner, 1, stride=first, bias=False)
            self.conv2 = nn.Conv2d(
                inner, inner, 3, stride=second, padding=around, dilation=around, groups=groups, bias=False
            )
            self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
            self.bn1, self.bn2, self.bn3 = (make_norm(norm, c) for c in (inner, inner, out_channels))
        else:
            self.conv1 = nn.Conv2d(
                in_channels, planes, 3, stride=stride, padding=first_dilation, dilation=first_dilation, bias=False
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
    stride: int | None = None,
    dilated: Literal[False, True, "all_blocks"] = False,
) -> nn.Sequential:
    """Stage 2 … 5 (torchvision's layer1 … layer4).

    Args:
        depth, groups, width, norm, stride_in_1x1: as the ResNet's.
        stride: of the stage; 1 for stage 2 and 2 for the others if None.
        dilated: trade the stride for dilation: with the same weights, every second row and column of the result is
            what the stage with its stride puts out; but for `all_blocks`, which dilates what comes into the stage too.
    """
    bottleneck = depth >= 50
    expansion = 4 if bottleneck else 1
    planes = 64 * 2 ** (stage - 2)
    if stride is None:
        stride = 1 if stage == 2 or dilated else 2
    blocks = []
    for index in range(LAYERS[depth][stage - 2]):
        before = 64 if stage == 2 else planes // 2 * expansion
        blocks.append(
            ResidualBlock(
                planes * expansion if index else before,
                planes,
                stride=1 if index else stride,
                dilation=2 if dilated else 1,
                # What comes into the stage lies as close as ever; what comes out of its stride does not.
                first_dilation=2 if dilated and (index or dilated == "all_blocks") else 1,
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


def check_blocks(depth: int, groups: int, width_per_group: int, norm: BlockNorm, weights: str | None) -> None:
    """Refuse what no ResNet has.

    Raises:
        ValueError: groups without bottleneck blocks, or frozen statistics of a random network.
    """
    if depth < 50 and (groups, width_per_group) != (1, 64):
        raise ValueError(f"groups and width_per_group need bottleneck blocks (depth 50 or more), got depth {depth}")
    if norm == "frozen_bn" and weights is None:
        raise ValueError(
            "norm 'frozen_bn' needs pretrained weights: frozen statistics of a random network mean nothing; "
            "set weights (IMAGENET1K_V1, or a file), or norm: gn to train from scratch"
        )


def architecture_name(depth: int, groups: int, width_per_group: int) -> str:
    """What torchvision calls the network."""
    return f"resnet{depth}" if groups == 1 else f"resnext{depth}_{groups}x{width_per_group}d"
