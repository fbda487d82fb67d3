"""Multi-head attention on `scaled_dot_product_attention`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, scaled_dot_product_attention

__all__ = ["Attention"]


class Attention(nn.Module):
    """`dropout(out_proj(attention))`; dropout also acts on the attention weights.

    The three input projections are one packed parameter (query, key, value rows), as in
    `torch.nn.MultiheadAttention`, so its weights load as they are.
    """

    def __init__(self, dims: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dims, dims))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dims))
        self.out_proj = nn.Linear(dims, dims)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, D); where `key` is the same tensor, both are projected in one product.
            key, value: (B, K, D).
            visible: bool, broadcastable to (B, 1, Q, K); True where the query may see the key.
                Every query must see at least one key. None: everything is visible.

        Returns:
            (B, Q, D), to be added to the residual.
        """
        dims = query.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if key is query:
            both = linear(query, weight[: 2 * dims], bias[: 2 * dims])
            q, k = both[..., :dims], both[..., dims:]
        else:
            q = linear(query, weight[:dims], bias[:dims])
            k = linear(key, weight[dims : 2 * dims], bias[dims : 2 * dims])
        v = linear(value, weight[2 * dims :], bias[2 * dims :])
        drop = self.dropout if self.training else 0.0
        out = scaled_dot_product_attention(
            self._heads(q), self._heads(k), self._heads(v), attn_mask=visible, dropout_p=drop
        )
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return dropout(out, drop, self.training)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, K, D) to (B, heads, K, D / heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
