"""The instance bank as pure functions: what is carried from frame to frame.

Formulas: REFERENCE B5.7 and B5.8, and golden/v3 behaviours 4 and 5 for first frames and gaps.
Three cases per sample, chosen by value:

*   no past (`valid` False): default interval, nothing merged, no decayed confidence, new ids;
*   a gap (`valid`, but the step is over the limit): as no past, except that stale instances are
    still keys of the first temporal attention and still hold up confidences;
*   a usable past.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .config import Sparse4DConfig
from .layers import full_precision
from .state import BankState

__all__ = ["Carried", "assign_ids", "merge", "remember", "temporal_mask"]


class Carried(NamedTuple):
    """Instances chosen for the next frame: (B, T, C), (B, T, 11), (B, T)."""

    feature: Tensor
    box: Tensor
    confidence: Tensor


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of (B, A, K) chosen by (B, T): (B, T, K)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def temporal_mask(
    bank: BankState, interval: Tensor, config: Sparse4DConfig
) -> tuple[Tensor, Tensor]:
    """Where the past is usable, and the interval for refinement.

    Args:
        bank: the carried state.
        interval: (B,) true seconds since the previous frame; may be 0, negative, or a gap.

    Returns:
        mask (B,) bool, and (B,) seconds that are never 0.
    """
    mask = bank.valid & (interval.abs() <= config.max_time_interval)
    if config.refine_interval == "default":
        return mask, torch.full_like(interval, config.default_time_interval)
    used = torch.where(mask & (interval != 0), interval, config.default_time_interval)
    return mask, used


def merge(
    feature: Tensor,
    box: Tensor,
    cls: Tensor,
    past_feature: Tensor,
    past_box: Tensor,
    mask: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Carried instances first, then the best of this frame; where there is no past, no change.

    Args:
        feature, box, cls: (B, A, C), (B, A, 11), (B, A, classes) of this frame.
        past_feature, past_box: (B, T, C), (B, T, 11), already in the current frame.
        mask: (B,) bool.

    Returns:
        feature, box, and the index (B, A - T) of this frame's instances that stay.
    """
    count = feature.shape[1] - past_feature.shape[1]
    index = cls.amax(dim=-1).topk(count, dim=1).indices
    choose = mask[:, None, None]
    new_feature = torch.cat([past_feature, gather_rows(feature, index)], dim=1)
    new_box = torch.cat([past_box, gather_rows(box, index)], dim=1)
    return torch.where(choose, new_feature, feature), torch.where(choose, new_box, box), index


def remember(
    feature: Tensor, box: Tensor, cls: Tensor, bank: BankState, config: Sparse4DConfig
) -> tuple[Carried, Tensor, Tensor]:
    """Choose the instances to carry on; gradients stop here.

    Returns:
        the chosen; the confidence (B, A) of all instances after the decay rule; the index (B, T)
        of the chosen.
    """
    past = config.num_temporal
    confidence = cls.detach().amax(dim=-1).sigmoid()
    head = confidence[:, :past]
    decayed = torch.maximum(bank.confidence * config.confidence_decay, head)
    head = torch.where(bank.valid[:, None], decayed, head)
    confidence = torch.cat([head, confidence[:, past:]], dim=1)
    top, index = confidence.topk(past, dim=1)
    feature = full_precision(feature.detach())
    chosen = Carried(gather_rows(feature, index), gather_rows(box.detach(), index), top)
    return chosen, confidence, index


def assign_ids(
    cls: Tensor, bank: BankState, mask: Tensor, config: Sparse4DConfig
) -> tuple[Tensor, Tensor]:
    """Carried instances keep their ids, the others get new ones.

    Ids count up over the batch, sample after sample, row after row. With
    `config.track_threshold` an instance without an id gets one only with that class score.

    Returns:
        ids (B, A) int64, -1 for none; and the new counter (1,).
    """
    batch, count = cls.shape[:2]
    kept = torch.where(mask[:, None], bank.track_id, -1)
    fill = torch.full((batch, count - kept.shape[1]), -1, dtype=torch.int64, device=kept.device)
    ids = torch.cat([kept, fill], dim=1)
    new = ids < 0
    if config.track_threshold is not None:
        new = new & (cls.detach().amax(dim=-1).sigmoid() >= config.track_threshold)
    order = new.flatten().to(torch.int64).cumsum(0).reshape(new.shape)
    ids = torch.where(new, bank.id_counter + order - 1, ids)
    return ids, bank.id_counter + order[-1, -1]
