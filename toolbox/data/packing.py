"""Batches from a worker to the training process: all tensors in one block of shared memory.

Every tensor that is sent on its own costs a file descriptor, a connection and a mapping; a batch has seven and more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from toolbox.structures import Batch

_ALIGNED = 64  # bytes: whole elements of any type, and whole lines of the cache


@dataclass
class PackedBatch:
    """A batch whose tensors are pieces of one.

    Attributes:
        block: (bytes,) uint8, in shared memory; pinned once `pin_memory` was called.
        pieces: type and shape of each tensor, and where in the block it begins; images are (h, w, C).
        names: of the targets' tensors, which follow the images.
        batch: everything else.
    """

    block: Tensor
    pieces: list[tuple[torch.dtype, tuple[int, ...], int]]
    names: list[str]
    batch: Batch

    def pin_memory(self) -> PackedBatch:
        """Called by the loader when it pins memory: one copy."""
        return replace(self, block=self.block.pin_memory())

    def unpacked(self) -> Batch:
        """The batch as it was; its tensors lie in the block."""
        tensors = [
            self.block[start : start + _bytes(dtype, shape)].view(dtype).view(shape)
            for dtype, shape, start in self.pieces
        ]
        count = len(tensors) - len(self.names)
        targets = self.batch.targets
        if targets is not None:
            own: dict[str, Any] = dict(zip(self.names, tensors[count:], strict=True))
            targets = replace(targets, **own)
        return replace(self.batch, images=[image.permute(2, 0, 1) for image in tensors[:count]], targets=targets)


def packed(batch: Batch) -> PackedBatch:
    """Copy a batch's tensors into one block, which another process maps rather than copies."""
    named = {} if batch.targets is None else {k: v for k, v in vars(batch.targets).items() if isinstance(v, Tensor)}
    tensors = [*(image.permute(1, 2, 0) for image in batch.images), *named.values()]
    pieces, size = _laid_out(tensors)
    block = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
    for tensor, (dtype, shape, start) in zip(tensors, pieces, strict=True):
        block[start : start + _bytes(dtype, shape)].view(dtype).view(shape).copy_(tensor)
    emptied: dict[str, Any] = dict.fromkeys(named, torch.zeros(0))
    targets = None if batch.targets is None else replace(batch.targets, **emptied)
    return PackedBatch(block, pieces, list(named), replace(batch, images=[], targets=targets))


def _laid_out(tensors: Sequence[Tensor]) -> tuple[list[tuple[torch.dtype, tuple[int, ...], int]], int]:
    """Pieces one after another, and the bytes that they take."""
    pieces, size = [], 0
    for tensor in tensors:
        pieces.append((tensor.dtype, tuple(tensor.shape), size))
        size += -(-_bytes(tensor.dtype, tensor.shape) // _ALIGNED) * _ALIGNED
    return pieces, max(size, _ALIGNED)


def _bytes(dtype: torch.dtype, shape: Sequence[int]) -> int:
    return dtype.itemsize * int(torch.Size(shape).numel())
