"""Images to calibrate and search with: a data set in nuScenes layout, its index, or random ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s4d_core import Sparse4DConfig
from s4d_ops.image import plan_resize_crop, resize_crop
from s4d_runtime.nuscenes import NuScenes
from s4d_runtime.nuscenes.dataset import read_image

from ..errors import QuantizationError
from ..frames import random_frames

__all__ = ["check_images", "dataset_images", "random_images"]

Images = NDArray[np.uint8]
INDEX_FORMAT = 1  # of s4d-train's converted index, the only one there is


def random_images(config: Sparse4DConfig, count: int, seed: int = 0) -> Iterator[Images]:
    """`count` seeded pictures (N, H, W, 3). They fit no trained model; for tests and timing."""
    for frame in random_frames(config, count, seed):
        yield frame.images


def dataset_images(
    config: Sparse4DConfig, source: str | os.PathLike[str], count: int
) -> Iterator[Images]:
    """`count` frames (N, H, W, 3), spread evenly over a data set, resized as on board.

    Args:
        source: a folder in nuScenes layout, or an index made by ``s4d-train convert``. A data set
            with fewer frames gives all that it has.

    Raises:
        QuantizationError: a frame lacks a camera of the model, or the index is damaged.
        DatasetError: no such data set, or a broken one.
    """
    folder = Path(source)
    rows = _index_rows(config, folder) if (folder / "index.json").is_file() else None
    if rows is None:
        rows = _nuscenes_rows(config, folder)
    if not rows:
        raise QuantizationError(f"the data set in {os.fspath(source)!r} has no frames")
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    for number in chosen:
        yield np.stack([_prepare(config, path) for path in rows[number]])


def check_images(config: Sparse4DConfig, images: NDArray[Any]) -> Images:
    """The images, if they fit the model.

    Raises:
        QuantizationError: another number of cameras, another size, or not uint8.
    """
    height, width = config.image.size
    expected = (config.num_cameras, height, width, 3)
    if images.shape != expected or images.dtype != np.uint8:
        raise QuantizationError(
            f"expected calibration images {expected} uint8 ({config.num_cameras} cameras), got "
            f"{images.shape} {images.dtype}; give frames of the model's cameras"
        )
    return images


def _nuscenes_rows(config: Sparse4DConfig, folder: Path) -> list[list[Path]]:
    dataset = NuScenes(folder)
    rows = []
    for scene in dataset.scenes:
        for token in scene.samples:
            cameras = dataset.sample(token).cameras
            _check_cameras(config, list(cameras), folder)
            rows.append([cameras[name].path for name in config.camera_names])
    return rows


def _index_rows(config: Sparse4DConfig, folder: Path) -> list[list[Path]]:
    """Image paths of a converted index: ``index.json`` and the column ``camera_file.npy``."""
    try:
        header = json.loads((folder / "index.json").read_text())
        version, names, root = header["format"], list(header["cameras"]), Path(header["root"])
        # The index keeps names as bytes, UTF-8.
        files = np.char.decode(np.load(folder / "camera_file.npy", allow_pickle=False), "utf-8")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QuantizationError(
            f"{str(folder)!r} holds no readable index ({error}); make it anew with "
            "`s4d-train convert`"
        ) from None
    if version != INDEX_FORMAT:
        raise QuantizationError(
            f"expected an index of format {INDEX_FORMAT} in {str(folder)!r}, got {version}"
        )
    _check_cameras(config, names, folder)
    columns = [names.index(name) for name in config.camera_names]
    return [[root / str(row[column]) for column in columns] for row in files]


def _check_cameras(config: Sparse4DConfig, names: list[str], folder: Path) -> None:
    missing = [name for name in config.camera_names if name not in names]
    if missing:
        raise QuantizationError(
            f"expected the model's {config.num_cameras} cameras, but {str(folder)!r} has "
            f"{len(names)} and lacks {', '.join(missing)}"
        )


def _prepare(config: Sparse4DConfig, path: Path) -> Images:
    image = read_image(path)
    if image is None:
        raise QuantizationError(f"the data set lacks the image {str(path)!r}")
    height, width = image.shape[:2]
    plan = plan_resize_crop((height, width), config.image.size)
    return resize_crop(image, plan, config.image.resize_filter)
