"""Decode camera images and bring them to network size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from s4d_train.errors import ConfigError, DataError, ImageFileError, MissingFileError

from .augment import ImageTransform

__all__ = ["load_evaluation_image", "load_points", "load_training_image"]

_FILTERS = {
    "pillow_bicubic": Image.Resampling.BICUBIC,
    "pillow_bilinear": Image.Resampling.BILINEAR,
    "cv2_linear": None,
}


def _decoded(path: Path, size: tuple[int, int], draft: tuple[int, int] | None) -> Image.Image:
    """An RGB image whose file has ``size`` (height, width); decoded not smaller than ``draft``."""
    try:
        image: Any = Image.open(path)
        if (image.height, image.width) != size:
            raise DataError(
                f"the tables say {size[1]} x {size[0]} pixels for {path}, the file has "
                f"{image.width} x {image.height}; convert the data set again or fetch the file"
            )
        if draft is not None and isinstance(image, ImageFile.ImageFile):
            image.draft("RGB", (draft[1], draft[0]))
        image.load()
    except FileNotFoundError:
        raise MissingFileError(
            f"expected the image {path}, found no such file; "
            "`s4d-train convert --check-files` lists what is missing"
        ) from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageFileError(f"cannot decode {path} ({error}); fetch the file again") from None
    return image if image.mode == "RGB" else image.convert("RGB")


def load_training_image(
    path: Path, transform: ImageTransform, resize_filter: str, fast: bool
) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB after ``transform``; what lies outside the file is black.

    Only what survives the crop is resized. ``fast`` lets the JPEG decoder halve the image (or more)
    as long as it stays larger than the resized size.
    """
    image = _decoded(path, transform.raw_size, transform.resized_size if fast else None)
    if resize_filter not in _FILTERS:
        raise ConfigError(
            f"expected a resize filter of {', '.join(_FILTERS)}, got {resize_filter!r}"
        )
    height, width = transform.size
    # The crop's part inside the resized image, in resized and in decoded pixels.
    x0, y0 = max(0, transform.left), max(0, transform.top)
    x1 = min(transform.resized_size[1], transform.left + width)
    y1 = min(transform.resized_size[0], transform.top + height)
    across = image.width / transform.resized_size[1]
    down = image.height / transform.resized_size[0]
    box = (x0 * across, y0 * down, x1 * across, y1 * down)
    pillow = _FILTERS[resize_filter]
    if pillow is None:
        # OpenCV's linear filter does not average over the pixels that a shrink skips.
        part = image.transform(
            (x1 - x0, y1 - y0), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR
        )
    else:
        part = image.resize((x1 - x0, y1 - y0), pillow, box)
    at = (x0 - transform.left, y0 - transform.top)
    if part.size != (width, height):
        canvas = Image.new("RGB", (width, height))
        canvas.paste(part, at)
        part = canvas
    if transform.flip:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if transform.rotate:
        part = part.rotate(transform.rotate, Image.Resampling.BILINEAR)
    return np.asarray(part)


def load_evaluation_image(
    path: Path, raw_size: tuple[int, int], size: tuple[int, int], resize_filter: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """(H, W, 3) uint8 RGB as on board, and the (3, 3) raw pixel to network pixel matrix."""
    from s4d_ops.image import plan_resize_crop, resize_crop

    image = np.asarray(_decoded(path, raw_size, None))
    plan = plan_resize_crop(raw_size, size)
    return resize_crop(image, plan, resize_filter), plan.matrix


def load_points(path: Path) -> npt.NDArray[np.float32]:
    """(n, 3) x y z of a LiDAR file of float32 x y z intensity ring."""
    try:
        values = np.fromfile(path, dtype="<f4")
    except FileNotFoundError:
        raise MissingFileError(
            f"expected the point file {path}, found no such file; complete the data set, or train "
            "without depth maps (depth_strides empty)"
        ) from None
    if len(values) == 0 or len(values) % 5:
        raise ImageFileError(
            f"expected five float32 values per point in {path}, found {len(values)} values; "
            "fetch the file again"
        )
    return values.reshape(-1, 5)[:, :3]
