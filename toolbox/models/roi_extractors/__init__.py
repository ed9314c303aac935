"""RoI extractors."""

from toolbox.models.roi_extractors.extractors import RoIAlign, RoIPool
from toolbox.models.roi_extractors.grid_extractors import RoIWarp, SpatialTransformerPool

__all__ = ["RoIAlign", "RoIPool", "RoIWarp", "SpatialTransformerPool"]
