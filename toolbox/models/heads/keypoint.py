"""Keypoint heads: a heat map per joint of each detected object (*Mask R-CNN*, arXiv:1703.06870, section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolbox.models.heads.heat_maps import decode_bicubic, decode_parabola, encode_joints
from toolbox.models.heads.layers import Norm, check_at_least, conv_stack, init_kaiming
from toolbox.models.interfaces import Loss
from toolbox.models.losses import CrossEntropy
from toolbox.registry import INSTANCE_HEADS
from toolbox.structures import Regions, RoIShape, Skeleton, Targets

_DECODERS = {"bicubic": decode_bicubic, "parabola": decode_parabola}


@INSTANCE_HEADS.register
class FCNKeypointHead(nn.Module):
    """Convolutions, a deconvolution and bilinear upsampling: a map per joint whose highest place is the joint.

    The cell of a joint is one class among all cells of its map (softmax), as a mask with one pixel set. Only labelled
    joints (visibility above 0) inside the region train. The classes share the joints and their maps.

    Args:
        in_shape: (R, C, P, P); P = 14 gives maps of 56 × 56.
        num_classes: K; the maps do not depend on it.
        skeleton: the J joints.
        convolutions: 3×3 convolutions before the deconvolution.
        channels: their width.
        norm: norm after each.
        loss: per joint, from logits of all cells and the joint's cell; softmax cross-entropy if None.
        weight: of the loss.
        normaliser: what the joints' losses are divided by, per image; None takes the mean over the joints that train.
            Detectron2's fixed one is regions per image × foreground fraction × J, e.g. 512 × 0.25 × 17 = 2176.
        decode: `bicubic` resizes a map to the region's pixels and takes the highest, as torchvision and Detectron2 do;
            `parabola` refines the best cell from its neighbours, on the device and with fixed shapes.
    """

    needs: ClassVar[tuple[str, ...]] = ("keypoints",)

    def __init__(
        self,
        in_shape: RoIShape,
        num_classes: int,
        skeleton: Skeleton,
        *,
        convolutions: int = 8,
        channels: int = 512,
        norm: Norm = "none",
        loss: Loss | None = None,
        weight: float = 1.0,
        normaliser: float | None = None,
        decode: Literal["bicubic", "parabola"] = "bicubic",
    ) -> None:
        super().__init__()
        check_at_least(0, convolutions=convolutions)
        check_at_least(1, channels=channels)
        if normaliser is not None and normaliser <= 0:
            raise ValueError(f"normaliser is above 0, or null for the mean over the joints, got {normaliser}")
        if decode not in _DECODERS:
            raise ValueError(f"decode is 'bicubic' or 'parabola', not '{decode}'")
        width = channels if convolutions else in_shape.channels
        self.convolutions = conv_stack(in_shape.channels, channels, convolutions, norm)
        self.deconvolution = nn.ConvTranspose2d(width, len(skeleton.names), 4, stride=2, padding=1)
        init_kaiming(self.deconvolution)
        self.cell_loss = loss or CrossEntropy()
        self.weight = weight
        self.normaliser = normaliser
        self.decode = decode

    def forward(self, regions: Tensor) -> Tensor:
        """(R, C, P, P) → logits (R, J, 4 P, 4 P)."""
        maps = self.deconvolution(self.convolutions(regions))
        return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)

    def loss(self, prediction: Tensor, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        """Loss over the labelled joints inside each region."""
        if targets.keypoints is None:
            raise ValueError("the keypoint head needs ground-truth joints, but the data set has none (no 'keypoints')")
        if len(regions.rois) == 0:
            return {"keypoint": prediction.float().sum() * 0}
        joints = targets.keypoints[regions.rois[:, 0].long(), regions.matched]  # (R, J, 3)
        height, width = prediction.shape[-2:]
        cells, trains = encode_joints(joints, regions.rois[:, 1:], (height, width))
        trains &= regions.valid[:, None]
        logits = prediction.flatten(2).flatten(0, 1)  # (R J, cells)
        each = torch.where(trains, self.cell_loss(logits, cells.flatten()).view_as(trains), 0.0)
        count = trains.sum().clamp(min=1) if self.normaliser is None else self.normaliser * len(targets.boxes)
        return {"keypoint": self.weight * each.sum() / count}

    def predict(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """Logits → what `to_image` needs of them, the same for any class.

        Returns:
            (R, J, 4 P, 4 P), the logits; with `decode: parabola` (R, J, 3), x and y from 0 to 1 across the region, and
            the logit there.
        """
        maps = prediction if prediction.dtype == torch.float64 else prediction.float()
        if self.decode == "bicubic":
            return maps
        return decode_parabola(maps, maps.new_tensor([[0.0, 0, 1, 1]]).expand(len(maps), 4))

    def to_image(
        self,
        values: Tensor,
        boxes: Tensor,
        height: int,
        width: int,
        *,
        network_boxes: Tensor,
        network_size: tuple[int, int],
    ) -> Mapping[str, Any]:
        """What `predict` kept, of D detections of one image → joints (D, J, 3), x y score.

        The score is the logit at the joint, on no absolute scale.
        """
        network_boxes = network_boxes.to(values)
        if self.decode == "bicubic":
            joints = decode_bicubic(values, network_boxes)
        else:
            extent = (network_boxes[:, 2:] - network_boxes[:, :2]).clamp(min=1)
            points = network_boxes[:, None, :2] + values[..., :2] * extent[:, None]
            joints = torch.cat((points, values[..., 2:]), dim=-1)
        to_original = [width / network_size[1], height / network_size[0], 1.0]
        return {"keypoints": (joints * joints.new_tensor(to_original)).cpu()}
