"""What flows between the stages. Fixed shapes inside the model: padded batches with a `valid` mask.

Letters, in the whole project: N images, C channels, H W height and width, G ground-truth objects, R regions, S samples,
D detections, K classes, J joints (keypoints), A anchors per cell, P pooled size, M mask size.

Conventions: boxes are float32 x1 y1 x2 y2 in pixels, pixel i covers [i, i + 1); labels are 0 … K-1 and background is K;
images are RGB uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from toolbox.errors import counted


@dataclass(frozen=True)
class FeatureSpec:
    """What a backbone or neck promises about one of its maps: (N, channels, H / stride, W / stride)."""

    channels: int
    stride: int


def is_power_of_two(stride: int) -> bool:
    """Whether a map of this stride is one of a pyramid's: 1, 2, 4, 8, …"""
    return stride & (stride - 1) == 0


@dataclass(frozen=True)
class RoIShape:
    """What an extractor promises about its regions: (R, channels, height, width)."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class PixelStats:
    """How a backbone wants its pixels: `(image * scale - mean) / std`, per channel in `order`."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    scale: float = 1 / 255
    order: str = "rgb"

    def __post_init__(self) -> None:
        if self.order not in ("rgb", "bgr"):
            raise ValueError(f"order is 'rgb' or 'bgr', not '{self.order}'")
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {counted(len(self.mean), 'channel')}, std {len(self.std)}")

    def for_channels(self, count: int) -> PixelStats:
        """The same for images of `count` channels: those of RGB are repeated in turn, or averaged for grey.

        Raises:
            ValueError: they are of neither 3 nor `count` channels.
        """
        known = len(self.mean)
        if known == count:
            return self
        if known != 3:
            raise ValueError(f"pixels has statistics of {counted(known, 'channel')}, but the images have {count}")
        if count == 1:
            return replace(self, mean=(sum(self.mean) / 3,), std=(sum(self.std) / 3,), order="rgb")
        mean, std = (tuple(values[index % 3] for index in range(count)) for values in (self.mean, self.std))
        return replace(self, mean=mean, std=std)


@dataclass(frozen=True)
class Skeleton:
    """The joints of a class: names, left/right pairs, limbs to draw, and the OKS sigma of each joint.

    Attributes:
        names: J joint names.
        pairs: index pairs that a horizontal flip swaps.
        limbs: index pairs joined by a line in drawings.
        sigmas: J standard deviations in units of object scale, as in COCO's OKS.
    """

    names: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    limbs: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        joints = len(self.names)
        if self.sigmas and len(self.sigmas) != joints:
            raise ValueError(f"there {_are(len(self.sigmas), 'sigma')} for {counted(joints, 'joint')}")
        for a, b in (*self.pairs, *self.limbs):
            if not (0 <= a < joints and 0 <= b < joints):
                told = f"joints {a + 1} and {b + 1}, counted from 1, make a pair or limb"
                raise ValueError(f"{told}, but there {_are(joints, 'joint')}")
        paired = [joint for pair in self.pairs for joint in pair]
        twice = next((joint for joint in paired if paired.count(joint) > 1), None)
        if twice is not None:
            raise ValueError(f"joint '{self.names[twice]}' stands in the pairs twice; a joint has one partner")


def _are(count: int, noun: str) -> str:
    return f"{'is' if count == 1 else 'are'} {counted(count, noun)}"


class MaskTargets(Protocol):
    """Ground-truth masks, ragged, on the host; `toolbox.masks.InstanceMasks` is the implementation."""

    def rasterise(self, rois: Tensor, index: Tensor, size: tuple[int, int]) -> Tensor:
        """Mask targets inside regions.

        Args:
            rois: (R, 5), image index in the batch and x1 y1 x2 y2.
            index: (R,), which object of that image.
            size: height and width of the target.

        Returns:
            (R, height, width) float32 of 0 and 1 on the device of `rois`.
        """
        ...


@dataclass
class Targets:
    """Ground truth of a batch, padded to G objects an image, in network pixels.

    Attributes:
        boxes: (N, G, 4).
        labels: (N, G) int64, 0 … K-1.
        valid: (N, G) bool, False on padding.
        crowd: (N, G) bool; never foreground, and silences the background that it covers.
        area: (N, G) object area in network pixels.
        keypoints: (N, G, J, 3), x y visibility (0 unlabelled, 1 hidden, 2 visible), or None.
        masks: ragged masks on the host, or None.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    crowd: Tensor
    area: Tensor
    keypoints: Tensor | None = None
    masks: MaskTargets | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        """Move the tensors; masks stay on the host."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Targets:
        """Pin the tensors."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Targets:
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)


@dataclass
class Batch:
    """What a loader yields: resized uint8 images of different sizes, and their targets.

    Attributes:
        images: N tensors (3, h, w) uint8, RGB, at network size.
        original_sizes: height and width of each image before resizing.
        image_ids: the data set's ids.
        targets: None when there is no ground truth.
    """

    images: list[Tensor]
    original_sizes: list[tuple[int, int]]
    image_ids: list[int]
    targets: Targets | None = None

    def __len__(self) -> int:
        return len(self.images)

    def pin_memory(self) -> Batch:
        """Called by the loader when it pins memory, so that copies to the device need not be waited for."""
        targets = None if self.targets is None else self.targets.pin_memory()
        return replace(self, images=[image.pin_memory() for image in self.images], targets=targets)


@dataclass
class ImageBatch:
    """Normalised, padded images.

    Attributes:
        tensor: (N, 3, H, W) float32, zero on padding.
        sizes: (N, 2) int64 on the device, height and width without padding.
        original_sizes: (N, 2) int64 on the device, height and width before resizing.
        image_ids: the data set's ids.
    """

    tensor: Tensor
    sizes: Tensor
    original_sizes: Tensor
    image_ids: Sequence[int] = ()

    @property
    def scales(self) -> Tensor:
        """(N, 2) float32: network pixels per original pixel, of height and width."""
        return self.sizes.to(torch.float32) / self.original_sizes.to(torch.float32)

    def __len__(self) -> int:
        return self.tensor.shape[0]


@dataclass
class Proposals:
    """Class-agnostic regions of a batch.

    Attributes:
        boxes: (N, R, 4).
        scores: (N, R) objectness in 0 … 1, descending among the valid rows.
        valid: (N, R) bool.
    """

    boxes: Tensor
    scores: Tensor
    valid: Tensor


@dataclass
class RoISamples:
    """Regions to train on, foreground first.

    Attributes:
        boxes: (N, S, 4).
        labels: (N, S) int64, K for background.
        matched: (N, S) int64, index of the matched object (any value on background).
        valid: (N, S) bool.
        foreground: (N, S) bool; its rows all lie among the first `capacity`.
        capacity: most foreground rows an image can have.
    """

    boxes: Tensor
    labels: Tensor
    matched: Tensor
    valid: Tensor
    foreground: Tensor
    capacity: int

    def foreground_block(self) -> RoISamples:
        """The first `capacity` rows, valid where foreground: what instance branches train on."""
        rows = slice(0, self.capacity)
        foreground = self.foreground[:, rows]
        return RoISamples(
            boxes=self.boxes[:, rows],
            labels=self.labels[:, rows],
            matched=self.matched[:, rows],
            valid=foreground,
            foreground=foreground,
            capacity=self.capacity,
        )


@dataclass
class Regions:
    """Regions of a batch in one list: what extractors and heads see.

    Attributes:
        rois: (R, 5), image index in the batch and x1 y1 x2 y2 in network pixels.
        labels: (R,) int64; the class to train or the class predicted, K for background.
        matched: (R,) int64, index of the matched object of that image; zero when predicting.
        valid: (R,) bool; rows that are not valid count in no loss.
        rows: (R,) int64, where each region stands in the flattened padded batch it came from.
    """

    rois: Tensor
    labels: Tensor
    matched: Tensor
    valid: Tensor
    rows: Tensor

    def subset(self, index: Tensor) -> Regions:
        """The regions at `index` (R',)."""
        return Regions(**{name: value[index] for name, value in vars(self).items()})


@dataclass
class DetectionBatch:
    """Detections inside the model, padded, in network pixels.

    Attributes:
        boxes: (N, D, 4).
        scores: (N, D), descending among the valid rows.
        labels: (N, D) int64.
        valid: (N, D) bool.
        instance: name of an instance branch → (N, D, …), what its head predicted.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    instance: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Detections:
    """What a user gets for one image, in the pixels of the original image, on the host.

    Attributes:
        image_size: height and width of the original image.
        boxes: (D, 4).
        scores: (D,), descending.
        labels: (D,) int64, index into the model's classes.
        masks: D COCO RLE dicts (`{"size": [h, w], "counts": bytes}`), or None without a mask branch.
        keypoints: (D, J, 3), x y score, or None without a keypoint branch.
        extras: what other branches predicted, D entries each.
        image_id: the data set's id.
    """

    image_size: tuple[int, int]
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: list[dict[str, Any]] | None = None
    keypoints: Tensor | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)
    image_id: int = 0

    def __post_init__(self) -> None:
        count = self.boxes.shape[0]
        lengths = {"scores": len(self.scores), "labels": len(self.labels)}
        if self.masks is not None:
            lengths["masks"] = len(self.masks)
        if self.keypoints is not None:
            lengths["keypoints"] = len(self.keypoints)
        for name, length in lengths.items():
            if length != count:
                raise ValueError(f"{name} has {length} entries for {count} boxes")

    def __len__(self) -> int:
        return self.boxes.shape[0]
