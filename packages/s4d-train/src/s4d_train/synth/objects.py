"""The ten annotated classes: sizes, colours and shapes.

Sizes are drawn about the means that nuScenes has for each class. Every class has a silhouette and a
palette of its own, so that a small network can tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import vehicles
from .shapes import Colour, Rng, Shape, ShapeBuilder, choose_paint

__all__ = ["KINDS", "Kind", "draw_size", "make_shape"]


@dataclass(frozen=True)
class Kind:
    """A class of objects."""

    category: str
    """nuScenes category name."""
    size: tuple[float, float, float]
    """Mean length (along the heading), width, height in metres."""
    spread: float
    """Standard deviation of the logarithm of a common scale factor."""
    build: Callable[[Rng], Shape]


def _pedestrian(rng: Rng) -> Shape:
    shirt = choose_paint(
        rng,
        [
            (0.75, 0.12, 0.10),
            (0.12, 0.25, 0.65),
            (0.80, 0.78, 0.72),
            (0.15, 0.45, 0.20),
            (0.75, 0.50, 0.10),
            (0.10, 0.10, 0.12),
        ],
    )
    trousers = choose_paint(rng, [(0.07, 0.08, 0.16), (0.25, 0.22, 0.18), (0.05, 0.05, 0.05)])
    skin = choose_paint(rng, [(0.80, 0.56, 0.42), (0.45, 0.28, 0.18), (0.66, 0.44, 0.30)])
    stride = float(rng.uniform(0.08, 0.24))
    b = ShapeBuilder()
    for side in (-1.0, 1.0):
        foot = side * stride
        b.prism(
            [(foot - 0.09, 0.0), (foot + 0.14, 0.0), (0.10, 0.86), (-0.10, 0.86)],
            (side * 0.10 - 0.08, side * 0.10 + 0.08),
            trousers,
        )
        b.prism(
            [(-foot - 0.05, 0.80), (-foot + 0.06, 0.80), (0.06, 1.42), (-0.06, 1.42)],
            (side * 0.28 - 0.055, side * 0.28 + 0.055),
            shirt,
        )
    b.column((0.0, 0.0), (0.84, 1.46), (0.17, 0.22), shirt, squash=1.1)
    b.column((0.0, 0.0), (1.46, 1.56), (0.07, 0.07), skin, sides=6)
    b.column((0.01, 0.0), (1.54, 1.78), (0.115, 0.10), skin)
    b.column((-0.02, 0.0), (1.68, 1.80), (0.125, 0.09), (0.08, 0.05, 0.03))
    return b.build()


def _barrier(rng: Rng) -> Shape:
    b = ShapeBuilder()
    # nuScenes measures a barrier with its length across the face: l 0.5, w 2.5.
    for i in range(6):
        y = -1.25 + i * 2.5 / 6
        colour = (0.80, 0.06, 0.04) if i % 2 else (0.92, 0.92, 0.90)
        b.prism([(-0.25, 0.0), (0.25, 0.0), (0.09, 0.98), (-0.09, 0.98)], (y, y + 2.5 / 6), colour)
    return b.build()


def _cone(rng: Rng) -> Shape:
    orange: Colour = (0.92, 0.26, 0.02)
    b = ShapeBuilder()
    b.box((-0.20, 0.20), (-0.20, 0.20), (0.0, 0.05), (0.12, 0.10, 0.10))
    for low, high, colour in (
        (0.05, 0.34, orange),
        (0.34, 0.56, (0.93, 0.93, 0.92)),
        (0.56, 0.74, orange),
        (0.74, 0.88, (0.93, 0.93, 0.92)),
        (0.88, 1.07, orange),
    ):
        b.column((0.0, 0.0), (low, high), (0.17 - 0.13 * low, 0.17 - 0.13 * high), colour)
    return b.build()


KINDS: dict[str, Kind] = {
    "car": Kind("vehicle.car", (4.62, 1.95, 1.68), 0.06, vehicles.car),
    "truck": Kind("vehicle.truck", (6.95, 2.50, 2.85), 0.09, vehicles.truck),
    "construction_vehicle": Kind(
        "vehicle.construction", (6.40, 2.84, 3.20), 0.06, vehicles.construction_vehicle
    ),
    "bus": Kind("vehicle.bus.rigid", (11.1, 2.95, 3.48), 0.05, vehicles.bus),
    "trailer": Kind("vehicle.trailer", (12.3, 2.92, 3.87), 0.06, vehicles.trailer),
    "barrier": Kind("movable_object.barrier", (0.50, 2.52, 0.98), 0.04, _barrier),
    "motorcycle": Kind("vehicle.motorcycle", (2.10, 0.77, 1.48), 0.05, vehicles.motorcycle),
    "bicycle": Kind("vehicle.bicycle", (1.72, 0.60, 1.65), 0.05, vehicles.bicycle),
    "pedestrian": Kind("human.pedestrian.adult", (0.72, 0.67, 1.77), 0.07, _pedestrian),
    "traffic_cone": Kind("movable_object.trafficcone", (0.41, 0.41, 1.06), 0.08, _cone),
}


def draw_size(name: str, rng: Rng, ridden: bool = True) -> tuple[float, float, float]:
    """Length, width, height in metres of one object of class ``name``."""
    kind = KINDS[name]
    common = np.exp(rng.normal(0.0, kind.spread))
    single = np.exp(rng.normal(0.0, kind.spread / 2, 3))
    length, width, height = (float(v) for v in np.array(kind.size) * common * single)
    if not ridden:  # a parked two-wheeler ends at its handlebar
        height *= 0.75 if name == "motorcycle" else 0.64
    return (length, width, height)


def make_shape(name: str, size: tuple[float, float, float], rng: Rng, ridden: bool = True) -> Shape:
    """The shape of one object, stretched to fill its box exactly."""
    if name == "motorcycle":
        shape = vehicles.motorcycle(rng, ridden)
    elif name == "bicycle":
        shape = vehicles.bicycle(rng, ridden)
    else:
        shape = KINDS[name].build(rng)
    return shape.scaled_to(size)
