"""A task after boxes (masks, keypoints, a plugin's own): an extractor and a head, nothing else."""

from __future__ import annotations

from torch import nn

from toolbox.models.interfaces import InstanceHead, RoIExtractor


class InstanceBranch(nn.Module):
    """One entry of `model.instance`.

    Args:
        head: predicts from the regions.
        extractor: pools the regions; None to share the box branch's pooled regions and RoI stage (C4 models,
            *Mask R-CNN*, arXiv:1703.06870, figure 4 left).
    """

    def __init__(self, *, head: InstanceHead, extractor: RoIExtractor | None = None) -> None:
        super().__init__()
        self.head: InstanceHead = head
        self.extractor: RoIExtractor | None = extractor
