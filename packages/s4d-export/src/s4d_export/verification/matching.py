"""Which row of one result belongs to which row of another.

Two correct programs may order near-equal scores differently, and an instance that wins a tie by
one unit in the last place takes another slot and another new id. So rows are compared by
identity: first equal id at (nearly) the same place, then the nearest row, then equal id anywhere.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["RowMatch", "Rows", "box_distance", "match_rows", "match_strays"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Rows to identify: place (R, D) float, score (R,), label (R,) int, id (R,) int."""

    place: Array
    score: Array
    label: NDArray[np.int64]
    track_id: NDArray[np.int64]


@dataclass(frozen=True)
class RowMatch:
    """Pairs of row numbers, and the rows that found no partner."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    left_over_first: NDArray[np.int64]
    left_over_second: NDArray[np.int64]


def box_distance(a: Array, b: Array, yaw_column: int | None = 6) -> Array:
    """Largest absolute difference per row; the yaw column is compared on the circle."""
    difference = np.abs(a - b)
    if yaw_column is not None and difference.shape[-1] > yaw_column:
        turned = difference[..., yaw_column] % (2 * np.pi)
        difference[..., yaw_column] = np.minimum(turned, 2 * np.pi - turned)
    return difference.max(axis=-1, initial=0.0)


def match_rows(a: Rows, b: Rows, radius: float, yaw_column: int | None = 6) -> RowMatch:
    """Match the rows of `a` and `b` one to one.

    Args:
        radius: rows closer than this (largest difference over place and score, equal label) may
            be the same instance under another id.
        yaw_column: column of `place` that is an angle, or None.
    """
    free_a, free_b = set(range(len(a.score))), set(range(len(b.score)))
    pairs: list[tuple[int, int]] = []

    def take(i: int, j: int) -> None:
        pairs.append((i, j))
        free_a.discard(i)
        free_b.discard(j)

    by_id = _rows_by_id(b, free_b)
    for i in range(len(a.score)):
        for j in by_id.get(int(a.track_id[i]), []):
            if j in free_b and _distance(a, b, [i], [j], yaw_column)[0, 0] <= radius:
                take(i, j)
                break
    rest_a, rest_b = sorted(free_a), sorted(free_b)
    if rest_a and rest_b:
        distance = _distance(a, b, rest_a, rest_b, yaw_column)
        for flat in np.argsort(distance, axis=None, kind="stable"):
            row, column = divmod(int(flat), len(rest_b))
            if not distance[row, column] <= radius:
                break
            i, j = rest_a[row], rest_b[column]
            if i in free_a and j in free_b:
                take(i, j)
    return _as_match(pairs, free_a, free_b)


def match_strays(a: Rows, b: Rows, match: RowMatch, exchanged: Collection[int]) -> RowMatch:
    """Match what `match` left over by id, however far apart: a gross error shows in the figures.

    Args:
        exchanged: ids that a tie gave to different instances; they stay without counterpart.
    """
    pairs = list(zip(match.first.tolist(), match.second.tolist(), strict=True))
    free_a, free_b = set(match.left_over_first.tolist()), set(match.left_over_second.tolist())
    by_id = _rows_by_id(b, free_b)
    for i in sorted(free_a):
        number = int(a.track_id[i])
        same = [] if number in exchanged else [j for j in by_id.get(number, []) if j in free_b]
        if same:
            pairs.append((i, same[0]))
            free_a.discard(i)
            free_b.discard(same[0])
    return _as_match(pairs, free_a, free_b)


def _rows_by_id(rows: Rows, among: Collection[int]) -> dict[int, list[int]]:
    numbers: dict[int, list[int]] = {}
    for j in sorted(among):
        numbers.setdefault(int(rows.track_id[j]), []).append(j)
    return numbers


def _as_match(pairs: list[tuple[int, int]], free_a: set[int], free_b: set[int]) -> RowMatch:
    pairs = sorted(pairs)
    first, second = (np.array([pair[k] for pair in pairs], dtype=np.int64) for k in (0, 1))
    return RowMatch(
        first, second, np.array(sorted(free_a), np.int64), np.array(sorted(free_b), np.int64)
    )


def _distance(
    a: Rows, b: Rows, rows_a: list[int], rows_b: list[int], yaw_column: int | None
) -> Array:
    place = box_distance(a.place[rows_a][:, None], b.place[rows_b][None], yaw_column)
    score = np.abs(a.score[rows_a][:, None] - b.score[rows_b][None])
    distance = np.maximum(place, score)
    distance[a.label[rows_a][:, None] != b.label[rows_b][None]] = np.inf
    return np.where(np.isnan(distance), np.inf, distance)
