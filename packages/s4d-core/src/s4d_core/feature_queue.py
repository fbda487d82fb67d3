"""Feature maps of past frames as a value: what v1 remembers instead of instances."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .aggregation_op import FeatureMaps
from .config import Sparse4DConfig
from .temporal_sampling import Other, View

__all__ = ["FeatureQueue", "past_frames", "push"]


@dataclass(frozen=True)
class FeatureQueue:
    """The last Q frames, the newest first.

    It is never cleared by a time gap (the reference does not either); `BankState.valid` False
    means that none of it is looked at.

    Attributes:
        maps: (B, Q, F, C) pyramid features in the layout of the aggregation operator. `delayed`
            keeps time and pose of one entry more than it keeps maps.
        lidar2img: (B, Q, N, 4, 4) of each frame.
        from_newest: (B, Q, 4, 4), LiDAR frame of the newest entry to that of each entry.
        age: (B, Q) seconds from each entry to the newest.
        filled: (B, Q) bool; where an entry is filled, so are all newer ones.
    """

    maps: Tensor
    lidar2img: Tensor
    from_newest: Tensor
    age: Tensor
    filled: Tensor

    @classmethod
    def empty(
        cls,
        config: Sparse4DConfig,
        batch_size: int,
        rows: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        poses: int | None = None,
    ) -> FeatureQueue:
        """No frames: zeros and identities, for feature maps of `rows` rows."""
        assert config.queue is not None
        shape = (batch_size, config.queue.length)
        moments = (batch_size, config.queue.length if poses is None else poses)
        identity = torch.eye(4, device=device, dtype=dtype)
        return cls(
            maps=torch.zeros(*shape, rows, config.embed_dims, device=device, dtype=dtype),
            lidar2img=identity.repeat(*shape, config.num_cameras, 1, 1),
            from_newest=identity.repeat(*moments, 1, 1),
            age=torch.zeros(moments, device=device, dtype=dtype),
            filled=torch.zeros(moments, device=device, dtype=torch.bool),
        )

    def to(self, device: torch.device | str) -> FeatureQueue:
        """The same values on another device."""
        return FeatureQueue(*(getattr(self, f.name).to(device) for f in fields(self)))


def past_frames(
    queue: FeatureQueue,
    valid: Tensor,
    prev_to_current: Tensor,
    time_interval: Tensor,
    like: FeatureMaps,
) -> list[Other]:
    """The queue as seen from the current frame, the oldest first.

    Args:
        queue: of the previous frame.
        valid: (B,) bool, which samples have a past.
        prev_to_current: (B, 4, 4), newest entry to the current frame, rigid.
        time_interval: (B,) seconds since the newest entry.
        like: the current maps; the past ones have the same layout.
    """
    from_current = queue.from_newest @ invert_rigid(prev_to_current).unsqueeze(1)
    others = []
    for i in reversed(range(queue.maps.shape[1])):
        maps = like._replace(feature=queue.maps[:, i])
        others.append(
            Other(
                View(maps, queue.lidar2img[:, i]),
                from_current[:, i],
                time_interval + queue.age[:, i],
                queue.filled[:, i] & valid,
            )
        )
    return others


def push(queue: FeatureQueue, view: View, others: list[Other]) -> FeatureQueue:
    """The queue after the current frame: it comes first, the oldest entry leaves.

    Gradients stop here.

    Args:
        queue: before.
        view: the current frame.
        others: `past_frames` of it.
    """
    newer = others[1:][::-1]  # the newest first, without the one that leaves
    feature = view.maps.feature.detach().to(queue.maps.dtype)
    pose = others[0].from_current
    identity = torch.eye(4, dtype=pose.dtype, device=pose.device).expand_as(pose)
    filled = others[0].filled
    return FeatureQueue(
        maps=torch.cat([feature.unsqueeze(1), queue.maps[:, :-1]], dim=1),
        lidar2img=torch.cat([view.lidar2img.unsqueeze(1), queue.lidar2img[:, :-1]], dim=1),
        from_newest=torch.stack([identity, *(o.from_current for o in newer)], dim=1),
        age=torch.stack(
            [torch.zeros_like(others[0].interval), *(o.interval for o in newer)], dim=1
        ),
        filled=torch.stack([torch.ones_like(filled), *(o.filled for o in newer)], dim=1),
    )


def invert_rigid(transform: Tensor) -> Tensor:
    """The inverse of rigid transforms (..., 4, 4): rotation transposed, translation turned back."""
    turn = transform[..., :3, :3].transpose(-1, -2)
    move = -(turn * transform[..., None, :3, 3]).sum(dim=-1, keepdim=True)
    return torch.cat([torch.cat([turn, move], dim=-1), transform[..., 3:, :]], dim=-2)


torch.export.register_dataclass(FeatureQueue, serialized_type_name="s4d_core.FeatureQueue")
