"""Temporal denoising: some groups of noisy instances live on in the next frame.

After a frame, `temporal_groups` of the groups, chosen at random, are kept with their last features
and anchors. In the next frame they take the place of the first groups after the single-frame
decoders; their targets are found by instance id. The state is a value, like the model's temporal
state, and belongs into a checkpoint with it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .denoising import DenoisingTargets
from .draws import Draws
from .ground_truth import NO_CLASS, to_device


@dataclass(frozen=True)
class DenoisingState:
    """Kept groups of the frame before: g groups of m instances per sample.

    Attributes:
        feature: (B, g, m, C) instance features.
        anchor: (B, g, m, 11) box states in the LiDAR frame of the sample that they come from.
        label: (B, g, m) int64 classes, track_id: (B, g, m) int64 ids, valid: (B, g, m) bool.
    """

    feature: Tensor
    anchor: Tensor
    label: Tensor
    valid: Tensor
    track_id: Tensor

    @property
    def size(self) -> int:
        """m."""
        return self.label.shape[2]

    def to(self, device: torch.device | str) -> DenoisingState:
        """The same on `device`."""
        moved = {f.name: to_device(getattr(self, f.name), device) for f in fields(self)}
        return replace(self, **moved)


def carry(
    state: DenoisingState, usable: Tensor, now: DenoisingTargets, groups: int
) -> DenoisingTargets:
    """Targets after kept groups have taken the place of this frame's first groups.

    Args:
        state: what was kept of the frame before; g groups of m.
        usable: (B,) bool, whether the model put them in (no first frame, no time gap).
        now: noisy anchors and targets of this frame, M = `groups` * n rows.
        groups: groups of this frame, at least g.

    A kept instance takes the target of the instance with its id in the same group of this frame.
    One whose object is gone becomes background; it stays valid. If m and n differ, the kept groups
    are cut or padded; padding is not valid. `anchor` stays that of this frame.
    """
    kept = state.label.shape[1]
    size = now.size // groups

    def grouped(tensor: Tensor) -> Tensor:
        return tensor.unflatten(1, (groups, size))

    def merge(old: Tensor, new: Tensor) -> Tensor:
        mask = usable[:, None, None] if old.ndim == 3 else usable[:, None, None, None]
        first = torch.where(mask, _resize(old, size), new[:, :kept])
        return torch.cat([first, new[:, kept:]], dim=1).flatten(1, 2)

    track, target = grouped(now.track_id), grouped(now.target)
    # An id of -1 (nothing matched) meets the -1 of others: their targets are 0 too.
    same = state.track_id[..., :, None] == track[:, :kept, None, :]
    present = same.any(dim=-1)
    where = same.to(torch.uint8).argmax(dim=-1)[..., None].expand(-1, -1, -1, target.shape[-1])
    found = torch.where(present[..., None], target[:, :kept].gather(2, where), 0.0)
    label = torch.where(present, state.label, NO_CLASS)
    return DenoisingTargets(
        anchor=now.anchor,
        target=merge(found.to(target.dtype), target),
        label=merge(label, grouped(now.label)),
        valid=merge(state.valid, grouped(now.valid)),
        track_id=merge(state.track_id, track),
    )


def keep(
    feature: Tensor,
    anchor: Tensor,
    targets: DenoisingTargets,
    groups: int,
    kept: int,
    draws: Draws,
) -> DenoisingState:
    """State for the next frame: `kept` random groups of the last decoder's instances.

    Args:
        feature: (B, M, C), anchor: (B, M, 11) after the last decoder; detached here.
        targets: targets that were valid for the last decoder.
        groups: groups in the M rows.
        draws: gives one permutation of the groups; those at a place below `kept` stay, in order.
    """
    chosen = (draws.permutation(groups) < kept).nonzero().flatten()
    index = to_device(chosen, feature.device)

    def select(tensor: Tensor) -> Tensor:
        return tensor.detach().unflatten(1, (groups, -1)).index_select(1, index)

    return DenoisingState(
        feature=select(feature),
        anchor=select(anchor),
        label=select(targets.label),
        valid=select(targets.valid),
        track_id=select(targets.track_id),
    )


def _resize(tensor: Tensor, size: int) -> Tensor:
    """(B, g, m, ...) cut or padded with 0 to (B, g, size, ...)."""
    tensor = tensor[:, :, :size]
    short = size - tensor.shape[2]
    if short <= 0:
        return tensor
    filler = tensor.new_zeros(*tensor.shape[:2], short, *tensor.shape[3:])
    return torch.cat([tensor, filler], dim=2)
