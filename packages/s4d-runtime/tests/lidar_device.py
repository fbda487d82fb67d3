"""Helpers of the tests of the CUDA engine over stand-ins: both engines, made frames, arrays."""

from __future__ import annotations

import numpy as np

from s4d_runtime.lidar import SparseEngine

GRID = (41, 72, 56)


class OnDevice:
    """Another library's array: the stand-in's device memory is host memory."""

    def __init__(self, array):
        self.array = np.ascontiguousarray(array)
        self.__cuda_array_interface__ = self.array.__array_interface__


def engines(graph, precision="auto", **options):
    return (
        SparseEngine(graph, precision, device="cuda", **options),
        SparseEngine(graph, precision, options.get("voxel_rules")),
    )


def scattered(seed, count, shape=GRID, batch=1):
    rng = np.random.default_rng(seed)
    keys = rng.permutation(batch * int(np.prod(shape)))[:count]
    rows = np.stack(np.unravel_index(keys, (batch, *shape)), 1).astype(np.int32)
    return rng.standard_normal((len(rows), 5)).astype(np.float16), rows


def same(got, want, exact):
    """Equal, or, where float32 sums were formed in another order, up to that and a rare code."""
    assert got.dtype == want.dtype
    if exact:
        np.testing.assert_array_equal(got, want)
    elif got.dtype == np.int8:
        flips = np.abs(got.astype(int) - want)
        assert (flips > 0).mean() <= 1e-3 and flips.max(initial=0) <= 3
    else:
        wide = want.astype(np.float64)
        assert np.linalg.norm(got - wide) <= (5e-3 if got.dtype == np.float16 else 1e-6) * (
            np.linalg.norm(wide)
        )


def half_outputs(source):
    """Some int8 layers hand on half: their readers make codes of it."""
    for node in source.nodes:
        if node.name in ("conv5", "add2", "conv12"):
            node.attributes["output_precision"] = "fp16"
