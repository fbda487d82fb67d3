"""One decoder: attention to the past, attention among instances, aggregation, FFN, refinement."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .aggregation import DeformableAggregation
from .attention import Attention
from .config import Sparse4DConfig
from .ffn import FFN, AsymmetricFFN
from .instance_attention import InstanceAttention, Past
from .refinement import Refinement
from .temporal_sampling import Scene

__all__ = ["DecoderLayer"]


class DecoderLayer(nn.Module):
    """The parts of one decoder (REFERENCE B5.1, C3); the head decides what attention sees.

    Args:
        config: the model.
        with_self_attention: False in the very first decoder of v2 and v3.
        with_temporal_attention: False in the single-frame decoders.
    """

    def __init__(
        self, config: Sparse4DConfig, with_self_attention: bool, with_temporal_attention: bool
    ) -> None:
        super().__init__()
        dims, decoder = config.embed_dims, config.decoder
        width = 2 * dims if decoder.decoupled else dims

        def attention() -> Attention:
            return Attention(width, decoder.num_heads, decoder.dropout)

        self.temporal_attention = attention() if with_temporal_attention else None
        self.self_attention = attention() if with_self_attention else None
        self.attention_norm = nn.LayerNorm(dims) if with_self_attention else None
        self.aggregation = DeformableAggregation(config)
        joined = decoder.ffn == "asymmetric"
        # Joined features are normalised inside the network.
        self.aggregation_norm = None if joined else nn.LayerNorm(dims)
        self.ffn: nn.Module
        if joined:
            self.ffn = AsymmetricFFN(2 * dims, decoder.ffn_channels, dims, decoder.dropout)
        else:
            self.ffn = FFN(dims, decoder.ffn_channels, decoder.dropout)
        self.ffn_norm = nn.LayerNorm(dims)
        self.refinement = Refinement(dims, config.num_classes, config.refine_yaw, config.quality)

    def interact(
        self,
        attend: InstanceAttention,
        feature: Tensor,
        embed: Tensor,
        visible: Tensor | None,
        past: Past | None,
        past_embed: Tensor | None,
    ) -> Tensor:
        """Instance features (B, A, C) updated by the past and by each other.

        Args:
            attend: prepares queries, keys and values.
            feature, embed: (B, A, C) of the instances.
            visible: (A, A) bool, what they see of each other; None: everything.
            past, past_embed: the carried instances and their (B, T, C) box embeddings.
        """
        if self.temporal_attention is not None:
            assert past is not None and past_embed is not None
            feature = attend.to_past(self.temporal_attention, feature, embed, past, past_embed)
        if self.self_attention is not None and self.attention_norm is not None:
            feature = attend.among(self.self_attention, feature, embed, visible)
            feature = self.attention_norm(feature)
        return feature

    def look(self, feature: Tensor, box: Tensor, embed: Tensor, scene: Scene) -> Tensor:
        """Instance features (B, A, C) updated by what the images show."""
        seen = self.aggregation(feature, box, embed, scene)
        if self.aggregation_norm is None:
            both = torch.cat([seen, feature], dim=-1)
        else:
            both = self.aggregation_norm(seen + feature)
        result: Tensor = self.ffn_norm(self.ffn(both))
        return result
