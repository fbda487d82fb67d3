"""The table of cases that every door of deformable aggregation is tested on, and its oracle.

Plain numpy, so that tests without torch use it too. `CASES` is the table: name -> `Case` with the
five inputs in float32 / int64 and a gradient of the output. `forward` and `backward` are the
double-precision oracle: a direct transcription of the formula, looped over samples.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# <repository>/../shared; a path that does not exist skips the tests on recorded data.
BESIDE = Path(__file__).resolve().parent / "../../../../shared"
SHARED = Path(os.environ.get("S4D_SHARED", BESIDE))
GOLDEN = SHARED / "golden" / "v3" / "golden_op.npz"

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Case:
    """Inputs as in the op's documentation: (B,F,C), (N,L,2), (N,L), (B,A,P,N,2), (B,A,P,N,L,G)."""

    features: Array
    spatial_shapes: Array
    level_start_index: Array
    locations: Array
    weights: Array
    grad_output: Array

    @property
    def inputs(self) -> tuple[Array, Array, Array, Array, Array]:
        return (
            self.features,
            self.spatial_shapes,
            self.level_start_index,
            self.locations,
            self.weights,
        )

    def cast(self, dtype: type, index: type = np.int64) -> Case:
        """Values rounded to one type; the oracle then sees the rounded values."""
        with np.errstate(over="ignore"):
            return Case(
                self.features.astype(dtype),
                self.spatial_shapes.astype(index),
                self.level_start_index.astype(index),
                self.locations.astype(dtype),
                self.weights.astype(dtype),
                self.grad_output.astype(dtype),
            )


def level_table(shapes: list[list[tuple[int, int]]]) -> tuple[Array, Array, int]:
    """spatial_shapes, level_start_index and number of rows of densely packed maps."""
    spatial = np.array(shapes, dtype=np.int64)
    sizes = spatial.prod(-1)
    starts = np.concatenate([[0], sizes.reshape(-1).cumsum()[:-1]]).reshape(sizes.shape)
    return spatial, starts.astype(np.int64), int(sizes.sum())


def random_case(
    shapes: list[list[tuple[int, int]]],
    batch: int = 1,
    anchors: int = 5,
    points: int = 3,
    channels: int = 8,
    groups: int = 2,
    visible: float = 0.6,
    seed: int = 0,
) -> Case:
    """Random values; about `visible` of all (anchor, view) pairs lie in the image."""
    rng = np.random.default_rng(seed)
    spatial, starts, rows = level_table(shapes)
    views, levels = starts.shape
    center = rng.uniform(0.05, 0.95, (batch, anchors, 1, views, 2))
    locations = center + rng.uniform(-0.1, 0.1, (batch, anchors, points, views, 2))
    hidden = rng.random((batch, anchors, 1, views, 1)) >= visible
    locations = np.where(hidden, locations + rng.choice([-1e7, -1.5, 1.5, 1e4]), locations)
    weights = rng.random((batch, anchors, points, views, levels, groups))
    weights /= max(1, points) * views * levels
    values = rng.standard_normal
    return Case(
        values((batch, rows, channels)).astype(np.float32),
        spatial,
        starts,
        locations.astype(np.float32),
        weights.astype(np.float32),
        values((batch, anchors, channels)).astype(np.float32),
    )


def _with_locations(case: Case, change: Callable[[Array], None]) -> Case:
    locations = case.locations.copy()
    change(locations)
    return replace(case, locations=locations)


def _border(locations: Array) -> None:
    """On 0 and 1, in the half pixel inside, one step outside, at pixel centres and corners."""
    zero, one = np.float32(0), np.float32(1)
    below_one, above_zero = np.nextafter(one, zero), np.nextafter(zero, one)
    special = [0.0, 1.0, -0.0, below_one, above_zero, 0.5, 0.25, 0.125, 0.0625, 0.9375, 0.01]
    flat = locations.reshape(-1, 2)
    for i in range(min(len(flat), len(special) ** 2)):
        flat[i] = special[i % len(special)], special[i // len(special)]


def _not_finite(locations: Array) -> None:
    flat = locations.reshape(-1, 2)
    values = [np.nan, np.inf, -np.inf, 0.5]
    for i in range(min(len(flat), 15)):
        flat[i] = values[i % 4], values[i // 4]


def _cases() -> dict[str, Case]:
    two = [[(8, 16), (4, 8)]] * 2
    unequal = [[(7, 5), (3, 2)], [(1, 9), (2, 2)], [(4, 4), (1, 1)]]
    six = [[(16, 44), (8, 22), (4, 11), (2, 6)]] * 6
    shuffled = random_case(two, seed=9)
    # Levels need not be stored in the order of the table.
    order = replace(
        shuffled,
        level_start_index=shuffled.level_start_index[::-1].copy(),
        spatial_shapes=shuffled.spatial_shapes[::-1].copy(),
    )
    return {
        "small": random_case(two, batch=2, seed=1),
        "one_of_each": random_case([[(3, 4)]], 1, 1, 1, 1, 1, visible=1.0, seed=2),
        "unequal_views": random_case(unequal, batch=2, channels=12, groups=3, seed=3),
        "odd_channels": random_case(two, channels=35, groups=5, visible=1.0, seed=4),
        "one_group": random_case(two, channels=7, groups=1, visible=1.0, seed=5),
        "group_per_channel": random_case(two, channels=6, groups=6, seed=6),
        "model_like": random_case(six, 1, 12, 13, 64, 8, visible=0.3, seed=7),
        "model_width": random_case(six, 2, 4, 13, 256, 8, visible=0.5, seed=8),
        "views_out_of_order": order,
        "no_anchors": random_case(two, anchors=0, seed=10),
        "no_points": random_case(two, points=0, seed=11),
        "nothing_visible": random_case(two, visible=0.0, seed=12),
        "single_pixel_maps": random_case([[(1, 1)]] * 3, visible=1.0, seed=13),
        "border": _with_locations(random_case(two, anchors=11, points=11, seed=14), _border),
        "not_finite": _with_locations(random_case(two, seed=15), _not_finite),
    }


CASES = _cases()


def golden_case(variant: str) -> tuple[Case, dict[str, Array]]:
    """A variant "A", "B" or "C" of golden_op.npz and its float64 results."""
    data = np.load(GOLDEN)
    names = ("feat", "spatial_shape", "level_start_index", "loc", "weights", "grad_out")
    case = Case(*(data[f"{variant}/{name}"] for name in names))
    results = ("out", "grad_feat", "grad_loc", "grad_weights")
    return case, {name: data[f"{variant}/{name}"] for name in results}


def error(actual: Array, expected: Array) -> float:
    """Largest difference over the largest expected value; infinite where either has a NaN."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if actual.size == 0:
        return 0.0
    difference = np.abs(actual - expected).max()
    if not np.isfinite(difference):
        return float("inf")
    return float(difference / max(np.abs(expected).max(), 1e-30))


def forward(case: Case) -> Array:
    """(B, A, C) in float64."""
    return _loop(case, None)[0]


def backward(case: Case) -> tuple[Array, Array, Array]:
    """Gradients of features, locations and weights in float64, for `case.grad_output`."""
    return _loop(case, case.grad_output.astype(np.float64))[1:]


def _loop(case: Case, grad: Array | None) -> tuple[Array, Array, Array, Array]:
    features, locations, weights = (
        a.astype(np.float64) for a in (case.features, case.locations, case.weights)
    )
    batch, anchors, points, views, levels, groups = weights.shape
    channels = features.shape[2]
    group = np.arange(channels) // (channels // groups)
    out = np.zeros((batch, anchors, channels))
    d_features, d_locations = np.zeros_like(features), np.zeros_like(locations)
    d_weights = np.zeros_like(weights)
    for b, a, p, n in np.ndindex(batch, anchors, points, views):
        x, y = locations[b, a, p, n]
        if not (0 < x < 1 and 0 < y < 1):
            continue
        for level in range(levels):
            height, width = (int(v) for v in case.spatial_shapes[n, level])
            start = int(case.level_start_index[n, level])
            u, v = x * width - 0.5, y * height - 0.5
            left, top = int(np.floor(u)), int(np.floor(v))
            weight = weights[b, a, p, n, level, group]
            for dy, dx in np.ndindex(2, 2):
                column, row = left + dx, top + dy
                if not (0 <= column < width and 0 <= row < height):
                    continue
                index = start + row * width + column
                kx = u - left if dx else 1 - (u - left)
                ky = v - top if dy else 1 - (v - top)
                value = features[b, index]
                out[b, a] += weight * kx * ky * value
                if grad is None:
                    continue
                g = grad[b, a]
                d_features[b, index] += weight * kx * ky * g
                along = (weight * value * g).sum()
                d_locations[b, a, p, n, 0] += (1 if dx else -1) * ky * width * along
                d_locations[b, a, p, n, 1] += (1 if dy else -1) * kx * height * along
                np.add.at(d_weights[b, a, p, n, level], group, kx * ky * value * g)
    return out, d_features, d_locations, d_weights
