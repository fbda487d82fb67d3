"""The way of images and frames into the pipeline: everything is checked here, nothing is run."""

from __future__ import annotations

from typing import Any, NamedTuple

from s4d_ops.image import ResizeCrop

from .backends import Backend
from .calibration import CalibrationMemory
from .checks import CheckedFrame, Refusal, check_frame, check_image
from .errors import ImageError
from .frame import Frame
from .image_input import ImageInput, PreparedImage
from .plans import ResizePlans
from .policy import FramePolicy

__all__ = ["Admission", "AdmittedImage"]


class AdmittedImage(NamedTuple):
    """A sound image of one camera. ``plan`` is None where the image is prepared already."""

    camera: int
    image: ImageInput
    plan: ResizeCrop | None


class Admission:
    """What it takes to judge images and frames for one engine."""

    def __init__(self, backend: Backend, policy: FramePolicy) -> None:
        preprocessing = backend.manifest.preprocessing
        self._backend = backend
        self._names = preprocessing.camera_names
        self._max_skew = policy.max_camera_skew
        self._plans = ResizePlans(preprocessing.image_size)
        self._calibrations = CalibrationMemory()

    def image(self, camera: int | str, image: Any) -> AdmittedImage:
        """One camera's image, by the camera's index or name.

        Raises:
            ImageError: the image is not as it should be, or there is no such camera.
        """
        names = self._names
        known = range(len(names)) if isinstance(camera, int) else names
        if camera not in known:
            raise ImageError(f"expected a camera of {', '.join(names)}, got {camera!r:.40}")
        index = camera if isinstance(camera, int) else names.index(camera)
        try:
            checked = check_image(image, names[index], self._backend.borrow_image)
            if isinstance(checked, PreparedImage):
                return AdmittedImage(index, checked, None)
            height, width = checked.shape[:2]
            return AdmittedImage(index, checked, self._plans.of((height, width), names[index]))
        except Refusal as refusal:
            raise refusal.error from None

    def frame(self, frame: Frame) -> tuple[CheckedFrame, list[ResizeCrop]]:
        """A whole frame and the resize plan of each camera.

        Raises:
            Refusal: with the cause and the error.
        """
        checked = check_frame(
            frame, self._names, self._max_skew, self._backend.borrow_image, self._calibrations
        )
        for index, (image, name) in enumerate(zip(checked.images, self._names, strict=True)):
            if isinstance(image, PreparedImage) and not (
                image.belongs_to(self._backend) and image.camera == index
            ):
                raise Refusal(
                    "bad_image",
                    ImageError(
                        f"expected the image of {name} to be prepared for it by this pipeline, got "
                        "one of another camera or pipeline"
                    ),
                )
        sizes = zip(checked.sizes, self._names, strict=True)
        return checked, [self._plans.of(size, name) for size, name in sizes]
