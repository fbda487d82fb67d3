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
    """Frames over one block of memory: from the caller's arrays to the caller's map."""

    def bind(self, base: int, state: int) -> None:
        """Place everything in a block of ``size`` bytes at ``base``, and the words of the state."""
        self._base, self.state = base, state

    def frame(self, inputs: Inputs, count: int, dense: int) -> Any:
        """The launches of a frame. It may be run again and again.

        Args:
            count: address of the number of rows on the device; 0: ``GIVEN`` in the state has it.
            dense: address of the result; 0: none is made.
        """
        program = self._native.Program()
        self._begin(program, inputs, count)
        self._sites(program, inputs)
        # The input's features find their rows while the tables are made.
        program.fork()
        if inputs.capacity:  # arrays without rows may have no address
            program.place_rows(
                inputs.indices, self._given, inputs.capacity, self._map(self.sites.levels[0]),
                (inputs.features, inputs.dtype), self.graph.in_channels,
                self._features(self.graph.source), 0,
            )  # fmt: skip
        program.back()
        self._calls[0](program)
        program.join()
        for call in self._calls[1:]:
            call(program)
        if dense:
            self._end(program, dense)
        return program

    @property
    def _given(self) -> int:
        return self.state + 4 * GIVEN

    def _begin(self, program: Any, inputs: Inputs, count: int) -> None:
        """Clear, and look at the values meanwhile."""
        buffers = {id(b): b for b, _ in self._maps if b.size}
        last = self._maps[self.sites.of_tensor[self.end.source].index][0]
        program.fork()
        program.clear(self.state, 4 * GIVEN)
        if count:
            program.copy(self._given, count, 4)
        if inputs.capacity:
            source = self.plan.storage[self.graph.source]
            program.check_finite(
                inputs.features, inputs.dtype, self._given, inputs.capacity, self.graph.in_channels,
                source.dtype == "float16", self.state + 4 * BAD_VALUES,
            )  # fmt: skip
        if buffers.pop(id(last), None):
            program.clear(self._at(last), last.size)
        program.back()
        for buffer in buffers.values():
            program.clear(self._at(buffer), buffer.size)
        program.join()

    def _sites(self, program: Any, inputs: Inputs) -> None:
        """Sorted sites of all levels, and their numbers, which become 0 after an overflow."""
        chain = self.sites.chain()
        program.build_sites(
            inputs.indices, self._given, inputs.capacity, [self._level(lv) for lv in chain], True,
            self.state,
        )  # fmt: skip
        for level in self.sites.levels:
            if level not in chain:
                assert level.parent is not None
                program.strided_sites(
                    self._at(self._rows[level.parent.index]), self._count(level.parent),
                    self._rows_of(level.parent), self._level(level), self.state,
                )  # fmt: skip
        program.guard_counts(
            self.state + 4 * COUNTS, len(self.sites.levels),
            self.state + 4 * sparse_cuda.ROWS_LOST, self.needed,
        )  # fmt: skip

    def _end(self, program: Any, dense: int) -> None:
        """The dense map."""
        name = self.end.source
        level = self.sites.of_tensor[name]
        program.scatter_dense(
            self._map(level), 0, self._rows_of(level), self._features(name), self._stride(name),
            self.channels(name), list(self.end.axes), dense, self.dense_type,
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

    def tensor_at(self, name: str) -> tuple[int, int, int]:
        """Address, rows and values per row of a sparse tensor's memory."""
        rows = self._rows_of(self.sites.of_tensor[name])
        return self._at(self.tensors[name]), rows, self._stride(name)

    @property
    def needed(self) -> int:
        """Address of the rows that each level needed."""
        return self.state + 4 * (COUNTS + len(self.sites.levels))
