"""RoIAlign in ONNX: what `torch.onnx.export(…, dynamo=True)` writes for `toolbox::pool_regions` (extra `onnx`).

    torch.onnx.export(model, arguments, "model.onnx", dynamo=True, custom_translation_table=translations())

A pyramid becomes one RoiAlign per level, each region's own level kept by a factor of 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from toolbox.errors import ToolboxError
from toolbox.ops import operators  # noqa: F401 (registers the operation)

_OPSET = 18
_INT64 = 7  # ONNX's number of the type


def translations() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """The table for `custom_translation_table`.

    Raises:
        ToolboxError: onnxscript is not installed.
    """
    return {torch.ops.toolbox.pool_regions.default: pool_regions}


def _opset() -> Any:
    try:
        import onnxscript
    except ImportError as error:
        raise ToolboxError("exporting to ONNX needs onnxscript: pip install 'rcnn-toolbox[onnx]'") from error
    return getattr(onnxscript, f"opset{_OPSET}")


def pool_regions(
    features: Sequence[Any],
    rois: Any,
    output_size: Sequence[int],
    scales: Sequence[float],
    numbers: Sequence[int],
    method: str,
    sampling_ratio: int,
    aligned: bool,
    canonical_size: float,
    canonical_level: int,
) -> Any:
    """The operation in ONNX's own; arguments as the operation has them, tensors as symbolic values.

    Raises:
        ToolboxError: the method is none that ONNX's RoiAlign computes as the paper does.
    """
    if method != "align_average":
        # ONNX's "max" takes the largest of the four weighted corners, not of the samples.
        raise ToolboxError(f"RoI pooling by '{method}' has no counterpart in ONNX; use RoIAlign with mode: average")
    op = _opset()
    batch = op.Cast(op.Squeeze(op.Slice(rois, [0], [1], [1]), [1]), to=_INT64)
    boxes = op.Slice(rois, [1], [5], [1])
    level = None if len(features) == 1 else _level(op, boxes, numbers, canonical_size, canonical_level)
    total = None
    for feature, scale, number in zip(features, scales, numbers, strict=True):
        pooled = op.RoiAlign(
            feature,
            boxes,
            batch,
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            mode="avg",
            output_height=output_size[0],
            output_width=output_size[1],
            sampling_ratio=sampling_ratio,
            spatial_scale=scale,
        )
        if level is None:
            return pooled
        chosen = op.Unsqueeze(op.CastLike(op.Equal(level, op.Constant(value_float=float(number))), pooled), [1, 2, 3])
        own = op.Mul(pooled, chosen)
        total = own if total is None else op.Add(total, own)
    return total


def _level(op: Any, boxes: Any, numbers: Sequence[int], canonical_size: float, canonical_level: int) -> Any:
    """Number of each region's level, as choose_level in csrc/request.h picks it."""
    x1, y1, x2, y2 = (op.Squeeze(op.Slice(boxes, [i], [i + 1], [1]), [1]) for i in range(4))
    size = op.Sqrt(op.Mul(op.Sub(x2, x1), op.Sub(y2, y1)))
    octaves = op.Log(op.Mul(size, op.Constant(value_float=1.00000069314742 / canonical_size)))
    octaves = op.Mul(octaves, op.Constant(value_float=1 / math.log(2)))
    number = op.Add(op.Floor(octaves), op.Constant(value_float=float(canonical_level)))
    low, high = (op.Constant(value_float=float(limit)) for limit in (numbers[0], numbers[-1]))
    clipped = op.Clip(number, low, high)
    # No area, or corners swapped: the finest level.
    return op.Where(op.Greater(size, op.Constant(value_float=0.0)), clipped, low)
