"""Sparse tensors on the host, as the engine passes them from step to step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from s4d_ops.sparse import Rulebook

from ..errors import FrameError
from .plan import Storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SparseRows", "host_array", "host_rows"]


class SparseRows:
    """Feature rows on a set of sites, stored as the plan says.

    Attributes:
        features: (V, C), stored as ``storage`` says (int8 codes: value = code * range / 127).
        indices: (V, 4) int32.
        grid_shape: sizes of the three axes.
    """

    def __init__(
        self,
        features: NDArray[Any],
        indices: NDArray[np.int32],
        grid_shape: tuple[int, int, int],
        storage: Storage,
        books: dict[Any, Rulebook],
    ) -> None:
        self.features = features
        self.indices = indices
        self.grid_shape = grid_shape
        self.storage = storage
        self.books = books  # submanifold rulebooks of these sites; shared by all rows on them

    def values(self) -> NDArray[np.float32]:
        """The features as float32."""
        if self.storage.dtype == "int8":
            return self.features.astype(np.float32) * np.float32(self.storage.range / 127)
        return self.features.astype(np.float32)


def host_array(value: Any, what: str) -> NDArray[Any]:
    """A numpy array, or a view of anything that speaks DLPack and lies on the CPU.

    Raises:
        FrameError: it cannot be read.
    """
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.from_dlpack(value) if hasattr(value, "__dlpack__") else np.asarray(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise FrameError(f"{what} cannot be read as a CPU array: {error}") from None


def host_rows(
    features: Any, indices: Any, channels: int, shape: tuple[int, int, int], storage: Storage
) -> SparseRows:
    """The engine's input from what the caller gave: checked, in the type of ``storage``.

    Raises:
        FrameError: shapes or types that do not belong together, NaN, infinite, or too large.
    """
    rows, sites = host_array(features, "features"), host_array(indices, "indices")
    check_shapes(rows.shape, sites.shape, channels)
    if rows.dtype.kind != "f" or sites.dtype.kind not in "iu":
        raise FrameError(
            f"expected floating features and integer indices, got {rows.dtype} and {sites.dtype}"
        )
    with np.errstate(over="ignore"):  # becomes infinite, which is refused below
        stored = rows.astype(storage.dtype)
    if not np.isfinite(stored).all():
        raise FrameError("a feature is NaN, infinite, or too large for half precision")
    return SparseRows(stored, sites.astype(np.int32), shape, storage, {})


def check_shapes(features: tuple[int, ...], indices: tuple[int, ...], channels: int) -> None:
    """Features (V, channels) and indices (V, 4).

    Raises:
        FrameError: other shapes.
    """
    if len(features) != 2 or features[1] != channels or indices != (features[0], 4):
        raise FrameError(
            f"expected features (V, {channels}) and indices (V, 4), got {features} and {indices}"
        )
