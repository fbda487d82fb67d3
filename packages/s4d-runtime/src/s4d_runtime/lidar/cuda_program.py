"""A plan as a program of kernel launches over one block of device memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from s4d_ops import sparse_cuda

from .cuda_recording import Recording
from .cuda_state import BAD_VALUES, COUNTS, GIVEN

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
        self.places.base, self.places.state = base, state

    def frame(self, inputs: Inputs, count: int, dense: int) -> Any:
        """The launches of a frame, which may be run again and again: head and body in one.

        Args:
            count: address of the number of rows on the device; 0: ``GIVEN`` in the state has it.
            dense: address of the result; 0: none is made.
        """
        self.places.dense = dense
        program = self._native.Program()
        self._head(program, inputs, count)
        self._body(program, dense)
        return program

    def head(self, inputs: Inputs, count: int, dense: int) -> Any:
        """What reads the caller's arrays: checks, sites, the input's features."""
        self.places.dense = dense
        program = self._native.Program()
        self._head(program, inputs, count)
        program.join()
        return program

    def body(self, dense: int) -> Any:
        """The rest of a frame: tables, network, map."""
        self.places.dense = dense
        program = self._native.Program()
        self._body(program, dense)
        return program

    @property
    def _given(self) -> int:
        return self.places.state + 4 * GIVEN

    def _head(self, program: Any, inputs: Inputs, count: int) -> None:
        places = self.places
        first, others = places.maps[0][0], places.maps[-1][0]
        program.fork()
        program.clear(places.state, 4 * GIVEN)
        if count:
            program.copy(self._given, count, 4)
        program.back()
        program.clear(places.at(first), first.size)
        program.join()
        program.aside()
        if others is not first:
            program.clear(places.at(others), others.size)
        chain = self.sites.chain()
        if chain:
            # Straight from the input's rows, beside the input's own sites.
            program.extend_sites(
                inputs.indices, self._given, inputs.capacity, [places.level(lv) for lv in chain],
                True, places.state,
            )  # fmt: skip
        if inputs.capacity:  # arrays without rows may have no address
            source = self.plan.storage[self.graph.source]
            program.check_finite(
                inputs.features, inputs.dtype, self._given, inputs.capacity, self.graph.in_channels,
                source.dtype == "float16", places.state + 4 * BAD_VALUES,
            )  # fmt: skip
        program.back()
        program.build_sites(
            inputs.indices, self._given, inputs.capacity, [places.level(self.sites.levels[0])],
            True, places.state,
        )  # fmt: skip
        self._guard(program, 0, 1)
        if inputs.capacity:
            program.place_rows(
                inputs.indices, self._given, inputs.capacity, places.map(self.sites.levels[0]),
                (inputs.features, inputs.dtype), self.graph.in_channels,
                places.features(self.graph.source), 0,
            )  # fmt: skip

    def _body(self, program: Any, dense: int) -> None:
        program.fork()
        self._later_sites(program)
        for call in self._side:
            call(program)
        program.back()
        for number, call in enumerate(self._calls):
            if number == self._meet:
                program.join()
            if number == self._clear_at and dense:
                program.fork()
                program.clear(dense, self.dense_bytes)
                program.back()
            call(program)
        program.join()
        if dense:
            self._end(program, dense)

    def _later_sites(self, program: Any) -> None:
        """Sites of the levels after the input's that the head has not made."""
        levels, places = self.sites.levels, self.places
        if not self.sites.chain():
            for level in levels[1:]:
                assert level.parent is not None
                program.strided_sites(
                    places.rows_at(level.parent), places.count(level.parent),
                    places.rows_of(level.parent), places.level(level), True, places.state,
                )  # fmt: skip
        if len(levels) > 1:
            self._guard(program, 1, len(levels))

    def _guard(self, program: Any, first: int, last: int) -> None:
        """Note the rows of some levels; after an overflow they become 0, and no work follows."""
        program.guard_counts(
            self.places.state + 4 * (COUNTS + first), last - first,
            self.places.state + 4 * sparse_cuda.ROWS_LOST, self.needed + 4 * first,
        )  # fmt: skip

    def _end(self, program: Any, dense: int) -> None:
        """The dense map, which is clear."""
        name, places = self.end.source, self.places
        level = self.sites.of_tensor[name]
        program.scatter_dense(
            places.map(level), 0, places.rows_of(level), places.features(name), places.stride(name),
            self.channels(name), list(self.end.axes), dense, self.dense_type, True, False,
        )  # fmt: skip

    def tensor_at(self, name: str) -> tuple[int, int, int]:
        """Address, rows and values per row of a sparse tensor's memory."""
        rows = self.places.rows_of(self.sites.of_tensor[name])
        return self.places.at(self.places.tensors[name]), rows, self.places.stride(name)

    @property
    def needed(self) -> int:
        """Address of the rows that each level needed."""
        return self.places.state + 4 * (COUNTS + len(self.sites.levels))
