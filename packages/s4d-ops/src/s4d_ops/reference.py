"""Deformable aggregation in plain PyTorch: the formula to compare with, and to export.

Uses only operators that every ONNX exporter knows from opset 20 on (``grid_sample``, ``where``,
products and sums), so a graph that contains it runs wherever standard ONNX runs. Works on any
device and in any float type, and is differentiable. It is several times slower than
``s4d_ops.torch`` and needs memory for every sampled point.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from .errors import InvalidInputError

__all__ = ["deformable_aggregation"]

LevelTable = Tensor | Sequence[Sequence[Sequence[int]]]
StartTable = Tensor | Sequence[Sequence[int]]


def deformable_aggregation(
    features: Tensor,
    spatial_shapes: LevelTable,
    level_start_index: StartTable,
    sampling_locations: Tensor,
    weights: Tensor,
) -> Tensor:
    """Sum of weighted bilinear samples over points, views and levels.

    Args:
        features: (B, F, C), rows camera-major, then level, then row-major pixels.
        spatial_shapes: (N, L, 2) integers, (height, width). A tensor, or nested lists of ints.
            Inside ``torch.export`` pass lists, or a constant tensor: sizes must be known.
        level_start_index: (N, L) integers, first feature row of each level. Tensor or lists.
        sampling_locations: (B, A, P, N, 2), (x, y) with 0..1 over the image.
        weights: (B, A, P, N, L, G). Channel c takes group c // (C / G).

    Returns:
        (B, A, C) in the type of ``features``. Half types are computed in float32.

    A point counts only if 0 < x < 1 and 0 < y < 1; NaN and infinite locations therefore add
    nothing to the result or to a gradient. Inside, the sample is taken at pixel
    (x * width - 0.5, y * height - 0.5), with zeros around the map.

    Raises:
        InvalidInputError: shapes that do not belong together.
    """
    shapes = _as_lists(spatial_shapes)
    starts = _as_lists(level_start_index)
    _check(features, shapes, starts, sampling_locations, weights)
    batch, _, channels = features.shape
    anchors, points = sampling_locations.shape[1:3]
    groups = weights.shape[-1]
    if anchors == 0 or points == 0 or batch == 0:
        # No sample at all. The products keep the result attached to the autograd graph.
        empty = weights.sum() * 0 + sampling_locations.sum() * 0 + features[..., :0].sum()
        return features.new_zeros(batch, anchors, channels) + empty.to(features.dtype)

    compute = torch.promote_types(features.dtype, sampling_locations.dtype)
    compute = torch.promote_types(torch.promote_types(compute, weights.dtype), torch.float32)
    locations = sampling_locations.to(compute)
    inside = ((locations > 0) & (locations < 1)).all(dim=-1)
    # A point outside moves to where grid_sample sees only padding: it reads no feature, and the
    # selection keeps NaN out of both gradients.
    grid = torch.where(inside.unsqueeze(-1), locations * 2 - 1, -3.0)
    masked = torch.where(inside.unsqueeze(-1).unsqueeze(-1), weights.to(compute), 0.0)

    total = None
    for first, last in _runs_of_equal_views(shapes, starts):
        count = last - first
        # (B * count, A, P, 2)
        part = grid[:, :, :, first:last].permute(0, 3, 1, 2, 4).flatten(0, 1)
        for level, (height, width) in enumerate(shapes[first]):
            feature_map = _maps(features, starts, first, count, level, height, width)
            sampled = grid_sample(
                feature_map.to(compute), part, "bilinear", "zeros", align_corners=False
            )
            sampled = sampled.reshape(batch, count, groups, channels // groups, anchors, points)
            # (B, count, G, 1, A, P)
            weight = masked[:, :, :, first:last, level].permute(0, 3, 4, 1, 2).unsqueeze(3)
            term = (sampled * weight).sum(dim=(1, 5)).flatten(1, 2)
            total = term if total is None else total + term
    assert total is not None  # _check has seen at least one view and level
    return total.transpose(1, 2).to(features.dtype)


def _as_lists(table: LevelTable | StartTable) -> list:
    """Nested lists of Python ints."""
    if isinstance(table, Tensor):
        return table.tolist()
    return [list(row) for row in table]


def _maps(
    features: Tensor, starts: list, first: int, count: int, level: int, height: int, width: int
) -> Tensor:
    """(B * count, C, height, width): one level of `count` views that follow each other evenly."""
    batch, _, channels = features.shape
    begin, rows = starts[first][level], height * width
    if count == 1:
        maps = features[:, begin : begin + rows]
    else:
        stride = starts[first + 1][level] - begin
        origin = starts[first][0]
        block = features[:, origin : origin + stride * count]
        block = block.reshape(batch, count, stride, channels)
        maps = block[:, :, begin - origin : begin - origin + rows].flatten(0, 1)
    return maps.transpose(1, 2).reshape(batch * count, channels, height, width)


def _runs_of_equal_views(shapes: list, starts: list) -> list[tuple[int, int]]:
    """Ranges of views that have equal maps in densely packed rows: each is sampled in one go."""
    runs: list[tuple[int, int]] = []
    first = 0
    for view in range(1, len(shapes) + 1):
        if view < len(shapes) and _same_layout(shapes, starts, first, view):
            continue
        runs.append((first, view))
        first = view
    return runs


def _same_layout(shapes: list, starts: list, first: int, view: int) -> bool:
    """Is `view` laid out as `first` is, shifted by a whole number of views?"""
    rows = sum(height * width for height, width in shapes[first])
    shift = (view - first) * rows
    dense = starts[first] == _dense_starts(shapes[first], starts[first][0])
    shifted = [start + shift for start in starts[first]]
    return dense and shapes[view] == shapes[first] and starts[view] == shifted


def _dense_starts(shape: list, begin: int) -> list[int]:
    result = []
    for height, width in shape:
        result.append(begin)
        begin += height * width
    return result


def _check(
    features: Tensor, shapes: list, starts: list, locations: Tensor, weights: Tensor
) -> None:
    if features.dim() != 3 or locations.dim() != 5 or weights.dim() != 6:
        raise InvalidInputError(
            "expected features (B, F, C), sampling_locations (B, A, P, N, 2) and weights "
            f"(B, A, P, N, L, G); got {tuple(features.shape)}, {tuple(locations.shape)} and "
            f"{tuple(weights.shape)}"
        )
    batch, rows, channels = features.shape
    views, levels = len(shapes), len(shapes[0]) if shapes else 0
    if views == 0 or levels == 0 or any(len(row) != levels for row in [*shapes, *starts]):
        raise InvalidInputError(
            "expected spatial_shapes (N, L, 2) and level_start_index (N, L) with at least one "
            f"view and one level; got {views} views of {levels} levels and {len(starts)} rows"
        )
    groups = weights.shape[-1]
    expected = (batch, *locations.shape[1:3], views)
    if (
        len(starts) != views
        or tuple(locations.shape) != (*expected, 2)
        or tuple(weights.shape) != (*expected, levels, groups)
    ):
        raise InvalidInputError(
            f"expected sampling_locations (B, A, P, N, 2) and weights (B, A, P, N, L, G) with "
            f"B={batch}, N={views}, L={levels}; got {tuple(locations.shape)} and "
            f"{tuple(weights.shape)}, level_start_index has {len(starts)} views"
        )
    if groups == 0 or channels % groups:
        raise InvalidInputError(
            f"expected a number of channels that the groups divide; got {channels} channels and "
            f"{groups} groups"
        )
    for view, row in enumerate(shapes):
        for level, (height, width) in enumerate(row):
            begin = starts[view][level]
            if height < 1 or width < 1 or begin < 0 or begin + height * width > rows:
                raise InvalidInputError(
                    f"view {view}, level {level} ({height} x {width} from row {begin}) does not "
                    f"lie inside the {rows} rows of features"
                )
