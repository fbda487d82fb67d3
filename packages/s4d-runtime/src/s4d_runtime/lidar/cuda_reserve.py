"""What the CUDA engine has reserved: rows for each level of sites, and the frames over them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s4d_ops import sparse_cuda

from ..cuda.driver import Event, Graph, Stream
from ..errors import FrameError
from .cuda_layout import Level, dense_end, site_levels
from .cuda_memory import DeviceMemory, download
from .cuda_program import CudaProgram, Inputs
from .cuda_state import BAD_VALUES, COUNTS, GIVEN
from .cuda_weights import DeviceWeights
from .nodes import LidarGraph, Triple
from .plan import Plan

__all__ = ["Bound", "Reservation"]

_ROUND = 128  # rows are reserved in multiples of this
_STATE_BYTES = 4096
GROWTH = 1.25


@dataclass
class _Graph:
    """How often something was asked for, and its graph."""

    uses: int = 0
    graph: Graph | None = None


class _Graphs:
    """Graphs of what is asked for again and again: recorded after ``after`` times, the latest
    ``limit`` kept."""

    def __init__(self, record: Callable[[Any], Graph], after: int, limit: int) -> None:
        self._record, self._after, self._limit = record, after, limit
        self._known: OrderedDict[Any, _Graph] = OrderedDict()

    def get(self, key: Any, make: Callable[[], Any], stream: Stream) -> Graph | None:
        """The graph of ``key``, if it is time; ``make`` gives the launches."""
        known = self._known.setdefault(key, _Graph())
        self._known.move_to_end(key)
        if len(self._known) > self._limit:
            _, oldest = self._known.popitem(last=False)
            if oldest.graph is not None:
                stream.synchronize()
                oldest.graph.close()
        known.uses += 1
        if known.graph is None and known.uses > self._after:
            known.graph = self._record(make())
        return known.graph

    def close(self) -> None:
        """Free the graphs; their work must be over."""
        for known in self._known.values():
            if known.graph is not None:
                known.graph.close()
        self._known.clear()


class Bound:
    """A program with its memory, and the graphs of its frames.

    A frame belongs to the addresses of the caller's arrays. Callers that use the same few arrays
    again and again get a graph for each set of them, which is the whole frame. For others the head
    is launched piece by piece, and the body is a graph for each address of a result.
    """

    def __init__(self, program: CudaProgram, memory: DeviceMemory, state: int) -> None:
        self.program = program
        self.memory = memory
        program.bind(memory.address, state)
        self._own, self._side, self._meeting = Stream(), Stream(), Event(timing=False)
        # What was not launched before cannot be recorded: its kernels are loaded then.
        self._frames = _Graphs(self._record, 3, 8)
        self._bodies = _Graphs(self._record, 5, 4)

    def launch(
        self, inputs: Inputs, count: int, dense: int, stream: Stream, capture: bool = False
    ) -> None:
        """Put a frame on ``stream``; ``count`` and ``dense`` as for ``CudaProgram.frame``.

        Args:
            capture: the stream is being captured: the launches themselves are wanted.
        """
        key = (inputs, count, dense)
        program = self.program
        if capture:
            self._run(program.frame(*key), stream)
            return
        graph = self._frames.get(key, lambda: program.frame(*key), stream)
        if graph is not None:
            graph.launch(stream)
            return
        self._run(program.head(*key), stream)
        graph = self._bodies.get(dense, lambda: program.body(dense), stream)
        if graph is not None:
            graph.launch(stream)
        else:
            self._run(program.body(dense), stream)

    def close(self) -> None:
        """Free graphs and memory; their work must be over."""
        self._frames.close()
        self._bodies.close()
        self._own.close()
        self._side.close()
        self._meeting.close()
        self.memory.close()

    def _run(self, launches: Any, stream: Stream) -> None:
        launches.run(stream.handle, self._side.handle, self._meeting.handle)

    def _record(self, launches: Any) -> Graph:
        self._own.begin_capture()
        try:
            self._run(launches, self._own)
        except BaseException:
            self._own.abort_capture()
            raise
        return self._own.end_capture()


class Reservation:
    """Rows reserved by level, and the program for the grid and batch of the latest frame."""

    def __init__(self, graph: LidarGraph, plan: Plan, weights: DeviceWeights) -> None:
        self._graph, self._plan, self._weights = graph, plan, weights
        self._end = dense_end(graph, plan)
        self._state = DeviceMemory(_STATE_BYTES)
        self._given = -1  # what the state's GIVEN holds, where that is known
        self._captured = False
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

    def give(self, rows: int, stream: Stream, capture: bool = False) -> None:
        """Tell the device how many rows the frames that follow have; -1: the device knows."""
        self._captured |= capture  # a graph that others replay: nothing is known from then on
        if rows < 0 or self._captured:
            self._given = -1
        if rows < 0 or rows == self._given:
            return
        program = sparse_cuda.native().Program()
        program.store(self._state.address + 4 * GIVEN, rows)
        program.run(stream.handle)
        if not self._captured:
            self._given = rows

    def bind_apart(self, program: CudaProgram) -> Bound:
        """A program on memory of its own."""
        return Bound(program, DeviceMemory(program.size), self._state.address)

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
