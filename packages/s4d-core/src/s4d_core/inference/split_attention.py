"""Attention in float32's accuracy on half-precision tensor cores: one kernel, no matrix in memory.

Both products are sums of three products of half parts, see `split_products`. A program has 64
queries of one head and goes through the keys with a running maximum and sum (as memory-efficient
attention does).
"""

from __future__ import annotations

import torch
import triton  # type: ignore
import triton.language as tl  # type: ignore
from torch import Tensor

__all__ = ["can_attend", "split_attention", "split_heads"]

_ROWS = 64  # queries of a program, and keys of a step


@triton.jit
def _parts(x):
    high = x.to(tl.float16)
    return high, ((x - high.to(tl.float32)) * 2048.0).to(tl.float16)


@triton.jit
def _dot(high, low, other_high, other_low):
    small = tl.dot(low, other_high)
    small = tl.dot(high, other_low, small)
    return tl.dot(high, other_high) + small * (1.0 / 2048.0)


@triton.jit
def _attend(
    query,  # (B, Q, heads * D) float32, rows query_step apart
    key,  # (B, K, heads * D)
    value,
    visible,  # (B, K) bool
    out,  # (B, Q, heads * D)
    queries,
    keys,
    query_step,
    key_step,
    value_step,
    FACTOR: tl.constexpr,  # 1 / sqrt(D)
    MASKED: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
):
    sample = (tl.program_id(1) // HEADS).to(tl.int64)
    head = tl.program_id(1) % HEADS
    d = tl.arange(0, D)
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = (at < queries)[:, None]
    from_query = query + sample * queries * query_step + head * D
    q = tl.load(from_query + at[:, None] * query_step + d[None, :], mask=there, other=0.0)
    q_high, q_low = _parts(q * FACTOR)
    best = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sum = tl.zeros([ROWS, D], tl.float32)
    from_key = key + sample * keys * key_step + head * D
    from_value = value + sample * keys * value_step + head * D
    for start in range(0, keys, ROWS):
        j = start + tl.arange(0, ROWS)
        real = j < keys
        k = tl.load(from_key + j[None, :] * key_step + d[:, None], mask=real[None, :], other=0.0)
        k_high, k_low = _parts(k)
        score = _dot(q_high, q_low, k_high, k_low)
        seen = real
        if MASKED:
            seen = real & (tl.load(visible + sample * keys + j, mask=real, other=0) != 0)
        score = tl.where(seen[None, :], score, float("-inf"))
        # The start value keeps rows finite that have seen no key yet.
        top = tl.maximum(best, tl.max(score, 1))
        weight = tl.exp(score - top[:, None])
        shrink = tl.exp(best - top)
        best = top
        total = total * shrink + tl.sum(weight, 1)
        v = tl.load(
            from_value + j[:, None] * value_step + d[None, :], mask=real[:, None], other=0.0
        )
        v_high, v_low = _parts(v)
        w_high, w_low = _parts(weight)
        sum = sum * shrink[:, None] + _dot(w_high, w_low, v_high, v_low)
    to = out + (sample * queries + at[:, None]) * (HEADS * D) + head * D + d[None, :]
    tl.store(to, sum / total[:, None], mask=there)


def can_attend(dims: int, heads: int, visible: Tensor | None) -> bool:
    """Whether the kernel takes heads of this width and what the queries see."""
    width = dims // heads
    one_row = visible is None or (visible.dim() == 4 and visible.shape[1:3] == (1, 1))
    return width in (16, 32, 64) and one_row


def split_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, visible: Tensor | None
) -> Tensor:
    """`scaled_dot_product_attention` of float32 rows.

    Args:
        query: (B, Q, D), heads side by side; rows may lie apart, as in a part of a wider tensor.
        key, value: (B, K, D).
        heads: D divided by 16, 32 or 64.
        visible: (B, 1, 1, K) bool, the keys that are seen, at least one; None: all.

    Returns:
        (B, Q, D).
    """
    batch, queries, dims = query.shape
    keys = key.shape[1]
    tensors = []
    for x in (query, key, value):
        even = x.stride(2) == 1 and x.stride(0) == x.shape[1] * x.stride(1)
        tensors.append(x if even else x.contiguous())
    query, key, value = tensors
    out = torch.empty((batch, queries, dims), dtype=torch.float32, device=query.device)
    mask = out
    if visible is not None:
        mask = visible.expand(batch, 1, 1, keys).reshape(batch, keys).contiguous()
    width = dims // heads
    _attend[(triton.cdiv(queries, _ROWS), batch * heads)](
        *(query, key, value, mask, out, queries, keys),
        *(query.stride(1), key.stride(1), value.stride(1)),
        FACTOR=width**-0.5,
        MASKED=visible is not None,
        HEADS=heads,
        D=width,
        ROWS=_ROWS,
        num_warps=4,
        num_stages=3,
    )
    return out


def split_heads(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`split_attention` of heads (B, heads, rows, D), all keys seen; returns the same layout."""
    heads = query.shape[1]
    rows = [x.transpose(1, 2).flatten(2) for x in (query, key, value)]
    out = split_attention(rows[0], rows[1], rows[2], heads, None)
    return out.unflatten(-1, (heads, -1)).transpose(1, 2)
