"""A sample of the training or validation pipeline as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch
from PIL import Image, ImageDraw, ImageFont

from s4d_runtime import Frame
from s4d_runtime.frame import Camera
from s4d_runtime.render import Objects, Renderer, View
from s4d_train.data.batch import Sample
from s4d_train.data.preparation import apply_photometric, grid_mask

__all__ = ["draw_depth", "draw_sample"]

Array = npt.NDArray[Any]


def draw_sample(
    sample: Sample, camera_names: Sequence[str], class_names: Sequence[str], title: str = ""
) -> Image.Image:
    """All images after every augmentation with the boxes of the sample, beside a BEV.

    Colours and GridMask are applied as the network sees them. Boxes are projected with
    ``lidar2img``, so the picture proves images, matrices and boxes against each other. The points
    in the BEV are those of the depth maps, which proves the depth too.
    """
    boxes = sample.boxes.double().numpy()
    objects = Objects(
        np.column_stack([boxes, np.zeros(len(boxes))]),
        [class_names[i] for i in sample.labels.tolist()],
        None,
        sample.track_ids.numpy(),
    )
    frame = _frame(sample, _as_seen(sample))
    points, note = _points(sample), f"{len(boxes)} objects"
    return Renderer().draw(
        View(frame, list(camera_names), objects, points=points, title=title, note=note)
    )


def draw_depth(
    sample: Sample, camera_names: Sequence[str], max_depth: float = 60.0, title: str = ""
) -> Image.Image:
    """The images, dimmed, with the finest depth map on top, beside its points from above.

    Red is near, blue is ``max_depth`` metres or more; the bar at the upper right is the scale.
    """
    if not sample.depth:
        raise ValueError("the sample has no depth maps")
    images = (_as_seen(sample) // 2).astype(np.uint8)
    for image, values in zip(images, sample.depth[0].numpy(), strict=True):
        stride = image.shape[0] // values.shape[0]
        full = np.kron(values, np.ones((stride, stride), dtype=np.float32))
        hit = full > 0
        image[: full.shape[0], : full.shape[1]][hit] = _rainbow(full[hit] / max_depth)
    view = View(_frame(sample, images), list(camera_names), points=_points(sample), title=title)
    picture = Renderer().draw(view)
    _depth_scale(picture, max_depth)
    return picture


def _frame(sample: Sample, images: npt.NDArray[np.uint8]) -> Frame:
    cameras = [_camera(m) for m in sample.lidar2img.double().numpy()]
    return Frame(list(images), sample.timestamp, sample.lidar2global.numpy(), cameras)


def _points(sample: Sample) -> npt.NDArray[np.float32] | None:
    """(n, 3) cell centres of the finest depth maps, back in the augmented LiDAR frame."""
    if not sample.depth:
        return None
    depth = sample.depth[0].double().numpy()
    camera, row, column = np.nonzero(depth > 0)
    stride = sample.images.shape[1] // depth.shape[1]
    distance = depth[camera, row, column]
    pixels = (np.stack([column, row]) + 0.5) * stride * distance
    rays = np.stack([*pixels, distance, np.ones_like(distance)], 1)
    back = np.linalg.inv(sample.lidar2img.double().numpy())
    return np.einsum("nij,nj->ni", back[camera], rays)[:, :3].astype(np.float32)


def _depth_scale(picture: Image.Image, max_depth: float) -> None:
    """A bar of the depth colours in the header."""
    width, height, top = 240, 14, 15
    bar = np.broadcast_to(_rainbow(np.linspace(0.0, 1.0, width)), (height, width, 3))
    left = picture.width - width - 70
    picture.paste(Image.fromarray(np.ascontiguousarray(bar)), (left, top))
    draw, face = ImageDraw.Draw(picture), ImageFont.load_default(15)
    middle = top + height / 2
    draw.text((left - 8, middle), "depth 0", (200, 206, 214), face, anchor="rm")
    draw.text((left + width + 8, middle), f"{max_depth:g} m", (200, 206, 214), face, anchor="lm")


def _as_seen(sample: Sample) -> npt.NDArray[np.uint8]:
    """(N, H, W, 3) uint8 after colour changes and GridMask (grey where masked)."""
    images = sample.images.permute(0, 3, 1, 2).float()
    images = apply_photometric(images, sample.photometric)
    mask = grid_mask(sample.grid_mask[None], images.shape[-2:])[0]
    images = torch.where(mask > 0, images, torch.full_like(images, 116.0))
    return images.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def _camera(lidar2img: Array) -> Camera:
    """Split a projection into an upper triangular intrinsic and a rigid transform."""
    upper, turn = scipy.linalg.rq(lidar2img[:3, :3])
    signs = np.diag(np.sign(np.diag(upper)))
    upper, turn = upper @ signs, signs @ turn
    if np.linalg.det(turn) < 0:  # a mirrored image: the mirror goes into the intrinsic
        mirror = np.diag([-1.0, 1.0, 1.0])
        upper, turn = upper @ mirror, mirror @ turn
    pose = np.eye(4)
    pose[:3, :3] = turn
    pose[:3, 3] = np.linalg.solve(upper, lidar2img[:3, 3])
    return Camera(upper, pose)


def _rainbow(values: Array) -> npt.NDArray[np.uint8]:
    """(n, 3) colours of 0..1, red through green to blue."""
    t = np.clip(values, 0.0, 1.0)[:, None] * 4.0
    channels = np.concatenate([2.0 - t, np.minimum(t, 4.0 - t), t - 2.0], 1)
    return (np.clip(channels, 0.0, 1.0) * 255).astype(np.uint8)
