"""What the CUDA engine has reserved: rows for each level of sites, and a program over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s4d_ops import sparse_cuda

from ..cuda.driver import Graph, Stream
from ..errors import FrameError
from .cuda_layout import Level, dense_end, site_levels
from .cuda_memory import DeviceMemory, download
from .cuda_program import CudaProgram
from .cuda_recording import BAD_VALUES, COUNTS, GIVEN
from .cuda_weights import DeviceWeights
from .nodes import LidarGraph, Triple
from .plan import Plan

__all__ = ["Bound", "Reservation"]

_ROUND = 128  # rows are reserved in multiples of this
_STATE_BYTES = 4096
GROWTH = 1.25


class Bound:
    """A program with its memory; its body runs as it is at first, then as one graph."""

    def __init__(self, program: CudaProgram, memory: DeviceMemory, state: int) -> None:
        self.program = program
        self.memory = memory
        self.body = program.bind(memory.address, state)
        self._graph: Graph | None = None
        self._runs = 0

    def launch(self, stream: Stream, own: Stream, capture: bool) -> None:
        """Put the body on ``stream``. The first run loads all kernels, the second records them."""
        self._runs += not capture
        if capture or self._runs == 1:
            self.body.run(stream.handle)
            return
        if self._graph is None:
            own.begin_capture()
            try:
                self.body.run(own.handle)
            except BaseException:
                own.abort_capture()
                raise
            self._graph = own.end_capture()
        self._graph.launch(stream)

    def close(self) -> None:
        """Free graph and memory; their work must be over."""
        if self._graph is not None:
            self._graph.close()
        self.memory.close()


class Reservation:
    """Rows reserved by level, and the program for the grid and batch of the latest frame."""

    def __init__(self, graph: LidarGraph, plan: Plan, weights: DeviceWeights) -> None:
        self._graph, self._plan, self._weights = graph, plan, weights
        self._end = dense_end(graph, plan)
        self._state = DeviceMemory(_STATE_BYTES)
        self._rows: dict[int, int] = {}  # by level; only grows
        self._key: tuple[Any, ...] = ()
        self._bound: Bound | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the working memory."""
        return self._bound.memory.size if self._bound is not None else 0

    def grow(self, rows: Sequence[int]) -> None:
        """Have at least so many rows at each level."""
        for level, count in enumerate(rows):
            self._rows[level] = max(self._rows.get(level, 0), _rounded(count))

    def hold(self, voxels: int) -> None:
        """Have room for an input of so many rows; a little more where it has to grow."""
        if voxels > self._rows.get(0, 0):
            self.grow([int(GROWTH * voxels) if 0 in self._rows else voxels])

    def bound(self, grid: Triple, batch_size: int, last: Stream | None) -> Bound:
        """The program for a grid and batch. A former one is freed, after its stream's work.

        Raises:
            FrameError: impossible sizes.
        """
        key = (grid, batch_size, tuple(sorted(self._rows.items())))
        if self._bound is None or self._key != key:
            program = self.program(self._plan, self._weights, grid, batch_size)
            if self._bound is not None:
                if last is not None:
                    last.synchronize()
                self._bound.close()
                self._bound = None
            self._bound = Bound(program, DeviceMemory(program.size), self._state.address)
            self._key = key
        return self._bound

    def program(
        self,
        plan: Plan,
        weights: DeviceWeights,
        grid: Triple,
        batch_size: int,
        keep: bool = False,
    ) -> CudaProgram:
        """A program with the rows reserved now."""
        if batch_size < 1 or min(grid) < 1:
            raise FrameError(f"expected a batch and a grid above 0, got {batch_size} and {grid}")
        sites = site_levels(self._graph, plan, grid)
        rows = self._capacities(sites.levels, batch_size)
        if 4 * (COUNTS + 2 * len(rows)) > _STATE_BYTES:
            raise FrameError(f"the graph has {len(rows)} levels of sites, more than are served")
        return CudaProgram(
            self._graph, plan, sites, self._end, weights, batch_size, rows, keep=keep
        )

    def bind_apart(self, program: CudaProgram) -> tuple[Any, DeviceMemory]:
        """A program's body on memory of its own."""
        memory = DeviceMemory(program.size)
        return program.bind(memory.address, self._state.address), memory

    def settle(self, stream: Stream) -> tuple[bool, list[int]]:
        """Wait and look at what the frame's data showed.

        Returns:
            Whether all levels had rows enough (if not, they have now), and the rows by level.

        Raises:
            FrameError: rows outside the grid or twice, or values that are not finite.
        """
        assert self._bound is not None
        reserved = self._bound.program.capacities
        size = COUNTS + 2 * len(reserved)
        state: NDArray[np.int32] = download(stream, self._state.address, (size,), np.int32)
        if state[BAD_VALUES]:
            raise FrameError("a feature is NaN, infinite, or too large for half precision")
        if outside := int(state[sparse_cuda.ROWS_OUTSIDE]):
            raise FrameError(f"{outside} index rows lie outside the grid")
        if twice := int(state[sparse_cuda.ROWS_TWICE]):
            raise FrameError(f"{twice} index rows repeat an earlier one: both name the same cell")
        needed = [int(count) for count in state[COUNTS + len(reserved) :]]
        needed[0] = max(needed[0], int(state[GIVEN]))
        enough = True
        for level, (count, room) in enumerate(zip(needed, reserved, strict=True)):
            if count > room:
                enough = False
                self._rows[level] = _rounded(int(GROWTH * count))
        return enough, needed

    def close(self) -> None:
        """Free the working memory."""
        if self._bound is not None:
            self._bound.close()
            self._bound = None

    def _capacities(self, levels: list[Level], batch_size: int) -> list[int]:
        """Levels without a number of their own get their parent's: in real clouds a strided
        convolution leaves fewer sites than it finds, and others say what they need."""
        rows: list[int] = []
        for level in levels:
            wanted = self._rows.get(level.index, 0)
            if not wanted and level.parent is not None:
                wanted = rows[level.parent.index]
            cells = batch_size * int(np.prod([int(n) for n in level.grid], dtype=object))
            rows.append(max(_ROUND, min(wanted, _rounded(cells))))
        return rows


def _rounded(count: int) -> int:
    return -(-max(count, 1) // _ROUND) * _ROUND
