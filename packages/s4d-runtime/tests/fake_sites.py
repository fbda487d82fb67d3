"""Sites and tables of ``fake_sparse``: maps, index rows and rulebooks on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
from fake_cuda import view

OUTSIDE, TWICE, LOST, ENTRIES_OUTSIDE, ENTRIES_TWICE = range(5)  # words of the errors


def ints(address: int, *shape: int) -> np.ndarray:
    return view(address, shape, np.int32)


class SiteCalls:
    """The calls of a program that make sites and tables."""

    def do_build_sites(
        self, indices: int, count: int, capacity: int, levels: Any, cleared: bool, errors: int
    ) -> None:
        rows = ints(indices, capacity, 4)[: int(ints(count, 1)[0])]
        grid = levels[0][0][0]
        inside = ((rows >= 0) & (rows < np.array(grid))).all(1)
        ints(errors, 8)[OUTSIDE] += int((~inside).sum())
        keys = np.unique(np.ravel_multi_index(tuple(rows[inside].T), grid))
        ints(errors, 8)[TWICE] += int(inside.sum()) - len(keys)
        kept = self._list(levels[0], keys, errors)
        for level in levels[1:]:
            kept = self._list(level, self._reached(kept, level), errors)

    def do_extend_sites(
        self, indices: int, count: int, capacity: int, levels: Any, cleared: bool, errors: int
    ) -> None:
        assert cleared
        rows = ints(indices, capacity, 4)[: int(ints(count, 1)[0])]
        grid = levels[0][0][0]
        kept = rows[((rows >= 0) & (rows < np.array(grid))).all(1)]
        for level in levels[1:]:
            keys = self._reached(kept, level)
            self._list(level, keys, errors)
            kept = np.stack(np.unravel_index(keys, level[0][0]), 1)  # all, whatever the capacity

    def do_strided_sites(
        self, indices: int, count: int, capacity: int, level: Any, cleared: bool, errors: int
    ) -> None:
        assert cleared
        rows = ints(indices, capacity, 4)[: int(ints(count, 1)[0])]
        self._list(level, self._reached(rows, level), errors)

    def _list(self, level: Any, keys: np.ndarray, errors: int) -> np.ndarray:
        (grid, memory, count), _, indices, capacity = level
        ranks = view(memory, (int(np.prod(grid)),), np.int32)
        ranks[:] = -1
        ranks[keys] = np.arange(len(keys))
        ints(count, 1)[:] = len(keys)
        ints(errors, 8)[LOST] += max(0, len(keys) - capacity)
        rows = np.stack(np.unravel_index(keys, grid), 1).astype(np.int32)[:capacity]
        ints(indices, capacity, 4)[: len(rows)] = rows
        return rows

    def _reached(self, rows: np.ndarray, level: Any) -> np.ndarray:
        (grid, _, _), (kernel, stride, padding, dilation), _, _ = level
        found = [np.zeros(0, np.int64)]
        for offset in np.ndindex(*kernel):
            at = rows[:, 1:] + np.array(padding) - np.array(offset) * np.array(dilation)
            cell = at // np.array(stride)
            good = (at >= 0) & (at % np.array(stride) == 0) & (cell < np.array(grid[1:]))
            good = good.all(1)
            found.append(
                np.ravel_multi_index((rows[good, 0], *cell[good].T), tuple(grid)).astype(np.int64)
            )
        return np.unique(np.concatenate(found))

    def do_build_tables(self, tasks: Any) -> None:
        for out, count, capacity, (grid, memory, _), order, geometry, table in tasks:
            assert order == 0
            kernel, stride, padding, dilation = (np.array(part) for part in geometry)
            volume = int(np.prod(kernel))
            number = min(int(ints(count, 1)[0]), capacity)
            rows = ints(out, capacity, 4)[:number]
            ranks = view(memory, (int(np.prod(grid)),), np.int32)
            entries = ints(table, volume, capacity)
            entries[:] = -1
            for k, offset in enumerate(np.ndindex(*kernel)):
                at = rows[:, 1:] * stride - padding + np.array(offset) * dilation
                good = ((at >= 0) & (at < np.array(grid[1:]))).all(1)
                cells = np.ravel_multi_index((rows[good, 0], *at[good].T), tuple(grid))
                entries[k, :number][good] = ranks[cells]

    def do_transpose_table(
        self, table: int, volume: int, count: int, capacity: int, in_capacity: int, out: int,
        errors: int,
    ) -> None:  # fmt: skip
        entries = ints(table, volume, capacity)[:, : int(ints(count, 1)[0])]
        result = ints(out, volume, in_capacity)
        result[:] = -1
        for k in range(volume):
            there = entries[k] >= 0
            result[k, entries[k][there]] = np.flatnonzero(there)
