"""The aggregation operator on Ascend NPUs: mx_driving's, where it is installed and its limits hold.

`mx_driving.deformable_aggregation(feature_maps, spatial_shape, scale_start_index,
sample_locations, weight)` computes in float32 and takes int32 tables. Its documentation wants
locations within 0..1, so points outside an image get weight 0 and a place inside. Elsewhere, and
without the package, the plain PyTorch formula runs on the device.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

__all__ = ["device_operator"]

PACKAGES = {"npu": "mx_driving"}
"""Package with the operator, by device type."""
GROUPS = 8
MAX_BATCH, MAX_CHANNELS, MAX_CAMERAS, MAX_LEVELS = 128, 256, 6, 4
MAX_ANCHORS, MAX_POINTS, MAX_ELEMENTS = 2048, 2048, 150_000_000

Operator = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def device_operator(feature: Tensor, locations: Tensor, weights: Tensor) -> Operator | None:
    """The package's operator for these arguments; None: it is absent, or they exceed its limits.

    Args:
        feature: (B, F, C).
        locations: (B, A, P, N, 2).
        weights: (B, A, P, N, L, G).
    """
    package = PACKAGES.get(feature.device.type)
    function = None if package is None else _function(package)
    if function is None or not _fits(feature, locations, weights):
        return None

    def run(feature: Tensor, shapes: Tensor, starts: Tensor, at: Tensor, weight: Tensor) -> Tensor:
        inside = ((at > 0) & (at < 1)).all(dim=-1)  # False for NaN
        at = torch.where(inside.unsqueeze(-1), at.float(), 0.5)
        weight = torch.where(inside[..., None, None], weight.float(), 0.0)
        out = function(feature.float(), shapes.int(), starts.int(), at, weight)
        return out.to(feature.dtype)

    return run


@cache
def _function(package: str) -> Operator | None:
    try:
        module = importlib.import_module(package)
    except ImportError:
        return None
    return getattr(module, "deformable_aggregation", None)


def _fits(feature: Tensor, locations: Tensor, weights: Tensor) -> bool:
    batch, _, channels = feature.shape
    anchors, points, cameras, levels, groups = weights.shape[1:]
    largest = max(feature.numel(), locations.numel(), weights.numel())
    return (
        groups == GROUPS
        and channels <= MAX_CHANNELS
        and channels % (8 * groups) == 0
        and 0 < batch <= MAX_BATCH
        and 0 < cameras <= MAX_CAMERAS
        and 0 < levels <= MAX_LEVELS
        and 0 < anchors <= MAX_ANCHORS
        and 0 < points <= MAX_POINTS
        and largest <= MAX_ELEMENTS
    )
