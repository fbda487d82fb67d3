"""Feature extractors of timm by name, and the shapes of their maps."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError

__all__ = ["create", "feature_channels", "feature_sizes", "maps_of"]


def create(
    name: str,
    out_indices: tuple[int, ...],
    image_size: tuple[int, int] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """timm's model `name` with the feature maps `out_indices`.

    Args:
        out_indices: negative numbers count from the last map.
        image_size: (height, width) for models that are made for one size; None for the others.

    Raises:
        ConfigError: timm is not installed or cannot build this.
    """
    try:
        timm: Any = import_module("timm")
    except ImportError as error:
        raise ConfigError(
            f"backbone timm/{name} needs timm: install s4d-core[timm] ({error})"
        ) from error
    sized = {} if image_size is None else {"img_size": image_size}
    try:
        return timm.create_model(
            name, features_only=True, out_indices=out_indices, pretrained=pretrained, **sized
        )
    except (RuntimeError, AttributeError, AssertionError, IndexError, TypeError) as error:
        raise ConfigError(
            f"timm {timm.__version__} cannot build {name!r} as a feature extractor with "
            f"outputs {out_indices} ({_reason(error)})"
        ) from error


def maps_of(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Feature maps (K, C_i, H_i, W_i); some models of timm give channels last."""
    maps: list[Tensor] = list(network(images))
    if str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC"):
        maps = [m.permute(0, 3, 1, 2) for m in maps]
    return maps


@lru_cache(maxsize=8)
def feature_channels(
    name: str, out_indices: tuple[int, ...], fixed_size: tuple[int, int] | None
) -> tuple[int, ...]:
    """Channels of the maps, as timm lists them. Errors as in `create`."""
    with torch.device("meta"):
        network: Any = create(name, out_indices, fixed_size)
    return tuple(network.feature_info.channels())


@lru_cache(maxsize=8)
def feature_sizes(
    name: str,
    out_indices: tuple[int, ...],
    fixed_size: tuple[int, int] | None,
    image_size: tuple[int, int],
) -> tuple[tuple[int, int], ...]:
    """(height, width) of the maps, from a run without values.

    Raises:
        ConfigError: as `create`, or the model does not take images of this size.
    """
    with torch.device("meta"), torch.no_grad():
        network = create(name, out_indices, fixed_size).eval()
        try:
            maps = maps_of(network, torch.empty(1, 3, *image_size))
        except (RuntimeError, AssertionError, ValueError) as error:
            height, width = image_size
            raise ConfigError(
                f"timm/{name} does not take images of {height} x {width} ({_reason(error)}); "
                "where it is made for one size, that is backbone.image_size"
            ) from error
    return tuple((m.shape[-2], m.shape[-1]) for m in maps)


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
