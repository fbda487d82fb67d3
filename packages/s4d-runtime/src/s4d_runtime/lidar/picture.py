"""A picture of a bird's-eye tensor: how strong each cell is, with distances and a colour scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..render.style import BACKGROUND, TEXT, TEXT_DIM, font
from .voxels import VoxelRules

__all__ = ["bev_picture"]

MARGIN, HEADER, SCALE_WIDTH = 12, 52, 78  # pixels
STOPS = np.array([[12, 14, 24], [40, 60, 140], [60, 170, 170], [250, 240, 150]], np.float32)
RINGS = (1, 2, 5, 10, 20, 50, 100)  # metres between rings, whichever gives few enough


def bev_picture(
    dense: NDArray[Any], rules: VoxelRules, title: str, subtitle: str = "", size: int = 720
) -> Image.Image:
    """The tensor seen from above, in the LiDAR frame: x to the right, y up.

    A cell shows the largest magnitude among its channels; colours go with its square root, up to
    the 99.5th percentile of the cells that are not empty.

    Args:
        dense: (C, H, W); rows along y, columns along x, over the range of ``rules``.
        rules: give the range in metres.
        title: first line above.
        subtitle: what else the second line says.
        size: pixels of the longer side of the map.
    """
    strength = np.abs(dense.astype(np.float32)).max(0)
    filled = strength[strength > 0]
    top = float(np.quantile(filled, 0.995)) if filled.size else 1.0
    low, high = np.array(rules.low[:2]), np.array(rules.high[:2])
    scale = size / float((high - low).max())  # pixels a metre
    width, height = (int(v) for v in np.maximum(np.rint((high - low) * scale), 1))
    cells = Image.fromarray(_colours(strength[::-1] / top))
    layer = cells.resize((width, height), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(layer, "RGBA")
    _rings(draw, (-low[0] * scale, high[1] * scale), scale, layer.size)
    _metre_bar(draw, scale, layer.size)

    canvas = Image.new(
        "RGB", (width + 2 * MARGIN + SCALE_WIDTH, height + HEADER + MARGIN), BACKGROUND
    )
    canvas.paste(layer, (MARGIN, HEADER))
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, 8), title, TEXT, font(16))
    line = f"largest magnitude of {dense.shape[0]} channels; x right, y up"
    draw.text((MARGIN, 30), ", ".join(t for t in (subtitle, line) if t), TEXT_DIM, font(11))
    _colour_scale(canvas, (width + 2 * MARGIN, HEADER, height), top)
    return canvas


def _colours(share: NDArray[Any]) -> NDArray[np.uint8]:
    """(..., 3) of shares of the scale's top."""
    at = np.sqrt(np.clip(share, 0, 1)) * (len(STOPS) - 1)
    below = np.minimum(at.astype(np.int64), len(STOPS) - 2)
    part = (at - below)[..., None]
    return (STOPS[below] * (1 - part) + STOPS[below + 1] * part).round().astype(np.uint8)


def _spacing(metres: float) -> int:
    """Metres between rings, so that about five or fewer fit."""
    return next((step for step in RINGS if metres / step <= 6), RINGS[-1])


def _rings(
    draw: ImageDraw.ImageDraw, centre: tuple[float, float], scale: float, size: tuple[int, int]
) -> None:
    """Distances from the sensor, and the sensor itself."""
    x, y = centre
    reach = max(x, size[0] - x, y, size[1] - y) / scale
    step = _spacing(reach)
    for metres in range(step, int(reach * 1.5) + 1, step):
        r = metres * scale
        draw.ellipse((x - r, y - r, x + r, y + r), outline=(255, 255, 255, 70))
        draw.text((x + r - 3, y + 2), f"{metres} m", (255, 255, 255, 190), font(11), anchor="ra")
    draw.line((x - 5, y, x + 5, y), fill=(255, 255, 255, 230))
    draw.line((x, y - 5, x, y + 5), fill=(255, 255, 255, 230))


def _metre_bar(draw: ImageDraw.ImageDraw, scale: float, size: tuple[int, int]) -> None:
    metres = _spacing(size[0] / scale)
    left, bottom = 12, size[1] - 12
    right = left + metres * scale
    draw.line((left, bottom, right, bottom), fill=(255, 255, 255, 230), width=2)
    text = f"{metres} m"
    draw.text(((left + right) / 2, bottom - 5), text, (255, 255, 255, 230), font(11), anchor="md")


def _colour_scale(canvas: Image.Image, place: tuple[int, int, int], top: float) -> None:
    """What the colours mean, beside the map."""
    left, above, height = place
    shares = np.linspace(1, 0, height) ** 2  # even steps of colour
    bar = np.repeat(_colours(shares)[:, None], 16, axis=1)
    canvas.paste(Image.fromarray(bar), (left, above))
    draw = ImageDraw.Draw(canvas)
    for step in range(5):
        value = top * (step / 4) ** 2
        y = above + (height - 1) * (1 - step / 4)
        text = f"{value:.3g}" + (" +" if step == 4 else "")
        anchor = "lt" if step == 4 else "lb" if step == 0 else "lm"
        draw.text((left + 22, y), text, TEXT_DIM, font(11), anchor=anchor)
