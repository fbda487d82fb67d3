"""One picture per frame: the cameras in the order in which one would look around, and above."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..frame import Frame
from ..geometry import Matrix, invert_rigid, lidar2img
from .bev import draw_bev, forward_axis
from .camera_view import draw_camera
from .objects import Objects
from .style import BACKGROUND, TEXT, TEXT_DIM, font

__all__ = ["Renderer", "View"]

GAP = 6
HEADER = 44
TRAIL_LENGTH = 20  # frames


@dataclass(frozen=True)
class View:
    """What one picture shows.

    Attributes:
        frame: images and calibration.
        camera_names: in the frame's order.
        objects: detections, or annotations where there is no model.
        truth: annotations to compare with, thin and white.
        points: (P, >= 3) LiDAR points for the bird's-eye view.
        marks: (M, 3) LiDAR-frame positions to mark, as the decoder's anchors.
        title, note: left and right of the header.
    """

    frame: Frame
    camera_names: Sequence[str]
    objects: Objects | None = None
    truth: Objects | None = None
    points: NDArray[np.float32] | None = None
    marks: NDArray[np.float64] | None = None
    title: str = ""
    note: str = ""


class Renderer:
    """Draws frame after frame; remembers where tracks were, to draw their trails.

    Args:
        cell_width: pixels of one camera image; everything else follows.
        reach: metres shown to each side of the vehicle in the bird's-eye view.
    """

    def __init__(self, cell_width: int = 560, reach: float = 55.0) -> None:
        self.cell_width = cell_width
        self.reach = reach
        self._trails: dict[int, deque[NDArray[np.float64]]] = {}

    def reset(self) -> None:
        """Forget the trails: a new drive begins."""
        self._trails.clear()

    def draw(self, view: View) -> Image.Image:
        """The picture of one frame."""
        calibrations = view.frame.cameras
        matrices = [
            None if c is None else lidar2img(np.asarray(c.intrinsic), np.asarray(c.lidar2camera))
            for c in calibrations
        ]
        looking = [c for c in calibrations if c is not None]
        forward = (
            forward_axis(np.asarray(looking[0].lidar2camera)) if looking else np.array([0.0, 1.0])
        )
        rows = _arrange([None if c is None else np.asarray(c.lidar2camera) for c in calibrations])
        cell = (self.cell_width, self._cell_height(view.frame))
        marks, colours = view.marks, _mark_colours(view.marks)
        cells = [
            draw_camera(image, cell, name, matrix, view.objects, view.truth, marks, colours)
            for image, name, matrix in zip(
                view.frame.images, view.camera_names, matrices, strict=True
            )
        ]
        columns = max(len(row) for row in rows)
        grid_height = len(rows) * (cell[1] + GAP) - GAP
        side = max(grid_height, 600)
        trails = self._follow(view)
        bev = draw_bev(
            *(side, self.reach, forward, view.objects, view.truth, view.points),
            *(trails, marks, colours),
        )
        width = GAP + columns * (cell[0] + GAP) + side + GAP
        picture = Image.new("RGB", (width + width % 2, HEADER + side + GAP), BACKGROUND)
        top = HEADER + (side - grid_height) // 2
        for r, row in enumerate(rows):
            for c, camera in enumerate(row):
                corner = (GAP + c * (cell[0] + GAP), top + r * (cell[1] + GAP))
                picture.paste(cells[camera], corner)
        picture.paste(bev, (width - side - GAP, HEADER))
        _header(picture, view.title, view.note)
        return picture

    def _cell_height(self, frame: Frame) -> int:
        """The first image's shape, within reason; even, for video."""
        shapes = [i.shape for i in frame.images if i is not None]
        ratio = shapes[0][0] / shapes[0][1] if shapes else 9 / 16
        return 2 * round(self.cell_width * min(max(ratio, 0.3), 1.0) / 2)

    def _follow(self, view: View) -> dict[int, list[NDArray[np.float64]]]:
        """Add this frame's tracks; trails of tracks in view, in the present LiDAR frame."""
        objects = view.objects
        if objects is None or objects.scores is None:
            return {}
        pose = np.asarray(view.frame.lidar2global, dtype=np.float64)
        world = objects.boxes[:, :3] @ pose[:3, :3].T + pose[:3, 3]
        back = invert_rigid(pose)
        trails = {}
        for track, position in zip(objects.ids.tolist(), world, strict=True):
            if track >= 0:
                path = self._trails.setdefault(track, deque(maxlen=TRAIL_LENGTH))
                path.append(position)
                trails[track] = [(back[:3, :3] @ p + back[:3, 3])[:2] for p in path]
        for gone in self._trails.keys() - trails.keys():
            del self._trails[gone]
        return trails


def _arrange(extrinsics: Sequence[Matrix | None]) -> list[list[int]]:
    """Camera numbers in rows, from left to right: those that look ahead, then the rest.

    Left and right are the vehicle's, so a picture on the left shows what is left of the vehicle.
    """
    known = [(i, e) for i, e in enumerate(extrinsics) if e is not None]
    unknown = [i for i, e in enumerate(extrinsics) if e is None]
    if not known:
        return [unknown] if unknown else [[]]
    forward = forward_axis(known[0][1])
    left_axis = np.array([-forward[1], forward[0]])
    ahead: list[tuple[float, int]] = []
    behind: list[tuple[float, int]] = []
    for i, extrinsic in known:
        axis = forward_axis(extrinsic)
        along, left = float(axis @ forward), float(axis @ left_axis)
        angle = math.atan2(left, along)
        if along > -1e-3:
            ahead.append((-angle, i))
        else:
            behind.append((-left, i))
    rows = [[i for _, i in sorted(ahead)], [i for _, i in sorted(behind)] + unknown]
    return [row for row in rows if row]


def _mark_colours(marks: NDArray[np.float64] | None) -> NDArray[np.uint8] | None:
    """Near marks warm, far ones cool."""
    if marks is None:
        return None
    far = np.clip(np.hypot(marks[:, 0], marks[:, 1]) / 55.0, 0.0, 1.0)[:, None]
    blend = (1 - far) * (255, 196, 64) + far * (72, 140, 255)
    return blend.astype(np.uint8)


def _header(picture: Image.Image, title: str, note: str) -> None:
    draw = ImageDraw.Draw(picture)
    middle = HEADER / 2
    draw.text((GAP + 8, middle), title, TEXT, font(20), anchor="lm")
    draw.text((picture.width - GAP - 8, middle), note, TEXT_DIM, font(15), anchor="rm")
