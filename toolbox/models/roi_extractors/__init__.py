"""RoI extractors."""

from toolbox.models.roi_extractors.extractors import RoIAlign, RoIPool

__all__ = ["RoIAlign", "RoIPool"]
