"""The families' protocols: the one page to read before writing a plugin.

A component takes its wired arguments first and its settings keyword-only (registry.py says which are wired),
states what it puts out (`out_features`, `out_shape`), computes and returns. `forward` never branches on
`self.training` outside norm and dropout layers. A constructor refuses a value by a ValueError; a text that begins with
the setting's name (`channels is 1 or more, got 0`) is shown at the setting's line in the YAML. Components with a
`forward` are `nn.Module`s; `__call__` is spelt out for the type checker. R may be 0 anywhere: an image without objects
or detections is an ordinary case (write `x.view(len(x), J, 3)`, not `x.view(len(x), -1, 3)`). What `Regions` and
`Targets` hold stands in toolbox/structures.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from toolbox.registry import (
    BACKBONES,
    BOX_HEADS,
    INSTANCE_HEADS,
    LOSSES,
    NECKS,
    ROI_EXTRACTORS,
    ROI_STAGES,
    RPN_HEADS,
    SAMPLERS,
)
from toolbox.structures import FeatureSpec, PixelStats, Regions, RoIShape, Targets


@BACKBONES.interface
class Backbone(Protocol):
    """Images to feature maps: `__init__(*, settings…)`.

    A backbone that can read other images than RGB also takes `in_channels: int`, which comes from the data set. One
    that can train with layer decay has a method `depth_of(name) -> int`: how deep a parameter of its state dict lies,
    from 0 (next to the image) on. One with parameters that weight decay would harm (position embeddings, class tokens)
    names them by a method `no_weight_decay() -> set[str]`, as timm's networks do; `*` stands for any text.
    from 0 (next to the image) on. One that can trade time for memory has a method `recompute_activations()`: from then
    on, what it computes inside its blocks is not kept for the gradient but computed again (torch.utils.checkpoint).
    """

    out_features: Mapping[str, FeatureSpec]  # in order of growing stride, e.g. {"c2": FeatureSpec(256, 4), …}
    pixels: PixelStats  # of as many channels as the images

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3 or in_channels, H, W) normalised → name → (N, C, H / stride, W / stride)."""
        ...

    def __call__(self, images: Tensor) -> dict[str, Tensor]: ...


@NECKS.interface
class Neck(Protocol):
    """Feature maps to feature maps: `__init__(in_features, *, settings…)`."""

    out_features: Mapping[str, FeatureSpec]

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name → (N, C, H / stride, W / stride)."""
        ...

    def __call__(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


@RPN_HEADS.interface
class RPNHead(Protocol):
    """Objectness and box deltas of every anchor: `__init__(in_channels, num_anchors, *, settings…)`.

    A head that can be asked for single cells has a method `at(features, cells)` (toolbox/models/rpn/cells.py): S cells
    → logits (S, A) and deltas (S, 4 A). Training then takes the gradient through these alone: the same one, for less.
    """

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level (N, C, H, W) → objectness logits (N, A, H, W) and deltas (N, 4 A, H, W), an anchor's adjacent."""
        ...

    def __call__(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]: ...


@ROI_EXTRACTORS.interface
class RoIExtractor(Protocol):
    """Regions read from the feature maps: `__init__(in_features, *, settings…)`."""

    out_shape: RoIShape

    def forward(self, features: Mapping[str, Tensor], rois: Tensor) -> Tensor:
        """`rois` (R, 5), image index and x1 y1 x2 y2 in network pixels → (R, C, P, P)."""
        ...

    def __call__(self, features: Mapping[str, Tensor], rois: Tensor) -> Tensor: ...


@ROI_STAGES.interface
class RoIStage(Protocol):
    """A backbone stage run on pooled regions (C4 models): `__init__(in_shape, *, settings…)`."""

    out_shape: RoIShape

    def forward(self, regions: Tensor) -> Tensor:
        """(R, C, P, P) → (R, C', P', P')."""
        ...

    def __call__(self, regions: Tensor) -> Tensor: ...


@dataclass
class BoxPrediction:
    """What a box head says of R regions.

    Attributes:
        logits: (R, K + 1), background last.
        deltas: (R, K, 4), or (R, 1, 4) when class-agnostic.
    """

    logits: Tensor
    deltas: Tensor


@BOX_HEADS.interface
class BoxHead(Protocol):
    """Class and box of a region: `__init__(in_shape, num_classes, *, settings…)`.

    One that has no layers of its own before its predictions says so by `needs_roi_stage: ClassVar[bool] = True`: a
    model without a RoI stage is then refused.
    """

    def forward(self, regions: Tensor) -> BoxPrediction:
        """(R, C, P, P) → class logits and box deltas."""
        ...

    def __call__(self, regions: Tensor) -> BoxPrediction: ...


@INSTANCE_HEADS.interface
class InstanceHead(Protocol):
    """One task per detected object (mask, keypoints, your own): `__init__(in_shape, num_classes, *, settings…)`.

    A head that needs the joints also takes `skeleton: Skeleton`. A head that cannot train without the objects' masks or
    joints says so by a class attribute, `needs: ClassVar[tuple[str, ...]] = ("masks",)` (or `"keypoints"`): a data set
    without them is then refused before the first step, and `rcnn check` says which branch wants them.
    """

    def forward(self, regions: Tensor) -> Tensor:
        """(R, C, P, P) → raw prediction (R, …)."""
        ...

    def __call__(self, regions: Tensor) -> Tensor: ...

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        """Weighted scalar losses over the valid foreground regions; a zero with a gradient when there are none."""
        ...

    def predict(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """Raw prediction (R, …) and predicted classes (R,) → what is kept per detection (R, …), on the device."""
        ...

    def to_image(self, values: Tensor, boxes: Tensor, height: int, width: int) -> Mapping[str, Any]:
        """Kept values (D, …) of one image and its boxes (D, 4) in original pixels → fields of `Detections`.

        Keys `masks` and `keypoints` become those fields, any other key goes to `extras`; each value has D entries.
        A head that works on the network's pixels also takes `network_boxes: Tensor` (D, 4), the boxes in network
        pixels, and `network_size: tuple[int, int]`, height and width of the image there, both by keyword; what it kept
        then comes on the device, where it otherwise comes on the host.
        """
        ...


@LOSSES.interface
class Loss(Protocol):
    """An element-wise loss: `__init__(*, settings…)`; the head that uses it sums and normalises."""

    def __call__(self, prediction: Tensor, target: Tensor) -> Tensor: ...


@SAMPLERS.interface
class Sampler(Protocol):
    """Which regions to train on: `__init__(*, settings…)`."""

    size: int  # rows sampled per image, S
    capacity: int  # most foreground rows among them; they come first

    def sample(self, foreground: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, R) bool candidates → index (N, S), valid (N, S), foreground (N, S); foreground rows first."""
        ...
