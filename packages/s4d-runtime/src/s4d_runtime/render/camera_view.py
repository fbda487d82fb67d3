"""One camera image with boxes projected onto it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..geometry import BOX_EDGES, Matrix, box_corners
from .objects import Objects
from .style import (
    GROUND_TRUTH,
    OVERSAMPLE,
    PANEL,
    TEXT,
    TEXT_DIM,
    Rgb,
    TagLayer,
    font,
    track_colour,
)

__all__ = ["draw_camera"]

NEAR = 0.3  # metres: what is nearer to the camera is cut off
MIN_LABEL_HEIGHT = 18  # pixels: smaller boxes get no label


def draw_camera(
    image: NDArray[np.uint8] | None,
    size: tuple[int, int],
    name: str,
    matrix: Matrix | None,
    objects: Objects | None,
    truth: Objects | None = None,
    points: NDArray[np.float64] | None = None,
    point_colours: NDArray[np.uint8] | None = None,
) -> Image.Image:
    """The cell of one camera.

    Args:
        image: (H, W, 3) raw image; None draws an empty cell.
        size: (width, height) of the cell.
        name: shown in the corner.
        matrix: (4, 4) LiDAR to raw pixels (``geometry.lidar2img``).
        objects: boxes, coloured by track id.
        truth: annotated boxes, drawn thin and white below.
        points: (M, 3) LiDAR-frame points to mark, with ``point_colours`` (M, 3).
    """
    if image is None or matrix is None:
        cell = Image.new("RGB", size, PANEL)
        draw = ImageDraw.Draw(cell)
        draw.text((size[0] / 2, size[1] / 2), f"{name}: no image", TEXT_DIM, font(15), anchor="mm")
        return cell
    height, width = image.shape[:2]
    big = (size[0] * OVERSAMPLE, size[1] * OVERSAMPLE)
    canvas = Image.fromarray(image).resize(big, Image.Resampling.BILINEAR, reducing_gap=2.0)
    scale = np.diag([big[0] / width, big[1] / height, 1.0, 1.0])
    to_canvas = scale @ matrix
    draw = ImageDraw.Draw(canvas, "RGBA")
    if points is not None and point_colours is not None:
        _draw_points(draw, big, to_canvas, points, point_colours)
    if truth is not None:
        for _, corners in _visible(truth, to_canvas, big):
            _draw_box(draw, corners, GROUND_TRUTH, 1, big)
    labels: list[tuple[int, NDArray[np.float64]]] = []
    if objects is not None:
        labels = _visible(objects, to_canvas, big)
        for index, corners in labels:
            _draw_box(draw, corners, track_colour(int(objects.ids[index])), 2, big)
    cell = canvas.resize(size, Image.Resampling.BOX)
    overlay = ImageDraw.Draw(cell, "RGBA")
    tags = TagLayer(overlay, (2, 2, size[0] - 2, size[1] - 2))
    _corner_name(overlay, tags, name)
    for index, corners in reversed(labels):  # nearest first
        assert objects is not None
        _label(tags, corners, objects.label(index), track_colour(int(objects.ids[index])), size)
    return cell


def _visible(
    objects: Objects, matrix: Matrix, size: tuple[int, int]
) -> list[tuple[int, NDArray[np.float64]]]:
    """Boxes that reach into the image, farthest first: index, (8, 3) corners ``u*d v*d d``."""
    if len(objects) == 0:
        return []
    corners = box_corners(objects.boxes) @ matrix[:3, :3].T + matrix[:3, 3]
    depth = corners[..., 2]
    result = []
    for index in np.argsort(-depth.mean(axis=1)):
        front = depth[index] > NEAR
        if not front.any():
            continue
        pixels = corners[index][front, :2] / depth[index][front, None]
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        if (high > 0).all() and low[0] < size[0] and low[1] < size[1]:
            centre = corners[index].mean(axis=0)
            # A box beside the camera: some corners in front, its centre far outside.
            if centre[2] > NEAR or (front.sum() >= 4 and (high - low).max() < 4 * max(size)):
                result.append((int(index), corners[index]))
    return result


def _draw_box(
    draw: ImageDraw.ImageDraw,
    corners: NDArray[np.float64],
    colour: Rgb,
    width: int,
    size: tuple[int, int],
) -> None:
    """Edges, cut at the near plane; the front face is tinted so that heading can be seen."""
    if width > 1 and (corners[:4, 2] > NEAR).all():
        face = corners[:4, :2] / corners[:4, 2:]
        if np.abs(face).max() < 4 * max(size):
            draw.polygon([tuple(p) for p in face], fill=(*colour, 64))
    for a, b in BOX_EDGES:
        segment = _clip_near(corners[a], corners[b])
        if segment is None:
            continue
        clipped = _clip_rectangle(*segment, size)
        if clipped is not None:
            draw.line(clipped, fill=(*colour, 255), width=width * OVERSAMPLE - 1)


def _clip_near(
    a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The part of an edge beyond the near plane, in pixels."""
    if a[2] <= NEAR and b[2] <= NEAR:
        return None
    if a[2] <= NEAR:
        a = a + (b - a) * (NEAR - a[2]) / (b[2] - a[2])
    elif b[2] <= NEAR:
        b = b + (a - b) * (NEAR - b[2]) / (a[2] - b[2])
    return a[:2] / a[2], b[:2] / b[2]


def _clip_rectangle(
    a: NDArray[np.float64], b: NDArray[np.float64], size: tuple[int, int]
) -> list[tuple[float, float]] | None:
    """The part of a segment inside the image (Liang and Barsky's clipping)."""
    start, stop = 0.0, 1.0
    delta = b - a
    for axis in (0, 1):
        for sign, border in ((-1.0, 0.0), (1.0, float(size[axis]))):
            step, room = sign * delta[axis], sign * (border - a[axis])
            if step == 0:
                if room < 0:
                    return None
                continue
            ratio = room / step
            if step < 0:
                start = max(start, ratio)
            else:
                stop = min(stop, ratio)
    if start >= stop:
        return None
    first, last = a + start * delta, a + stop * delta
    return [(float(first[0]), float(first[1])), (float(last[0]), float(last[1]))]


def _draw_points(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    matrix: Matrix,
    points: NDArray[np.float64],
    colours: NDArray[np.uint8],
) -> None:
    projected = points @ matrix[:3, :3].T + matrix[:3, 3]
    ahead = np.flatnonzero(projected[:, 2] > NEAR)
    pixels = projected[ahead, :2] / projected[ahead, 2:]
    inside = ((pixels >= 0) & (pixels < size)).all(axis=1)
    for (u, v), colour in zip(pixels[inside], colours[ahead[inside]], strict=True):
        r = 1.6 * OVERSAMPLE
        draw.ellipse((u - r, v - r, u + r, v + r), fill=(*colour.tolist(), 220))


def _corner_name(overlay: ImageDraw.ImageDraw, tags: TagLayer, name: str) -> None:
    text = name.removeprefix("CAM_").replace("_", " ").lower()
    face = font(13)
    right = overlay.textlength(text, font=face) + 20
    overlay.rounded_rectangle((8, 8, right, 28), radius=5, fill=(0, 0, 0, 150))
    overlay.text((14, 18), text, fill=TEXT, font=face, anchor="lm")
    tags.reserve((8, 8, right, 28))


def _label(
    tags: TagLayer,
    corners: NDArray[np.float64],
    text: str,
    colour: Rgb,
    size: tuple[int, int],
) -> None:
    front = corners[corners[:, 2] > NEAR]
    pixels = front[:, :2] / front[:, 2:] / OVERSAMPLE
    low = np.clip(pixels.min(axis=0), 0, size)
    high = np.clip(pixels.max(axis=0), 0, size)
    if high[1] - low[1] < MIN_LABEL_HEIGHT:
        return
    tags.place(float(low[0]), float(max(low[1] - 2, 20)), text, colour, 10)
