"""The compiled extension: found, and called with tensors.

The extension knows addresses and sizes, not torch. This module is its only importer and makes sure that they are right.
How torch sees the calls is the matter of `ops.operators` (compiling, exporting) and `ops.eager`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from toolbox.ops.arguments import PoolSettings, bad_image_index

_INTERFACE = 4  # kInterface in csrc/bindings.cpp


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


_extension: Any
_extension, missing_because = _load()
_log = logging.getLogger("toolbox")
_METHODS = {"align_average": 0, "align_max": 1, "pool_max": 2}
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


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


def usable_for(tensor: Tensor) -> bool:
    """Whether the compiled operation serves tensors of this one's device."""
    if tensor.is_cpu:
        return _extension is not None
    return tensor.is_meta or (tensor.is_cuda and cuda_usable())  # of a meta tensor the shape alone is asked


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a tensor lies in memory with its channels innermost; one that is both counts as contiguous."""
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def layout_of(channels_last: bool) -> torch.memory_format:
    """The memory format of features, pooled regions and gradients."""
    return torch.channels_last if channels_last else torch.contiguous_format


def empty_pooled(first: Tensor, channels_last: bool, regions: int, output_size: Sequence[int]) -> Tensor:
    """(R, C, P, P) without values, of the first level's type."""
    channels, (height, width) = first.shape[1], output_size
    if not channels_last:
        # One by one, since torch takes a tuple apart in half a microsecond.
        return first.new_empty(regions, channels, height, width)
    strides = (channels * height * width, 1, channels * width, channels)
    return first.new_empty_strided((regions, channels, height, width), strides)


def forward(features: Sequence[Tensor], rois: Tensor, settings: PoolSettings, out: Tensor | None = None) -> Tensor:
    """Pool (R, C, P, P) out of checked arguments; no gradient is kept.

    Args:
        out: where to write, of the right shape, type and layout.

    Raises:
        ArgumentError: on the CPU, a region's image does not exist.
    """
    first = features[0]
    channels_last = is_channels_last(first)
    pooled = empty_pooled(first, channels_last, rois.shape[0], settings.output_size) if out is None else out
    if pooled.numel() == 0:
        return pooled
    # The names keep what the extension reads alive.
    features = _laid_out(features, channels_last)
    read = _as_read(rois, first.dtype)
    addresses: list[int] = []
    shapes: list[int] = []
    for level in features:
        addresses.append(level.data_ptr())
        shapes += level.shape
    call = _call(addresses, shapes, read, settings, channels_last, first.dtype)
    if _on_cpu(first):
        bad = _extension.forward_cpu(*call, pooled.data_ptr(), torch.get_num_threads())
        if bad >= 0:
            raise bad_image_index(bad, rois[bad, 0].item(), first.shape[0])
    else:
        with _cuda_queue(first.device) as queue:
            _extension.forward_cuda(_extension.request(*call), pooled.data_ptr(), 0, *queue)
    return pooled


def keep_for_backward(ctx: Any, features: Sequence[Tensor], rois: Tensor, method: str) -> None:
    """Keep what `backward` needs; an average's gradient does not depend on the features, so they are let go."""
    ctx.channels_last = is_channels_last(features[0])
    ctx.shapes = [side for level in features for side in level.shape]
    ctx.save_for_backward(rois, *([] if method == "align_average" else features))


def backward(
    pooled: Tensor,
    features: Sequence[Tensor],
    shapes: Sequence[int],
    channels_last: bool,
    rois: Tensor,
    settings: PoolSettings,
) -> list[Tensor]:
    """Gradients of the levels.

    Args:
        pooled: (R, C, P, P), the gradient of the pooled regions.
        features: the levels; none when averaging, whose gradient does not depend on them.
        shapes: N, C, H, W of each level in a row.
        channels_last: layout of the levels, and of their gradients.
    """
    layout = layout_of(channels_last)
    summed = torch.float64 if pooled.dtype == torch.float64 else torch.float32
    # Where one thread owns a cell its sum is written once, in the type that is asked for.
    collecting = not _on_cpu(pooled) and torch.are_deterministic_algorithms_enabled()
    dtype = pooled.dtype if collecting else summed
    gradients = [
        torch.empty(shapes[i : i + 4], dtype=dtype, device=pooled.device, memory_format=layout)
        for i in range(0, len(shapes), 4)
    ]
    if pooled.numel() == 0 or shapes[0] == 0:
        for gradient in gradients:
            gradient.zero_()
    else:
        pooled = pooled.contiguous(memory_format=layout)
        features = _laid_out(features, channels_last)
        rois = _as_read(rois, summed)
        addresses = [level.data_ptr() for level in features] or [0] * len(gradients)
        request = _extension.request(*_call(addresses, shapes, rois, settings, channels_last, pooled.dtype))
        if collecting:
            _collect(request, pooled, gradients, averaging=not features)
        else:
            _add_up(request, pooled, gradients)
    return [gradient.to(pooled.dtype) for gradient in gradients]


def _add_up(request: Any, pooled: Tensor, gradients: list[Tensor]) -> None:
    """Gradients the fast way: on CUDA with atomics, whose order no run repeats."""
    addresses = [gradient.data_ptr() for gradient in gradients]
    if _on_cpu(pooled):
        _extension.backward_cpu(request, pooled.data_ptr(), addresses, torch.get_num_threads())
        return
    for gradient in gradients:
        gradient.zero_()  # the kernels add
    with _cuda_queue(pooled.device) as queue:
        _extension.backward_cuda(request, pooled.data_ptr(), addresses, *queue)


def _collect(request: Any, pooled: Tensor, gradients: list[Tensor], averaging: bool) -> None:
    """Gradients the same in every run, on CUDA."""
    addresses = [gradient.data_ptr() for gradient in gradients]
    marks = torch.zeros(_extension.collect_workspace(request), dtype=torch.uint8, device=pooled.device)
    with _cuda_queue(pooled.device) as queue:
        winners = None
        if not averaging:
            # Which candidate won each maximum: with it a cell can collect its gradient.
            winners = torch.empty(pooled.numel(), dtype=torch.int64, device=pooled.device)
            _extension.forward_cuda(request, 0, winners.data_ptr(), *queue)
        winners_address = 0 if winners is None else winners.data_ptr()
        _extension.collect_cuda(request, pooled.data_ptr(), addresses, winners_address, marks.data_ptr(), *queue)


def _on_cpu(tensor: Tensor) -> bool:
    return tensor.is_cpu


@contextlib.contextmanager
def _cuda_queue(device: torch.device) -> Iterator[tuple[int, int]]:
    """Number of a device, made the current one, and the stream that torch computes on."""
    with torch.cuda.device(device):
        yield torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream


def _laid_out(features: Sequence[Tensor], channels_last: bool) -> Sequence[Tensor]:
    """The levels in one layout, each without gaps."""
    if channels_last:
        return [level.contiguous(memory_format=torch.channels_last) for level in features]
    return [level.contiguous() for level in features]


def _as_read(rois: Tensor, dtype: torch.dtype) -> Tensor:
    """Regions in the type that features of `dtype` are summed in."""
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    return rois if rois.dtype is wanted and rois.is_contiguous() else rois.to(wanted).contiguous()


def _call(
    addresses: Sequence[int],
    shapes: Sequence[int],
    rois: Tensor,
    settings: PoolSettings,
    channels_last: bool,
    dtype: torch.dtype,
) -> tuple[Any, ...]:
    """A call as the extension takes it; `shapes` are N, C, H, W of each level in a row."""
    return _handle(settings), addresses, shapes, rois.data_ptr(), rois.shape[0], channels_last, _DTYPES[dtype]


@functools.lru_cache(maxsize=1024)
def _handle(settings: PoolSettings) -> Any:
    """The settings as the extension keeps them."""
    return _extension.settings(
        settings.scales,
        settings.numbers,
        *settings.output_size,
        _METHODS[settings.method],
        settings.sampling_ratio,
        settings.aligned,
        settings.canonical_size,
        settings.canonical_level,
    )
