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

from toolbox.ops import native, operators
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
    if is_compiling() or features[0].is_meta or not _holds_its_values(rois):
        return False
    for level in features:
        if not _holds_its_values(level):
            return False
    for watched in _watchers:
        if watched():
            return False
    return getattr(forward_ad, "_current_level", 0) < 0


def _holds_its_values(tensor: Tensor) -> bool:
    """Whether the values lie at the tensor's address: not a subclass's, nor a view's that stands for the negative."""
    return type(tensor) in _TYPES and not tensor.is_neg()


def pool_regions(features: Sequence[Tensor], rois: Tensor, settings: PoolSettings, out: Tensor | None = None) -> Tensor:
    """Pool (R, C, P, P) out of checked, plain arguments; into `out` where no gradient is wanted."""
    if out is not None:
        if any(_overlap(out, given) for given in (rois, *features)):
            return out.copy_(native.forward(features, rois, settings))
        native.forward(features, rois, settings, out)
        # Torch does not see the writing: whoever kept `out` for a gradient would compute a wrong one.
        torch.autograd.graph.increment_version(out)
        return out
    if torch.is_grad_enabled():
        for level in features:
            if level.requires_grad:
                return _Pool.apply(settings, rois, *features)
    return native.forward(features, rois, settings)


def _overlap(out: Tensor, given: Tensor) -> bool:
    """Whether writing to `out` may change what is read; tensors with gaps are copied before, so it matters not."""
    ours, theirs = out.data_ptr(), given.data_ptr()
    return ours < theirs + given.numel() * given.element_size() and theirs < ours + out.numel() * out.element_size()


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
        backward = native.backward
        if not _holds_its_values(grad) or grad._is_zerotensor():
            backward = operators.backward
        return None, None, *backward(grad, features, ctx.shapes, ctx.channels_last, rois, ctx.settings)
