"""Settings of the sparse encoders, and the two published ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ConfigError
from ..strict import from_plain, nearest_name, to_plain

__all__ = ["SparseEncoderConfig", "encoder_config", "list_encoders"]


@dataclass(frozen=True)
class SparseEncoderConfig:
    """The sparse convolution network of CenterPoint ("SCN") and its relatives.

    A submanifold stem, stages of residual blocks with a strided convolution between two stages, a
    last strided convolution along z, and the scatter to a bird's-eye map.

    Attributes:
        name: what the config is called.
        in_channels: channels of a voxel (x y z intensity dt).
        widths: channels of each stage.
        blocks: residual blocks of each stage.
        out_channels: channels of the last convolution.
        grid_shape: input grid; (z, y, x) or (x, y, z) by ``index_order``.
        index_order: the order of the three axes in index rows, weights and ``grid_shape``.
        down_padding: padding (z, y, x) of each strided convolution between stages (kernel 3,
            stride 2), whatever the index order.
        block_bias: whether the convolutions of the residual blocks have a bias (CenterPoint's do).
        norm_eps, norm_momentum: of the batch normalisation.
    """

    name: str
    in_channels: int = 5
    widths: tuple[int, ...] = (16, 32, 64, 128)
    blocks: int = 2
    out_channels: int = 128
    grid_shape: tuple[int, int, int] = (41, 1440, 1440)
    index_order: Literal["zyx", "xyz"] = "zyx"
    down_padding: tuple[tuple[int, int, int], ...] = ((1, 1, 1), (1, 1, 1), (0, 1, 1))
    block_bias: bool = True
    norm_eps: float = 1e-3
    norm_momentum: float = 0.01

    def __post_init__(self) -> None:
        sizes = (self.in_channels, self.out_channels, self.blocks, *self.widths, *self.grid_shape)
        if not self.widths or min(sizes) < 1:
            raise ConfigError(f"{self.name}: expected positive channels, blocks and grid sizes")
        if len(self.down_padding) != len(self.widths) - 1:
            raise ConfigError(
                f"{self.name}: expected {len(self.widths) - 1} entries of down_padding, one per "
                f"strided convolution, got {len(self.down_padding)}"
            )

    def ordered(self, zyx: tuple[int, int, int]) -> tuple[int, int, int]:
        """A (z, y, x) triple in the index order of this config."""
        z, y, x = zyx
        return (z, y, x) if self.index_order == "zyx" else (x, y, z)

    @property
    def axis_order(self) -> tuple[int, int, int]:
        """Grid axes as depth, height, width of the dense map (see ``SparseTensor.dense``).

        An x y z grid puts x on the height and y on the width, as BEVFusion does.
        """
        return (0, 1, 2) if self.index_order == "zyx" else (2, 0, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return to_plain(self)  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SparseEncoderConfig:
        """The reverse of ``to_dict``; strict (ConfigError)."""
        return from_plain(cls, data, "lidar encoder")


_ENCODERS = {
    "nusc_centerpoint_voxelnet_0075voxel": SparseEncoderConfig(
        "nusc_centerpoint_voxelnet_0075voxel"
    ),
    "bevfusion_lidar_0075voxel": SparseEncoderConfig(
        "bevfusion_lidar_0075voxel",
        grid_shape=(1440, 1440, 41),
        index_order="xyz",
        block_bias=False,
    ),
}


def list_encoders() -> list[str]:
    """Names for :func:`encoder_config` and :func:`build_encoder`."""
    return sorted(_ENCODERS)


def encoder_config(name: str) -> SparseEncoderConfig:
    """The config of that name.

    Raises:
        ConfigError: unknown name; the message suggests the nearest one.
    """
    if name not in _ENCODERS:
        raise ConfigError(f"unknown encoder {name!r}{nearest_name(name, _ENCODERS)}")
    return _ENCODERS[name]
