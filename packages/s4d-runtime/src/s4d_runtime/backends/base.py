"""What the pipeline asks of an inference engine.

A backend owns its input, output and state buffers. The pipeline writes into the input buffers,
calls ``run``, looks at the outputs, and then either ``commit``s, which makes the new state the
current one, or does not, and the state is as before. State never passes through the pipeline.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from s4d_ops.image import ResizeCrop, resize_crop

from ..artifact import Artifact, Manifest
from ..errors import BackendError
from ..image_input import DeviceImage, ImageInput, PreparedImage

__all__ = ["Backend", "EngineOptions"]


@dataclass(frozen=True)
class EngineOptions:
    """Settings of an engine. Each engine reads what concerns it.

    Attributes:
        threads: CPU threads, 0 for the engine's choice.
        device: number of the CUDA device.
        tf32: let fp32 arithmetic on the GPU drop to TF32. Faster, and no longer fp32.
        cuda_graph: replay the network as a CUDA graph.
        fuse: let ONNX Runtime's CUDA provider run parts of the graph in fused steps of s4d-ops.
        fp32x3: float32 products as sums of half-precision ones, of the same accuracy; with `fuse`
            and without `tf32`.
    """

    threads: int = 0
    device: int = 0
    tf32: bool = False
    cuda_graph: bool = True
    fuse: bool = True
    fp32x3: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.threads, int) or self.threads < 0:
            raise BackendError(f"expected threads as a number of 0 or more, got {self.threads!r}")


class Backend(ABC):
    """An engine with one loaded model, batch 1, for one thread at a time."""

    name: ClassVar[str]

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    @classmethod
    @abstractmethod
    def why_not(cls, manifest: Manifest) -> str | None:
        """None if this engine can run the artifact here, else the reason in a few words."""

    @classmethod
    @abstractmethod
    def load(cls, artifact: Artifact, options: EngineOptions) -> Backend:
        """Load the model.

        Raises:
            BackendUnavailableError: something that the engine needs is missing here.
            BackendError: the engine refused the model, with its reason.
        """

    @property
    def details(self) -> str:
        """What else is to be said about how it runs, or empty."""
        return ""

    @property
    def advice(self) -> str:
        """What may help when outputs are not finite, as the end of a sentence, or empty."""
        return ""

    @abstractmethod
    def buffer(self, name: str) -> NDArray[Any]:
        """The host array of an input that is not state; what is in it is used by ``run``."""

    @abstractmethod
    def run(self) -> dict[str, NDArray[Any]]:
        """Run the graph once on the buffers and the current state.

        Returns:
            Outputs that are not state, as views that the next ``run`` overwrites.

        Raises:
            BackendError: the engine failed; the current state is unharmed.
        """

    @abstractmethod
    def commit(self) -> None:
        """Make the state that the last ``run`` wrote the current one."""

    @abstractmethod
    def clear_state(self) -> None:
        """Fill the current state with zeros."""

    @abstractmethod
    def read_state(self, name: str) -> NDArray[Any]:
        """A host copy of one entry of the current state, by its input name."""

    @abstractmethod
    def write_state(self, name: str, value: NDArray[Any]) -> None:
        """Replace one entry of the current state."""

    def memory(self) -> dict[str, int]:
        """Bytes in use that the engine knows of, by kind; for ``s4d-run bench``."""
        return {}

    def stage_milliseconds(self) -> dict[str, float]:
        """Time of the last ``run`` on the device, by stage; empty for engines on the host."""
        return {}

    def load_images(
        self, images: Sequence[ImageInput], plans: Sequence[ResizeCrop], threads: int
    ) -> None:
        """Resize and crop raw images into ``buffer("images")``.

        Engines on a device do this there; this one works on the host.
        """
        target = self.buffer("images")
        filter_name = self.manifest.preprocessing.resize_filter
        for camera, (image, plan) in enumerate(zip(images, plans, strict=True)):
            if isinstance(image, PreparedImage):
                target[camera] = image.pixels
            else:
                assert isinstance(image, np.ndarray)  # device images were refused before
                resize_crop(image, plan, filter_name, out=target[camera], threads=threads)

    def prepare_image(
        self, camera: int, image: ImageInput, plan: ResizeCrop, threads: int
    ) -> PreparedImage:
        """Resize and crop one image now, while another frame may run."""
        assert isinstance(image, np.ndarray)
        pixels = resize_crop(image, plan, self.manifest.preprocessing.resize_filter, None, threads)
        return PreparedImage(self, camera, image.shape, pixels)

    def pinned_images(self, sizes: Sequence[tuple[int, int]]) -> list[NDArray[np.uint8]]:
        """(H, W, 3) uint8 arrays from which this engine takes images fastest."""
        return [np.zeros((*size, 3), dtype=np.uint8) for size in sizes]

    def borrow_image(self, array: Any) -> DeviceImage | None:
        """A foreign array in the memory of this engine's device; None if it is elsewhere."""
        return None

    def close(self) -> None:
        """Give memory back. The backend cannot be used afterwards."""
        return None
