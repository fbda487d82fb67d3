"""The rows of a frame: free instances first, then the noisy ones of denoising, where there are any.

Free rows never see noisy ones. What is carried on concerns free rows only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .bank import merge
from .config import Sparse4DConfig
from .denoising import DenoisingOutput, DenoisingQueries, full_attention_mask, insert_temporal

__all__ = ["InstanceBank", "Predictions", "append_noisy", "merge_past", "split"]

Predictions = list[Tensor | None]
"""One entry per decoder, None where not computed; each (B, rows, ...)."""


class InstanceBank(nn.Module):
    """Parameters of the free instances: their start boxes and features.

    `handler_fix_scale` takes no part in anything. The published v3 files have it, and a converted
    checkpoint keeps every entry.
    """

    def __init__(self, config: Sparse4DConfig, anchors: Tensor) -> None:
        super().__init__()
        self.anchor = nn.Parameter(anchors.clone())
        self.feature = nn.Parameter(
            torch.zeros(anchors.shape[0], config.embed_dims), requires_grad=config.learned_features
        )
        if config.aggregation.stored_points:
            self.handler_fix_scale = nn.Parameter(torch.zeros(1, 3), requires_grad=False)

    def forward(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Start features (B, A, C) and boxes (B, A, 11)."""
        return (
            self.feature.expand(batch_size, -1, -1),
            self.anchor.expand(batch_size, -1, -1),
        )


def append_noisy(
    feature: Tensor, box: Tensor, denoising: DenoisingQueries | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """First features and boxes with noisy rows, and which rows (A, A) see each other (None: all).

    Args:
        feature, box: (B, A, C) and (B, A, 11) of the free rows.
    """
    if denoising is None:
        return feature, box, None
    noisy = denoising.anchor.to(box.dtype)
    blank = feature.new_zeros(feature.shape[0], noisy.shape[1], feature.shape[-1])
    blocked = full_attention_mask(denoising, box.shape[1])
    return torch.cat([feature, blank], dim=1), torch.cat([box, noisy], dim=1), ~blocked


def merge_past(
    feature: Tensor,
    box: Tensor,
    cls: Tensor,
    past: tuple[Tensor, Tensor],
    denoising: DenoisingQueries | None,
    motion: tuple[Tensor, Tensor, Tensor],
    config: Sparse4DConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """The carried instances take the places of the weakest free ones; noisy rows theirs.

    Args:
        feature, box, cls: of all rows, after the single-frame decoders.
        past: (B, T, C) features and (B, T, 11) boxes of the carried instances, boxes as they are
            now.
        motion: (B,) bool where the past counts, (B, 4, 4) from the previous LiDAR frame to this
            one, (B,) seconds.

    Returns:
        feature, box, and the (B, A) index of `merge`.
    """
    free = config.num_anchors
    mask, prev_to_current, time_interval = motion
    noisy_feature, noisy_box = feature[:, free:], box[:, free:]
    feature, box, index = merge(feature[:, :free], box[:, :free], cls[:, :free], *past, mask)
    if denoising is None:
        return feature, box, index
    if denoising.temporal is not None:
        noisy_feature, noisy_box = insert_temporal(
            denoising,
            noisy_feature,
            noisy_box,
            mask,
            prev_to_current,
            time_interval,
            config.legacy_yaw_order,
        )
    return torch.cat([feature, noisy_feature], 1), torch.cat([box, noisy_box], 1), index


def split(
    free: int,
    feature: Tensor,
    cls: Predictions,
    box: list[Tensor],
    quality: Predictions,
    temporal_mask: Tensor,
) -> tuple[Tensor, Predictions, list[Tensor], Predictions, DenoisingOutput]:
    """The first `free` rows of everything, and the predictions of the noisy ones.

    Args:
        temporal_mask: (B,) bool, where noisy rows were carried over from the frame before.
    """
    noisy = DenoisingOutput(
        cls=[x[:, free:] for x in cls if x is not None],
        box=[x[:, free:] for x in box],
        feature=feature[:, free:],
        anchor=box[-1][:, free:],
        temporal_mask=temporal_mask,
    )
    cls, quality = (
        [None if x is None else x[:, :free] for x in values] for values in (cls, quality)
    )
    return feature[:, :free], cls, [x[:, :free] for x in box], quality, noisy
