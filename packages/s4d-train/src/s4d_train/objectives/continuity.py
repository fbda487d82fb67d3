"""Which carried instance belongs to which object: matching that keeps them together.

The published assignment looks at one frame alone. An object that moves is then often given to an
instance that this frame found anew, the carried one is taught to be background, and the track
breaks. With `CostWeights.continuity` the pair of a carried instance and the object that it was
matched to in the frame before gets cheaper by that much, so that following is learned. The state
is a value and belongs into a checkpoint with the model's temporal state.
"""

from __future__ import annotations

import torch
from torch import Tensor

NOBODY = -1
"""Owner of an instance that no object was matched to."""


def same_object(owner: Tensor, usable: Tensor, track_id: Tensor) -> Tensor:
    """(B, T, G) bool: carried instance and object that belonged together in the frame before.

    Args:
        owner: (B, T) id of each carried instance's object, -1 for none.
        usable: (B,) bool, whether the past was merged in (no first frame, no time gap).
        track_id: (B, G) ids of this frame's objects, -1 for padding.
    """
    same = owner[:, :, None] == track_id[:, None, :]
    return same & (owner != NOBODY)[:, :, None] & usable[:, None, None]


def carried_owner(matched: Tensor, track_id: Tensor, count: int, index: Tensor) -> Tensor:
    """(B, T) ids of the objects that the instances carried to the next frame were matched to.

    Args:
        matched: (B, G) instance of every object in the last decoder, -1 for none.
        track_id: (B, G) ids of the objects.
        count: instances A of a sample.
        index: (B, T) which instances are carried on.
    """
    owner = torch.full(
        (track_id.shape[0], count + 1), NOBODY, dtype=torch.int64, device=track_id.device
    )
    owner.scatter_(1, torch.where(matched >= 0, matched, count), track_id)
    return owner.gather(1, index)
