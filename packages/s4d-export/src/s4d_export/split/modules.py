"""The v3 model cut as SparseEnd2End cuts it: backbone, head of a first frame, head of later frames.

Normalisation, projection of the past, decay, the choice of what is carried on, ids and decoding
stay outside, with the host. Interfaces: names, order, types and shapes of that system's files.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from s4d_core import Sparse4D
from s4d_core.aggregation_op import FeatureMaps
from s4d_core.bank import merge
from s4d_core.decoder_layer import DecoderLayer
from s4d_core.temporal_sampling import Scene, View

from ..errors import ExportError

__all__ = ["FirstHead", "LaterHead", "SplitBackbone", "check_splittable"]


def check_splittable(model: Sparse4D) -> None:
    """Only v3 models have this cut.

    Raises:
        ExportError: names the part that is different.
    """
    config = model.config
    reasons = {
        "no decoupled attention": not config.decoder.decoupled,
        "no carried instances": not config.num_temporal,
        "no quality output": model.head.decoders[-1].refinement.quality_output is None,
        "several single-frame decoders": config.decoder.num_single_frame != 1,
    }
    wrong = [reason for reason, is_so in reasons.items() if is_so]
    if wrong:
        raise ExportError(f"--split is for v3 models; {config.name!r} has {', '.join(wrong)}")


class SplitBackbone(nn.Module):
    """``img`` (1, N, 3, H, W), normalised, to ``feature`` (1, F, C)."""

    def __init__(self, model: Sparse4D) -> None:
        super().__init__()
        self.model = model

    def forward(self, img: Tensor) -> Tensor:
        """Backbone, neck, and rows camera-major, then level."""
        feature: Tensor = self.model.features(img).feature
        return feature


class Past(NamedTuple):
    """The carried instances in this frame: (1, T, C), (1, T, 11), and whether they count (1,)."""

    feature: Tensor
    box: Tensor
    usable: Tensor


class _Head(nn.Module):
    """What both heads share."""

    def __init__(self, model: Sparse4D) -> None:
        super().__init__()
        self.model = model

    def view(self, feature: Tensor, shapes: Tensor, starts: Tensor, lidar2img: Tensor) -> View:
        maps = FeatureMaps(feature, shapes.long(), starts.long(), self.model._sizes)
        return View(maps, lidar2img)

    def decode(
        self,
        rows: Tensor,
        anchor: Tensor,
        view: View,
        image_wh: Tensor,
        interval: Tensor,
        past: Past | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All decoders; with a past, its rows join after the first.

        Returns:
            feature, box, class logits and quality logits of all rows.
        """
        head = self.model.head
        box, embed = anchor, head.anchor_encoder(anchor)
        known = None if past is None else (past.feature, head.anchor_encoder(past.box))
        last = len(head.decoders) - 1
        for number, layer in enumerate(head.decoders):
            rows = self.attend_past(layer, rows, embed, known)
            rows = self.among(layer, rows, embed)
            rows = layer.look(rows, box, embed, Scene(view, image_wh))
            box = layer.refinement(rows, box, embed, interval)
            if number == last:
                break
            if past is not None and number == 0:
                cls, _ = layer.refinement.scores(rows, embed)
                rows, box, _ = merge(rows, box, cls, past.feature, past.box, past.usable)
            embed = head.anchor_encoder(box)
            if past is not None and number:
                known = past.feature, embed[:, : past.box.shape[1]]
        cls, quality = layer.refinement.scores(rows, embed)
        assert quality is not None  # check_splittable
        return rows, box, cls, quality

    def attend_past(
        self,
        layer: DecoderLayer,
        feature: Tensor,
        embed: Tensor,
        past: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Attention to the past, or without one among the rows themselves: there the value is
        the query, [feature | embedding] (REFERENCE 0.6)."""
        if layer.temporal_attention is None:
            return feature
        attend = self.model.head.instance_attention
        query = torch.cat([feature, embed], dim=-1)
        if past is None:
            out = layer.temporal_attention(query, query, query)
        else:
            past_feature, past_embed = past
            key = torch.cat([past_feature, past_embed], dim=-1)
            out = layer.temporal_attention(query, key, attend.before(past_feature))
        result: Tensor = attend.after(query + out)
        return result

    def among(self, layer: DecoderLayer, feature: Tensor, embed: Tensor) -> Tensor:
        """Attention among the rows."""
        if layer.self_attention is None or layer.attention_norm is None:
            return feature
        attend = self.model.head.instance_attention
        result: Tensor = layer.attention_norm(
            attend.among(layer.self_attention, feature, embed, None)
        )
        return result


class FirstHead(_Head):
    """The head of a frame without a past."""

    def forward(
        self,
        feature: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        instance_feature: Tensor,
        anchor: Tensor,
        time_interval: Tensor,
        image_wh: Tensor,
        lidar2img: Tensor,
    ) -> tuple[Tensor, ...]:
        """Feature, anchor, class logits and quality logits of all instances."""
        view = self.view(feature, spatial_shapes, level_start_index, lidar2img)
        return self.decode(instance_feature, anchor, view, image_wh, time_interval)


class LaterHead(_Head):
    """The head of a frame with a past, which the host has projected into this frame."""

    def forward(
        self,
        feature: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        instance_feature: Tensor,
        anchor: Tensor,
        time_interval: Tensor,
        temp_instance_feature: Tensor,
        temp_anchor: Tensor,
        mask: Tensor,
        track_id: Tensor,
        image_wh: Tensor,
        lidar2img: Tensor,
    ) -> tuple[Tensor, ...]:
        """As ``FirstHead``, then the ids that the rows keep: those given, -1 after a gap."""
        view = self.view(feature, spatial_shapes, level_start_index, lidar2img)
        past = Past(temp_instance_feature, temp_anchor, mask != 0)
        found = self.decode(instance_feature, anchor, view, image_wh, time_interval, past)
        kept = torch.where(past.usable[:, None], track_id, torch.full_like(track_id, -1))
        return (*found, kept)
