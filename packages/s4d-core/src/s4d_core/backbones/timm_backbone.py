"""Any feature-extracting model of timm (extra `s4d-core[timm]`)."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .base import Backbone

if TYPE_CHECKING:
    from .config import TimmConfig

__all__ = ["TimmBackbone", "feature_channels", "feature_sizes"]


def _create(config: TimmConfig, pretrained: bool = False) -> nn.Module:
    try:
        timm: Any = import_module("timm")
    except ImportError as error:
        raise ConfigError(
            f"backbone timm/{config.name} needs timm: install s4d-core[timm] ({error})"
        ) from error
    try:
        return timm.create_model(
            config.name, features_only=True, out_indices=config.out_indices, pretrained=pretrained
        )
    except (RuntimeError, AttributeError, AssertionError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"timm {timm.__version__} cannot build {config.name!r} as a feature extractor with "
            f"outputs {config.out_indices} ({reason})"
        ) from error


@lru_cache(maxsize=8)
def _shapes(config: TimmConfig, image_size: tuple[int, int]) -> tuple[torch.Size, ...]:
    with torch.device("meta"), torch.no_grad():
        network = _create(config).eval()
        return tuple(m.shape for m in network(torch.empty(1, 3, *image_size)))


@lru_cache(maxsize=8)
def feature_channels(config: TimmConfig) -> tuple[int, ...]:
    """Channels of the outputs, as timm lists them."""
    with torch.device("meta"):
        network: Any = _create(config)
    return tuple(network.feature_info.channels())


def feature_sizes(config: TimmConfig, image_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """(height, width) of the outputs, from a run without values."""
    return tuple((s[-2], s[-1]) for s in _shapes(config, image_size))


class TimmBackbone(Backbone):
    """A model of timm with its maps as they come, (K, C_i, H_i, W_i)."""

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        self.network = _create(config)
        if config.checkpointing:
            self.network.set_grad_checkpointing(True)  # type: ignore[operator]
        self.fix([], config.norm_eval)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of normalised images."""
        return list(self.network(images))

    def init_weights(self) -> None:
        """timm's own initialisation, or its published weights where `pretrained` says so."""
        if self.config.pretrained:
            self.network.load_state_dict(_create(self.config, pretrained=True).state_dict())

    def make_tables(self, image_size: tuple[int, int]) -> None:
        # Built without values (a checkpoint follows), constants that are no weights are missing.
        weights = self.network.state_dict()
        lost = [n for n, b in self.network.named_buffers() if b.is_meta and n not in weights]
        if lost and not torch.empty(0).is_meta:
            fresh = _create(self.config)
            for name in lost:
                owner, _, attribute = name.rpartition(".")
                setattr(self.network.get_submodule(owner), attribute, fresh.get_buffer(name))
