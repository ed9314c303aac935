"""Box and instance heads."""

from toolbox.models.heads.box import AveragePoolBoxHead, ConvFCBoxHead, TwoFCBoxHead
from toolbox.models.heads.keypoint import FCNKeypointHead
from toolbox.models.heads.mask import FCNMaskHead, MLPMaskHead

__all__ = ["AveragePoolBoxHead", "ConvFCBoxHead", "FCNKeypointHead", "FCNMaskHead", "MLPMaskHead", "TwoFCBoxHead"]
