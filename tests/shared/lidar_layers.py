"""int8 layers of a sparse engine, one by one, each fed the engine's own inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from s4d_ops import sparse


def check_int8_layers(engine: Any, features: Any, indices: Any, grid: Any) -> int:
    """Compute every int8 convolution again with the CPU kernels; returns how many there were.

    Sums are exact on both sides. Values at a rounding edge may fall on either side: at most one
    code in a thousand may differ, by at most 3 steps (an addition rounds twice).
    """
    from s4d_runtime.lidar.plan import ConvStep, weight_codes

    tensors = engine.trace(features, indices, grid, fused=True)
    books: dict[Any, Any] = {}
    checked = 0
    for step in engine.plan.steps:
        if not isinstance(step, ConvStep) or not step.quantised or step.node.kind == "inverse":
            continue
        node, given, got = step.node, tensors[step.node.source], tensors[step.target]
        where = (given.indices, given.grid_shape, 1, node.kernel)
        if node.kind == "subm":
            key = (len(given.indices), given.grid_shape, node.kernel)
            if key not in books:
                books[key] = sparse.submanifold_rulebook(*where, node.dilation)
            book = books[key]
        else:
            book = sparse.strided_rulebook(*where, node.stride, node.padding, node.dilation)
        np.testing.assert_array_equal(book.out_indices, got.indices)
        other = tensors[step.residual] if step.residual else None
        rounded = other is not None and other.storage.dtype == "int8"
        want = sparse.convolution(
            given.features,
            sparse.PackedWeights(*weight_codes(node)),
            book,
            node.bias,
            activation=step.activation,
            residual=None if other is None else other.features,
            input_range=given.storage.range or node.input_range,
            residual_range=0.0 if other is None else other.storage.range,
            add_ranges=(step.sum_range, 0.0 if rounded else step.residual_range),
            output_dtype=np.dtype(got.storage.dtype),
            output_range=got.storage.range,
        )
        if got.storage.dtype == "int8":
            flips = np.abs(want.astype(int) - got.features.astype(int))
            assert (flips > 0).mean() <= 1e-3 and flips.max(initial=0) <= 3, node.name
        else:
            wide = want.astype(np.float64)
            error = np.linalg.norm(got.features - wide) / max(np.linalg.norm(wide), 1e-30)
            assert error <= 1e-3, node.name
        checked += 1
    return checked
