"""How each camera's raw image becomes a network image."""

from __future__ import annotations

from s4d_ops.image import ResizeCrop, plan_resize_crop

from .calibration import Refusal
from .errors import ImageError

__all__ = ["ResizePlans"]

MAX_UPSCALING = 16.0
MAX_PLANS = 64  # sizes that change all the time must not fill the memory


class ResizePlans:
    """Plans by raw size, for one network size (H, W)."""

    def __init__(self, network_size: tuple[int, int]) -> None:
        self._network_size = network_size
        self._plans: dict[tuple[int, int], ResizeCrop] = {}

    def of(self, size: tuple[int, int], camera: str) -> ResizeCrop:
        """The plan for a raw image (H, W) of this camera.

        Raises:
            Refusal: the image is too small to be of use.
        """
        plan = self._plans.get(size)
        if plan is None:
            plan = plan_resize_crop(size, self._network_size)
            if plan.resize > MAX_UPSCALING:
                raise Refusal(
                    "bad_image",
                    ImageError(
                        f"expected the image of {camera} not to need more than "
                        f"{MAX_UPSCALING:g} times enlargement to {self._network_size}, got {size}"
                    ),
                )
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[size] = plan
        return plan
