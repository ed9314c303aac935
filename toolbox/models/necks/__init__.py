"""Necks."""

from toolbox.models.necks.fpn import FPN
from toolbox.models.necks.simple_feature_pyramid import SimpleFeaturePyramid

__all__ = ["FPN", "SimpleFeaturePyramid"]
