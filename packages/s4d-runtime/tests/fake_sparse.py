"""Stand-in for ``s4d_ops.lib._sparse_cuda`` on the host: the contract of ``sparse_cuda.h`` over the
memory and the streams of ``fake_cuda.FakeDriver``, with the CPU kernels of s4d-ops for arithmetic.

It shows what the engine does with addresses, counts, capacities, captures and repeats; the real
kernels are checked on a device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from fake_cuda import FakeDriver, view
from fake_sites import LOST, SiteCalls, ints

from s4d_ops import sparse

PADDING = {"float32": 4, "float16": 16, "int8": 32}


class CudaFailure(RuntimeError):
    """As the real module's."""


def padded_channels(dtype: str, channels: int) -> int:
    return -(-channels // PADDING[dtype]) * PADDING[dtype]


def matrix(features: tuple[int, str, float], rows: int, channels: int) -> np.ndarray:
    """The real channels of a feature matrix."""
    address, dtype, _ = features
    return view(address, (rows, padded_channels(dtype, channels)), dtype)[:, :channels]


def write(features: tuple[int, str, float], values: np.ndarray, rows: int) -> None:
    """Rows with zeros as padding; what lies beyond stays as it was."""
    address, dtype, amax = features
    channels = values.shape[1]
    whole = view(address, (rows, padded_channels(dtype, channels)), dtype)
    if dtype == "int8" and values.dtype != np.int8:
        values = np.clip(np.rint(values.astype(np.float32) * np.float32(127 / amax)), -127, 127)
    whole[: len(values), channels:] = 0
    with np.errstate(over="ignore"):
        whole[: len(values), :channels] = values


def halves_of(values: np.ndarray) -> np.ndarray:
    """float32 rows as two halves a value: all high parts, then what they leave."""
    high = np.clip(values, -65504, 65504).astype(np.float16)
    rest = np.clip(values - high.astype(np.float32), -65504, 65504).astype(np.float16)
    return np.concatenate([high, rest], 1)


class FakeSparse:
    """What ``s4d_ops.sparse_cuda.native()`` returns."""

    CudaFailure = CudaFailure
    padded_channels = staticmethod(padded_channels)

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver
        self.launches: list[str] = []
        self.late = False

    def Program(self) -> FakeProgram:
        return FakeProgram(self)

    def packed_weight_bytes(self, dtype: str, volume: int, depth: int, out: int) -> int:
        return volume * depth * out * np.dtype(dtype).itemsize

    def site_map_bytes(self, grid: list[int]) -> int:
        return -(-4 * int(np.prod(grid)) // 256) * 256

    def voxelize_bytes(
        self, limits: Any, grid: Any, max_points: int, max_voxels: int, points: int
    ) -> int:
        return 256 if max_points <= 64 else 0

    def pack_weights(
        self, dtype: str, weight: int, source: str, volume: int, depth: int, out: int, packed: int,
        stream: int,
    ) -> None:  # fmt: skip
        def work() -> None:
            view(packed, (out, volume, depth), dtype)[:] = view(
                weight, (out, volume, depth), source
            )

        self.driver.enqueue(stream, work)


class FakeProgram(SiteCalls):
    """Calls are kept and put on a stream by ``run``."""

    def __init__(self, module: FakeSparse) -> None:
        self.module = module
        self.calls: list[tuple[str, Callable[[], Any]]] = []

    def __len__(self) -> int:
        return len(self.calls)

    def __getattr__(self, name: str) -> Callable[..., None]:
        body = getattr(type(self), f"do_{name}", None)
        if body is None:
            raise AttributeError(name)
        return lambda *arguments: self.calls.append((name, lambda: body(self, *arguments)))

    def run(self, stream: int, side: int = 0, event: int = 0) -> None:
        for name, work in self._in_some_order():
            self.module.launches.append(name)
            self.module.driver.enqueue(stream, lambda work=work: work() and None)

    def _in_some_order(self) -> list[tuple[str, Callable[[], Any]]]:
        """Calls between fork (or aside) and back may run at any time before the join: now and then
        late."""
        self.module.late = not self.module.late
        ordered, aside, forked = [], [], False
        for call in self.calls:
            if call[0] in ("fork", "aside", "back"):
                forked = call[0] != "back"
            elif call[0] == "join":
                ordered += aside
                aside = []
            else:
                (aside if forked and self.module.late else ordered).append(call)
        assert not aside, "nobody waits for the second stream"
        return ordered

    def do_fork(self) -> None: ...
    def do_aside(self) -> None: ...
    def do_back(self) -> None: ...
    def do_join(self) -> None: ...

    def do_clear(self, memory: int, size: int) -> None:
        view(memory, (size,), np.uint8)[:] = 0

    def do_store(self, to: int, value: int) -> None:
        ints(to, 1)[:] = value

    def do_copy(self, to: int, source: int, size: int) -> None:
        view(to, (size,), np.uint8)[:] = view(source, (size,), np.uint8)

    def do_guard_counts(self, counts: int, number: int, lost: int, needed: int) -> None:
        ints(needed, number)[:] = ints(counts, number)
        if ints(lost, 1)[0]:
            ints(counts, number)[:] = 0

    def do_check_finite(
        self, features: int, dtype: str, count: int, capacity: int, channels: int, half: bool,
        bad: int,
    ) -> None:  # fmt: skip
        rows = min(int(ints(count, 1)[0]), capacity)
        with np.errstate(over="ignore"):
            values = view(features, (capacity, channels), dtype)[:rows]
            values = values.astype(np.float16 if half else np.float32)
        ints(bad, 1)[:] += int((~np.isfinite(values)).sum())

    def do_place_rows(
        self, indices: int, count: int, capacity: int, site_map: Any, features: Any, channels: int,
        out: Any, order: int,
    ) -> None:  # fmt: skip
        assert features[0] and indices  # as the real one, which takes no null pointers
        grid, memory, _ = site_map
        number = min(int(ints(count, 1)[0]), capacity)
        rows = ints(indices, capacity, 4)[:number]
        inside = ((rows >= 0) & (rows < np.array(grid))).all(1)
        ranks = view(memory, (int(np.prod(grid)),), np.int32)
        place = ranks[np.ravel_multi_index(tuple(rows[inside].T), grid)]
        values = view(features[0], (capacity, channels), features[1])[:number][inside]
        good = place < capacity
        ordered = np.zeros((int(place[good].max(initial=-1)) + 1, channels), values.dtype)
        ordered[place[good]] = values[good]
        write(out, ordered, capacity)

    def do_convolve(
        self, features: Any, depth: int, out: int, weight: int, table: int, volume: int,
        count: int, capacity: int, scale: int, bias: int, residual: Any, add_ranges: Any,
        activation: str, slope: float, output: Any, halves: int, overlap: bool,
    ) -> None:  # fmt: skip
        number = min(int(ints(count, 1)[0]), capacity)
        entries = ints(table, volume, capacity)[:, :number]
        rows = int(entries.max(initial=-1)) + 1
        x = np.ascontiguousarray(matrix(features, rows, depth))
        weights = view(weight, (out, volume, depth), features[1]).copy()
        packed = sparse.PackedWeights(weights)
        input_range = 0.0
        if features[1] == "int8":
            # An input range of 127 makes codes values; the channels carry the whole scale.
            ranges = view(scale, (out,), np.float32).astype(np.float64) * 127
            packed, input_range = sparse.PackedWeights(weights, ranges), 127.0
        other = None
        if residual[0]:
            other = np.ascontiguousarray(matrix(residual, number, out))
        target = np.dtype(output[1])
        result = sparse.convolution(
            x, packed, sparse.Rulebook(np.ascontiguousarray(entries), rows, np.zeros(0), (1, 1, 1)),
            view(bias, (out,), np.float32) if bias else None, activation=activation, slope=slope,
            residual=other, input_range=input_range, residual_range=residual[2],
            add_ranges=add_ranges, output_dtype=target, output_range=output[2],
        )  # fmt: skip
        if output[0]:
            write(output, result, capacity)
        if halves:
            assert output[1] == "float32" and out % 8 == 0
            write((halves, "float16", 0.0), halves_of(result), capacity)

    def do_convert_rows(
        self, source: Any, stride: int, order: int, count: int, capacity: int, channels: int,
        to: Any, to_stride: int,
    ) -> None:  # fmt: skip
        number = min(int(ints(count, 1)[0]), capacity)
        write(to, matrix(source, number, channels), capacity)

    def do_split_rows(
        self, source: int, count: int, capacity: int, channels: int, to: int, overlap: bool
    ) -> None:
        number = min(int(ints(count, 1)[0]), capacity)
        values = matrix((source, "float32", 0.0), capacity, channels)[:number]
        write((to, "float16", 0.0), halves_of(values), capacity)

    def do_add_rows(
        self, a: Any, b: Any, ranges: Any, count: int, capacity: int, channels: int,
        activation: str, slope: float, output: Any,
    ) -> None:  # fmt: skip
        number = min(int(ints(count, 1)[0]), capacity)
        result = sparse.add(
            matrix(a, number, channels), matrix(b, number, channels) if b[0] else None,
            activation=activation, slope=slope, features_range=a[2], other_range=b[2],
            add_ranges=ranges, output_dtype=np.dtype(output[1]), output_range=output[2],
        )  # fmt: skip
        write(output, result, capacity)

    def do_scatter_dense(
        self, site_map: Any, order: int, capacity: int, features: Any, stride: int, channels: int,
        axes: Any, dense: int, dtype: str, cleared: bool, overlap: bool,
    ) -> None:  # fmt: skip
        assert cleared and not overlap
        grid, memory, _ = site_map
        ranks = view(memory, (int(np.prod(grid)),), np.int32)
        keys = np.flatnonzero((ranks >= 0) & (ranks < capacity))
        places = np.stack(np.unravel_index(keys, grid))
        values = view(features[0], (capacity, stride), features[1])[ranks[keys], :channels]
        sizes = [grid[1 + axis] for axis in axes]
        result = view(dense, (grid[0], channels, *sizes), dtype)
        rows = [places[1 + axis] for axis in axes]
        result[places[0], :, rows[0], rows[1], rows[2]] = values

    def do_voxelize(
        self, points: Any, point_count: int, point_capacity: int, channels: int, limits: Any,
        grid: Any, max_points: int, max_voxels: int, batch: int, zyx: bool, first_row: int,
        capacity: int, indices: int, means: int, count: int, statistics: int, workspace: int,
        errors: int,
    ) -> None:  # fmt: skip
        number = int(ints(point_count, 1)[0])
        cloud = view(points[0], (point_capacity, channels), points[1])[:number]
        voxels = sparse.voxelize(cloud, *limits, grid, max_points=max_points, max_voxels=max_voxels)
        first = int(ints(first_row, 1)[0])
        room = max(0, min(len(voxels.cells), capacity - first))
        rows = voxels.indices("zyx" if zyx else "xyz", batch)
        ints(indices, capacity, 4)[first : first + room] = rows[:room]
        view(means, (capacity, channels), np.float32)[first : first + room] = voxels.features[:room]
        ints(count, 1)[:] = first + len(rows)
        ints(errors, 8)[LOST] += len(rows) - room
