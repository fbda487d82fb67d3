"""The ten annotated classes: sizes, colours and shapes.

Sizes are drawn about the means that nuScenes has for each class. Every class has a silhouette and a
palette of its own, so that a small network can tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .shapes import GLASS, Shape, ShapeBuilder

__all__ = ["KINDS", "Kind", "draw_size", "make_shape"]

Rng = np.random.Generator
Colour = tuple[float, float, float]
_WINDOW: Colour = (0.05, 0.07, 0.10)
_LAMP: Colour = (0.95, 0.93, 0.80)
_TAIL: Colour = (0.60, 0.02, 0.02)


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


def _pick(rng: Rng, palette: list[Colour]) -> Colour:
    r, g, b = palette[int(rng.integers(len(palette)))]
    shade = float(rng.uniform(0.85, 1.1))
    return (min(r * shade, 1.0), min(g * shade, 1.0), min(b * shade, 1.0))


def _lamps(b: ShapeBuilder, front: float, rear: float, half_width: float, z: float) -> None:
    for side in (-1.0, 1.0):
        y = (side * (half_width - 0.28) - 0.18, side * (half_width - 0.28) + 0.18)
        b.box((front - 0.04, front), y, (z, z + 0.16), _LAMP)
        b.box((rear, rear + 0.04), y, (z + 0.12, z + 0.30), _TAIL)


def _wheels(b: ShapeBuilder, xs: list[float], half_width: float, radius: float) -> None:
    for x in xs:
        for side in (-1.0, 1.0):
            b.wheel(x, side * (half_width - 0.13), radius, 0.26)


def _car(rng: Rng) -> Shape:
    paint = _pick(
        rng,
        [
            (0.75, 0.75, 0.76),
            (0.85, 0.85, 0.83),
            (0.45, 0.03, 0.04),
            (0.04, 0.10, 0.42),
            (0.05, 0.05, 0.06),
            (0.28, 0.30, 0.32),
            (0.10, 0.30, 0.28),
        ],
    )
    b = ShapeBuilder()
    estate = rng.random() < 0.4
    rear_top = -2.05 if estate else -1.15
    b.prism(
        [
            (-2.3, 0.30),
            (2.25, 0.30),
            (2.3, 0.55),
            (2.15, 0.82),
            (0.9, 0.98),
            (-2.2, 1.02),
            (-2.3, 0.7),
        ],
        (-0.97, 0.97),
        paint,
    )
    b.prism(
        [(-2.15 if estate else -1.85, 1.0), (1.05, 0.97), (0.25, 1.60), (rear_top, 1.60)],
        (-0.93, 0.93),
        _WINDOW,
        GLASS,
        inset=0.17,
    )
    b.box((rear_top + 0.02, 0.28), (-0.76, 0.76), (1.58, 1.66), paint)
    b.box((-2.32, 2.32), (-0.90, 0.90), (0.22, 0.40), (0.06, 0.06, 0.07))
    _lamps(b, 2.33, -2.33, 0.97, 0.62)
    b.box((-2.34, -2.30), (-0.28, 0.28), (0.50, 0.63), (0.85, 0.85, 0.80))
    _wheels(b, [-1.40, 1.42], 0.97, 0.33)
    return b.build()


def _truck(rng: Rng) -> Shape:
    cab = _pick(rng, [(0.05, 0.20, 0.55), (0.80, 0.80, 0.80), (0.50, 0.05, 0.05)])
    cargo = _pick(rng, [(0.88, 0.88, 0.86), (0.60, 0.66, 0.72), (0.15, 0.40, 0.62)])
    b = ShapeBuilder()
    b.box((-3.45, 3.2), (-1.0, 1.0), (0.55, 0.80), (0.08, 0.08, 0.09))
    b.prism(
        [(1.75, 0.55), (3.45, 0.55), (3.45, 1.45), (3.15, 2.35), (1.75, 2.45)], (-1.20, 1.20), cab
    )
    b.prism([(3.40, 1.50), (3.48, 1.48), (3.22, 2.25), (3.15, 2.25)], (-1.08, 1.08), _WINDOW, GLASS)
    for side in (-1.0, 1.0):
        y = (1.17, 1.23) if side > 0 else (-1.23, -1.17)
        b.box((2.2, 3.05), y, (1.45, 2.15), _WINDOW, GLASS)
    b.box((-3.45, 1.60), (-1.25, 1.25), (0.80, 2.84), cargo)
    b.box((-3.48, -3.44), (-0.04, 0.04), (0.85, 2.80), (0.15, 0.15, 0.16))
    _lamps(b, 3.48, -3.48, 1.2, 0.62)
    _wheels(b, [-2.35, 2.45], 1.2, 0.48)
    return b.build()


def _bus(rng: Rng) -> Shape:
    paint = _pick(rng, [(0.80, 0.48, 0.02), (0.65, 0.04, 0.05), (0.10, 0.45, 0.16)])
    b = ShapeBuilder()
    b.box((-5.5, 5.5), (-1.46, 1.46), (0.35, 3.30), paint, cap=(0.80, 0.80, 0.78))
    b.box((-5.2, 5.2), (-1.0, 1.0), (3.30, 3.47), (0.70, 0.70, 0.70))
    b.box((-5.52, 5.52), (-1.47, 1.47), (0.30, 0.62), (0.85, 0.85, 0.82))
    for i in range(6):
        x = -5.0 + i * 1.68
        for side in (-1.0, 1.0):
            y = (1.44, 1.49) if side > 0 else (-1.49, -1.44)
            b.box((x, x + 1.48), y, (1.45, 2.75), _WINDOW, GLASS)
    b.box((5.48, 5.53), (-1.30, 1.30), (1.20, 2.75), _WINDOW, GLASS)
    b.box((-5.53, -5.48), (-1.10, 1.10), (1.70, 2.65), _WINDOW, GLASS)
    b.box((5.48, 5.53), (-1.0, 1.0), (2.85, 3.15), (0.95, 0.75, 0.15))
    _lamps(b, 5.54, -5.54, 1.46, 0.75)
    _wheels(b, [-3.4, 3.3], 1.45, 0.50)
    return b.build()


def _trailer(rng: Rng) -> Shape:
    paint = _pick(rng, [(0.52, 0.54, 0.56), (0.62, 0.60, 0.54), (0.30, 0.46, 0.36)])
    rib = (paint[0] * 0.55, paint[1] * 0.55, paint[2] * 0.55)
    b = ShapeBuilder()
    b.box((-6.1, 6.1), (-1.42, 1.42), (1.15, 3.87), paint)
    for i in range(9):
        x = -5.9 + i * 1.45
        b.box((x, x + 0.22), (-1.46, 1.46), (1.20, 3.80), rib)
    b.box((-6.13, -6.09), (-1.35, 1.35), (1.15, 1.45), (0.70, 0.05, 0.04))
    b.box((-6.13, -6.09), (-0.05, 0.05), (1.45, 3.80), rib)
    b.box((-6.0, 6.0), (-0.9, 0.9), (0.90, 1.15), (0.07, 0.07, 0.08))
    b.box((3.6, 3.8), (-1.0, 1.0), (0.0, 0.95), (0.20, 0.20, 0.20))
    _wheels(b, [-4.9, -3.75, -2.6], 1.40, 0.50)
    return b.build()


def _construction_vehicle(rng: Rng) -> Shape:
    paint = _pick(rng, [(0.88, 0.55, 0.02), (0.90, 0.42, 0.02)])
    dark: Colour = (0.07, 0.07, 0.07)
    b = ShapeBuilder()
    for side in (-1.0, 1.0):
        y = (0.75, 1.42) if side > 0 else (-1.42, -0.75)
        b.prism(
            [
                (-2.2, 0.25),
                (-1.9, 0.0),
                (1.3, 0.0),
                (1.6, 0.25),
                (1.6, 0.65),
                (1.3, 0.9),
                (-1.9, 0.9),
                (-2.2, 0.65),
            ],
            y,
            dark,
        )
    b.box((-2.3, 1.2), (-1.35, 1.35), (0.95, 1.95), paint)
    b.box((-2.9, -1.5), (-1.30, 1.30), (1.0, 2.1), dark)
    b.box((-0.3, 1.3), (0.05, 1.25), (1.95, 3.0), paint)
    b.box((-0.1, 1.34), (0.10, 1.28), (2.1, 2.85), _WINDOW, GLASS)
    b.prism([(0.9, 1.5), (1.3, 1.4), (2.6, 3.05), (2.3, 3.2)], (-0.65, -0.20), paint)
    b.prism([(2.3, 3.2), (2.65, 3.1), (3.35, 1.2), (3.1, 1.15)], (-0.62, -0.24), paint)
    b.prism([(2.8, 0.35), (3.4, 0.35), (3.5, 1.2), (2.9, 1.2)], (-0.95, 0.15), (0.25, 0.25, 0.25))
    return b.build()


def _rider(b: ShapeBuilder, rng: Rng, x: float, seat: float, top: float) -> None:
    shirt = _pick(rng, [(0.75, 0.10, 0.10), (0.10, 0.30, 0.75), (0.85, 0.85, 0.15)])
    b.prism(
        [(x - 0.22, seat), (x + 0.12, seat), (x + 0.28, top - 0.26), (x, top - 0.24)],
        (-0.22, 0.22),
        shirt,
    )
    b.box((x - 0.1, x + 0.38), (-0.20, -0.08), (seat - 0.42, seat + 0.05), (0.08, 0.09, 0.16))
    b.box((x - 0.1, x + 0.38), (0.08, 0.20), (seat - 0.42, seat + 0.05), (0.08, 0.09, 0.16))
    b.column((x + 0.18, 0.0), (top - 0.25, top), (0.13, 0.11), (0.12, 0.12, 0.13))


def _motorcycle(rng: Rng, ridden: bool = True) -> Shape:
    paint = _pick(rng, [(0.55, 0.02, 0.10), (0.05, 0.05, 0.35), (0.35, 0.02, 0.40)])
    b = ShapeBuilder()
    b.wheel(-0.70, 0.0, 0.32, 0.16)
    b.wheel(0.72, 0.0, 0.32, 0.14)
    b.prism([(-0.6, 0.45), (0.35, 0.35), (0.55, 0.80), (-0.9, 0.85)], (-0.18, 0.18), paint)
    b.prism(
        [(0.40, 0.75), (0.70, 0.45), (0.75, 0.55), (0.48, 1.08)], (-0.10, 0.10), (0.10, 0.10, 0.10)
    )
    b.box((0.38, 0.48), (-0.38, 0.38), (1.02, 1.10), (0.05, 0.05, 0.05))
    b.box((0.66, 0.74), (-0.1, 0.1), (0.82, 0.98), _LAMP)
    if ridden:
        _rider(b, rng, -0.2, 0.85, 1.55)
    return b.build()


def _bicycle(rng: Rng, ridden: bool = True) -> Shape:
    paint = _pick(rng, [(0.05, 0.62, 0.55), (0.35, 0.70, 0.08), (0.05, 0.50, 0.80)])
    b = ShapeBuilder()
    b.wheel(-0.52, 0.0, 0.33, 0.06, sides=10)
    b.wheel(0.52, 0.0, 0.33, 0.06, sides=10)
    b.prism([(-0.52, 0.30), (-0.48, 0.38), (0.36, 0.82), (0.38, 0.72)], (-0.04, 0.04), paint)
    b.prism([(-0.2, 0.28), (-0.05, 0.26), (-0.12, 0.88), (-0.2, 0.88)], (-0.04, 0.04), paint)
    b.prism([(0.30, 0.98), (0.38, 0.98), (0.56, 0.33), (0.48, 0.33)], (-0.04, 0.04), paint)
    b.box((0.24, 0.34), (-0.28, 0.28), (0.95, 1.02), (0.05, 0.05, 0.05))
    b.box((-0.30, -0.04), (-0.08, 0.08), (0.86, 0.93), (0.05, 0.05, 0.05))
    if ridden:
        _rider(b, rng, -0.15, 0.88, 1.70)
    return b.build()


def _pedestrian(rng: Rng) -> Shape:
    shirt = _pick(
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
    trousers = _pick(rng, [(0.07, 0.08, 0.16), (0.25, 0.22, 0.18), (0.05, 0.05, 0.05)])
    skin = _pick(rng, [(0.80, 0.56, 0.42), (0.45, 0.28, 0.18), (0.66, 0.44, 0.30)])
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
    "car": Kind("vehicle.car", (4.62, 1.95, 1.68), 0.06, _car),
    "truck": Kind("vehicle.truck", (6.95, 2.50, 2.85), 0.09, _truck),
    "construction_vehicle": Kind(
        "vehicle.construction", (6.40, 2.84, 3.20), 0.06, _construction_vehicle
    ),
    "bus": Kind("vehicle.bus.rigid", (11.1, 2.95, 3.48), 0.05, _bus),
    "trailer": Kind("vehicle.trailer", (12.3, 2.92, 3.87), 0.06, _trailer),
    "barrier": Kind("movable_object.barrier", (0.50, 2.52, 0.98), 0.04, _barrier),
    "motorcycle": Kind("vehicle.motorcycle", (2.10, 0.77, 1.48), 0.05, _motorcycle),
    "bicycle": Kind("vehicle.bicycle", (1.72, 0.60, 1.65), 0.05, _bicycle),
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
        shape = _motorcycle(rng, ridden)
    elif name == "bicycle":
        shape = _bicycle(rng, ridden)
    else:
        shape = KINDS[name].build(rng)
    return shape.scaled_to(size)
