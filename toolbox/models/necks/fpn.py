"""Feature pyramid (Lin et al., *Feature Pyramid Networks for Object Detection*, arXiv:1612.03144)."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from toolbox.models.heads.layers import Norm, check_at_least
from toolbox.models.necks.levels import Extra, convolution_norm, init_convolutions, levels_above
from toolbox.registry import NECKS
from toolbox.structures import FeatureSpec


@NECKS.register
class FPN(nn.Module):
    """Top-down pathway with lateral connections: c2 … c5 → p2 … p5, and coarser levels on top.

    Args:
        in_features: the backbone's maps, each of twice the stride before it; a map `c3` becomes `p3`.
        out_channels: C of every level.
        extra: levels above the last: `pool` subsamples it (p6, for the RPN), `conv` convolves it, `none` adds none.
        extra_levels: how many.
        norm: norm after each lateral and output convolution.
    """

    def __init__(
        self,
        in_features: Mapping[str, FeatureSpec],
        *,
        out_channels: int = 256,
        extra: Extra = "pool",
        extra_levels: int = 1,
        norm: Norm = "none",
    ) -> None:
        super().__init__()
        check_at_least(1, out_channels=out_channels)
        if len(in_features) == 1:
            (name,) = in_features
            raise ValueError(
                f"FPN joins maps of several strides, but there is {name} alone; "
                "SimpleFeaturePyramid makes a pyramid of one"
            )
        check_at_least(0, extra_levels=extra_levels)
        strides = [spec.stride for spec in in_features.values()]
        if any(coarse != 2 * fine for fine, coarse in zip(strides, strides[1:], strict=False)):
            raise ValueError(f"FPN needs maps whose strides double from one to the next, got {dict(in_features)}")
        first = strides[0].bit_length() - 1
        self.names = {name: f"p{first + level}" for level, name in enumerate(in_features)}
        self.lateral = nn.ModuleDict(
            {name: convolution_norm(spec.channels, out_channels, 1, norm) for name, spec in in_features.items()}
        )
        self.output = nn.ModuleDict(
            {level: convolution_norm(out_channels, out_channels, 3, norm) for level in self.names.values()}
        )
        self.extra_convolutions = levels_above(first + len(strides) - 1, extra, extra_levels, out_channels)
        levels = [*self.names.values(), *self.extra_convolutions]
        self.out_features = {
            level: FeatureSpec(out_channels, strides[0] * 2**index) for index, level in enumerate(levels)
        }
        init_convolutions(self)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Backbone maps (N, C_level, H, W) → pyramid maps (N, C, H, W), finest first."""
        out: dict[str, Tensor] = {}
        top: Tensor | None = None
        for name, level in reversed(self.names.items()):
            lateral = self.lateral[name](features[name])
            if top is not None:
                lateral = lateral + F.interpolate(top, size=lateral.shape[-2:], mode="nearest")
            top = lateral
            out[level] = self.output[level](lateral)
        out = dict(reversed(out.items()))
        last = out[next(reversed(out))]
        for level, module in self.extra_convolutions.items():
            last = out[level] = module(last)
        return out
