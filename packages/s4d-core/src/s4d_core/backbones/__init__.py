"""Image backbones: images to feature maps of falling resolution.

A backbone takes (K, 3, H, W) and gives one map per entry of its configuration's `out_channels`,
fine to coarse. `build_backbone` makes the one that a configuration describes.
"""

from __future__ import annotations

from .base import Backbone
from .config import BackboneConfig, EvaConfig, ResNetConfig, TimmConfig, VoVNetConfig
from .eva import Eva
from .resnet import ResNet
from .timm_backbone import TimmBackbone, timm_config
from .vovnet import VoVNet
from .weights import LoadReport, load_weights

__all__ = [
    "Backbone",
    "BackboneConfig",
    "Eva",
    "EvaConfig",
    "ResNet",
    "ResNetConfig",
    "TimmBackbone",
    "TimmConfig",
    "VoVNet",
    "VoVNetConfig",
    "LoadReport",
    "build_backbone",
    "load_weights",
    "timm_config",
]


def build_backbone(config: BackboneConfig) -> Backbone:
    """The backbone of `config`, with weights as its constructor leaves them."""
    if isinstance(config, VoVNetConfig):
        return VoVNet(config)
    if isinstance(config, EvaConfig):
        return Eva(config)
    if isinstance(config, TimmConfig):
        return TimmBackbone(config)
    return ResNet(config)
