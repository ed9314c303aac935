"""Necks."""

from toolbox.models.necks.fpn import FPN

__all__ = ["FPN"]
