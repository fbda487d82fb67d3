"""The state of an engine on a CUDA device: two blocks that swap their roles at each commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifact import TensorSpec
from ..cuda.driver import Stream
from ..cuda.memory import DeviceArray, DeviceBlock, PinnedBlock

__all__ = ["DeviceState"]

SMALL = 64  # bytes: entries up to this size are also kept on the host (the id counter)


class DeviceState:
    """Set ``current`` is what the next run reads; it writes the other one.

    Args:
        stream: where all copies go.
        specs: the state entries, by the names of the graph's inputs.
        own: takes each block, to free it later.
    """

    def __init__(
        self, stream: Stream, specs: Sequence[TensorSpec], own: Callable[[Any], Any]
    ) -> None:
        self.current = 0
        self._stream = stream
        self._mirrored = [t for t in specs if t.nbytes <= SMALL]
        self._blocks: list[DeviceBlock] = [own(DeviceBlock(specs)) for _ in "01"]
        self._mirrors: list[PinnedBlock] = [own(PinnedBlock(self._mirrored)) for _ in "01"]

    @property
    def size(self) -> int:
        """Bytes on the device."""
        return sum(block.size for block in self._blocks)

    def arrays(self, number: int) -> dict[str, DeviceArray]:
        """The entries of set 0 or 1."""
        return self._blocks[number].arrays

    def swap(self) -> None:
        """What the last run wrote becomes the current set."""
        self.current = 1 - self.current

    def clear_all(self) -> None:
        """Zeros in both sets."""
        for block in self._blocks:
            self._stream.clear(block.address, block.size)

    def clear(self) -> None:
        """Zeros in the current set."""
        block = self._blocks[self.current]
        self._stream.clear(block.address, block.size)
        for array in self._mirrors[self.current].arrays.values():
            array.fill(0)

    def fetch_small(self) -> None:
        """Start copying the small entries that this run writes to the host."""
        following = self._blocks[1 - self.current].arrays
        mirror = self._mirrors[1 - self.current].arrays
        for spec in self._mirrored:
            target = mirror[spec.name].ctypes.data
            self._stream.download(target, following[spec.name].address, spec.nbytes)

    def read(self, name: str) -> NDArray[Any]:
        """A copy of a current entry. Waits where it is not kept on the host."""
        mirror = self._mirrors[self.current].arrays.get(name)
        if mirror is not None:
            return mirror.copy()
        source = self._blocks[self.current].arrays[name]
        value = np.empty(source.shape, source.dtype)
        self._stream.download(value.ctypes.data, source.address, source.nbytes)
        self._stream.synchronize()
        return value

    def write(self, name: str, value: NDArray[Any]) -> None:
        """Replace a current entry, and wait for it."""
        target = self._blocks[self.current].arrays[name]
        array = np.ascontiguousarray(value, target.dtype).reshape(target.shape)
        mirror = self._mirrors[self.current].arrays.get(name)
        if mirror is not None:
            mirror[...] = array
        self._stream.upload(target.address, array.ctypes.data, target.nbytes)
        self._stream.synchronize()
