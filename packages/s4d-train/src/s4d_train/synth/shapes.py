"""Convex building blocks: every object is a list of convex parts with flat coloured faces.

One description serves both sensors: the rasteriser draws the faces, the LiDAR cuts rays with the
half-spaces of each part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .geometry import Array

__all__ = ["FACADE", "FOLIAGE", "GLASS", "MATTE", "Shape", "ShapeBuilder"]

MATTE, GLASS, FACADE, FOLIAGE = 0, 1, 2, 3
"""Materials: how :mod:`s4d_train.synth.shading` colours a face."""

Colour = tuple[float, float, float]


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
        self._colours: list[Colour] = []
        self._materials: list[int] = []
        self._parts: list[int] = []
        self._count = 0

    def loft(
        self, bottom: Array, top: Array, colour: Colour, material: int = MATTE,
        cap: Colour | None = None,
    ) -> None:
        """A convex part between two polygons (n, 3) whose corners belong together."""
        n = len(bottom)
        middle = (bottom.mean(0) + top.mean(0)) / 2
        faces = [
            np.stack([bottom[i], bottom[(i + 1) % n], top[(i + 1) % n], top[i]]) for i in range(n)
        ]
        side_count = n
        for ring in (bottom, top):
            for i in range(1, n - 1, 2):
                corner = ring[min(i + 2, n - 1)]
                faces.append(np.stack([ring[0], ring[i], ring[i + 1], corner]))
        for index, face in enumerate(faces):
            normal = np.cross(face[2] - face[0], face[3] - face[1])
            if normal @ normal < 1e-12:
                continue
            if normal @ (face.mean(0) - middle) < 0:
                face = face[::-1]
            is_cap = index >= side_count
            self._quads.append(face)
            self._colours.append(cap if is_cap and cap is not None else colour)
            self._materials.append(MATTE if is_cap and material == FACADE else material)
            self._parts.append(self._count)
        self._count += 1

    def box(
        self, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float],
        colour: Colour, material: int = MATTE, cap: Colour | None = None,
    ) -> None:
        """An axis-aligned box from low to high in each axis."""
        ring = np.array([[x[0], y[0]], [x[1], y[0]], [x[1], y[1]], [x[0], y[1]]])
        bottom = np.column_stack([ring, np.full(4, z[0])])
        top = np.column_stack([ring, np.full(4, z[1])])
        self.loft(bottom, top, colour, material, cap)

    def prism(
        self, profile: Sequence[tuple[float, float]], y: tuple[float, float], colour: Colour,
        material: int = MATTE, inset: float = 0.0, cap: Colour | None = None,
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
        self.prism(profile, (y - width / 2, y + width / 2), (0.03, 0.03, 0.035),
                   cap=(0.20, 0.20, 0.22))

    def column(
        self, centre: tuple[float, float], z: tuple[float, float], radius: tuple[float, float],
        colour: Colour, sides: int = 8, material: int = MATTE, squash: float = 1.0,
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
            np.stack(self._quads),
            np.array(self._colours, dtype=np.float64),
            np.array(self._materials, dtype=np.int64),
            np.array(self._parts, dtype=np.int64),
        )
