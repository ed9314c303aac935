"""Box and instance heads."""

from toolbox.models.heads.box import ConvFCBoxHead, TwoFCBoxHead
from toolbox.models.heads.keypoint import FCNKeypointHead
from toolbox.models.heads.mask import FCNMaskHead

__all__ = ["ConvFCBoxHead", "FCNKeypointHead", "FCNMaskHead", "TwoFCBoxHead"]
