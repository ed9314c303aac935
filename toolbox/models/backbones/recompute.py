"""Activations that are computed again for the gradient (Chen et al., *Sublinear Memory Cost*, arXiv:1604.06174)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """`block(x)`, of which only `x` is kept; random numbers are the same ones the second time.

    Args:
        block: a part of the network.
        x: what it takes.
    """
    return checkpoint(
        block, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), statistics_held(block))
    )


@contextlib.contextmanager
def statistics_held(block: nn.Module) -> Iterator[None]:
    """Inside, batch norms leave their running statistics alone: the first time has counted the batch."""
    # Not by track_running_stats = False: what is kept for the gradient must be the same both times.
    before = [(norm, norm.momentum, _as_now(norm.num_batches_tracked)) for norm in live_norms(block)]
    for norm, _, _ in before:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            if count is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(count)


def _as_now(count: Tensor | None) -> Tensor | None:
    """A count as it is now."""
    return None if count is None else count.clone()


def live_norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch norms that count what they see."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
