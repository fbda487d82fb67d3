"""Dense loops that say what a sparse convolution means."""

from __future__ import annotations

import itertools

import numpy as np


def random_sites(rng, shape, batch: int, count: int) -> np.ndarray:
    """`count` different index rows in random order (fewer if the grid is smaller)."""
    cells = batch * int(np.prod(shape))
    keys = rng.permutation(cells)[:count]
    return np.stack(np.unravel_index(keys, (batch, *shape)), 1).astype(np.int32)


def to_grid(features, indices, shape, batch: int) -> np.ndarray:
    grid = np.zeros((batch, *shape, features.shape[1]), features.dtype)
    grid[tuple(np.asarray(indices).T)] = features
    return grid


def dense_convolution(features, indices, shape, batch, weight, stride, padding, dilation):
    """Every output cell of the grid: values (B, *out, C) and whether an input is in its window."""
    kernel = weight.shape[1:4]
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(shape, kernel, stride, padding, dilation, strict=True)
    ]
    pad = [(p, p + s) for p, s in zip(padding, stride, strict=True)]
    values = np.pad(to_grid(features, indices, shape, batch), [(0, 0), *pad, (0, 0)])
    ones = np.ones((len(indices), 1))
    active = np.pad(to_grid(ones, indices, shape, batch), [(0, 0), *pad, (0, 0)])
    result = np.zeros((batch, *out, weight.shape[0]), weight.dtype)
    hits = np.zeros((batch, *out))
    for offset in itertools.product(*map(range, kernel)):
        at = tuple(
            slice(k * d, k * d + (n - 1) * s + 1, s)
            for k, d, n, s in zip(offset, dilation, out, stride, strict=True)
        )
        result += values[(slice(None), *at)] @ weight[(slice(None), *offset)].T
        hits += active[(slice(None), *at, 0)]
    return result, hits > 0


def make(seed, shape, batch, count, cin, cout, kernel):
    """Sites in random order, float64 features and a weight, with the generator that made them."""
    rng = np.random.default_rng(seed)
    sites = random_sites(rng, shape, batch, count)
    features = rng.standard_normal((len(sites), cin))
    weight = rng.standard_normal((cout, *kernel, cin))
    return rng, sites, features, weight
