"""Models: importing this package registers every built-in component of theirs."""

from toolbox.models import backbones, heads, losses, necks, roi_extractors, rpn  # noqa: F401  (they register themselves)
from toolbox.models.box_branch import BoxBranch, TestSettings
from toolbox.models.detector import RCNN
from toolbox.models.instance_branch import InstanceBranch

__all__ = ["RCNN", "BoxBranch", "InstanceBranch", "TestSettings"]
