"""The one place where the model calls the aggregation operator.

By default that is the native operator of `s4d_ops.torch`, on NPUs that of mx_driving. Inside
`use_reference_op()` it is the plain PyTorch formula: for graphs of standard ONNX operators and for
comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from .aggregation_npu import PACKAGES, device_operator

__all__ = ["FeatureMaps", "deformable_aggregation", "use_reference_op"]

_reference_depth = 0


class FeatureMaps(NamedTuple):
    """Pyramid features of all cameras in the layout of the operator.

    Attributes:
        feature: (B, F, C), rows camera-major, then level, then row-major pixels.
        spatial_shapes: (N, L, 2) int64, (height, width).
        level_start_index: (N, L) int64, first row of each level.
        sizes: per level (height, width) as Python numbers, the same for every camera.
        padded: every map has a frame of zeros one pixel wide (counted in `sizes`), and the tables
            list every level as a camera of its own with one level: (N * L, 1, 2) and (N * L, 1).
    """

    feature: Tensor
    spatial_shapes: Tensor
    level_start_index: Tensor
    sizes: tuple[tuple[int, int], ...]
    padded: bool = False


def layout_tables(
    sizes: tuple[tuple[int, int], ...], num_cameras: int, split: bool = False
) -> tuple[list[list[list[int]]], list[list[int]]]:
    """`spatial_shapes` and `level_start_index` as nested lists, for cameras of equal size.

    With `split` every level is listed as a camera of its own.
    """
    rows = sum(height * width for height, width in sizes)
    starts = []
    for camera in range(num_cameras):
        begin, line = camera * rows, []
        for height, width in sizes:
            line.append(begin)
            begin += height * width
        starts.append(line)
    shapes = [[list(size) for size in sizes]] * num_cameras
    if split:
        return [[s] for camera in shapes for s in camera], [[s] for line in starts for s in line]
    return shapes, starts


@contextmanager
def use_reference_op() -> Iterator[None]:
    """Inside, models compute the aggregation with `s4d_ops.reference`. Not for several threads."""
    global _reference_depth
    _reference_depth += 1
    try:
        yield
    finally:
        _reference_depth -= 1


def uses_native_op(device: torch.device) -> bool:
    """Whether the aggregation on this device is the native operator of `s4d_ops.torch` now."""
    return not _reference_depth and device.type not in PACKAGES


def deformable_aggregation(maps: FeatureMaps, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples.

    A point outside an image gives nothing. Where the maps are padded, zeros go on around the
    image instead, and a point up to half a pixel outside still gives something: that is
    grid_sample's rule. The operator then sees padded images in which such a point is inside; as
    its place in a padded image depends on the level, each level is a camera to the operator.

    Args:
        maps: pyramid features.
        locations: (B, A, P, N, 2), (x, y) in 0..1 over each image.
        weights: (B, A, P, N, L, G).

    Returns:
        (B, A, C).

    Raises:
        s4d_ops.MissingLibraryError: this installation has no native operator for the device.
    """
    if maps.padded:
        locations = _padded_locations(locations, maps.sizes)
        weights = weights.flatten(3, 4).unsqueeze(4)
    on_npu = maps.feature.device.type in PACKAGES and not _reference_depth
    if on_npu:
        operator = device_operator(maps.feature, locations, weights)
        if operator is not None:
            return operator(
                maps.feature, maps.spatial_shapes, maps.level_start_index, locations, weights
            )
    if _reference_depth or on_npu:
        from s4d_ops import reference

        # Numbers, not tensors: inside torch.export a tensor's values are not known.
        cameras = maps.spatial_shapes.shape[0] // (len(maps.sizes) if maps.padded else 1)
        shapes, starts = layout_tables(maps.sizes, cameras, maps.padded)
        return reference.deformable_aggregation(maps.feature, shapes, starts, locations, weights)
    from s4d_ops import torch as native

    return native.deformable_aggregation(
        maps.feature, maps.spatial_shapes, maps.level_start_index, locations, weights
    )


def _padded_locations(locations: Tensor, sizes: tuple[tuple[int, int], ...]) -> Tensor:
    """(B, A, P, N, 2) over images to (B, A, P, N * L, 2) over padded maps of each level."""
    levels = []
    for height, width in sizes:
        x, y = locations[..., 0], locations[..., 1]
        levels.append(
            torch.stack([(x * (width - 2) + 1) / width, (y * (height - 2) + 1) / height], dim=-1)
        )
    return torch.stack(levels, dim=4).flatten(3, 4)
