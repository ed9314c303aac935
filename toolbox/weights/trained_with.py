"""Settings that weights were trained with and that no shape tells: with others, detections are silently wrong."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from toolbox.errors import CheckpointError
from toolbox.structures import PixelStats
from toolbox.weights.detectron2 import ZOO, anchor_order, cell_anchors
from toolbox.weights.foreign_files import ForeignCheckpoint
from toolbox.weights.mmdetection import check_version

logger = logging.getLogger("toolbox")

_MEAN, _STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)  # of ImageNet, blue first
CAFFE = PixelStats(_MEAN, (1.0, 1.0, 1.0), 1.0, "bgr")  # of MSRA's ResNets
CAFFE2 = PixelStats(_MEAN, _STD, 1.0, "bgr")  # of FAIR's ResNeXts
TORCH = PixelStats(_MEAN[::-1], _STD[::-1], 1.0, "rgb")


@dataclass(frozen=True)
class TrainedWith:
    """What a checkpoint is known to have been trained with; None where it is not known.

    Attributes:
        pixels: how images were normalised.
        stride_in_1x1: whether a bottleneck's first convolution has its stride.
        dilated_c5: whether c5 has dilation in place of its stride.
        anchors: (A, 4) of each level, around the origin, in our order.
    """

    pixels: PixelStats | None = None
    stride_in_1x1: bool | None = None
    dilated_c5: bool | None = None
    anchors: tuple[Tensor, ...] = ()


def check_settings(source: str, checkpoint: ForeignCheckpoint, model: nn.Module) -> None:
    """Compare the model with what the checkpoint was trained with.

    Args:
        source: `detectron2`, `mmdetection`; others are not known to disagree.
        checkpoint: as it was read.
        model: built from the config; on the meta device too.

    Raises:
        CheckpointError: what differs, each with the setting to write.
    """
    known = trained_with(source, checkpoint)
    wrong = [
        *_pixels(known, model.backbone),
        *_strides(known, model.backbone, model.roi_stage),
        *_anchors(known, model),
    ]
    if wrong:
        lines = "\n".join(f"  {line}" for line in wrong)
        raise CheckpointError(f"{checkpoint.path}: the config has other settings than these weights\n{lines}")
    if source == "detectron2" and known.pixels is None:
        logger.warning(
            "%s does not say how its images were normalised; Detectron2's default is %s with stride_in_1x1: true",
            checkpoint.path,
            _written(CAFFE),
        )


def warn_of_settings(checkpoint: ForeignCheckpoint, backbone: nn.Module) -> None:
    """Say how a backbone that starts from a file of Detectron2 differs from what the file was trained with.

    Training goes on from there, and may make up for it; so it is no error.

    Args:
        checkpoint: as it was read.
        backbone: or a stage on regions.
    """
    known = trained_with("detectron2", checkpoint)
    whole = hasattr(backbone, "pixels")
    strides = _strides(known, backbone, None) if whole else _strides(known, None, backbone)
    for line in (*_pixels(known, backbone), *strides):
        logger.warning("%s: %s", checkpoint.path, line)


def trained_with(source: str, checkpoint: ForeignCheckpoint) -> TrainedWith:
    """What a checkpoint tells by its buffers, its author, or the config inside."""
    if source == "detectron2":
        return _of_detectron2(checkpoint)
    if source == "mmdetection":
        check_version(checkpoint.meta)
        return _of_mmdetection(checkpoint.meta)
    return TrainedWith()


def _of_detectron2(checkpoint: ForeignCheckpoint) -> TrainedWith:
    """Checkpoints of April 2020 to February 2021 hold their pixel statistics, the model zoo's older ones do not.

    The zoo's models with frozen norms began from MSRA's ResNets, with the stride in the 1×1 convolution, or FAIR's
    ResNeXts, with the stride in the 3×3. Its models with live norms began from anything.
    """
    state = checkpoint.state
    convolution = next(
        (state[name] for name in state if re.search(r"res2(\.0\.conv2\.weight|_0_branch2b_w)$", name)), None
    )
    frozen = not any(re.search(r"num_batches_tracked|_gn_s$", name) for name in state) and any(
        re.search(r"running_mean|_bn_", name) for name in state
    )
    grouped = convolution is not None and convolution.shape[1] != convolution.shape[0]
    pixels, in_1x1 = None, None
    if checkpoint.author in (ZOO, "Caffe2") and frozen:
        pixels, in_1x1 = (CAFFE2, False) if grouped else (CAFFE, True)
    elif checkpoint.author == "torchvision":
        pixels, in_1x1 = TORCH, False
    if "pixel_mean" in state and "pixel_std" in state:
        mean, std = (tuple(state[name].flatten().tolist()) for name in ("pixel_mean", "pixel_std"))
        pixels = PixelStats(mean, std, 1.0, "rgb" if mean[0] > mean[-1] else "bgr")
    names = " ".join(state)
    dilated = checkpoint.author == ZOO and "backbone.res5." in names or None
    cells = cell_anchors(state)
    return TrainedWith(pixels, in_1x1, dilated, tuple(_sorted(cell) for cell in cells))


def _sorted(cell: Tensor) -> Tensor:
    sides = cell[:, 2:] - cell[:, :2]
    ratios = {round(ratio, 3) for ratio in (sides[:, 1] / sides[:, 0]).tolist()}
    return cell[anchor_order(len(cell), len(ratios))]


def _of_mmdetection(meta: Mapping[str, Any]) -> TrainedWith:
    """Its checkpoints hold their config as Python's text."""
    text = str(meta.get("config", meta.get("cfg", "")))
    style = re.search(r"style='(pytorch|caffe)'", text)
    numbers = [re.search(rf"\b{name}=\[([-\d., ]+)\]", text) for name in ("mean", "std")]
    colours = re.search(r"\b(?:bgr_to_rgb|to_rgb)=(True|False)", text)
    pixels = None
    if all(numbers) and colours:
        mean, std = (tuple(float(value) for value in found[1].split(",")) for found in numbers if found)
        pixels = PixelStats(mean, std, 1.0, "rgb" if colours[1] == "True" else "bgr")
    return TrainedWith(pixels, None if style is None else style[1] == "caffe")


def _pixels(known: TrainedWith, backbone: Any) -> list[str]:
    own = getattr(backbone, "pixels", None)
    if known.pixels is None or own is None or _same(known.pixels, own):
        return []
    return [f"images were normalised otherwise: set model.backbone.pixels: {_written(known.pixels)}"]


def _same(a: PixelStats, b: PixelStats) -> bool:
    """Whether both make the same numbers of an image, whatever their scale."""
    if len(a.mean) != len(b.mean) or a.order != b.order:
        return False
    return torch.allclose(_factors(a), _factors(b), rtol=1e-3)


def _factors(stats: PixelStats) -> Tensor:
    """(C, 2): what a pixel is multiplied by, and what is taken off then."""
    return torch.tensor([(stats.scale / std, mean / std) for mean, std in zip(stats.mean, stats.std, strict=True)])


def _written(pixels: PixelStats) -> str:
    mean, std = ([round(value, 3) for value in values] for values in (pixels.mean, pixels.std))
    return f"{{mean: {mean}, std: {std}, scale: {pixels.scale}, order: {pixels.order}}}"


def _strides(known: TrainedWith, backbone: Any, roi_stage: Any) -> list[str]:
    wrong = []
    in_1x1 = known.stride_in_1x1
    for key, stage in (
        ("model.backbone", getattr(backbone, "layer2", None)),
        ("model.roi_stage", getattr(roi_stage, "layer4", None)),
    ):
        own = None if stage is None else _stride_in_1x1(stage[0])
        if in_1x1 is not None and own is not None and own != in_1x1:
            size = "1x1" if in_1x1 else "3x3"
            setting = f"{key}.stride_in_1x1: {str(in_1x1).lower()}"
            wrong.append(f"it was trained with the stride in the {size} convolution: set {setting}")
    c5 = getattr(backbone, "layer4", None)
    if known.dilated_c5 and c5 is not None and any(tuple(block.conv2.dilation) == (1, 1) for block in c5):
        setting = "true" if in_1x1 else "all_blocks"  # with the stride in the 1x1 convolution, the same
        wrong.append(f"it was trained with dilation in all of c5: set model.backbone.dilated_c5: {setting}")
    return wrong


def _stride_in_1x1(block: Any) -> bool | None:
    """Which convolution of a bottleneck has its stride; None for basic blocks, and where there is no stride."""
    first, second = block.conv1.stride[0], block.conv2.stride[0]
    return None if not block.bottleneck or first == second else first > second


def _anchors(known: TrainedWith, model: Any) -> list[str]:
    cells = getattr(model.rpn.anchors, "cells", None)
    if not known.anchors or cells is None or cells.is_meta:
        return []
    if len({cell.shape for cell in known.anchors}) > 1:
        return ["it was trained with another number of anchors on each level; ours is one number for all"]
    theirs = torch.stack([cell.float() for cell in known.anchors])
    if theirs.shape == cells.shape and torch.allclose(theirs, cells.float(), atol=0.1):
        return []
    sides = theirs[..., 2:] - theirs[..., :2]
    sizes = [sorted({round(size) for size in level.prod(1).sqrt().tolist()}) for level in sides]
    ratios = sorted({round(ratio, 2) for ratio in (sides[0, :, 1] / sides[0, :, 0]).tolist()})
    return [f"it was trained with other anchors: set model.rpn.anchors: {{sizes: {sizes}, ratios: {ratios}}}"]
