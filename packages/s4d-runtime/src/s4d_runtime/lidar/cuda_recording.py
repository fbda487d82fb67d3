"""A plan's tables and layers as recorded calls over buffers that share memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from s4d_ops import sparse_cuda

from .arena import Buffer, assign_offsets
from .cuda_layout import DenseEnd, Level, Sites, Table
from .cuda_weights import DeviceWeights
from .nodes import LidarGraph
from .plan import AddStep, ConvStep, Plan, Storage

__all__ = ["BAD_VALUES", "COUNTS", "GIVEN", "Recording"]

# The words of the state: counters of errors, values that are not finite (these are cleared for each
# frame), rows given, rows of each level (0 after an overflow), rows that each level needed. They
# stay on the device until asked for.
ERRORS, BAD_VALUES, GIVEN, COUNTS = 0, sparse_cuda.ERROR_SLOTS, sparse_cuda.ERROR_SLOTS + 1, 12
_SIZES = {"float32": 4, "float16": 2, "int8": 1}
_TABLES_AT = 1  # calls before it read the caller's arrays


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
        self.weights = weights
        self.batch_size = batch_size
        self.capacities = tuple(capacities)
        self._native = sparse_cuda.native()
        self._buffers: list[Buffer] = []
        self._calls: list[Callable[[Any], None]] = []
        self._base = 0
        self.state = 0
        # What comes before the recorded calls writes maps, index rows and, beside the first call,
        # the input's features. The maps lie together, to be cleared at once; only the last one is
        # still needed for the dense map.
        self._maps = self._place_maps(sites.of_tensor[end.source])
        self._rows = [self._buffer(f"sites{lv.index}", 16 * self._rows_of(lv))
                      for lv in sites.levels]  # fmt: skip
        self.tensors: dict[str, Buffer] = {}
        self._tables: dict[int, Buffer] = {}
        self._codes: dict[tuple[str, float], Buffer] = {}
        self._halves: dict[str, Buffer] = {}
        for buffer in (*(b for b, _ in self._maps), *self._rows):
            buffer.used_by(0)
        self._tensor(graph.source).used_by(0)
        self._record_tables()
        for step in plan.steps:
            if isinstance(step, ConvStep):
                self._record_convolution(step)
            elif isinstance(step, AddStep):
                self._record_addition(step)
        tail = _TABLES_AT + len(self._calls)
        self.tensors[end.source].used_by(tail)
        self._maps[sites.of_tensor[end.source].index][0].used_by(tail)
        self.size = assign_offsets(self._buffers, share=not keep)

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

    def _record(self, call: Callable[[Any], None], *buffers: Buffer | None) -> None:
        number = _TABLES_AT + len(self._calls)
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
        direct = [t for t in self.sites.tables if t.inverse_of is None]
        for table in direct:
            size = 4 * table.volume * self._rows_of(table.target)
            self._tables[id(table)] = self._buffer("table", size)
        self._record(
            lambda program: program.build_tables([self._table_task(t) for t in direct]),
            *(buffer for buffer, _ in self._maps), *self._rows,
            *self._tables.values(),
        )  # fmt: skip
        for table in self.sites.tables:
            if table.inverse_of is not None:
                self._record_inverse(table, table.inverse_of)

    def _record_inverse(self, table: Table, forward: Table) -> None:
        buffer = self._buffer("inverse", 4 * table.volume * self._rows_of(table.target))
        source = self._tables[id(forward)]
        self._tables[id(table)] = buffer
        self._record(
            lambda program: program.transpose_table(
                self._at(source), table.volume, self._count(table.source),
                self._rows_of(table.source), self._rows_of(table.target), self._at(buffer),
                self.state,
            ),
            source, buffer,
        )  # fmt: skip

    def _record_convolution(self, step: ConvStep) -> None:
        node = step.node
        table = self.sites.of_step[node.target]
        entries = self._tables[id(table)]
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
                self._features(step.target),
            )  # fmt: skip

        self._record(emit, entries, made or source, residual, target)

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
            self._record(
                lambda program: program.split_rows(
                    self._at(self.tensors[name]), self._count(level), self._rows_of(level),
                    channels, self._at(buffer),
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

    # -- addresses and descriptors

    def _at(self, buffer: Buffer | None) -> int:
        return 0 if buffer is None else self._base + buffer.offset

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

    def _place_maps(self, last: Level) -> list[tuple[Buffer, int]]:
        sizes = [int(self._native.site_map_bytes(self._grid(lv))) for lv in self.sites.levels]
        own = self._buffer("last map", sizes[last.index])
        others = self._buffer("maps", sum(sizes) - sizes[last.index])
        places, offset = [], 0
        for level, size in zip(self.sites.levels, sizes, strict=True):
            if level is last:
                places.append((own, 0))
                continue
            places.append((others, offset))
            offset += size
        return places

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
