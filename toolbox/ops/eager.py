"""The operation in ordinary eager code, without torch's dispatcher: on small inputs that costs more than the pooling.

Whatever wants to see operations (the compiler, exporters, fake tensors, function transforms, counters) sees those of
`ops.operators`; both call the same extension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from toolbox.ops import native
from toolbox.ops.arguments import PoolSettings

# How deep torch's stacks of watchers are. They are not public: where a torch has them no more, nothing is called plain.
_WATCHERS = ("_len_torch_dispatch_stack", "_len_torch_function_stack")
_stacks: tuple[Callable[[], int], ...] = tuple(getattr(torch._C, name) for name in _WATCHERS if hasattr(torch._C, name))
_transforms: Callable[[], Any] | None = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None)
_known = len(_stacks) == len(_WATCHERS) and _transforms is not None


def is_plain(features: Sequence[Tensor], rois: Tensor) -> bool:
    """Whether these are ordinary tensors, and nobody but autograd watches what is done with them."""
    if not _known or features[0].is_meta or torch.compiler.is_compiling():
        return False
    for tensor in (*features, rois):
        if type(tensor) is not Tensor and type(tensor) is not torch.nn.Parameter:
            return False
    return (
        not any(stack() for stack in _stacks)
        and _transforms() is None  # type: ignore[misc]
        and not torch.jit.is_tracing()
        and getattr(torch.autograd.forward_ad, "_current_level", 0) < 0
    )


def pool_regions(features: Sequence[Tensor], rois: Tensor, settings: PoolSettings) -> Tensor:
    """Pool (R, C, P, P) out of checked, plain arguments."""
    if torch.is_grad_enabled() and any(level.requires_grad for level in features):
        return _Pool.apply(settings, rois, *features)
    return native.forward(features, rois, settings)


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: PoolSettings, rois: Tensor, *features: Tensor) -> Tensor:
        ctx.settings = settings
        native.keep_for_backward(ctx, features, rois, settings.method)
        return native.forward(features, rois, settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        rois, *features = ctx.saved_tensors
        return None, None, *native.backward(grad, features, ctx.shapes, ctx.channels_last, rois, ctx.settings)
