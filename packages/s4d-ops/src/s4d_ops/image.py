"""From a raw camera image to the network's input size: resize and crop, in one pass.

The plan (how much, from where) is the evaluation transform of the Sparse4D family. The kernel
computes only the rows and columns that survive the crop.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import InvalidInputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FILTERS", "ResizeCrop", "plan_resize_crop", "resize_crop"]

FILTERS = ("pillow_bicubic", "pillow_bilinear", "cv2_linear")


@dataclass(frozen=True)
class ResizeCrop:
    """Resize to ``resized_size``, then cut ``height`` x ``width`` out at (``top``, ``left``).

    Sizes are (height, width) in pixels. ``resize`` is the factor that geometry uses; the true
    ratio ``resized_size / raw_size`` can differ by less than a pixel over the image, because
    sizes are cut to integers. Where that leaves a pixel out, ``top`` is -1 and the first row is
    black, or the last column is.
    """

    raw_size: tuple[int, int]
    resize: float
    resized_size: tuple[int, int]
    top: int
    left: int
    height: int
    width: int

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(3, 3) float64: homogeneous raw pixel (u, v, 1) to network pixel.

        ``lidar2img`` of the network is this matrix, as a 4 x 4, times that of the raw image.
        """
        import numpy as np

        return np.array(
            [
                [self.resize, 0.0, -float(self.left)],
                [0.0, self.resize, -float(self.top)],
                [0.0, 0.0, 1.0],
            ]
        )


def plan_resize_crop(raw_size: tuple[int, int], network_size: tuple[int, int]) -> ResizeCrop:
    """Plan of the evaluation transform: fill the network's input, keep the bottom of the image.

    Args:
        raw_size: (height, width) of the camera image.
        network_size: (height, width) of the network's input.

    The image is scaled by ``max(h / H, w / W)``, sizes cut to integers; the crop keeps the bottom
    rows and the middle columns. 900 x 1600 to 256 x 704 gives 396 x 704, rows 140 to 395.
    """
    raw_height, raw_width = _size("raw_size", raw_size)
    height, width = _size("network_size", network_size)
    resize = max(height / raw_height, width / raw_width)
    resized_width = max(1, int(raw_width * resize))
    resized_height = max(1, int(raw_height * resize))
    return ResizeCrop(
        raw_size=(raw_height, raw_width),
        resize=resize,
        resized_size=(resized_height, resized_width),
        top=resized_height - height,
        left=max(0, resized_width - width) // 2,
        height=height,
        width=width,
    )


def resize_crop(
    image: NDArray[np.uint8],
    plan: ResizeCrop,
    filter: str = "pillow_bicubic",
    out: NDArray[np.uint8] | None = None,
    threads: int = 0,
) -> NDArray[np.uint8]:
    """Resize and crop one image.

    Args:
        image: (H, W, 3) uint8 of size ``plan.raw_size``. Rows may be strided; the three values of
            a pixel must lie together.
        plan: from ``plan_resize_crop``.
        filter: ``"pillow_bicubic"`` or ``"pillow_bilinear"`` (antialiased, as Pillow's
            ``Image.resize``), or ``"cv2_linear"`` (four neighbours, as OpenCV's ``INTER_LINEAR``).
        out: (height, width, 3) uint8 to write to, contiguous. Default: a new array.
        threads: 0 takes ``S4D_NUM_THREADS``, else the cores this process may use.

    Returns:
        ``out``, the same for any number of threads. The Pillow filters give Pillow's bytes, with
        the pass along x before that along y: so does every Pillow up to 12; Pillow 13 takes the
        other order where the image shrinks more along y. ``cv2_linear`` is within one grey level.

    Raises:
        InvalidInputError: wrong shape, type, filter or plan.
        MissingLibraryError: the package was installed without its native module.
    """
    from ._native_module import native

    code = FILTERS.index(filter) if filter in FILTERS else -1
    if code < 0:
        raise InvalidInputError(f"expected filter to be one of {FILTERS}, got {filter!r}")
    module = native()
    try:
        return module.resize_crop(
            image,
            plan.resized_size,
            (plan.top, plan.left),
            (plan.height, plan.width),
            plan.raw_size,
            code,
            out,
            threads,
        )
    except (ValueError, TypeError) as error:
        raise InvalidInputError(str(error)) from None


def _size(name: str, size: tuple[int, int]) -> tuple[int, int]:
    try:
        height, width = (operator.index(value) for value in size)
    except (TypeError, ValueError):
        raise InvalidInputError(f"expected {name} as two integers, got {size!r}") from None
    if height < 1 or width < 1:
        raise InvalidInputError(f"expected {name} (height, width) of at least 1, got {size!r}")
    return height, width
