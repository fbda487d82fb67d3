"""What the pipeline asks of an inference engine.

A backend owns its input, output and state buffers. The pipeline writes into the input buffers,
calls ``run``, looks at the outputs, and then either ``commit``s, which makes the new state the
current one, or does not, and the state is as before. State never passes through the pipeline.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from s4d_ops.image import ResizeCrop, resize_crop

from ..artifact import Artifact, Manifest

__all__ = ["Backend"]


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
    def load(cls, artifact: Artifact, threads: int) -> Backend:
        """Load the model. ``threads`` 0 leaves the number to the engine.

        Raises:
            BackendError: the engine refused the model, with its reason.
        """

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

    def load_images(
        self, images: Sequence[NDArray[np.uint8]], plans: Sequence[ResizeCrop], threads: int
    ) -> None:
        """Resize and crop raw images into ``buffer("images")``.

        Engines on a device may do this there; this one works on the host.
        """
        target = self.buffer("images")
        filter_name = self.manifest.preprocessing.resize_filter
        for camera, (image, plan) in enumerate(zip(images, plans, strict=True)):
            resize_crop(image, plan, filter_name, out=target[camera], threads=threads)

    def close(self) -> None:
        """Give memory back. The backend cannot be used afterwards."""
        return None
