"""Convex building blocks: every object is a list of convex parts with flat coloured faces.

One description serves both sensors: the rasteriser draws the faces, the LiDAR cuts rays with the
half-spaces of each part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .geometry import Array

__all__ = [
    "FACADE",
    "FOLIAGE",
    "GLASS",
    "MATTE",
    "Colour",
    "Rng",
    "Shape",
    "ShapeBuilder",
    "choose_paint",
]

MATTE, GLASS, FACADE, FOLIAGE = 0, 1, 2, 3
"""Materials: how :mod:`s4d_train.synth.shading` colours a face."""

Colour = tuple[float, float, float]
Rng = np.random.Generator


def choose_paint(rng: Rng, palette: Sequence[Colour]) -> Colour:
    """A colour of the palette, somewhat lighter or darker."""
    r, g, b = palette[int(rng.integers(len(palette)))]
    shade = float(rng.uniform(0.85, 1.1))
    return (min(r * shade, 1.0), min(g * shade, 1.0), min(b * shade, 1.0))


@dataclass(frozen=True)
class Shape:
    """Faces of convex parts in the object's frame: x forward, y left, z up from the ground."""

    quads: Array
    """(F, 4, 3) corners, outward faces; a triangle repeats its last corner."""
    colours: Array
    """(F, 3) linear RGB in 0..1."""
    materials: np.ndarray
    """(F,) int."""
    parts: np.ndarray
    """(F,) int, the convex part that a face bounds."""

    def scaled_to(self, size: Sequence[float]) -> Shape:
        """The same shape stretched so that its bounding box is exactly ``size`` (l, w, h)."""
        low = self.quads.min((0, 1))
        high = self.quads.max((0, 1))
        centre = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
        quads = (self.quads - centre) * (np.asarray(size) / (high - low))
        return Shape(quads, self.colours, self.materials, self.parts)


class ShapeBuilder:
    """Collects convex parts."""

    def __init__(self) -> None:
        self._quads: list[Array] = []
        self._colours: list[Array] = []
        self._materials: list[Array] = []
        self._parts: list[Array] = []
        self._count = 0

    def loft(
        self,
        bottom: Array,
        top: Array,
        colour: Colour,
        material: int = MATTE,
        cap: Colour | None = None,
    ) -> None:
        """A convex part between two polygons (n, 3) whose corners belong together."""
        n = len(bottom)
        around = np.roll(np.arange(n), -1)
        sides = np.stack([bottom, bottom[around], top[around], top], 1)
        fans = [
            ring[[0, i, i + 1, min(i + 2, n - 1)]]
            for ring in (bottom, top)
            for i in range(1, n - 1, 2)
        ]
        faces = np.concatenate([sides, np.stack(fans)])
        normal = _cross(faces[:, 2] - faces[:, 0], faces[:, 3] - faces[:, 1])
        outward = faces.mean(1) - (bottom.mean(0) + top.mean(0)) / 2
        inverted = np.einsum("fi,fi->f", normal, outward) < 0
        faces[inverted] = faces[inverted, ::-1]
        solid = np.einsum("fi,fi->f", normal, normal) > 1e-12
        is_cap = np.arange(len(faces)) >= n
        colours = np.where(is_cap[:, None], colour if cap is None else cap, colour)
        materials = np.where(is_cap & (material == FACADE), MATTE, material)
        self._quads.append(faces[solid])
        self._colours.append(colours[solid])
        self._materials.append(materials[solid])
        self._parts.append(np.full(int(solid.sum()), self._count))
        self._count += 1

    def box(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        colour: Colour,
        material: int = MATTE,
        cap: Colour | None = None,
    ) -> None:
        """An axis-aligned box from low to high in each axis."""
        ring = np.array([[x[0], y[0]], [x[1], y[0]], [x[1], y[1]], [x[0], y[1]]])
        bottom = np.column_stack([ring, np.full(4, z[0])])
        top = np.column_stack([ring, np.full(4, z[1])])
        self.loft(bottom, top, colour, material, cap)

    def prism(
        self,
        profile: Sequence[tuple[float, float]],
        y: tuple[float, float],
        colour: Colour,
        material: int = MATTE,
        inset: float = 0.0,
        cap: Colour | None = None,
    ) -> None:
        """A convex (x, z) profile drawn along y; ``inset`` narrows the points above the lowest."""
        points = np.asarray(profile, dtype=np.float64)
        low = points[:, 1].min()
        height = max(points[:, 1].max() - low, 1e-6)
        shift = inset * (points[:, 1] - low) / height
        right = np.column_stack([points[:, 0], y[0] + shift, points[:, 1]])
        left = np.column_stack([points[:, 0], y[1] - shift, points[:, 1]])
        self.loft(right, left, colour, material, cap)

    def wheel(self, x: float, y: float, radius: float, width: float, sides: int = 8) -> None:
        """A dark disc standing on the ground, axis along y."""
        angle = (np.arange(sides) + 0.5) * 2 * np.pi / sides
        # The lowest flat of the polygon stands on the ground.
        reach = radius / np.cos(np.pi / sides)
        profile = [(x + reach * np.cos(a), radius + reach * np.sin(a)) for a in angle]
        self.prism(
            profile, (y - width / 2, y + width / 2), (0.03, 0.03, 0.035), cap=(0.20, 0.20, 0.22)
        )

    def column(
        self,
        centre: tuple[float, float],
        z: tuple[float, float],
        radius: tuple[float, float],
        colour: Colour,
        sides: int = 8,
        material: int = MATTE,
        squash: float = 1.0,
    ) -> None:
        """A vertical frustum with ``radius`` (bottom, top); ``squash`` scales it along y."""
        angle = (np.arange(sides) + 0.5) * 2 * np.pi / sides
        ring = np.column_stack([np.cos(angle), squash * np.sin(angle)])
        bottom = np.column_stack([ring * radius[0] + centre, np.full(sides, z[0])])
        top = np.column_stack([ring * radius[1] + centre, np.full(sides, z[1])])
        self.loft(bottom, top, colour, material)

    def build(self) -> Shape:
        """All parts so far."""
        return Shape(
            np.concatenate(self._quads),
            np.concatenate(self._colours).astype(np.float64),
            np.concatenate(self._materials).astype(np.int64),
            np.concatenate(self._parts).astype(np.int64),
        )


def _cross(a: Array, b: Array) -> Array:
    """Cross product of (n, 3) arrays; plain arithmetic is faster than numpy's for small n."""
    return np.stack(
        [
            a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1],
            a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2],
            a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0],
        ],
        -1,
    )
