"""What every extractor has in common: which maps it reads, which of them for a region, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from toolbox.ops.arguments import pyramid_settings
from toolbox.ops.reference import choose_level
from toolbox.structures import FeatureSpec, RoIShape

COARSEST_STRIDE = 32  # p6 only serves the RPN (Feature Pyramid Networks, arXiv:1612.03144, footnote of section 4.1)


@dataclass(frozen=True)
class Pyramid:
    """The maps that an extractor reads, from fine to coarse; one alone is a pyramid too.

    Attributes:
        names: of the maps.
        strides: image pixels per cell of each.
        out_shape: what a region becomes.
        canonical_size: a region of this side in pixels reads from `canonical_level`.
        canonical_level: 4 is the level of stride 16.
    """

    names: tuple[str, ...]
    strides: tuple[int, ...]
    out_shape: RoIShape
    canonical_size: float
    canonical_level: int

    @classmethod
    def over(
        cls,
        in_features: Mapping[str, FeatureSpec],
        names: Sequence[str] | None,
        output_size: int | tuple[int, int],
        canonical_size: float,
        canonical_level: int,
    ) -> Pyramid:
        """The maps of these names, or all up to stride 32.

        Raises:
            ValueError: a name is not there, the maps differ in width, or the size is none.
        """
        chosen = names or [n for n, spec in in_features.items() if spec.stride <= COARSEST_STRIDE] or [*in_features]
        unknown = [name for name in chosen if name not in in_features]
        if unknown:
            raise ValueError(f"features: no feature map named {', '.join(unknown)}; there are {', '.join(in_features)}")
        channels = {in_features[name].channels for name in chosen}
        if len(channels) != 1:
            widths = ", ".join(f"{name}: {in_features[name].channels}" for name in chosen)
            raise ValueError(
                f"maps of different width cannot be pooled together ({widths}); "
                "name one under 'features', or add a neck"
            )
        height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
        if height < 1 or width < 1:
            raise ValueError(f"output_size must be at least 1, got {output_size}")
        strides = tuple(in_features[name].stride for name in chosen)
        return cls(tuple(chosen), strides, RoIShape(channels.pop(), height, width), canonical_size, canonical_level)

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of a pooled region."""
        return self.out_shape.height, self.out_shape.width

    @property
    def rule(self) -> dict[str, Any]:
        """How a region's level is chosen, as the operations on pyramids in `toolbox.ops` take it."""
        return {
            "strides": self.strides,
            "canonical_size": self.canonical_size,
            "canonical_level": self.canonical_level,
        }

    def maps(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Per level (N, C, H, W)."""
        return [features[name] for name in self.names]

    def level_of(self, rois: Tensor) -> Tensor:
        """(R, 5) → (R,) int64: which of the maps each region is read from, as the operations choose it."""
        rule = (self.canonical_size, self.canonical_level)
        return choose_level(rois, pyramid_settings(self.output_size, self.strides, len(self.strides), None, *rule))
