"""Pyramid from the one map of a plain vision transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from toolbox.models.heads.layers import Norm, check_at_least, norm_layer
from toolbox.models.necks.levels import Extra, convolution_norm, init_convolutions, levels_above
from toolbox.registry import NECKS
from toolbox.structures import FeatureSpec, is_power_of_two


@NECKS.register
class SimpleFeaturePyramid(nn.Module):
    """One map at several scales.

    Li et al., *Exploring Plain Vision Transformer Backbones for Object Detection*, arXiv:2203.16527, section 3.
    Deconvolutions make the finer levels and pooling the coarser ones, each straight from the map; then every level has
    a 1×1 and a 3×3 convolution of its own.

    Args:
        in_features: one map whose stride is a power of two, 4 or more: 16 for a transformer with patches of 16 pixels.
        out_channels: C of every level.
        strides: the levels, each of twice the stride before it; the level of stride 4 is named p2, of 8 p3, ….
        extra: levels above the last: `pool` subsamples it (p6, for the RPN), `conv` convolves it, `none` adds none.
        extra_levels: how many.
        norm: norm after each convolution, and between two deconvolutions.
    """

    def __init__(
        self,
        in_features: Mapping[str, FeatureSpec],
        *,
        out_channels: int = 256,
        strides: Sequence[int] = (4, 8, 16, 32),
        extra: Extra = "pool",
        extra_levels: int = 1,
        norm: Norm = "ln",
    ) -> None:
        super().__init__()
        check_at_least(1, out_channels=out_channels)
        check_at_least(0, extra_levels=extra_levels)
        _check_strides(strides)
        self.source, spec = _only_map(in_features)
        levels = {f"p{_log2(stride)}": stride for stride in strides}
        self.resample, self.lateral, self.output = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for level, stride in levels.items():
            self.resample[level], channels = _resample(spec, stride, norm)
            self.lateral[level] = convolution_norm(channels, out_channels, 1, norm)
            self.output[level] = convolution_norm(out_channels, out_channels, 3, norm)
        self.extra_convolutions = levels_above(_log2(strides[-1]), extra, extra_levels, out_channels)
        self.out_features = {
            level: FeatureSpec(out_channels, strides[0] * 2**index)
            for index, level in enumerate([*levels, *self.extra_convolutions])
        }
        init_convolutions(self)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The backbone's map (N, C_in, H, W) → pyramid maps (N, C, H', W') of the padded image, finest first."""
        x = features[self.source]
        out: dict[str, Tensor] = {}
        for level, resample in self.resample.items():
            last = out[level] = self.output[level](self.lateral[level](resample(x)))
        for level, module in self.extra_convolutions.items():
            last = out[level] = module(last)
        return out


def _only_map(in_features: Mapping[str, FeatureSpec]) -> tuple[str, FeatureSpec]:
    listed = ", ".join(f"{name} of stride {spec.stride}" for name, spec in in_features.items())
    if len(in_features) != 1:
        raise ValueError(
            f"SimpleFeaturePyramid takes one map, got {listed}; FPN joins several maps, "
            "or let the backbone put out one (TimmBackbone: strides: [16], ResNet: out: [c4])"
        )
    ((name, spec),) = in_features.items()
    if spec.stride < 4 or not is_power_of_two(spec.stride):
        raise ValueError(
            f"SimpleFeaturePyramid takes a map whose stride is a power of two, 4 or more, got {listed}; "
            "take a backbone with patches of 8, 16 or 32 pixels"
        )
    return name, spec


def _check_strides(strides: Sequence[int]) -> None:
    doubling = all(coarse == 2 * fine for fine, coarse in zip(strides, strides[1:], strict=False))
    if not strides or not is_power_of_two(strides[0]) or not doubling:
        raise ValueError(f"strides are powers of two that double, such as [4, 8, 16, 32], got {list(strides)}")


def _resample(spec: FeatureSpec, stride: int, norm: Norm) -> tuple[nn.Sequential, int]:
    """Layers from a map to its form of another stride, and the channels that come out: half of them per doubling."""
    if stride >= spec.stride:
        factor = stride // spec.stride
        # Rounded up, as every level's size is: a last row that does not fill a cell keeps its own.
        return nn.Sequential(*([nn.MaxPool2d(factor, ceil_mode=True)] if factor > 1 else [])), spec.channels
    layers: list[nn.Module] = []
    channels = spec.channels
    for _ in range(_log2(spec.stride // stride)):
        if layers:
            layers += [*norm_layer(norm, channels), nn.GELU()]
        source, channels = channels, max(1, channels // 2)
        layers.append(nn.ConvTranspose2d(source, channels, 2, stride=2))
    return nn.Sequential(*layers), channels


def _log2(number: int) -> int:
    """Of a power of two."""
    return number.bit_length() - 1
