"""The bird's-eye view: ego vehicle, boxes, velocities, trails, LiDAR points if there are any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..geometry import Matrix, box_corners
from .objects import Objects
from .style import GROUND_TRUTH, OVERSAMPLE, PANEL, TEXT_DIM, TagLayer, font, track_colour

__all__ = ["draw_bev", "forward_axis"]

EGO_LENGTH, EGO_WIDTH = 4.1, 1.75  # metres
MIN_ARROW_SPEED = 0.5  # metres per second


def forward_axis(lidar2camera: Matrix) -> NDArray[np.float64]:
    """(2,) unit vector in the LiDAR's ground plane along which the first camera looks."""
    axis = lidar2camera[2, :2]
    length = float(np.hypot(*axis))
    unit: NDArray[np.float64] = axis / length if length > 1e-6 else np.array([0.0, 1.0])
    return unit


def draw_bev(
    side: int,
    reach: float,
    forward: NDArray[np.float64],
    objects: Objects | None,
    truth: Objects | None = None,
    points: NDArray[np.float32] | None = None,
    trails: Mapping[int, Sequence[NDArray[np.float64]]] | None = None,
    marks: NDArray[np.float64] | None = None,
    mark_colours: NDArray[np.uint8] | None = None,
) -> Image.Image:
    """A square picture seen from above, ``forward`` pointing up.

    Args:
        side: pixels.
        reach: metres from the centre to the border.
        forward: (2,) unit vector in the LiDAR frame.
        objects: boxes, coloured by track id.
        truth: annotated boxes, in white outline.
        points: (P, >= 3) LiDAR points.
        trails: per track id the past centres (2,) in the present LiDAR frame, oldest first.
        marks: (M, >= 2) positions to mark, with ``mark_colours`` (M, 3).
    """
    big = side * OVERSAMPLE
    to_pixel = _Ground(big, reach, forward)
    canvas = Image.new("RGB", (big, big), PANEL)
    if points is not None:
        canvas = _scatter(canvas, to_pixel, points)
    draw = ImageDraw.Draw(canvas, "RGBA")
    _rings(draw, to_pixel, reach)
    if marks is not None and mark_colours is not None:
        for (u, v), colour in zip(to_pixel(marks[:, :2]), mark_colours, strict=True):
            draw.ellipse((u - 3, v - 3, u + 3, v + 3), fill=(*colour.tolist(), 230))
    if truth is not None:
        for corners in box_corners(truth.boxes):
            outline = [tuple(p) for p in to_pixel(corners[[0, 1, 5, 4], :2])]
            draw.polygon(outline, outline=(*GROUND_TRUTH, 200), width=OVERSAMPLE)
    if trails:
        for track, path in trails.items():
            _trail(draw, to_pixel(np.asarray(path)), track)
    if objects is not None:
        for index in range(len(objects)):
            _box(draw, to_pixel, objects, index)
    _ego(draw, to_pixel, forward)
    picture = canvas.resize((side, side), Image.Resampling.BOX)
    _labels(picture, to_pixel, objects, reach)
    return picture


class _Ground:
    """Ground positions in metres to pixels of the oversized picture."""

    def __init__(self, size: int, reach: float, forward: NDArray[np.float64]) -> None:
        self.scale = size / (2 * reach)
        self.centre = size / 2
        right = np.array([forward[1], -forward[0]])
        self._axes = np.stack((right, -forward)) * self.scale

    def __call__(self, ground: NDArray[np.float64]) -> NDArray[np.float64]:
        return ground @ self._axes.T + self.centre


def _scatter(canvas: Image.Image, to_pixel: _Ground, points: NDArray[np.float32]) -> Image.Image:
    """LiDAR points as faint dots, brighter with height."""
    pixels = np.asarray(canvas).copy()
    where = to_pixel(points[:, :2].astype(np.float64)).astype(np.int64)
    size = pixels.shape[0]
    inside = ((where >= 0) & (where < size - 1)).all(axis=1)
    u, v = where[inside].T
    height = np.clip((points[inside, 2] + 2.0) / 4.0, 0.0, 1.0)[:, None]
    colours = (1 - height) * (52, 66, 88) + height * (120, 146, 180)
    for du, dv in ((0, 0), (1, 0), (0, 1), (1, 1)):
        pixels[v + dv, u + du] = colours.astype(np.uint8)
    return Image.fromarray(pixels)


def _rings(draw: ImageDraw.ImageDraw, to_pixel: _Ground, reach: float) -> None:
    step = 10 if reach <= 60 else 20
    for radius in range(step, int(reach * 1.5), step):
        r, c = radius * to_pixel.scale, to_pixel.centre
        strong = 60 if radius % (2 * step) == 0 else 32
        draw.ellipse((c - r, c - r, c + r, c + r), outline=(148, 163, 184, strong), width=2)


def _trail(draw: ImageDraw.ImageDraw, path: NDArray[np.float64], track: int) -> None:
    colour = track_colour(track)
    for i in range(len(path) - 1):
        alpha = int(30 + 170 * (i + 1) / len(path))
        draw.line([tuple(path[i]), tuple(path[i + 1])], fill=(*colour, alpha), width=3)


def _box(draw: ImageDraw.ImageDraw, to_pixel: _Ground, objects: Objects, index: int) -> None:
    box = objects.boxes[index]
    colour = track_colour(int(objects.ids[index]))
    corners = to_pixel(box_corners(box[None])[0][:, :2])
    draw.polygon(
        [tuple(p) for p in corners[[0, 1, 5, 4]]],
        fill=(*colour, 80),
        outline=(*colour, 255),
        width=3,
    )
    centre, front = to_pixel(box[None, :2])[0], corners[:2].mean(axis=0)
    draw.line([tuple(centre), tuple(front)], fill=(*colour, 255), width=3)
    speed = float(np.hypot(box[7], box[8]))
    if np.isfinite(speed) and speed > MIN_ARROW_SPEED:
        tip = to_pixel((box[:2] + box[7:9])[None])[0]
        draw.line([tuple(centre), tuple(tip)], fill=(*colour, 170), width=2)
        draw.ellipse((tip[0] - 3, tip[1] - 3, tip[0] + 3, tip[1] + 3), fill=(*colour, 220))


def _ego(draw: ImageDraw.ImageDraw, to_pixel: _Ground, forward: NDArray[np.float64]) -> None:
    right = np.array([forward[1], -forward[0]])
    outline = np.array([[0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]]) * (
        EGO_LENGTH,
        EGO_WIDTH,
    )
    body = to_pixel(outline[:, :1] * forward + outline[:, 1:] * right)
    arrow = np.array([[0.38, 0.0], [-0.1, 0.36], [-0.1, -0.36]]) * (EGO_LENGTH, EGO_WIDTH)
    nose = to_pixel(arrow[:, :1] * forward + arrow[:, 1:] * right)
    draw.polygon([tuple(p) for p in body], fill=(232, 236, 241, 255))
    draw.polygon([tuple(p) for p in nose], fill=(24, 30, 40, 255))


def _labels(picture: Image.Image, to_pixel: _Ground, objects: Objects | None, reach: float) -> None:
    draw = ImageDraw.Draw(picture, "RGBA")
    side = picture.width
    step = 20 if reach <= 60 else 40
    for radius in range(step, int(reach), step):
        x = side / 2 + radius * to_pixel.scale / OVERSAMPLE
        draw.text((x - 3, side / 2 + 3), f"{radius} m", TEXT_DIM, font(11), anchor="ra")
    if objects is None:
        return
    tags = TagLayer(draw, (2, 2, side - 2, side - 2))
    middle = side / 2
    tags.reserve((middle - 24, middle - 24, middle + 24, middle + 24))
    order = (
        range(len(objects))
        if objects.scores is not None
        else np.argsort(np.hypot(objects.boxes[:, 0], objects.boxes[:, 1]))
    )
    for index in order:
        if objects.ids[index] < 0:
            continue
        u, v = to_pixel(objects.boxes[index : index + 1, :2])[0] / OVERSAMPLE
        if 0 < u < side and 0 < v < side:
            colour = track_colour(int(objects.ids[index]))
            tags.place(float(u) + 5, float(v) - 5, f"{objects.ids[index]}", colour, 9)
