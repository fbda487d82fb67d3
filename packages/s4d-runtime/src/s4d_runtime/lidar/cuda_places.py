"""Where the arrays of a frame lie: maps, index rows, features and tables in one block of memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from s4d_ops import sparse_cuda

from .arena import ALIGNMENT, Buffer, assign_offsets, assign_within
from .cuda_layout import Level, Sites
from .cuda_state import COUNTS
from .plan import Storage

__all__ = ["ITEM_BYTES", "Places"]

ITEM_BYTES = {"float32": 4, "float16": 2, "int8": 1}


class Places:
    """Buffers for one batch size, grid and set of capacities, and their addresses.

    Addresses are valid when ``base``, ``state`` and ``dense`` are set and ``assign`` was called.

    Args:
        sites: levels of sites, and which one each tensor has.
        storage: how each tensor is stored.
        channels: of each tensor, without padding.
        capacities: rows reserved for each level of sites.

    Attributes:
        base: address of the block.
        state: address of the words of the state.
        dense: address of the result, in which early buffers lie.
        maps: per level, the buffer and the offset in it of the map of sites.
        rows: per level, the buffer of the index rows.
        tensors: buffers of features, by the tensors' names.
    """

    def __init__(
        self,
        sites: Sites,
        storage: Mapping[str, Storage],
        channels: Mapping[str, int],
        batch_size: int,
        capacities: Sequence[int],
    ) -> None:
        self.base = self.state = self.dense = 0
        self._native = sparse_cuda.native()
        self._sites, self._storage, self._channels = sites, storage, channels
        self._batch_size, self._capacities = batch_size, capacities
        self._buffers: list[Buffer] = []
        self._inside: set[Buffer] = set()
        self.maps = self._place_maps()
        self.rows = [self.buffer(f"sites{lv.index}", 16 * self.rows_of(lv)) for lv in sites.levels]
        self.tensors: dict[str, Buffer] = {}

    def buffer(self, name: str, size: int) -> Buffer:
        """A new buffer of so many bytes."""
        buffer = Buffer(name, size)
        self._buffers.append(buffer)
        return buffer

    def tensor(self, name: str) -> Buffer:
        """The buffer of a tensor's features."""
        if name not in self.tensors:
            size = ITEM_BYTES[self._storage[name].dtype] * self.stride(name)
            rows = self.rows_of(self._sites.of_tensor[name])
            self.tensors[name] = self.buffer(name, size * rows)
        return self.tensors[name]

    def forget(self, name: str) -> None:
        """No memory for a tensor: nobody reads or writes it as it is stored."""
        self._buffers.remove(self.tensors.pop(name))

    def assign(self, early: Sequence[Buffer], dense_bytes: int) -> int:
        """Give every buffer its place; returns the bytes of the block.

        Args:
            early: buffers that are done with before the result is cleared; they may lie there.
            dense_bytes: size of the result.
        """
        others = assign_within(list(early), dense_bytes - ALIGNMENT)
        self._inside = set(early) - set(others)
        return assign_offsets([b for b in self._buffers if b not in self._inside])

    def assign_apart(self) -> int:
        """The same with memory for each buffer alone."""
        return assign_offsets(self._buffers, share=False)

    def at(self, buffer: Buffer) -> int:
        """Address of a buffer."""
        if buffer in self._inside:
            return -(-self.dense // ALIGNMENT) * ALIGNMENT + buffer.offset
        return self.base + buffer.offset

    def rows_at(self, level: Level) -> int:
        """Address of a level's index rows."""
        return self.at(self.rows[level.index])

    def rows_of(self, level: Level) -> int:
        """Rows reserved for a level."""
        return self._capacities[level.index]

    def count(self, level: Level) -> int:
        """Address of a level's number of rows."""
        return self.state + 4 * (COUNTS + level.index)

    def stride(self, name: str) -> int:
        """Values from one row of a tensor to the next."""
        dtype = self._storage[name].dtype
        return int(self._native.padded_channels(dtype, self._channels[name]))

    def features(self, name: str) -> tuple[int, str, float]:
        """Address, type and range of a tensor."""
        storage = self._storage[name]
        return self.at(self.tensors[name]), storage.dtype, storage.range

    def map(self, level: Level) -> tuple[list[int], int, int]:
        """Grid, map of the sites and address of their number."""
        buffer, offset = self.maps[level.index]
        return self._grid(level), self.at(buffer) + offset, self.count(level)

    def level(self, level: Level) -> tuple[Any, ...]:
        """What the kernels that make a level's sites are told about it."""
        geometry = [list(part) for part in level.geometry]
        return self.map(level), geometry, self.rows_at(level), self.rows_of(level)

    def _grid(self, level: Level) -> list[int]:
        return [self._batch_size, *level.grid]

    def _place_maps(self) -> list[tuple[Buffer, int]]:
        """The input's map, and the others together: each of the two is cleared at once."""
        sizes = [int(self._native.site_map_bytes(self._grid(lv))) for lv in self._sites.levels]
        own = self.buffer("map of the input", sizes[0])
        others = self.buffer("maps", sum(sizes[1:]))
        return [(own, 0), *((others, sum(sizes[1:level])) for level in range(1, len(sizes)))]
