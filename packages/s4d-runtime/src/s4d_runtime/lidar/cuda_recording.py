"""A plan's tables and layers as recorded calls over buffers that share memory.

A frame has two lines of work. The main one makes the sites and the table of the input's level and
runs the convolutions. The side line meanwhile makes sites and tables of the other levels; both meet
before the first convolution that needs one. Times of buffers are numbers of main calls: 0 is what
comes before the first table, ``_FIRST`` that table, then the calls in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

from s4d_ops import sparse_cuda

from .arena import ALIGNMENT, Buffer, assign_offsets, assign_within
from .cuda_layout import DenseEnd, Level, Sites, Table
from .cuda_state import COUNTS
from .cuda_weights import DeviceWeights
from .nodes import LidarGraph
from .plan import AddStep, ConvStep, Plan, Storage

__all__ = ["Recording"]

_SIZES = {"float32": 4, "float16": 2, "int8": 1}
_FIRST = 1  # number of the first call, the tables of the input's level


def _read_whole(plan: Plan, end: DenseEnd) -> set[str]:
    """Tensors that are read as they are stored, not only as halves."""
    read = {end.source}
    for step in plan.steps:
        if isinstance(step, AddStep):
            read.update(name for name in (step.left, step.right) if name)
        elif isinstance(step, ConvStep):
            if step.residual:
                read.add(step.residual)
            if step.quantised:
                read.add(step.node.source)
    return read


class Recording:
    """Tables and network for one batch size, grid and set of capacities, as calls over buffers.

    Args:
        capacities: rows reserved for each level of sites.
        keep: every tensor gets memory of its own, to be read after a run.

    Attributes:
        size: bytes of the block that ``bind`` wants.
    """

    def __init__(
        self,
        graph: LidarGraph,
        plan: Plan,
        sites: Sites,
        end: DenseEnd,
        weights: DeviceWeights,
        batch_size: int,
        capacities: Sequence[int],
        keep: bool = False,
    ) -> None:
        self.graph, self.plan, self.sites, self.end = graph, plan, sites, end
        self.weights, self.batch_size = weights, batch_size
        self.capacities = tuple(capacities)
        self._native = sparse_cuda.native()
        self._buffers: list[Buffer] = []
        self._calls: list[Callable[[Any], None]] = []
        self._side: list[Callable[[Any], None]] = []
        self._base = self._dense = 0
        self.state = 0
        self._maps = self._place_maps()
        self._rows = [self._buffer(f"sites{lv.index}", 16 * self._rows_of(lv))
                      for lv in sites.levels]  # fmt: skip
        self.tensors: dict[str, Buffer] = {}
        self._tables: dict[int, Buffer] = {}
        self._codes: dict[tuple[str, float], Buffer] = {}
        self._halves: dict[str, Buffer] = {}
        self._makers: dict[str, int] = {}  # numbers of the convolutions that make the tensors
        self._split: set[str] = set()  # tensors whose convolution writes the halves
        self._read = _read_whole(plan, end) if not keep else None
        for buffer in (*(b for b, _ in self._maps), *self._rows):
            buffer.used_by(0)
        self._tensor(graph.source).used_by(0)
        self._meet = -1
        self._record_tables()
        for step in plan.steps:
            if isinstance(step, ConvStep):
                self._record_convolution(step)
            elif isinstance(step, AddStep):
                self._record_addition(step)
        calls = len(self._calls)
        self._meet = self._meet if self._meet >= 0 else calls
        for buffer in (*(b for b, _ in self._maps), *self._rows, *self._tables.values()):
            buffer.used_by(_FIRST + self._meet - 1)
        self.tensors[end.source].used_by(_FIRST + calls)
        self._maps[sites.of_tensor[end.source].index][0].used_by(_FIRST + calls)
        self._clear_at = calls // 2
        self.size = self._assign(keep)

    def channels(self, name: str) -> int:
        """Of a sparse tensor, without padding."""
        return self.weights.channels[name]

    def rows_at(self, level: Level) -> int:
        """Address of a level's index rows."""
        return self._at(self._rows[level.index])

    def _buffer(self, name: str, size: int) -> Buffer:
        buffer = Buffer(name, size)
        self._buffers.append(buffer)
        return buffer

    def _assign(self, keep: bool) -> int:
        """Places. The result's memory is free until it is cleared: early tensors lie there."""
        self._inside: set[Buffer] = set()
        if keep:
            return assign_offsets(self._buffers, share=False)
        held = (*self.tensors.values(), *self._codes.values(), *self._halves.values())
        early = [b for b in held if b.last < _FIRST + self._clear_at]
        others = assign_within(early, self.dense_bytes - ALIGNMENT)
        self._inside = set(early) - set(others)
        return assign_offsets([b for b in self._buffers if b not in self._inside])

    def _record(self, call: Callable[[Any], None], *buffers: Buffer | None) -> None:
        number = _FIRST + len(self._calls)
        for buffer in buffers:
            if buffer is not None:
                buffer.used_by(number)
        self._calls.append(call)

    def _tensor(self, name: str) -> Buffer:
        if name not in self.tensors:
            level = self.sites.of_tensor[name]
            size = _SIZES[self.plan.storage[name].dtype] * self._stride(name)
            self.tensors[name] = self._buffer(name, size * self._rows_of(level))
        return self.tensors[name]

    def _record_tables(self) -> None:
        """Tables within the input's level come first, the others beside what follows."""
        first: list[Table] = []
        later: list[Table] = []
        for table in self.sites.tables:
            size = 4 * table.volume * self._rows_of(table.target)
            buffer = self._tables[id(table)] = self._buffer("table", size)
            buffer.used_by(_FIRST)
            if table.inverse_of is None:
                own = table.source.index == table.target.index == 0
                (first if own else later).append(table)
        self._record(lambda program: self._emit_tables(program, first))
        self._side.append(lambda program: self._emit_tables(program, later))
        self._first_tables = {id(table) for table in first}
        for table in self.sites.tables:
            if table.inverse_of is not None:
                self._side.append(partial(self._emit_inverse, table, table.inverse_of))

    def _emit_tables(self, program: Any, tables: list[Table]) -> None:
        if tables:
            program.build_tables([self._table_task(t) for t in tables])

    def _emit_inverse(self, table: Table, forward: Table, program: Any) -> None:
        program.transpose_table(
            self._at(self._tables[id(forward)]), table.volume, self._count(table.source),
            self._rows_of(table.source), self._rows_of(table.target),
            self._at(self._tables[id(table)]), self.state,
        )  # fmt: skip

    def _record_convolution(self, step: ConvStep) -> None:
        node = step.node
        table = self.sites.of_step[node.target]
        entries = self._tables[id(table)]
        if id(table) not in self._first_tables and self._meet < 0:
            self._meet = len(self._calls)
        packed = self.weights.of(step)
        source = self._tensor(node.source)
        made = None
        if packed.dtype == "int8" and self.plan.storage[node.source].dtype != "int8":
            made = self._record_codes(node.source, node.input_range)
        elif packed.split:
            made = self._record_halves(node.source)
        residual = self._tensor(step.residual) if step.residual else None
        residual_range = step.residual_range
        if step.residual and self.plan.storage[step.residual].dtype == "int8":
            residual_range = 0.0  # rounded already, where it was stored
        target = self._tensor(step.target)
        self._makers[step.target] = _FIRST + len(self._calls)

        def emit(program: Any) -> None:
            given = self._features(node.source)
            if made is not None:
                given = (self._at(made), packed.dtype, node.input_range)
            program.convolve(
                given, packed.in_channels, packed.out_channels,
                packed.weight, self._at(entries), table.volume,
                self._count(table.target), self._rows_of(table.target), packed.scale, packed.bias,
                self._features(step.residual) if step.residual else (0, "float32", 0.0),
                (step.sum_range, residual_range), step.activation, 0.01,
                *self._output(step.target), number != self._meet,
            )  # fmt: skip

        number = len(self._calls)
        self._record(emit, entries, made or source, residual, target)

    def _output(self, name: str) -> tuple[tuple[int, str, float], int]:
        """Where a convolution writes: the tensor, unless only its halves are read; its halves."""
        features = self._features(name)
        if name not in self._split:
            return features, 0
        if self._read is not None and name not in self._read:
            features = (0, *features[1:])
        return features, self._at(self._halves[name])

    def _record_codes(self, name: str, amax: float) -> Buffer:
        """int8 codes of a tensor that is stored in half or float32, made once."""
        if (name, amax) not in self._codes:
            level, channels = self.sites.of_tensor[name], self.channels(name)
            width = self._native.padded_channels("int8", channels)
            buffer = self._buffer(f"{name} codes", width * self._rows_of(level))
            self._codes[name, amax] = buffer
            self._record(
                lambda program: program.convert_rows(
                    self._features(name), self._stride(name), 0, self._count(level),
                    self._rows_of(level), channels, (self._at(buffer), "int8", amax), width,
                ),
                self._tensor(name), buffer,
            )  # fmt: skip
        return self._codes[name, amax]

    def _record_halves(self, name: str) -> Buffer:
        """A tensor that is stored in float32 as two halves a value, made once."""
        if name not in self._halves:
            level, channels = self.sites.of_tensor[name], self.channels(name)
            width = self._native.padded_channels("float16", 2 * channels)
            buffer = self._buffer(f"{name} halves", 2 * width * self._rows_of(level))
            self._halves[name] = buffer
            if name in self._makers and channels % 8 == 0:
                self._split.add(name)
                buffer.used_by(self._makers[name])
                return buffer
            number = len(self._calls)
            self._record(
                lambda program: program.split_rows(
                    self._at(self.tensors[name]), self._count(level), self._rows_of(level),
                    channels, self._at(buffer), number != self._meet,
                ),
                self._tensor(name), buffer,
            )  # fmt: skip
        return self._halves[name]

    def _record_addition(self, step: AddStep) -> None:
        level = self.sites.of_tensor[step.left]
        ranges = [step.left_range, step.right_range]
        for place, name in enumerate((step.left, step.right)):
            if name and self.plan.storage[name].dtype == "int8":
                ranges[place] = 0.0
        self._record(
            lambda program: program.add_rows(
                self._features(step.left),
                self._features(step.right) if step.right else (0, "float32", 0.0),
                (ranges[0], ranges[1]), self._count(level), self._rows_of(level),
                self.channels(step.left), step.activation, 0.01, self._features(step.target),
            ),
            self._tensor(step.left), self._tensor(step.right) if step.right else None,
            self._tensor(step.target),
        )  # fmt: skip

    @property
    def dense_type(self) -> str:
        """Element type of the result."""
        return "float32" if self.plan.storage[self.end.source].dtype == "float32" else "float16"

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        name = self.end.source
        return self.end.shape(self.batch_size, self.channels(name), self.sites.of_tensor[name].grid)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the result."""
        return prod(self.dense_shape) * _SIZES[self.dense_type]

    def _at(self, buffer: Buffer | None) -> int:
        if buffer is None:
            return 0
        if buffer in self._inside:
            return -(-self._dense // ALIGNMENT) * ALIGNMENT + buffer.offset
        return self._base + buffer.offset

    def _rows_of(self, level: Level) -> int:
        return self.capacities[level.index]

    def _count(self, level: Level) -> int:
        return self.state + 4 * (COUNTS + level.index)

    def _stride(self, name: str) -> int:
        storage: Storage = self.plan.storage[name]
        return int(self._native.padded_channels(storage.dtype, self.channels(name)))

    def _features(self, name: str) -> tuple[int, str, float]:
        storage = self.plan.storage[name]
        return self._at(self.tensors[name]), storage.dtype, storage.range

    def _grid(self, level: Level) -> list[int]:
        return [self.batch_size, *level.grid]

    def _place_maps(self) -> list[tuple[Buffer, int]]:
        """The input's map, and the others together: each of the two is cleared at once."""
        sizes = [int(self._native.site_map_bytes(self._grid(lv))) for lv in self.sites.levels]
        own = self._buffer("map of the input", sizes[0])
        others = self._buffer("maps", sum(sizes[1:]))
        return [(own, 0), *((others, sum(sizes[1:level])) for level in range(1, len(sizes)))]

    def _map(self, level: Level) -> tuple[list[int], int, int]:
        buffer, offset = self._maps[level.index]
        return self._grid(level), self._at(buffer) + offset, self._count(level)

    def _level(self, level: Level) -> tuple[Any, ...]:
        geometry = [list(part) for part in level.geometry]
        return self._map(level), geometry, self.rows_at(level), self._rows_of(level)

    def _table_task(self, table: Table) -> tuple[Any, ...]:
        return (
            self.rows_at(table.target), self._count(table.target), self._rows_of(table.target),
            self._map(table.source), 0, [list(part) for part in table.geometry],
            self._at(self._tables[id(table)]),
        )  # fmt: skip
