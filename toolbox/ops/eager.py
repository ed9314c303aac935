"""The operation in ordinary eager code, without torch's dispatcher: on small inputs that costs more than the pooling.

Whatever wants to see operations (the compiler, exporters, fake tensors, function transforms, counters) sees those of
`ops.operators`; both call the same extension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.compiler import is_compiling

from toolbox.ops import native
from toolbox.ops.arguments import PoolSettings

# What tells of a watcher. They are not public: where a torch has them no more, nothing is called plain.
_watchers: tuple[Callable[[], Any], ...]
try:
    _watchers = (
        torch._C._len_torch_dispatch_stack,
        torch._C._len_torch_function_stack,
        torch._C._functorch.peek_interpreter_stack,
        torch._C._is_tracing,
    )
except AttributeError:
    _watchers = (lambda: True,)
_TYPES = frozenset({Tensor, torch.nn.Parameter})


def is_plain(features: Sequence[Tensor], rois: Tensor) -> bool:
    """Whether these are ordinary tensors, and nobody but autograd watches what is done with them."""
    if is_compiling() or features[0].is_meta or type(rois) not in _TYPES:
        return False
    for level in features:
        if type(level) not in _TYPES:
            return False
    for watched in _watchers:
        if watched():
            return False
    return getattr(forward_ad, "_current_level", 0) < 0


def pool_regions(features: Sequence[Tensor], rois: Tensor, settings: PoolSettings) -> Tensor:
    """Pool (R, C, P, P) out of checked, plain arguments."""
    if torch.is_grad_enabled():
        for level in features:
            if level.requires_grad:
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
