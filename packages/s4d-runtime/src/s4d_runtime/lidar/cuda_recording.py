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

from .arena import Buffer
from .cuda_layout import DenseEnd, Sites, Table
from .cuda_places import ITEM_BYTES, Places
from .cuda_weights import DeviceWeights
from .nodes import LidarGraph
from .plan import AddStep, ConvStep, Plan

__all__ = ["Recording"]

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
        places: its buffers and their addresses.
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
        self.places = Places(sites, plan.storage, weights.channels, batch_size, self.capacities)
        self._native = sparse_cuda.native()
        self._calls: list[Callable[[Any], None]] = []
        self._side: list[Callable[[Any], None]] = []
        self._tables: dict[int, Buffer] = {}
        self._codes: dict[tuple[str, float], Buffer] = {}
        self._halves: dict[str, Buffer] = {}
        self._makers: dict[str, int] = {}  # numbers of the convolutions that make the tensors
        self._split: set[str] = set()  # tensors whose convolution writes the halves
        self._read = _read_whole(plan, end) if not keep else set(plan.storage)
        levels = (*(b for b, _ in self.places.maps), *self.places.rows)
        for buffer in levels:
            buffer.used_by(0)
        self.places.tensor(graph.source).used_by(0)
        self._meet = -1
        self._record_tables()
        for step in plan.steps:
            if isinstance(step, ConvStep):
                self._record_convolution(step)
            elif isinstance(step, AddStep):
                self._record_addition(step)
        calls = len(self._calls)
        self._meet = self._meet if self._meet >= 0 else calls
        for buffer in (*levels, *self._tables.values()):
            buffer.used_by(_FIRST + self._meet - 1)
        self.places.tensors[end.source].used_by(_FIRST + calls)
        self.places.maps[sites.of_tensor[end.source].index][0].used_by(_FIRST + calls)
        self._clear_at = calls // 2
        self.size = self.places.assign_apart() if keep else self._assign()

    def channels(self, name: str) -> int:
        """Of a sparse tensor, without padding."""
        return self.weights.channels[name]

    def _assign(self) -> int:
        """Places. The result's memory is free until it is cleared: early tensors lie there."""
        for name in self._split - self._read:
            self.places.forget(name)
        held = (*self.places.tensors.values(), *self._codes.values(), *self._halves.values())
        early = [b for b in held if b.last < _FIRST + self._clear_at]
        return self.places.assign(early, self.dense_bytes)

    def _record(self, call: Callable[[Any], None], *buffers: Buffer | None) -> None:
        number = _FIRST + len(self._calls)
        for buffer in buffers:
            if buffer is not None:
                buffer.used_by(number)
        self._calls.append(call)

    def _record_tables(self) -> None:
        """Tables within the input's level come first, the others beside what follows."""
        first: list[Table] = []
        later: list[Table] = []
        for table in self.sites.tables:
            size = 4 * table.volume * self.places.rows_of(table.target)
            buffer = self._tables[id(table)] = self.places.buffer("table", size)
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
        places = self.places
        program.transpose_table(
            places.at(self._tables[id(forward)]), table.volume, places.count(table.source),
            places.rows_of(table.source), places.rows_of(table.target),
            places.at(self._tables[id(table)]), places.state,
        )  # fmt: skip

    def _record_convolution(self, step: ConvStep) -> None:
        places = self.places
        node = step.node
        table = self.sites.of_step[node.target]
        entries = self._tables[id(table)]
        if id(table) not in self._first_tables and self._meet < 0:
            self._meet = len(self._calls)
        packed = self.weights.of(step)
        source = places.tensor(node.source)
        made = None
        if packed.dtype == "int8" and self.plan.storage[node.source].dtype != "int8":
            made = self._record_codes(node.source, node.input_range)
        elif packed.split:
            made = self._record_halves(node.source)
        residual = places.tensor(step.residual) if step.residual else None
        residual_range = step.residual_range
        if step.residual and self.plan.storage[step.residual].dtype == "int8":
            residual_range = 0.0  # rounded already, where it was stored
        target = places.tensor(step.target)
        self._makers[step.target] = _FIRST + len(self._calls)

        def emit(program: Any) -> None:
            if made is not None:
                given = (places.at(made), packed.dtype, node.input_range)
            else:
                given = places.features(node.source)
            program.convolve(
                given, packed.in_channels, packed.out_channels,
                packed.weight, places.at(entries), table.volume,
                places.count(table.target), places.rows_of(table.target), packed.scale, packed.bias,
                places.features(step.residual) if step.residual else (0, "float32", 0.0),
                (step.sum_range, residual_range), step.activation, 0.01,
                *self._output(step.target), number != self._meet,
            )  # fmt: skip

        number = len(self._calls)
        self._record(emit, entries, made or source, residual, target)

    def _output(self, name: str) -> tuple[tuple[int, str, float], int]:
        """Where a convolution writes: the tensor, unless only its halves are read; its halves."""
        if name not in self._split:
            return self.places.features(name), 0
        halves = self.places.at(self._halves[name])
        if name in self._read:
            return self.places.features(name), halves
        storage = self.plan.storage[name]
        return (0, storage.dtype, storage.range), halves

    def _record_codes(self, name: str, amax: float) -> Buffer:
        """int8 codes of a tensor that is stored in half or float32, made once."""
        places = self.places
        if (name, amax) not in self._codes:
            level, channels = self.sites.of_tensor[name], self.channels(name)
            width = self._native.padded_channels("int8", channels)
            buffer = places.buffer(f"{name} codes", width * places.rows_of(level))
            self._codes[name, amax] = buffer
            self._record(
                lambda program: program.convert_rows(
                    places.features(name), places.stride(name), 0, places.count(level),
                    places.rows_of(level), channels, (places.at(buffer), "int8", amax), width,
                ),
                places.tensor(name), buffer,
            )  # fmt: skip
        return self._codes[name, amax]

    def _record_halves(self, name: str) -> Buffer:
        """A tensor that is stored in float32 as two halves a value, made once."""
        places = self.places
        if name not in self._halves:
            level, channels = self.sites.of_tensor[name], self.channels(name)
            width = self._native.padded_channels("float16", 2 * channels)
            buffer = places.buffer(f"{name} halves", 2 * width * places.rows_of(level))
            self._halves[name] = buffer
            if name in self._makers and channels % 8 == 0:
                self._split.add(name)
                buffer.used_by(self._makers[name])
                return buffer
            number = len(self._calls)
            self._record(
                lambda program: program.split_rows(
                    places.at(places.tensors[name]), places.count(level), places.rows_of(level),
                    channels, places.at(buffer), number != self._meet,
                ),
                places.tensor(name), buffer,
            )  # fmt: skip
        return self._halves[name]

    def _record_addition(self, step: AddStep) -> None:
        places = self.places
        level = self.sites.of_tensor[step.left]
        ranges = [step.left_range, step.right_range]
        for place, name in enumerate((step.left, step.right)):
            if name and self.plan.storage[name].dtype == "int8":
                ranges[place] = 0.0
        self._record(
            lambda program: program.add_rows(
                places.features(step.left),
                places.features(step.right) if step.right else (0, "float32", 0.0),
                (ranges[0], ranges[1]), places.count(level), places.rows_of(level),
                self.channels(step.left), step.activation, 0.01, places.features(step.target),
            ),
            places.tensor(step.left), places.tensor(step.right) if step.right else None,
            places.tensor(step.target),
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
        return prod(self.dense_shape) * ITEM_BYTES[self.dense_type]

    def _table_task(self, table: Table) -> tuple[Any, ...]:
        places = self.places
        return (
            places.rows_at(table.target), places.count(table.target), places.rows_of(table.target),
            places.map(table.source), 0, [list(part) for part in table.geometry],
            places.at(self._tables[id(table)]),
        )  # fmt: skip
