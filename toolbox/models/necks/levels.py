"""What the pyramids share: their convolutions, and the levels on top of the last."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from toolbox.models.heads.layers import Norm, norm_layer

Extra = Literal["pool", "conv", "none"]


def convolution_norm(in_channels: int, out_channels: int, kernel: int, norm: Norm) -> nn.Sequential:
    """Convolution at constant resolution, then a norm; it has a bias where no norm follows."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=norm == "none")
    return nn.Sequential(convolution, *norm_layer(norm, out_channels))


class Subsample(nn.Module):
    """Every other pixel of every other row (arXiv:1612.03144, footnote of section 4.1)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, ⌈H / 2⌉, ⌈W / 2⌉)."""
        return x[..., ::2, ::2]


def levels_above(last: int, extra: Extra, count: int, channels: int) -> nn.ModuleDict:
    """Levels above p`last` by name, each made from the one before by its module: H rows become ⌈H / 2⌉."""
    names = [f"p{last + 1 + index}" for index in range(count)]
    if extra == "pool":
        return nn.ModuleDict({name: Subsample() for name in names})
    if extra == "conv":
        return nn.ModuleDict({name: nn.Conv2d(channels, channels, 3, stride=2, padding=1) for name in names})
    return nn.ModuleDict()


def init_convolutions(module: nn.Module) -> None:
    """Kaiming-uniform weights for a layer without activation, zero biases, for every convolution inside."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
