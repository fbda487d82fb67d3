"""What cameras saw at a moment, with absolute time and pose, and moments seen from each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .aggregation_op import FeatureMaps
from .feature_queue import past_frames, push
from .state import State
from .temporal_sampling import Other, View

__all__ = ["Observation", "remember", "seen_from", "step"]


@dataclass(frozen=True)
class Observation:
    """Feature maps of one moment.

    Attributes:
        maps: pyramid features of all cameras, as `Sparse4D.features` gives them.
        lidar2img: (B, N, 4, 4), LiDAR frame to pixels of the network input.
        timestamp: (B,) float64 seconds.
        lidar2global: (B, 4, 4) float64.
        present: (B,) bool; False where a sample has no such moment (a recording has ended). None:
            everywhere.
    """

    maps: FeatureMaps
    lidar2img: Tensor
    timestamp: Tensor
    lidar2global: Tensor
    present: Tensor | None = None


def step(state: State, timestamp: Tensor, lidar2global: Tensor) -> tuple[Tensor, Tensor]:
    """Transform and seconds from the state's frame to this one, in float64.

    Samples without a past get the identity and 0, whatever the state holds for them.
    """
    valid = state.bank.valid
    transform = between(state.lidar2global, lidar2global)
    identity = torch.eye(4, dtype=transform.dtype, device=transform.device)
    return (
        torch.where(valid[:, None, None], transform, identity),
        torch.where(valid, timestamp - state.timestamp, 0.0),
    )


def between(source: Tensor, target: Tensor) -> Tensor:
    """(B, 4, 4) from one LiDAR frame to another, both given as lidar2global."""
    # inv_ex: inv would wait for the device to report singular matrices.
    return torch.linalg.inv_ex(target).inverse @ source


def seen_from(
    timestamp: Tensor, lidar2global: Tensor, others: Sequence[Observation], dtype: torch.dtype
) -> list[Other]:
    """Observations as the model samples them from the moment given, in their own order."""
    result = []
    for other in others:
        present = other.present
        if present is None:
            present = torch.ones_like(timestamp, dtype=torch.bool)
        here = present[:, None, None]
        identity = torch.eye(4, dtype=lidar2global.dtype, device=lidar2global.device)
        transform = torch.where(here, between(lidar2global, other.lidar2global), identity)
        interval = torch.where(present, timestamp - other.timestamp, 0.0)
        view = View(other.maps, other.lidar2img)
        result.append(Other(view, transform.to(dtype), interval.to(dtype), present))
    return result


def remember(state: State, seen: Observation) -> State:
    """The state after a frame that was looked at but not searched for objects."""
    bank = state.bank
    assert bank.queue is not None
    dtype = bank.queue.from_newest.dtype
    transform, interval = step(state, seen.timestamp, seen.lidar2global)
    others = past_frames(bank.queue, bank.valid, transform.to(dtype), interval.to(dtype), seen.maps)
    queue = push(bank.queue, View(seen.maps, seen.lidar2img.to(dtype)), others)
    following = replace(bank, queue=queue, valid=torch.ones_like(bank.valid))
    return State(following, seen.timestamp, seen.lidar2global)
