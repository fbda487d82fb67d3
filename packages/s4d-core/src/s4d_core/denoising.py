"""Denoising queries: the model's side of denoising training.

Training adds M noisy copies of the ground truth to the A free instances, in G groups of m
(M = G * m). They run through the same decoders and are split off at the end. The model does:

1.  Rows A..A+M-1 start with `anchor` and a zero feature. Attention between instances is blocked
    between free and noisy rows both ways, and where `attention_mask` is True among the noisy rows.
    (REFERENCE B5.12. In the temporal attention of a frame with a usable or stale past every row
    sees the carried instances; on a first frame that attention is between instances, and the same
    mask holds.)
2.  After the last single-frame decoder the bank merges the past into the free rows only. Then, if
    `temporal` is given, its groups replace the first G_t groups, features and boxes, of the
    samples whose past was merged in (`DenoisingOutput.temporal_mask`). Their boxes are moved into
    the current frame first. Groups with m_t < m rows are filled up with zero rows, further rows
    are cut off.
3.  `DenoisingOutput` returns the noisy rows' classes and boxes of every decoder, and their final
    features and boxes, from which training builds the next frame's `TemporalDenoising`.

Targets, matching, noise and the choice of cached groups are training's. To replay the reference:
after decoder `num_single_frame` the targets of the first G_t groups are those matched by instance
id to the cached ones, wherever `temporal_mask` is True.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .box import BOX_DIMS, project_boxes
from .errors import InvalidInputError

__all__ = ["DenoisingOutput", "DenoisingQueries", "TemporalDenoising"]


@dataclass(frozen=True)
class TemporalDenoising:
    """Groups kept from the previous frame.

    Attributes:
        feature: (B, G_t, m_t, C) instance features, detached.
        anchor: (B, G_t, m_t, 11) boxes in the previous LiDAR frame, detached.
    """

    feature: Tensor
    anchor: Tensor


@dataclass(frozen=True)
class DenoisingQueries:
    """Noisy queries of one frame.

    Attributes:
        anchor: (B, G * m, 11) noisy boxes, group after group. vz is 0 in the reference.
        num_groups: G.
        attention_mask: (G * m, G * m) bool, True where a row must not see a column; `group_mask`
            makes the usual one. None: the usual one.
        temporal: groups of the previous frame, or None.
    """

    anchor: Tensor
    num_groups: int
    attention_mask: Tensor | None = None
    temporal: TemporalDenoising | None = None

    def __post_init__(self) -> None:
        count = self.anchor.shape[1]
        if self.anchor.dim() != 3 or self.anchor.shape[-1] != BOX_DIMS or count % self.num_groups:
            raise InvalidInputError(
                f"expected denoising anchors (B, groups * m, {BOX_DIMS}) with "
                f"{self.num_groups} groups, got {tuple(self.anchor.shape)}"
            )
        mask = self.attention_mask
        if mask is not None and (mask.shape != (count, count) or mask.dtype != torch.bool):
            raise InvalidInputError(
                f"expected a bool attention_mask ({count}, {count}), got {mask.dtype} "
                f"{tuple(mask.shape)}"
            )


@dataclass(frozen=True)
class DenoisingOutput:
    """Predictions of the noisy rows.

    Attributes:
        cls: per decoder (B, G * m, classes) logits.
        box: per decoder (B, G * m, 11).
        feature: (B, G * m, C) after the last decoder.
        anchor: (B, G * m, 11) after the last decoder; the same as `box[-1]`.
        temporal_mask: (B,) bool; True where the cached groups took the place of the first ones.
            False for all samples where no `temporal` was given.
    """

    cls: list[Tensor]
    box: list[Tensor]
    feature: Tensor
    anchor: Tensor
    temporal_mask: Tensor


def group_mask(num_groups: int, size: int, device: torch.device | None = None) -> Tensor:
    """(G * m, G * m) bool: True between rows of different groups."""
    group = torch.arange(num_groups, device=device).repeat_interleave(size)
    return group[:, None] != group[None, :]


def full_attention_mask(queries: DenoisingQueries, num_free: int) -> Tensor:
    """(A + M, A + M) bool, True where a row must not see a column."""
    count = queries.anchor.shape[1]
    device = queries.anchor.device
    inner = queries.attention_mask
    if inner is None:
        inner = group_mask(queries.num_groups, count // queries.num_groups, device)
    mask = torch.ones(num_free + count, num_free + count, dtype=torch.bool, device=device)
    mask[:num_free, :num_free] = False
    mask[num_free:, num_free:] = inner
    return mask


def insert_temporal(
    queries: DenoisingQueries,
    feature: Tensor,
    anchor: Tensor,
    temporal_mask: Tensor,
    transform: Tensor,
    time_interval: Tensor,
    legacy_yaw_order: bool,
) -> tuple[Tensor, Tensor]:
    """Put the cached groups in place of the first ones, step 2 above.

    Args:
        queries: with `temporal` set.
        feature, anchor: (B, M, C) and (B, M, 11), the noisy rows after the single-frame decoders.
        temporal_mask: (B,) bool.
        transform, time_interval: (B, 4, 4) and (B,), previous frame to this one.
        legacy_yaw_order: as in `project_boxes`.

    Returns:
        The new feature and anchor of the noisy rows.
    """
    assert queries.temporal is not None
    past_feature, past_anchor = queries.temporal.feature, queries.temporal.anchor
    batch, groups, rows = past_anchor.shape[:3]
    if groups > queries.num_groups or past_feature.shape[0] != feature.shape[0]:
        raise InvalidInputError(
            f"expected at most {queries.num_groups} cached groups of batch {feature.shape[0]}, "
            f"got {groups} of batch {batch}"
        )
    size = anchor.shape[1] // queries.num_groups
    moved = project_boxes(past_anchor.flatten(1, 2), transform, time_interval, legacy_yaw_order)
    moved = moved.reshape(batch, groups, rows, BOX_DIMS)
    choose = temporal_mask[:, None, None]
    head = groups * size
    new_feature = torch.where(
        choose, _fit_rows(past_feature, size).flatten(1, 2), feature[:, :head]
    )
    new_anchor = torch.where(choose, _fit_rows(moved, size).flatten(1, 2), anchor[:, :head])
    return (
        torch.cat([new_feature, feature[:, head:]], dim=1),
        torch.cat([new_anchor, anchor[:, head:]], dim=1),
    )


def _fit_rows(x: Tensor, rows: int) -> Tensor:
    """(B, G, m_t, K) to (B, G, rows, K): zero rows added or rows cut off."""
    missing = rows - x.shape[2]
    if missing > 0:
        return torch.nn.functional.pad(x, (0, 0, 0, missing))
    return x[:, :, :rows]
