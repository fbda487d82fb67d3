"""A sample of the training or validation pipeline as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
import torch
from PIL import Image

from s4d_runtime import Frame
from s4d_runtime.frame import Camera
from s4d_runtime.render import Objects, Renderer, View
from s4d_train.data.batch import Sample
from s4d_train.data.preparation import apply_photometric, grid_mask

__all__ = ["draw_depth", "draw_sample"]

Array = npt.NDArray[Any]


def draw_sample(
    sample: Sample,
    camera_names: Sequence[str],
    class_names: Sequence[str],
    points: Array | None = None,
    title: str = "",
) -> Image.Image:
    """All images after every augmentation with the boxes of the sample, beside a BEV.

    Colours and GridMask are applied as the network sees them. Boxes are projected with
    ``lidar2img``, so the picture proves images, matrices and boxes against each other.
    ``points`` (n, >= 3) are drawn in the BEV; they must be in the augmented LiDAR frame.
    """
    images = _as_seen(sample)
    cameras = [_camera(m) for m in sample.lidar2img.double().numpy()]
    frame = Frame(list(images), sample.timestamp, sample.lidar2global.numpy(), cameras)
    boxes = sample.boxes.double().numpy()
    objects = Objects(
        np.column_stack([boxes, np.zeros(len(boxes))]),
        [class_names[i] for i in sample.labels.tolist()],
        None,
        sample.track_ids.numpy(),
    )
    note = f"{len(boxes)} objects"
    return Renderer().draw(
        View(frame, list(camera_names), objects, points=points, title=title, note=note)
    )


def draw_depth(sample: Sample, max_depth: float = 60.0, columns: int = 3) -> Image.Image:
    """The sample's images, dimmed, with the finest depth map on top: red near, blue far."""
    if not sample.depth:
        raise ValueError("the sample has no depth maps")
    images = _as_seen(sample)
    depth = sample.depth[0].numpy()
    cells = []
    for image, values in zip(images, depth, strict=True):
        stride = image.shape[0] // values.shape[0]
        full = np.kron(values, np.ones((stride, stride), dtype=np.float32))
        canvas = (image[: full.shape[0], : full.shape[1]] * 0.5).astype(np.uint8)
        hit = full > 0
        canvas[hit] = _rainbow(full[hit] / max_depth)
        cells.append(canvas)
    while len(cells) % columns:
        cells.append(np.zeros_like(cells[0]))
    rows = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    return Image.fromarray(np.vstack(rows))


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
