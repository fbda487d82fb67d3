"""The op on numpy arrays, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._native_module import native
from .errors import InvalidInputError

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import ArrayLike, NDArray

__all__ = ["deformable_aggregation"]


def deformable_aggregation(
    features: ArrayLike,
    spatial_shapes: ArrayLike,
    level_start_index: ArrayLike,
    sampling_locations: ArrayLike,
    weights: ArrayLike,
    threads: int = 0,
) -> NDArray[Any]:
    """Deformable aggregation on the CPU; shapes and rules as in ``s4d_ops.reference``.

    Args:
        features: (B, F, C), float32, float64 or float16 (computed in float32).
        spatial_shapes: (N, L, 2) int32 or int64.
        level_start_index: (N, L) of the same integer type.
        sampling_locations: (B, A, P, N, 2), float32 or float16; float64 with float64 features.
        weights: (B, A, P, N, L, G), likewise.
        threads: 0 takes ``S4D_NUM_THREADS``, else the cores this process may use.

    Returns:
        (B, A, C) in the type of ``features``; the same bits for any number of threads.

    Raises:
        InvalidInputError: shapes, types or level tables that do not belong together.
        MissingLibraryError: the package was installed without its native module.
    """
    import numpy as np

    arrays = [
        np.ascontiguousarray(value)
        for value in (features, spatial_shapes, level_start_index, sampling_locations, weights)
    ]
    module = native()
    try:
        return module.deformable_aggregation(*arrays, threads)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(str(error)) from None
