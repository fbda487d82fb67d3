"""Denoising: ground truth with noise, in groups, as extra instances with known targets.

As Sparse4D v3 does it (Lin et al. 2023): every group holds each object once with small noise and
once with noise of one to two times the scale. Inside a group the noisy anchors are matched to the
objects again by their L1 distance, so a small-noise anchor may end as a negative. Everything here
runs on the host, from data that the loader left there: no copy from the device, and the numbers
come from the run's own generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .assignment import CostWeights, box_cost, solve_all
from .boxes import STATE_COLUMNS, TARGET_COLUMNS
from .draws import Draws
from .ground_truth import NO_CLASS, NO_TRACK, GroundTruth, to_device

NEGATIVE = -3
"""Class of a noisy anchor without an object; like every class below 0 it is background."""


@dataclass(frozen=True)
class DenoisingConfig:
    """Numbers of the denoising task.

    Attributes:
        groups: groups of noisy anchors; 0 switches the task off.
        temporal_groups: groups carried to the next frame; 0 switches temporal denoising off.
        max_objects: objects used per sample, the first ones.
        noise: largest small noise of each target column, in the column's unit.
        negatives: whether the anchors of large noise are added.
        fixed_size: always fill up to `max_objects`, so that shapes do not change from step to step.
    """

    groups: int = 5
    temporal_groups: int = 3
    max_objects: int = 32
    noise: tuple[float, ...] = (2.0,) * 3 + (0.5,) * 7
    negatives: bool = True
    fixed_size: bool = False


@dataclass(frozen=True)
class DenoisingTargets:
    """Noisy anchors of one frame and what they should become; M = groups * size of a group.

    Attributes:
        anchor: (B, M, 11) noisy box states, velocity z 0.
        target: (B, M, 10) regression targets; 0 where no object was matched.
        label: (B, M) int64; below 0 is background.
        valid: (B, M) bool; False for padding, which takes no part in the loss.
        track_id: (B, M) int64 instance ids; -1 where no object was matched.
    """

    anchor: Tensor
    target: Tensor
    label: Tensor
    valid: Tensor
    track_id: Tensor

    @property
    def size(self) -> int:
        """M."""
        return self.label.shape[1]

    def to(self, device: torch.device | str) -> DenoisingTargets:
        """The same on `device`; the copies do not block the host."""
        moved = {f.name: to_device(getattr(self, f.name), device) for f in fields(self)}
        return replace(self, **moved)


def make_denoising(
    truth: GroundTruth, config: DenoisingConfig, weights: CostWeights, draws: Draws
) -> DenoisingTargets | None:
    """Noisy anchors for the objects of a batch, or None where there are none or the task is off.

    Args:
        truth: ground truth on the host. A missing (NaN) value counts as 0.
        config, weights: numbers of the task and of the matching cost.
        draws: gives, in this order, the small noise, the size and the sign of the large noise,
            each of shape (groups * B, G, 10), group-major.
    """
    size = min(max(truth.count, default=0), config.max_objects)
    if config.groups <= 0 or size == 0:
        return None
    if config.fixed_size:
        size = config.max_objects
    label = _resize(truth.label, size, NO_CLASS)
    track = _resize(truth.track_id, size, NO_TRACK)
    target = _resize(truth.target, size, 0.0).nan_to_num(nan=0.0)
    batch = label.shape[0]

    # Row g * B + b is sample b in group g.
    label, track = label.repeat(config.groups, 1), track.repeat(config.groups, 1)
    target = target.repeat(config.groups, 1, 1)
    anchor, source = _noisy(target, label, config, draws)

    distance = box_cost(anchor, target, torch.ones_like(target), weights)
    matched = solve_all(list(distance.numpy()))
    anchor_label = torch.full_like(source, NEGATIVE)
    anchor_track = torch.full_like(source, NO_TRACK)
    anchor_target = torch.zeros_like(anchor)
    for row, rows in enumerate(matched):
        index = torch.from_numpy(rows)
        anchor_label[row, index] = label[row]
        anchor_track[row, index] = track[row]
        anchor_target[row, index] = target[row]
    # A small-noise anchor of a real object may be matched to padding; then it is padding too. A
    # large-noise one of a real object that nothing was matched to is a negative.
    valid = (anchor_label >= 0) | ((source >= 0) & (anchor_label == NEGATIVE))

    def by_sample(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (config.groups, batch)).transpose(0, 1).flatten(1, 2)

    missing = anchor.new_zeros(*anchor.shape[:2], STATE_COLUMNS - TARGET_COLUMNS)
    return DenoisingTargets(
        anchor=by_sample(torch.cat([anchor, missing], dim=-1)).contiguous(),
        target=by_sample(anchor_target).contiguous(),
        label=by_sample(anchor_label).contiguous(),
        valid=by_sample(valid).contiguous(),
        track_id=by_sample(anchor_track).contiguous(),
    )


def _noisy(
    target: Tensor, label: Tensor, config: DenoisingConfig, draws: Draws
) -> tuple[Tensor, Tensor]:
    """Noisy anchors (rows, n, 10) and the class of the object that each was made from (rows, n)."""
    shape, dtype = tuple(target.shape), target.dtype
    scale = torch.tensor(config.noise, dtype=dtype)
    small = (draws.uniform(shape, dtype) * 2 - 1) * scale
    if not config.negatives:
        return target + small, label
    large = draws.uniform(shape, dtype) + 1
    sign = torch.where(draws.uniform(shape, dtype) > 0.5, 1.0, -1.0).to(dtype)
    anchor = torch.cat([target + small, target + large * sign * scale], dim=1)
    return anchor, torch.cat([label, label], dim=1)


def _resize(tensor: Tensor, size: int, value: float) -> Tensor:
    """(B, G, ...) cut or filled up with `value` to (B, size, ...)."""
    tensor = tensor[:, :size]
    short = size - tensor.shape[1]
    if short <= 0:
        return tensor
    filler: Sequence[int] = (tensor.shape[0], short, *tensor.shape[2:])
    return torch.cat([tensor, tensor.new_full(filler, value)], dim=1)
