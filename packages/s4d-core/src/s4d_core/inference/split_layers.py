"""The head's layers on split products: linear layers and attention in float32's accuracy."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..attention import Attention
from .split_attention import can_attend, split_attention
from .split_products import can_split, split_linear, split_parts

__all__ = ["SplitAttention", "SplitLinear", "split_layers"]

_NARROWEST = 32  # output channels: below, float32's own kernels are as fast


class SplitLinear(nn.Module):
    """A float32 linear layer, with ReLU where asked."""

    parts: Tensor
    finish: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, relu: bool = False) -> None:
        super().__init__()
        parts, finish = split_parts(weight, bias)
        self.register_buffer("parts", parts)
        self.register_buffer("finish", finish)
        self.weight, self.bias = weight, bias  # others ask for them
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., O)."""
        return split_linear(x, self.parts, self.finish, self.relu)


class SplitAttention(nn.Module):
    """`Attention` in eval mode on split products."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        dims = weight.shape[1]
        self.heads = attention.num_heads
        cuts = (slice(0, dims), slice(dims, 2 * dims), slice(2 * dims, None), slice(0, 2 * dims))
        layers = [SplitLinear(weight[part], bias[part]) for part in cuts]
        self.query, self.key, self.value, self.query_and_key = layers
        self.output = SplitLinear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """See `Attention.forward`."""
        if key is query:
            q, k = self.query_and_key(query).chunk(2, dim=-1)
        else:
            q, k = self.query(query), self.key(key)
        v = self.value(value)
        if can_attend(q.shape[-1], self.heads, visible):
            out = split_attention(q, k, v, self.heads, visible)
        else:
            q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
            seen = scaled_dot_product_attention(q, k, v, attn_mask=visible)
            out = seen.transpose(1, 2).flatten(2)
        result: Tensor = self.output(out)
        return result


def split_layers(model: nn.Module) -> int:
    """Replace attention and wide linear layers, in place; a ReLU that follows is taken along.

    Returns:
        how many were replaced.
    """
    count = 0
    for parent in list(model.modules()):
        if isinstance(parent, Attention):  # replaced as a whole
            continue
        children = list(parent.named_children())
        for place, (name, child) in enumerate(children):
            if isinstance(child, Attention) and can_split(child.in_proj_weight.shape[1], 1):
                setattr(parent, name, SplitAttention(child))
                count += 1
            if type(child) is not nn.Linear or not _worth_it(child):
                continue
            after_name, after = children[place + 1] if place + 1 < len(children) else ("", None)
            relu = isinstance(parent, nn.Sequential) and isinstance(after, nn.ReLU)
            setattr(parent, name, SplitLinear(child.weight, child.bias, relu))
            if relu:
                setattr(parent, after_name, nn.Identity())
            count += 1
    return count


def _worth_it(layer: nn.Linear) -> bool:
    full = layer.weight.dtype == torch.float32
    wide = layer.in_features % 32 == 0 and layer.out_features >= _NARROWEST
    return full and wide
