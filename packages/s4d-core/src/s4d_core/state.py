"""What a model remembers from one frame to the next, as values.

Nothing here is an attribute of the model. Training carries a `State` between iterations, the
exporter turns a `BankState` into graph inputs and outputs, a runtime hands it back and forth.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .box import BOX_DIMS
from .config import Sparse4DConfig
from .feature_queue import FeatureQueue

__all__ = ["BankState", "BankTrace", "State"]


@dataclass(frozen=True)
class BankState:
    """The instances carried to the next frame (T of them per sample), or past feature maps.

    Attributes:
        feature: (B, T, C).
        anchor: (B, T, 11) box states in the LiDAR frame of the frame that wrote them.
        confidence: (B, T), 0..1, by falling value.
        track_id: (B, T) int64; -1 where an instance has no id.
        id_counter: (1,) int64, the next free id; ids are unique over the batch.
        valid: (B,) bool; False: this sample has no past, its next frame is a first frame and the
            other entries are not looked at.
        queue: feature maps of past frames, in models that sample them; else None.
    """

    feature: Tensor
    anchor: Tensor
    confidence: Tensor
    track_id: Tensor
    id_counter: Tensor
    valid: Tensor
    queue: FeatureQueue | None = None

    @classmethod
    def empty(
        cls,
        config: Sparse4DConfig,
        batch_size: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        rows: int | None = None,
        delayed: bool = False,
    ) -> BankState:
        """The state before a first frame: zeros, no ids, not valid.

        Args:
            rows: of the feature maps that a queue holds; None: for the configured image size.
            delayed: for `Sparse4D.delayed_frame`.
        """
        count = config.num_temporal
        queue = None
        if config.queue is not None and (delayed or config.queue.frames == "past"):
            rows = map_rows(config) if rows is None else rows
            poses = config.queue.length + 1 if delayed else None
            queue = FeatureQueue.empty(config, batch_size, rows, device, dtype, poses)
        return cls(
            feature=torch.zeros(batch_size, count, config.embed_dims, device=device, dtype=dtype),
            anchor=torch.zeros(batch_size, count, BOX_DIMS, device=device, dtype=dtype),
            confidence=torch.zeros(batch_size, count, device=device, dtype=dtype),
            track_id=torch.full((batch_size, count), -1, device=device, dtype=torch.int64),
            id_counter=torch.zeros(1, device=device, dtype=torch.int64),
            valid=torch.zeros(batch_size, device=device, dtype=torch.bool),
            queue=queue,
        )

    def to(self, device: torch.device | str) -> BankState:
        """The same values on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "queue"}
        queue = None if self.queue is None else self.queue.to(device)
        return BankState(**{k: v.to(device) for k, v in tensors.items()}, queue=queue)


@dataclass(frozen=True)
class State:
    """A `BankState` with the time and pose of the frame that wrote it.

    Attributes:
        bank: the carried instances.
        timestamp: (B,) float64 seconds.
        lidar2global: (B, 4, 4) float64.
    """

    bank: BankState
    timestamp: Tensor
    lidar2global: Tensor

    def to(self, device: torch.device | str) -> State:
        """The same values on another device."""
        return State(self.bank.to(device), self.timestamp.to(device), self.lidar2global.to(device))

    def reset(self, where: Tensor) -> State:
        """Forget the past of some samples.

        Args:
            where: (B,) bool; True makes the sample's next frame a first frame.
        """
        valid = self.bank.valid & ~where.to(self.bank.valid.device)
        return replace(self, bank=replace(self.bank, valid=valid))


@dataclass(frozen=True)
class BankTrace:
    """What the bank decided in one frame: for tests, comparison tools and denoising targets.

    Attributes:
        time_interval: (B,) seconds, as refinement used it.
        temporal_mask: (B,) bool; True where the past was merged in.
        projected_anchor: (B, T, 11) the carried anchors in the current frame.
        update_index: (B, A - T) which instances of this frame stayed beside the carried ones;
            None in a model that carries none.
        confidence: (B, A) confidence of every instance after the decay rule.
        cached_index: (B, T) which instances are carried on.
    """

    time_interval: Tensor
    temporal_mask: Tensor
    projected_anchor: Tensor
    update_index: Tensor | None
    confidence: Tensor
    cached_index: Tensor


def map_rows(config: Sparse4DConfig) -> int:
    """Rows of the feature maps of all cameras at the configured image size."""
    frame = 2 if config.aggregation.border == "zeros" else 0
    return config.num_cameras * sum((h + frame) * (w + frame) for h, w in config.level_sizes)


torch.export.register_dataclass(BankState, serialized_type_name="s4d_core.BankState")
