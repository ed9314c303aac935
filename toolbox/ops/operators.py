"""The operation as torch's compiler and exporters see it: `toolbox::pool_regions`, its shape rule and its gradient."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from toolbox.ops import native
from toolbox.ops.arguments import PoolSettings

# The settings of a call as the operation takes them, after the tensors.
_SETTINGS = (
    "SymInt[] output_size, float[] scales, int[] numbers, str method, int sampling_ratio, bool aligned, "
    "float canonical_size, int canonical_level"
)
_BACKWARD = "Tensor pooled, Tensor[] features, SymInt[] shapes, bool channels_last, Tensor rois"


def pool_regions(features: Sequence[Tensor], rois: Tensor, settings: PoolSettings) -> Tensor:
    """Pool (R, C, P, P) out of checked arguments."""
    return _forward_op(features, rois, *_fields(settings))


def backward(
    pooled: Tensor,
    features: Sequence[Tensor],
    shapes: Sequence[int],
    channels_last: bool,
    rois: Tensor,
    settings: PoolSettings,
) -> list[Tensor]:
    """Gradients of the levels; arguments as those of `native.backward`, of any kind that torch makes ordinary."""
    return _backward_op(pooled, features, shapes, channels_last, rois, *_fields(settings))


def _fields(settings: PoolSettings) -> tuple[Any, ...]:
    return (
        settings.output_size,
        settings.scales,
        settings.numbers,
        settings.method,
        settings.sampling_ratio,
        settings.aligned,
        settings.canonical_size,
        settings.canonical_level,
    )


def _settings(output_size: Sequence[int], scales: Sequence[float], numbers: Sequence[int], *rest: Any) -> PoolSettings:
    return PoolSettings((output_size[0], output_size[1]), tuple(scales), tuple(numbers), *rest)


@torch.library.custom_op(
    "toolbox::pool_regions", mutates_args=(), schema=f"(Tensor[] features, Tensor rois, {_SETTINGS}) -> Tensor"
)
def _forward_op(features: Sequence[Tensor], rois: Tensor, *settings: Any) -> Tensor:
    return native.forward(features, rois, _settings(*settings))


@_forward_op.register_fake
def _(features: Sequence[Tensor], rois: Tensor, *settings: Any) -> Tensor:
    first = features[0]
    return native.empty_pooled(first, native.is_channels_last(first), rois.shape[0], settings[0])


@torch.library.custom_op(
    "toolbox::pool_regions_backward", mutates_args=(), schema=f"({_BACKWARD}, {_SETTINGS}) -> Tensor[]"
)
def _backward_op(
    pooled: Tensor, features: Sequence[Tensor], shapes: Sequence[int], channels_last: bool, rois: Tensor, *settings: Any
) -> list[Tensor]:
    return native.backward(pooled, features, shapes, channels_last, rois, _settings(*settings))


@_backward_op.register_fake
def _(
    pooled: Tensor, features: Sequence[Tensor], shapes: Sequence[int], channels_last: bool, rois: Tensor, *settings: Any
) -> list[Tensor]:
    empty = functools.partial(torch.empty, dtype=pooled.dtype, device=pooled.device)
    layout = native.layout_of(channels_last)
    return [empty(shapes[i : i + 4], memory_format=layout) for i in range(0, len(shapes), 4)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, *settings = inputs
    ctx.settings = settings
    native.keep_for_backward(ctx, features, rois, method=settings[3])


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    rois, *features = ctx.saved_tensors
    gradients = _backward_op(grad, features, ctx.shapes, ctx.channels_last, rois, *ctx.settings)
    return (gradients, None, *[None] * len(ctx.settings))


_forward_op.register_autograd(_backward, setup_context=_setup_context)
