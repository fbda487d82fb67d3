"""A plan as a program of kernel launches over one block of device memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from s4d_ops import sparse_cuda

from .cuda_recording import BAD_VALUES, COUNTS, GIVEN, Recording

__all__ = ["CudaProgram", "Inputs"]


@dataclass(frozen=True)
class Inputs:
    """The caller's arrays: addresses, type of the features, rows that they have room for."""

    features: int
    dtype: str
    indices: int
    capacity: int


class CudaProgram(Recording):
    """Three parts of a frame: the head reads the caller's arrays, the body runs on fixed addresses
    (and as one CUDA graph), the tail writes the result."""

    def bind(self, base: int, state: int) -> Any:
        """Place everything in a block of ``size`` bytes at ``base``; returns the body's program:
        tables and network, on fixed addresses."""
        self._base, self.state = base, state
        body = self._native.Program()
        for call in self._calls:
            call(body)
        return body

    def head(self, inputs: Inputs, count: int, given: int | None) -> Any:
        """From the caller's arrays to sorted sites and features.

        Args:
            count: address of the number of rows on the device, or 0.
            given: the number of rows where the host knows it.
        """
        program = self._native.Program()
        program.clear(self.state, 4 * COUNTS)
        if given is None:
            program.copy(self.state + 4 * GIVEN, count, 4)
        else:
            program.store(self.state + 4 * GIVEN, given)
        count = self.state + 4 * GIVEN
        source = self.plan.storage[self.graph.source]
        channels = self.graph.in_channels
        if inputs.capacity:  # arrays without rows may have no address
            program.check_finite(
                inputs.features, inputs.dtype, count, inputs.capacity, channels,
                source.dtype == "float16", self.state + 4 * BAD_VALUES,
            )  # fmt: skip
        for buffer in {id(b): b for b, _ in self._maps}.values():
            if buffer.size:
                program.clear(self._at(buffer), buffer.size)
        chain = self.sites.chain()
        program.build_sites(
            inputs.indices, count, inputs.capacity, [self._level(lv) for lv in chain], True,
            self.state,
        )  # fmt: skip
        for level in self.sites.levels:
            if level not in chain:
                assert level.parent is not None
                program.strided_sites(
                    self._at(self._rows[level.parent.index]), self._count(level.parent),
                    self._rows_of(level.parent), self._level(level), self.state,
                )  # fmt: skip
        levels = len(self.sites.levels)
        program.guard_counts(
            self.state + 4 * COUNTS, levels, self.state + 4 * sparse_cuda.ROWS_LOST, self.needed
        )
        if inputs.capacity:
            program.place_rows(
                inputs.indices, count, inputs.capacity, self._map(self.sites.levels[0]),
                (inputs.features, inputs.dtype), channels, self._features(self.graph.source), 0,
            )  # fmt: skip
        return program

    def tail(self, dense: int) -> Any:
        """The dense map to address ``dense``."""
        program = self._native.Program()
        name = self.end.source
        level = self.sites.of_tensor[name]
        program.scatter_dense(
            self._map(level), 0, self._rows_of(level), self._features(name), self._stride(name),
            self.channels(name), list(self.end.axes), dense, self.dense_type,
        )  # fmt: skip
        return program

    @property
    def dense_type(self) -> str:
        """Element type of the result."""
        return "float32" if self.plan.storage[self.end.source].dtype == "float32" else "float16"

    @property
    def dense_shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        name = self.end.source
        return self.end.shape(self.batch_size, self.channels(name), self.sites.of_tensor[name].grid)

    def tensor_at(self, name: str) -> tuple[int, int, int]:
        """Address, rows and values per row of a sparse tensor's memory."""
        rows = self._rows_of(self.sites.of_tensor[name])
        return self._at(self.tensors[name]), rows, self._stride(name)

    @property
    def needed(self) -> int:
        """Address of the rows that each level needed."""
        return self.state + 4 * (COUNTS + len(self.sites.levels))
