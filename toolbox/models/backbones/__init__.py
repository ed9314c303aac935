"""Backbones."""

from toolbox.models.backbones.resnet import ResNet, ResNetStage
from toolbox.models.backbones.timm_backbone import TimmBackbone

__all__ = ["ResNet", "ResNetStage", "TimmBackbone"]
