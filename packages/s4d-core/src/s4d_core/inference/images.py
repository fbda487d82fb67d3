"""Camera images of one frame in fixed memory: taken from the caller, made ready for the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s4d_ops import image, image_cuda

from ..config import Sparse4DConfig
from ..errors import InvalidInputError

__all__ = ["ImageInput", "NormalisedImages", "RawImages"]


class ImageInput:
    """Where a frame's images come in.

    `load` runs outside the captured graph and may be given memory of the host or of the device;
    `prepare` runs inside and always uses the same memory.

    Attributes:
        dtype: of what `prepare` returns.
    """

    dtype: torch.dtype

    def load(self, images: Any) -> None:
        """Take the images of one frame.

        Raises:
            InvalidInputError: another number, size or type than the frame was built for.
        """
        raise NotImplementedError

    def prepare(self) -> Tensor:
        """(B * N, 3, H, W), normalised, in the type and memory format of the backbone."""
        raise NotImplementedError


class NetworkInput:
    """The backbone's input: fixed memory with the wanted layout.

    Args:
        channels: at least 3; those beyond the third stay zero.
    """

    def __init__(
        self, count: int, config: Sparse4DConfig, like: Tensor, channels: int, last: bool
    ) -> None:
        layout = torch.channels_last if last else torch.contiguous_format
        size = (count, channels, *config.image.size)
        self.value = torch.zeros(size, dtype=like.dtype, device=like.device).contiguous(
            memory_format=layout
        )

    def write(self, images: Tensor) -> Tensor:
        """Copy (K, 3, H, W) in, and return all channels."""
        self.value[:, :3].copy_(images)
        return self.value


class NormalisedImages(ImageInput):
    """(B, N, 3, H, W) floats at network size, already normalised."""

    def __init__(
        self, batch: int, config: Sparse4DConfig, like: Tensor, channels: int, last: bool
    ) -> None:
        self.dtype = like.dtype
        self.shape = (batch, config.num_cameras, 3, *config.image.size)
        self._network = NetworkInput(batch * config.num_cameras, config, like, channels, last)

    def load(self, images: Any) -> None:
        given = torch.as_tensor(images)
        if tuple(given.shape) != self.shape or not given.is_floating_point():
            raise InvalidInputError(
                f"expected normalised float images {self.shape}, got {tuple(given.shape)} "
                f"{given.dtype}"
            )
        given = given.to(self._network.value.device, non_blocking=True)
        self._network.write(given.flatten(0, 1))

    def prepare(self) -> Tensor:
        return self._network.value


class RawImages(ImageInput):
    """Camera images (H, W, 3) uint8 RGB; resize, crop and normalisation belong to the frame.

    Args:
        raw_size: (H, W) of every camera image.
    """

    def __init__(
        self,
        batch: int,
        config: Sparse4DConfig,
        raw_size: tuple[int, int],
        like: Tensor,
        channels: int,
        last: bool,
    ) -> None:
        self.dtype = like.dtype
        device, count = like.device, batch * config.num_cameras
        self.count, self.shape = count, (*raw_size, 3)
        self.plan = image.plan_resize_crop(raw_size, config.image.size)
        self._config = config.image
        self._network = NetworkInput(count, config, like, channels, last)
        on_gpu = device.type == "cuda"
        self._raw = torch.zeros((count, *self.shape), dtype=torch.uint8, device=device)
        # Uploads that do not wait need host memory that the system may not move.
        self._staging = self._raw.new_zeros(self._raw.shape, device="cpu", pin_memory=on_gpu)
        small = (count, 3, *config.image.size)
        self._planar = torch.zeros(small, dtype=like.dtype, device=device)

    def load(self, images: Any) -> None:
        values = self._list(images)
        for target, staging, value in zip(self._raw, self._staging, values, strict=True):
            if tuple(value.shape) != self.shape or value.dtype != torch.uint8:
                raise InvalidInputError(
                    f"expected every image as {self.shape} uint8, got {tuple(value.shape)} "
                    f"{value.dtype}"
                )
            if target.is_cuda and not value.is_cuda and not value.is_pinned():
                staging.copy_(value)  # while the image before it is on its way
                value = staging
            target.copy_(value, non_blocking=True)

    def _list(self, images: Any) -> list[Tensor]:
        """One tensor per camera of every sample."""
        if isinstance(images, (Tensor, np.ndarray)):
            images = images.reshape(-1, *images.shape[-3:]) if images.ndim > 3 else [images]
        if not isinstance(images, (Sequence, Tensor, np.ndarray)) or len(images) != self.count:
            got = len(images) if hasattr(images, "__len__") else type(images).__name__
            raise InvalidInputError(
                f"expected {self.count} camera images (samples one after another), got {got}"
            )
        return [torch.as_tensor(value) for value in images]

    def prepare(self) -> Tensor:
        names = (self.plan, self._config.resize_filter)
        if self._raw.is_cuda:
            stream = torch.cuda.current_stream(self._raw.device).cuda_stream
            step = image_cuda.MAX_IMAGES
            for start in range(0, self.count, step):
                part = slice(start, start + step)
                image_cuda.resize_crop(
                    list(self._raw[part]),
                    self.plan,
                    self._planar[part],
                    self._config.resize_filter,
                    self._config.mean,
                    self._config.std,
                    stream,
                )
            return self._network.write(self._planar)
        resized = np.stack([image.resize_crop(value.numpy(), *names) for value in self._raw])
        mean, std = (torch.tensor(v) for v in (self._config.mean, self._config.std))
        planar = ((torch.from_numpy(resized) - mean) / std).permute(0, 3, 1, 2)
        return self._network.write(planar)
