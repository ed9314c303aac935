"""Stacks of layers that heads share."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torchvision.models.convnext import LayerNorm2d

Norm = Literal["none", "bn", "gn", "ln"]


def check_at_least(least: int, **settings: int) -> None:
    """Refuse settings below `least`, all of them in one error.

    Raises:
        ValueError: a line for each.
    """
    wrong = [f"{name} is {least} or more, got {value}" for name, value in settings.items() if value < least]
    if wrong:
        raise ValueError("\n".join(wrong))


def conv_stack(in_channels: int, channels: int, count: int, norm: Norm = "none") -> nn.Sequential:
    """`count` times 3×3 convolution, norm, ReLU at constant resolution, Kaiming-initialised."""
    layers: list[nn.Module] = []
    for index in range(count):
        source = channels if index else in_channels
        layers.append(nn.Conv2d(source, channels, 3, padding=1, bias=norm == "none"))
        layers += norm_layer(norm, channels)
        layers.append(nn.ReLU(inplace=True))
    stack = nn.Sequential(*layers)
    init_kaiming(stack)
    return stack


def linear_stack(inputs: int, channels: int, count: int) -> nn.Sequential:
    """`count` times linear, ReLU."""
    layers: list[nn.Module] = []
    for index in range(count):
        linear = nn.Linear(channels if index else inputs, channels)
        nn.init.kaiming_uniform_(linear.weight, a=1)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def norm_layer(norm: Norm, channels: int) -> list[nn.Module]:
    """The layer in a list, which is empty for `"none"`."""
    if norm == "gn":
        return [group_norm(channels)]
    if norm == "ln":  # over the channels of each pixel
        return [LayerNorm2d(channels, eps=1e-6)]
    return [nn.BatchNorm2d(channels)] if norm == "bn" else []


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with 32 groups, or the largest divisor below for odd widths (Wu & He, arXiv:1803.08494)."""
    groups = next(count for count in range(min(32, channels), 0, -1) if channels % count == 0)
    return nn.GroupNorm(groups, channels)


def init_kaiming(module: nn.Module) -> None:
    """Kaiming-normal (fan out) weights and zero biases for every convolution inside."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
