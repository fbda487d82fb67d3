"""What attention is given: how features and box embeddings become queries, keys and values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .attention import Attention

__all__ = ["InstanceAttention", "Past"]


class Past(NamedTuple):
    """The carried instances as attention sees them.

    Attributes:
        feature: (B, T, C).
        value: (B, T, D), the feature as attention's value.
        visible: (B, 1, 1 or Q, max(Q, T)) bool, which rows of the joined keys a query sees.
        valid: (B,) bool; where False, attention runs among the current instances instead.
    """

    feature: Tensor
    value: Tensor
    visible: Tensor
    valid: Tensor


class InstanceAttention(nn.Module):
    """Prepares the inputs of every decoder's attention; its two layers are shared by all.

    Decoupled (REFERENCE B5.3): queries and keys are [feature | embedding], D = 2 C; values are
    widened by `before`, the result with its residual is narrowed by `after`. Otherwise the
    embedding is added to queries and keys, and D = C.
    """

    def __init__(self, dims: int, decoupled: bool) -> None:
        super().__init__()
        self.decoupled = decoupled
        self.before = nn.Linear(dims, 2 * dims, bias=False) if decoupled else nn.Identity()
        self.after = nn.Linear(2 * dims, dims, bias=False) if decoupled else nn.Identity()

    def past(self, feature: Tensor, valid: Tensor, visible: Tensor | None, count: int) -> Past:
        """Prepare the carried instances, once per frame.

        Args:
            feature: (B, T, C) carried features.
            valid: (B,) bool.
            visible: (Q, Q) bool or None, what `count` = Q current rows see of each other.
            count: Q.
        """
        carried = feature.shape[1]
        rows = torch.arange(max(count, carried), device=feature.device)
        on_first = (rows < count).reshape(1, 1, 1, -1)
        if visible is not None:
            on_first = pad(visible, (0, rows.shape[0] - count)).unsqueeze(0).unsqueeze(0)
        later = (rows < carried).reshape(1, 1, 1, -1)
        seen = torch.where(valid.reshape(-1, 1, 1, 1), later, on_first)
        return Past(feature, self.before(feature), seen, valid)

    def among(
        self, attention: Attention, feature: Tensor, embed: Tensor, visible: Tensor | None
    ) -> Tensor:
        """Attention among the current instances: (B, Q, C) to (B, Q, C)."""
        query, residual = self._query(feature, embed)
        out = attention(query, query, self.before(feature), visible)
        return self.after(residual + out)

    def to_past(
        self, attention: Attention, feature: Tensor, embed: Tensor, past: Past, past_embed: Tensor
    ) -> Tensor:
        """Attention to the carried instances, or on a first frame among the current ones.

        On a first frame the reference calls attention without key and value: both then are the
        query itself, so the value is [feature | embedding] without `before` (REFERENCE 0.6).
        Both cases share one graph: keys are filled up to equal length and chosen by value.
        """
        query, residual = self._query(feature, embed)
        key, _ = self._query(past.feature, past_embed)
        length = past.visible.shape[-1]
        choose = past.valid[:, None, None]
        key = torch.where(choose, _rows(key, length), _rows(query, length))
        value = torch.where(choose, _rows(past.value, length), _rows(residual, length))
        return self.after(residual + attention(query, key, value, past.visible))

    def _query(self, feature: Tensor, embed: Tensor) -> tuple[Tensor, Tensor]:
        """Query and residual."""
        if self.decoupled:
            joined = torch.cat([feature, embed.to(feature.dtype)], dim=-1)
            return joined, joined
        return feature + embed, feature


def _rows(x: Tensor, length: int) -> Tensor:
    """(B, K, D) filled up with zero rows to (B, length, D)."""
    return x if x.shape[1] == length else pad(x, (0, 0, 0, length - x.shape[1]))
