"""Shapes of vehicles and two-wheelers in metres, before they are stretched to their boxes.

x points ahead, y to the left, z up from the ground.
"""

from __future__ import annotations

from .shapes import GLASS, Colour, Rng, Shape, ShapeBuilder, choose_paint

__all__ = ["bicycle", "bus", "car", "construction_vehicle", "motorcycle", "trailer", "truck"]

_WINDOW: Colour = (0.05, 0.07, 0.10)
_LAMP: Colour = (0.95, 0.93, 0.80)
_TAIL: Colour = (0.60, 0.02, 0.02)


def _lamps(b: ShapeBuilder, front: float, rear: float, half_width: float, z: float) -> None:
    for side in (-1.0, 1.0):
        y = (side * (half_width - 0.28) - 0.18, side * (half_width - 0.28) + 0.18)
        b.box((front - 0.04, front), y, (z, z + 0.16), _LAMP)
        b.box((rear, rear + 0.04), y, (z + 0.12, z + 0.30), _TAIL)


def _wheels(b: ShapeBuilder, xs: list[float], half_width: float, radius: float) -> None:
    for x in xs:
        for side in (-1.0, 1.0):
            b.wheel(x, side * (half_width - 0.13), radius, 0.26)


def car(rng: Rng) -> Shape:
    """A saloon or an estate car."""
    paint = choose_paint(
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


def truck(rng: Rng) -> Shape:
    """A cab with a box behind."""
    cab = choose_paint(rng, [(0.05, 0.20, 0.55), (0.80, 0.80, 0.80), (0.50, 0.05, 0.05)])
    cargo = choose_paint(rng, [(0.88, 0.88, 0.86), (0.60, 0.66, 0.72), (0.15, 0.40, 0.62)])
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


def bus(rng: Rng) -> Shape:
    """A bus with a row of windows."""
    paint = choose_paint(rng, [(0.80, 0.48, 0.02), (0.65, 0.04, 0.05), (0.10, 0.45, 0.16)])
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


def trailer(rng: Rng) -> Shape:
    """A ribbed box on three axles."""
    paint = choose_paint(rng, [(0.52, 0.54, 0.56), (0.62, 0.60, 0.54), (0.30, 0.46, 0.36)])
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


def construction_vehicle(rng: Rng) -> Shape:
    """An excavator on tracks."""
    paint = choose_paint(rng, [(0.88, 0.55, 0.02), (0.90, 0.42, 0.02)])
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
    shirt = choose_paint(rng, [(0.75, 0.10, 0.10), (0.10, 0.30, 0.75), (0.85, 0.85, 0.15)])
    b.prism(
        [(x - 0.22, seat), (x + 0.12, seat), (x + 0.28, top - 0.26), (x, top - 0.24)],
        (-0.22, 0.22),
        shirt,
    )
    b.box((x - 0.1, x + 0.38), (-0.20, -0.08), (seat - 0.42, seat + 0.05), (0.08, 0.09, 0.16))
    b.box((x - 0.1, x + 0.38), (0.08, 0.20), (seat - 0.42, seat + 0.05), (0.08, 0.09, 0.16))
    b.column((x + 0.18, 0.0), (top - 0.25, top), (0.13, 0.11), (0.12, 0.12, 0.13))


def motorcycle(rng: Rng, ridden: bool = True) -> Shape:
    """A motorcycle, with its rider or alone."""
    paint = choose_paint(rng, [(0.55, 0.02, 0.10), (0.05, 0.05, 0.35), (0.35, 0.02, 0.40)])
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


def bicycle(rng: Rng, ridden: bool = True) -> Shape:
    """A bicycle, with its rider or alone."""
    paint = choose_paint(rng, [(0.05, 0.62, 0.55), (0.35, 0.70, 0.08), (0.05, 0.50, 0.80)])
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
