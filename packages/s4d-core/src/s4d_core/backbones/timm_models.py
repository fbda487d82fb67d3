"""Feature extractors of timm by name, and the shapes of their maps."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError

__all__ = ["create", "feature_channels", "feature_sizes"]


def create(name: str, out_indices: tuple[int, ...], pretrained: bool = False) -> nn.Module:
    """timm's model `name` with the feature maps `out_indices`.

    Raises:
        ConfigError: timm is not installed or cannot build this.
    """
    try:
        timm: Any = import_module("timm")
    except ImportError as error:
        raise ConfigError(
            f"backbone timm/{name} needs timm: install s4d-core[timm] ({error})"
        ) from error
    try:
        return timm.create_model(
            name, features_only=True, out_indices=out_indices, pretrained=pretrained
        )
    except (RuntimeError, AttributeError, AssertionError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"timm {timm.__version__} cannot build {name!r} as a feature extractor with "
            f"outputs {out_indices} ({reason})"
        ) from error


@lru_cache(maxsize=8)
def feature_channels(name: str, out_indices: tuple[int, ...]) -> tuple[int, ...]:
    """Channels of the maps, as timm lists them. Errors as in `create`."""
    with torch.device("meta"):
        network: Any = create(name, out_indices)
    return tuple(network.feature_info.channels())


@lru_cache(maxsize=8)
def feature_sizes(
    name: str, out_indices: tuple[int, ...], image_size: tuple[int, int]
) -> tuple[tuple[int, int], ...]:
    """(height, width) of the maps, from a run without values. Errors as in `create`."""
    with torch.device("meta"), torch.no_grad():
        network = create(name, out_indices).eval()
        return tuple((m.shape[-2], m.shape[-1]) for m in network(torch.empty(1, 3, *image_size)))
