"""How points become voxels on board."""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from s4d_ops import sparse

from ..errors import S4DError

__all__ = ["VoxelRules"]


class VoxelRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Range, voxel size (x y z, metres) and limits; the defaults are CenterPoint's for nuScenes.

    ``max_voxels`` 0 is no limit; with one, refused voxels are counted in the result.
    """

    low: tuple[float, float, float] = (-54.0, -54.0, -5.0)
    high: tuple[float, float, float] = (54.0, 54.0, 3.0)
    size: tuple[float, float, float] = (0.075, 0.075, 0.2)
    grid_shape_xyz: tuple[int, int, int] = (1440, 1440, 40)
    max_points: int = 10
    max_voxels: int = 0
    index_order: Literal["zyx", "xyz"] = "zyx"

    def voxelize(self, points: NDArray[np.floating]) -> sparse.Voxels:
        """One cloud (P, C >= 3), x y z first; the rule is ``s4d_ops.sparse.voxelize``'s.

        Raises:
            InvalidInputError: impossible rules or shapes.
        """
        return sparse.voxelize(
            points, self.low, self.high, self.size, self.grid_shape_xyz,
            max_points=self.max_points, max_voxels=self.max_voxels,
        )  # fmt: skip

    def to_json(self) -> str:
        """As text, for a file's metadata."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> VoxelRules:
        """The reverse of ``to_json``.

        Raises:
            S4DError: not JSON, or fields that do not belong there.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.MsgspecError as error:
            raise S4DError(f"the voxel rules cannot be read: {error}") from None
