"""The data set: one sample of a converted index, loaded, augmented, as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from s4d_train.errors import ConfigError

from .augment import (
    SequenceAugment,
    bev_rotation_matrix,
    draw_grid_mask,
    draw_photometric,
    draw_sequence,
    plain_grid_mask,
    plain_photometric,
    rotate_boxes,
)
from .batch import Sample
from .config import DataConfig
from .depth import depth_maps
from .images import load_evaluation_image, load_points, load_training_image
from .index import DriveIndex
from .samplers import Draw

__all__ = ["DriveDataset"]

Array = npt.NDArray[Any]


class DriveDataset(Dataset[Sample]):
    """Samples of a converted index.

    Items are asked for by a :class:`Draw`. A draw with a ``visit`` is augmented by random numbers
    that are a function of (seed, visit, step) only: the same draw gives the same sample in any
    worker, process or run. A draw without one is the evaluation transform.

    Args:
        config: what to read and how.
        index: the opened index; by default the one that ``config.index`` names.
        seed: of the augmentation.
        with_depth, with_boxes: whether LiDAR files and annotations are read.
    """

    def __init__(
        self,
        config: DataConfig,
        index: DriveIndex | None = None,
        *,
        seed: int = 0,
        with_depth: bool = True,
        with_boxes: bool = True,
    ) -> None:
        self.config = config
        self.index = index if index is not None else DriveIndex.open(config.index)
        self.seed = seed
        self.with_depth = with_depth and bool(config.depth_strides)
        self.with_boxes = with_boxes
        self.root = config.root or str(self.index.root)
        self._columns = self.index.camera_columns(config.camera_names)
        self._labels = _label_map(self.index.classes, config.class_names)
        height, width = config.image_size
        if any(height % s or width % s for s in config.depth_strides):
            raise ConfigError(
                f"the image size {config.image_size} is not divisible by the depth strides "
                f"{config.depth_strides}; change one of them"
            )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, draw: Draw | int) -> Sample:
        if not isinstance(draw, Draw):
            draw = Draw(int(draw), True)
        config, row = self.config, draw.row
        shared: SequenceAugment | None = None
        colours, mask, bev = plain_photometric(len(self._columns)), plain_grid_mask(), 0.0
        if draw.visit >= 0:
            shared = draw_sequence(
                config.augment, np.random.default_rng([self.seed, 21, draw.visit])
            )
            rng = np.random.default_rng([self.seed, 22, draw.visit, draw.step])
            if config.augment.photometric:
                colours = draw_photometric(len(self._columns), rng)
            mask = draw_grid_mask(config.augment, config.image_size, rng)
            bev = shared.bev

        images, pixel, focal = self._images(row, shared)
        lidar2img = pixel @ self._lidar2raw(row)
        lidar2global = self.index.lidar2global(row)
        depth: list[Array] = []
        if self.with_depth:
            points = load_points(self._path(self.index.lidar_file[row]))
            depth = depth_maps(
                points, lidar2img, config.image_size, config.depth_strides, config.max_depth
            )
        boxes, labels, ids = self._annotations(row)
        if bev:
            back = bev_rotation_matrix(-bev)
            lidar2img, lidar2global = lidar2img @ back, lidar2global @ back
            boxes = rotate_boxes(boxes, bev)
        height, width = config.image_size
        wh = torch.tensor([width, height], dtype=torch.float32)
        return Sample(
            images=torch.from_numpy(images),
            lidar2img=torch.from_numpy(lidar2img.astype(np.float32)),
            image_wh=wh.repeat(len(images), 1),
            timestamp=float(self.index.timestamp[row]) * 1e-6,
            lidar2global=torch.from_numpy(lidar2global),
            focal=torch.from_numpy(focal.astype(np.float32)),
            depth=tuple(torch.from_numpy(m) for m in depth),
            boxes=torch.from_numpy(boxes.astype(np.float32)),
            labels=torch.from_numpy(labels),
            track_ids=torch.from_numpy(ids),
            token="" if draw.padding else self.index.token[row].decode(),
            sequence_start=draw.start,
            photometric=torch.from_numpy(colours),
            grid_mask=torch.from_numpy(mask),
        )

    def _path(self, name: bytes) -> Any:
        from pathlib import Path

        return Path(self.root) / name.decode()

    def _images(self, row: int, shared: SequenceAugment | None) -> tuple[Array, Array, Array]:
        """(N, H, W, 3) images, (N, 4, 4) raw to network pixels, (N,) focal lengths."""
        config, index = self.config, self.index
        height, width = config.image_size
        images = np.empty((len(self._columns), height, width, 3), dtype=np.uint8)
        pixel = np.tile(np.eye(4), (len(self._columns), 1, 1))
        focal = np.empty(len(self._columns))
        for slot, column in enumerate(self._columns):
            path = self._path(index.camera_file[row, column])
            raw_width, raw_height = (int(v) for v in index.camera_size[row, column])
            raw = (raw_height, raw_width)
            if shared is None:
                images[slot], matrix = load_evaluation_image(
                    path, raw, config.image_size, config.resize_filter
                )
            else:
                transform = shared.transform(raw, config.image_size)
                images[slot] = load_training_image(
                    path, transform, config.resize_filter, config.augment.fast_decode
                )
                matrix = transform.matrix
                focal[slot] = transform.scale
            if shared is None:
                focal[slot] = matrix[0, 0]
            # (u, v, 1) of the 3 x 3 acts on (u d, v d, d): columns 0, 1, 2 of the 4 x 4.
            pixel[slot, :3, :3] = matrix
            focal[slot] *= index.camera_intrinsic[row, column, 0, 0]
        return images, pixel, focal

    def _lidar2raw(self, row: int) -> npt.NDArray[np.float64]:
        """(N, 4, 4) LiDAR to pixels of the files."""
        intrinsic = np.tile(np.eye(4), (len(self._columns), 1, 1))
        intrinsic[:, :3, :3] = self.index.camera_intrinsic[row][self._columns]
        return np.asarray(intrinsic @ self.index.lidar2camera[row][self._columns])

    def _annotations(self, row: int) -> tuple[Array, Array, Array]:
        """Boxes (n, 9), labels (n,), instance numbers (n,) that training uses."""
        if not self.with_boxes:
            return np.zeros((0, 9)), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        index, rows = self.index, self.index.annotations(row)
        boxes = np.concatenate([index.box[rows], np.nan_to_num(index.velocity[rows])], 1)
        labels = self._labels[index.label[rows]]
        keep = (labels >= 0) & (np.hypot(boxes[:, 0], boxes[:, 1]) <= self.config.max_distance)
        if self.config.require_points:
            keep &= index.num_lidar_pts[rows] > 0
        ids = index.instance[rows].astype(np.int64)
        return boxes[keep], labels[keep], ids[keep]


def _label_map(have: list[str], want: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Labels of the index to labels of the configuration; the last entry serves label -1."""
    unknown = [name for name in want if name not in have]
    if unknown:
        raise ConfigError(
            f"classes {', '.join(unknown)} are not in the index; it has {', '.join(have)}"
        )
    return np.array([want.index(n) if n in want else -1 for n in have] + [-1], dtype=np.int64)
