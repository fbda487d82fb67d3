"""The street grid: roads, pavements, buildings, trees and lamp posts.

Streets run along x and along y at a constant spacing, so the ground's colour is a closed formula of
(x, y) and needs no map image. Traffic keeps to the right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import Array
from .shapes import FACADE, FOLIAGE, Shape, ShapeBuilder

__all__ = ["CROSSING", "HALF_ROAD", "LANES", "PARKING", "PAVEMENT", "Town"]

LANES = (1.75, 5.25)
"""Centres of the two driving lanes, metres right of the street's middle."""
PARKING = 8.25
"""Centre of the parking lane."""
HALF_ROAD = 9.5
PAVEMENT = 4.0
"""Width of the pavement beyond the kerb."""
CROSSING = (0.8, 4.0)
"""A zebra crossing lies this far before the crossing street's kerb."""

_BRICKS = [
    (0.45, 0.22, 0.16),
    (0.62, 0.56, 0.46),
    (0.50, 0.50, 0.52),
    (0.70, 0.66, 0.60),
    (0.34, 0.38, 0.44),
    (0.58, 0.42, 0.30),
]


@dataclass(frozen=True)
class Town:
    """A grid of streets."""

    block: tuple[float, float]
    """Distance between streets, metres: (between those running along y, along x)."""
    lawn: tuple[float, float, float]
    """Colour inside the blocks."""

    @staticmethod
    def draw(rng: np.random.Generator) -> Town:
        """A random grid."""
        block = (float(rng.uniform(85, 120)), float(rng.uniform(85, 120)))
        lawn = ((0.20, 0.30, 0.10), (0.36, 0.35, 0.33))[int(rng.integers(2))]
        return Town(block, lawn)

    def scenery(self, rng: np.random.Generator, low: Array, high: Array) -> Shape:
        """Buildings, trees and posts in the rectangle from ``low`` to ``high`` (2,), metres."""
        builder = ShapeBuilder()
        first = np.floor(np.asarray(low) / self.block).astype(int)
        last = np.ceil(np.asarray(high) / self.block).astype(int)
        for i in range(first[0], last[0]):
            for j in range(first[1], last[1]):
                corner = (i * self.block[0], j * self.block[1])
                _fill_block(builder, rng, corner, self.block)
        return builder.build()

    def offsets(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Signed distance to the nearest street running along y, and along x."""
        return (
            x - np.round(x / self.block[0]) * self.block[0],
            y - np.round(y / self.block[1]) * self.block[1],
        )


def _fill_block(
    b: ShapeBuilder,
    rng: np.random.Generator,
    corner: tuple[float, float],
    block: tuple[float, float],
) -> None:
    """Buildings along the four sides of one block, trees and posts on its pavement."""
    inner = HALF_ROAD + PAVEMENT
    x0, y0 = corner[0] + inner, corner[1] + inner
    width, depth = block[0] - 2 * inner, block[1] - 2 * inner
    for side in range(4):
        length = width if side % 2 == 0 else depth
        at = 0.0
        while at < length - 9.0:
            front = min(float(rng.uniform(11, 24)), length - at)
            back = float(rng.uniform(9, 15))
            setback = float(rng.uniform(0.5, 4.0))
            if rng.random() < 0.85:
                spans = {
                    0: ((at, at + front - 1.0), (setback, setback + back)),
                    1: ((width - setback - back, width - setback), (at, at + front - 1.0)),
                    2: ((at, at + front - 1.0), (depth - setback - back, depth - setback)),
                    3: ((setback, setback + back), (at, at + front - 1.0)),
                }[side]
                (ax, bx), (ay, by) = spans
                height = float(rng.choice([6.8, 10.2, 13.6, 17.0, 23.8]))
                colour = _BRICKS[int(rng.integers(len(_BRICKS)))]
                roof = (0.25, 0.24, 0.24)
                b.box((x0 + ax, x0 + bx), (y0 + ay, y0 + by), (0.0, height), colour, FACADE, roof)
            at += front
        _furnish(b, rng, side, corner, block)


def _furnish(
    b: ShapeBuilder,
    rng: np.random.Generator,
    side: int,
    corner: tuple[float, float],
    block: tuple[float, float],
) -> None:
    """Trees and lamp posts along one side, 0.9 m behind the kerb."""
    kerb = HALF_ROAD + 0.9
    along = block[0] if side % 2 == 0 else block[1]
    at = HALF_ROAD + 9.0
    while at < along - HALF_ROAD - 8.0:
        x, y = {
            0: (at, kerb),
            1: (block[0] - kerb, at),
            2: (at, block[1] - kerb),
            3: (kerb, at),
        }[side]
        centre = (corner[0] + x, corner[1] + y)
        if rng.random() < 0.55:
            tall = float(rng.uniform(4.5, 7.5))
            wide = float(rng.uniform(1.3, 2.1))
            leaf = (0.10, float(rng.uniform(0.20, 0.32)), 0.05)
            b.column(centre, (0.0, tall * 0.5), (0.16, 0.12), (0.16, 0.10, 0.06), sides=6)
            b.column(centre, (tall * 0.38, tall * 0.68), (wide * 0.55, wide), leaf, 7, FOLIAGE)
            b.column(centre, (tall * 0.68, tall), (wide, wide * 0.35), leaf, 7, FOLIAGE)
        else:
            b.column(centre, (0.0, 7.0), (0.10, 0.07), (0.30, 0.31, 0.32), sides=6)
            inward = {0: (0, -1), 1: (1, 0), 2: (0, 1), 3: (-1, 0)}[side]
            tip = (centre[0] + 1.6 * inward[0], centre[1] + 1.6 * inward[1])
            low = np.minimum(centre, tip) - 0.08
            high = np.maximum(centre, tip) + 0.08
            b.box((low[0], high[0]), (low[1], high[1]), (6.95, 7.08), (0.30, 0.31, 0.32))
        at += float(rng.uniform(9, 15))
