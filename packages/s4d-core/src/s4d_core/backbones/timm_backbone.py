"""Any feature-extracting model of timm (extra `s4d-core[timm]`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .base import Backbone
from .config import TimmConfig
from .timm_models import create, feature_sizes, maps_of

__all__ = ["TimmBackbone", "timm_config"]


MOST_MAPS = 4
"""The pyramids of the family take four maps; they add levels below fewer."""


def timm_config(name: str, image_size: tuple[int, int]) -> TimmConfig:
    """The configuration for a model of timm, without knowing how it is made.

    Takes its last four feature maps, or as many as it has, and makes a model that is for one
    image size (ViT, Swin) for this one.

    Args:
        name: timm's, with or without `timm/` before it.
        image_size: (height, width).

    Raises:
        ConfigError: timm is not installed, or the model gives no feature maps of such images.
    """
    name = name.removeprefix("timm/")
    problem = None
    for count in range(MOST_MAPS, 0, -1):
        indices = tuple(range(-count, 0))
        for fixed in (None, image_size):
            try:
                feature_sizes(name, indices, fixed, image_size)
            except ConfigError as error:
                problem = problem or error
            else:
                return TimmConfig(name, indices, image_size=fixed)
    assert problem is not None
    raise problem


def _network(config: TimmConfig, pretrained: bool = False) -> nn.Module:
    return create(config.name, config.out_indices, config.image_size, pretrained)


class TimmBackbone(Backbone):
    """A model of timm with its maps as they come, (K, C_i, H_i, W_i)."""

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        self.network = _network(config)
        if config.checkpointing:
            self.network.set_grad_checkpointing(True)  # type: ignore[operator]
        self.fix([], config.norm_eval)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of normalised images."""
        return maps_of(self.network, images)

    def init_weights(self) -> None:
        """timm's own initialisation, or its published weights where `pretrained` says so."""
        if self.config.pretrained:
            self.network.load_state_dict(_network(self.config, True).state_dict())

    def make_tables(self, image_size: tuple[int, int]) -> None:
        # Built without values (a checkpoint follows), constants that are no weights are missing.
        weights = self.network.state_dict()
        lost = [n for n, b in self.network.named_buffers() if b.is_meta and n not in weights]
        if lost and not torch.empty(0).is_meta:
            fresh = _network(self.config)
            for name in lost:
                owner, _, attribute = name.rpartition(".")
                setattr(self.network.get_submodule(owner), attribute, fresh.get_buffer(name))
