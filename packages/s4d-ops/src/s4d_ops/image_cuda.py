"""Resize and crop of camera images on a CUDA device, without a framework.

The kernel has the arithmetic of ``s4d_ops.image.resize_crop``, so both give the same bytes. Arrays
are anything with ``__cuda_array_interface__`` (torch, CuPy, Numba); the call runs on a stream of
the caller and neither allocates nor waits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

from ._libraries import LIBRARY_DIR
from .errors import InvalidInputError, MissingLibraryError
from .image import FILTERS, ResizeCrop

__all__ = ["MAX_IMAGES", "resize_crop"]

MAX_IMAGES = 16  # in one call
_LAYOUTS = {"|u1": 0, "<f4": 1, "<f2": 2}


@cache
def _function() -> Any:
    path = LIBRARY_DIR / "libs4d_image_cuda.so"
    try:
        function = ctypes.CDLL(str(path)).s4d_resize_crop_cuda
    except OSError as error:
        raise MissingLibraryError(
            f"the CUDA image kernel of s4d-ops cannot be loaded ({error}); build the package with "
            "S4D_CUDA=ON where nvcc is"
        ) from None
    function.restype = ctypes.c_int
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int32,
                         ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
                         ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64]  # fmt: skip
    return function


def resize_crop(
    images: Sequence[Any],
    plan: ResizeCrop,
    out: Any,
    filter: str = "pillow_bicubic",
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    stream: int = 0,
) -> None:
    """Resize and crop up to 16 images of one size into one array.

    Args:
        images: device arrays (H, W, 3) uint8 of size ``plan.raw_size``. Rows may be strided,
            alike in all of them; the values of a row must lie together.
        plan: from ``s4d_ops.image.plan_resize_crop``.
        out: contiguous device array to write to: (n, height, width, 3) uint8, or
            (n, 3, height, width) float32 or float16, then ``(value - mean) / std``.
        filter: ``"pillow_bicubic"``, ``"pillow_bilinear"`` or ``"cv2_linear"``.
        mean, std: per channel, in grey levels (0 to 255). Used for float results only.
        stream: address of the CUDA stream, e.g. ``torch.cuda.current_stream().cuda_stream``.

    Raises:
        InvalidInputError: wrong shape, type, filter or plan, or a reduction of over about 100.
        MissingLibraryError: this installation has no CUDA libraries.
    """
    if filter not in FILTERS:
        raise InvalidInputError(f"expected filter to be one of {FILTERS}, got {filter!r}")
    if not 1 <= len(images) <= MAX_IMAGES:
        raise InvalidInputError(f"expected 1 to {MAX_IMAGES} images in a call, got {len(images)}")
    height, width = plan.raw_size
    pointers, strides = [], set()
    for image in images:
        interface = _interface(image)
        row = (interface.get("strides") or (3 * width, 3, 1))[0]
        inner = (interface.get("strides") or (0, 3, 1))[1:]
        if interface["shape"] != (height, width, 3) or interface["typestr"] != "|u1":
            raise InvalidInputError(
                f"expected images ({height}, {width}, 3) uint8, got {interface['shape']} of type "
                f"{interface['typestr']}"
            )
        if tuple(inner) != (3, 1):
            raise InvalidInputError("expected the values of an image row to lie together")
        pointers.append(interface["data"][0])
        strides.add(row)
    if len(strides) != 1:
        raise InvalidInputError("expected the same row stride in every image")
    target = _interface(out)
    layout = _LAYOUTS.get(target["typestr"])
    size = (plan.height, plan.width)
    shape = (len(images), *size, 3) if layout == 0 else (len(images), 3, *size)
    if layout is None or target["shape"] != shape or target.get("strides") is not None:
        raise InvalidInputError(
            f"expected out as contiguous ({len(images)}, {size[0]}, {size[1]}, 3) uint8 or "
            f"({len(images)}, 3, {size[0]}, {size[1]}) float32 or float16, got {target['shape']} "
            f"of type {target['typestr']}"
        )
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise InvalidInputError("expected three means and three standard deviations above 0")
    sources = (ctypes.c_void_p * len(pointers))(*pointers)
    sizes = (ctypes.c_int64 * 9)(height, width, strides.pop(), *plan.resized_size, plan.top,
                                 plan.left, *size)  # fmt: skip
    message = ctypes.create_string_buffer(512)
    code = _function()(
        sources, len(pointers), sizes, FILTERS.index(filter), layout, (ctypes.c_float * 3)(*mean),
        (ctypes.c_float * 3)(*std), target["data"][0], stream, message, len(message),
    )  # fmt: skip
    if code:
        raise InvalidInputError(message.value.decode())


def _interface(array: Any) -> dict[str, Any]:
    try:
        interface: dict[str, Any] = array.__cuda_array_interface__
    except AttributeError:
        raise InvalidInputError(
            f"expected an array on a CUDA device (__cuda_array_interface__), got {type(array)}"
        ) from None
    return interface
