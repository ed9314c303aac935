"""The compiled extension as a torch operation: `toolbox::pool_regions`, with its gradient and its shape rule.

The extension knows addresses and sizes, not torch. This module is its only importer and makes sure that they are right.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from toolbox.ops.arguments import PoolSettings, bad_image_index

_INTERFACE = 1  # kInterface in csrc/bindings.cpp


def _load() -> tuple[ModuleType | None, str]:
    """The extension, or why there is none."""
    if importlib.util.find_spec("toolbox.ops._native") is None:
        return None, "it was not compiled (TOOLBOX_NATIVE=0, or run from sources that were never built)"
    try:
        extension = importlib.import_module("toolbox.ops._native")
    except ImportError as error:
        return None, f"it does not load ({error})"
    if getattr(extension, "INTERFACE", None) != _INTERFACE:
        return None, "it was compiled from other sources; build it again"
    return extension, ""


_extension, missing_because = _load()
_log = logging.getLogger("toolbox")
_METHODS = {"align_average": 0, "align_max": 1, "pool_max": 2}
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

# The settings of a call as the operation takes them, after the tensors.
_SETTINGS = (
    "SymInt[] output_size, float[] scales, int[] numbers, str method, int sampling_ratio, bool aligned, "
    "float canonical_size, int canonical_level"
)
_BACKWARD = "Tensor pooled, Tensor[] features, SymInt[] shapes, bool channels_last, Tensor rois"


def native_built() -> bool:
    """Whether the compiled extension is there."""
    return _extension is not None


@torch.compiler.assume_constant_result
@functools.cache
def cuda_usable() -> bool:
    """Whether the extension has CUDA kernels that run here; says once why not."""
    if _extension is None:
        return False
    if not _extension.WITH_CUDA:
        _log.warning(
            "toolbox.ops was built without CUDA: on the GPU, RoI operations run on torchvision or plain PyTorch"
        )
        return False
    problem = _extension.cuda_problem()
    if problem:
        _log.warning("toolbox.ops cannot use its CUDA kernels: %s; torchvision or plain PyTorch serve instead", problem)
    return not problem


def usable_on(device_type: str) -> bool:
    """Whether the compiled operation serves tensors of this device type."""
    if device_type == "meta":
        return True  # shapes alone need no kernel
    if _extension is None:
        return False
    return cuda_usable() if device_type == "cuda" else device_type == "cpu"


def pool_regions(features: Sequence[Tensor], rois: Tensor, settings: PoolSettings) -> Tensor:
    """Pool (R, C, P, P) out of checked arguments."""
    return _forward_op(features, rois, *_unpack(settings))


def _unpack(settings: PoolSettings) -> tuple[Any, ...]:
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


def _module() -> ModuleType:
    if _extension is None:
        raise RuntimeError("toolbox.ops._native was not compiled; call the functions of toolbox.ops, which fall back")
    return _extension


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _request(
    addresses: Sequence[int],
    shapes: Sequence[int],
    rois: Tensor,
    settings: tuple[Any, ...],
    channels_last: bool,
    dtype: torch.dtype,
) -> Any:
    """Describe a call to the extension; `shapes` are N, C, H, W of each level in a row."""
    output_size, scales, numbers, method, sampling_ratio, aligned, canonical_size, canonical_level = settings
    levels = [
        (address, shapes[4 * i + 2], shapes[4 * i + 3], scales[i], numbers[i]) for i, address in enumerate(addresses)
    ]
    return _module().Request(
        levels,
        shapes[0],
        shapes[1],
        rois.data_ptr(),
        rois.shape[0],
        output_size[0],
        output_size[1],
        _METHODS[method],
        sampling_ratio,
        aligned,
        canonical_size,
        canonical_level,
        channels_last,
        _DTYPES[dtype],
    )


@torch.library.custom_op(
    "toolbox::pool_regions", mutates_args=(), schema=f"(Tensor[] features, Tensor rois, {_SETTINGS}) -> Tensor"
)
def _forward_op(features: Sequence[Tensor], rois: Tensor, *settings: Any) -> Tensor:
    first = features[0]
    channels_last = _is_channels_last(first)
    pooled = _empty_pooled(features, rois, settings[0])
    if pooled.numel() == 0:
        return pooled
    features = [level.contiguous(memory_format=_format(channels_last)) for level in features]
    rois = rois.to(_accumulation_dtype(first.dtype)).contiguous()
    shapes = [side for level in features for side in level.shape]
    request = _request([f.data_ptr() for f in features], shapes, rois, settings, channels_last, first.dtype)
    if first.device.type == "cpu":
        bad = _module().first_bad_region(request)
        if bad >= 0:
            raise bad_image_index(bad, rois[bad, 0].item(), first.shape[0])
        _module().forward_cpu(request, pooled.data_ptr(), torch.get_num_threads())
    else:
        with torch.cuda.device(first.device):
            stream = torch.cuda.current_stream().cuda_stream
            _module().forward_cuda(request, pooled.data_ptr(), 0, first.device.index, stream)
    return pooled


@_forward_op.register_fake
def _(features: Sequence[Tensor], rois: Tensor, *settings: Any) -> Tensor:
    return _empty_pooled(features, rois, settings[0])


def _empty_pooled(features: Sequence[Tensor], rois: Tensor, output_size: Sequence[int]) -> Tensor:
    first = features[0]
    return torch.empty(
        (rois.shape[0], first.shape[1], output_size[0], output_size[1]),
        dtype=first.dtype,
        device=first.device,
        memory_format=_format(_is_channels_last(first)),
    )


@torch.library.custom_op(
    "toolbox::pool_regions_backward",
    mutates_args=(),
    schema=f"({_BACKWARD}, {_SETTINGS}) -> Tensor[]",
)
def _backward_op(
    pooled: Tensor,
    features: Sequence[Tensor],
    shapes: Sequence[int],
    channels_last: bool,
    rois: Tensor,
    *settings: Any,
) -> list[Tensor]:
    """Gradients of the levels; `pooled` is the gradient of the pooled regions, `features` are empty when averaging."""
    layout = _format(channels_last)
    dtype = _accumulation_dtype(pooled.dtype)
    gradients = [
        torch.empty(shapes[i : i + 4], dtype=dtype, device=pooled.device, memory_format=layout).zero_()
        for i in range(0, len(shapes), 4)
    ]
    if pooled.numel() and gradients[0].shape[0]:
        pooled = pooled.contiguous(memory_format=layout)
        features = [level.contiguous(memory_format=layout) for level in features]
        rois = rois.to(dtype).contiguous()
        addresses = [f.data_ptr() for f in features] or [0] * len(gradients)
        request = _request(addresses, shapes, rois, settings, channels_last, pooled.dtype)
        _run_backward(request, pooled, gradients, averaging=not features)
    return [gradient.to(pooled.dtype) for gradient in gradients]


def _run_backward(request: Any, pooled: Tensor, gradients: list[Tensor], averaging: bool) -> None:
    addresses = [gradient.data_ptr() for gradient in gradients]
    if pooled.device.type == "cpu":
        _module().backward_cpu(request, pooled.data_ptr(), addresses, torch.get_num_threads())
        return
    with torch.cuda.device(pooled.device):
        device, stream = pooled.device.index, torch.cuda.current_stream().cuda_stream
        deterministic = torch.are_deterministic_algorithms_enabled()
        winners = None
        if deterministic and not averaging:
            # Which candidate won each maximum: with it a cell can collect its gradient without atomics.
            winners = torch.empty(pooled.numel(), dtype=torch.int64, device=pooled.device)
            _module().forward_cuda(request, 0, winners.data_ptr(), device, stream)
        winners_address = 0 if winners is None else winners.data_ptr()
        _module().backward_cuda(request, pooled.data_ptr(), addresses, winners_address, deterministic, device, stream)


@_backward_op.register_fake
def _(
    pooled: Tensor,
    features: Sequence[Tensor],
    shapes: Sequence[int],
    channels_last: bool,
    rois: Tensor,
    *settings: Any,
) -> list[Tensor]:
    return [
        torch.empty(shapes[i : i + 4], dtype=pooled.dtype, device=pooled.device, memory_format=_format(channels_last))
        for i in range(0, len(shapes), 4)
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, *settings = inputs
    ctx.settings = settings
    ctx.channels_last = _is_channels_last(features[0])
    ctx.shapes = [side for level in features for side in level.shape]
    # An average's gradient does not depend on the features: they need not be kept for it.
    kept = [] if settings[3] == "align_average" else features
    ctx.save_for_backward(rois, *kept)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    rois, *features = ctx.saved_tensors
    gradients = _backward_op(grad, features, ctx.shapes, ctx.channels_last, rois, *ctx.settings)
    return (gradients, None, *[None] * len(ctx.settings))


_forward_op.register_autograd(_backward, setup_context=_setup_context)
