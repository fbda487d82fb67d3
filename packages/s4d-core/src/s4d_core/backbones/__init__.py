"""Image backbones: images to feature maps of falling resolution.

A backbone takes (K, 3, H, W) and gives one map per entry of its configuration's `out_channels`,
fine to coarse. `build_backbone` makes the one that a configuration describes.
"""

from __future__ import annotations

from .base import Backbone
from .config import BackboneConfig, ResNetConfig
from .resnet import ResNet

__all__ = ["Backbone", "BackboneConfig", "ResNet", "ResNetConfig", "build_backbone"]


def build_backbone(config: BackboneConfig) -> Backbone:
    """The backbone of `config`, with weights as its constructor leaves them."""
    return ResNet(config)
