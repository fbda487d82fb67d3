"""The value that the loader hands to the trainer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

__all__ = ["Batch", "Sample", "collate"]


@dataclass
class Batch:
    """One frame of each of ``B`` sequences, collated.

    Images are geometrically augmented (resize, crop, flip, rotate) but not yet photometrically
    and not normalised: :class:`s4d_train.data.ImagePreparation` does both on the device, from the
    parameters that travel here. Every random number was drawn by the loader from the seed, so a
    batch is a pure function of (seed, step), whatever the number of workers.

    All boxes are in the LiDAR frame of the sample after BEV augmentation.
    """

    images: torch.Tensor
    """(B, N, H, W, 3) uint8 RGB at network size, cameras in the configured order."""
    lidar2img: torch.Tensor
    """(B, N, 4, 4) float32, LiDAR frame to pixels of ``images`` (x, y, depth homogeneous)."""
    image_wh: torch.Tensor
    """(B, N, 2) float32, width and height of ``images``."""
    timestamp: torch.Tensor
    """(B,) float64 seconds."""
    lidar2global: torch.Tensor
    """(B, 4, 4) float64."""
    focal: torch.Tensor
    """(B, N) float32, focal length in network pixels (for the depth branch)."""
    depth: tuple[torch.Tensor, ...]
    """Per stride (B, N, H/stride, W/stride) float32 metres, -1 where no point; may be empty."""
    boxes: list[torch.Tensor]
    """B tensors (M_b, 9) float32: x y z size_x size_y size_z yaw vx vy. size_x is along the
    heading (nuScenes length). Velocity is 0 where the annotation has none. M_b may be 0."""
    labels: list[torch.Tensor]
    """B tensors (M_b,) int64, 0..classes-1."""
    track_ids: list[torch.Tensor]
    """B tensors (M_b,) int64, instance numbers, unique in the data set."""
    tokens: list[str]
    """B nuScenes sample tokens; "" marks padding of :class:`EvaluationSampler`, to be ignored."""
    sequence_start: torch.Tensor
    """(B,) bool, True where the sample does not continue the previous batch's sequence in this
    slot: the state of the slot is to be reset."""
    photometric: torch.Tensor
    """(B, N, 8) float32 parameters of the colour augmentation; identity in evaluation."""
    grid_mask: torch.Tensor
    """(B, 5) float32 parameters of GridMask; first column 0 = off."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on ``device``."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by ``DataLoader(pin_memory=True)``)."""
        return self._map(torch.Tensor.pin_memory)

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def _map(self, fn) -> Batch:  # type: ignore[no-untyped-def]
        def visit(value):  # type: ignore[no-untyped-def]
            if isinstance(value, torch.Tensor):
                return fn(value)
            if isinstance(value, list | tuple):
                return type(value)(visit(v) for v in value)
            return value

        return Batch(**{f.name: visit(getattr(self, f.name)) for f in dataclasses.fields(self)})


@dataclass
class Sample:
    """One item of the data set: the fields of :class:`Batch` without the first dimension."""

    images: torch.Tensor
    lidar2img: torch.Tensor
    image_wh: torch.Tensor
    timestamp: float
    lidar2global: torch.Tensor
    focal: torch.Tensor
    depth: tuple[torch.Tensor, ...]
    boxes: torch.Tensor
    labels: torch.Tensor
    track_ids: torch.Tensor
    token: str
    sequence_start: bool
    photometric: torch.Tensor
    grid_mask: torch.Tensor


def collate(samples: list[Sample]) -> Batch:
    """Stack samples; annotations stay lists because their number differs."""
    return Batch(
        images=torch.stack([s.images for s in samples]),
        lidar2img=torch.stack([s.lidar2img for s in samples]),
        image_wh=torch.stack([s.image_wh for s in samples]),
        timestamp=torch.tensor([s.timestamp for s in samples], dtype=torch.float64),
        lidar2global=torch.stack([s.lidar2global for s in samples]),
        focal=torch.stack([s.focal for s in samples]),
        depth=tuple(torch.stack(maps) for maps in zip(*(s.depth for s in samples), strict=True)),
        boxes=[s.boxes for s in samples],
        labels=[s.labels for s in samples],
        track_ids=[s.track_ids for s in samples],
        tokens=[s.token for s in samples],
        sequence_start=torch.tensor([s.sequence_start for s in samples]),
        photometric=torch.stack([s.photometric for s in samples]),
        grid_mask=torch.stack([s.grid_mask for s in samples]),
    )
