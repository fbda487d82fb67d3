"""Colours, fonts and small drawing helpers shared by all views."""

from __future__ import annotations

from functools import cache
from typing import Any

from PIL import ImageDraw, ImageFont

__all__ = [
    "BACKGROUND",
    "GROUND_TRUTH",
    "OVERSAMPLE",
    "PANEL",
    "TEXT",
    "TEXT_DIM",
    "Rgb",
    "TagLayer",
    "font",
    "track_colour",
]

Rgb = tuple[int, int, int]

OVERSAMPLE = 2  # lines are drawn this much larger and averaged: Pillow has no smooth lines
BACKGROUND: Rgb = (11, 14, 19)
PANEL: Rgb = (19, 24, 32)
TEXT: Rgb = (232, 236, 241)
TEXT_DIM: Rgb = (132, 143, 158)
GROUND_TRUTH: Rgb = (255, 255, 255)
NO_TRACK: Rgb = (170, 178, 189)

# Told apart on road, foliage and night images; neighbours in the list differ most.
_TRACKS: tuple[Rgb, ...] = (
    (76, 201, 240),
    (255, 122, 89),
    (126, 217, 87),
    (255, 89, 170),
    (255, 209, 82),
    (160, 132, 255),
    (38, 222, 168),
    (255, 158, 44),
    (92, 148, 255),
    (235, 110, 235),
    (196, 224, 76),
    (255, 94, 94),
    (64, 224, 208),
    (255, 178, 200),
    (200, 170, 255),
    (150, 240, 180),
)


def track_colour(track_id: int) -> Rgb:
    """The same id has the same colour in every view and frame."""
    return NO_TRACK if track_id < 0 else _TRACKS[track_id % len(_TRACKS)]


@cache
def font(size: float) -> Any:
    """Pillow's own font, so that no system font is needed."""
    return ImageFont.load_default(size)


class TagLayer:
    """Puts labels on a picture without letting them cover each other."""

    def __init__(self, draw: ImageDraw.ImageDraw, bounds: tuple[float, float, float, float]):
        self._draw = draw
        self._bounds = bounds
        self._taken: list[tuple[float, float, float, float]] = []

    def reserve(self, box: tuple[float, float, float, float]) -> None:
        """Keep a rectangle free of labels."""
        self._taken.append(box)

    def place(self, x: float, y: float, text: str, colour: Rgb, size: float) -> bool:
        """A label with its lower left corner near (x, y); left out where there is no room."""
        face = font(size)
        left, top, right, bottom = self._draw.textbbox((0, 0), text, font=face)
        width, height = right - left + 6, bottom - top + 5
        x0, y0, x1, y1 = self._bounds
        x = min(max(x, x0), x1 - width)
        for offset in (0, -height - 1, height + 1):
            low = y + offset
            box = (x, low - height, x + width, low)
            inside = box[1] >= y0 and box[3] <= y1
            if inside and not any(_overlap(box, other) for other in self._taken):
                self._taken.append(box)
                self._draw.rounded_rectangle(box, radius=3, fill=(*colour, 205))
                origin = (x + 3 - left, box[1] + 2 - top)
                self._draw.text(origin, text, font=face, fill=(12, 14, 18))
                return True
        return False


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
