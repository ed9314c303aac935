"""RoI operations: the compiled kernels behind plain functions, and a plain-PyTorch twin of each (`ops.reference`).

Shapes: N images, C channels, H W height and width, R regions, P pooled size.
"""

from __future__ import annotations

from toolbox.ops.arguments import ArgumentError
from toolbox.ops.native import cuda_usable, native_built
from toolbox.ops.roi import multiscale_roi_align, multiscale_roi_pool, roi_align, roi_pool

__all__ = [
    "ArgumentError",
    "cuda_usable",
    "multiscale_roi_align",
    "multiscale_roi_pool",
    "native_built",
    "roi_align",
    "roi_pool",
]
