"""The sparse head: instances refined decoder by decoder, the past merged in once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .aggregation_op import FeatureMaps
from .anchor_encoder import AnchorEncoder
from .bank import assign_ids, merge, remember, temporal_mask
from .box import project_boxes
from .config import Sparse4DConfig
from .decoder_layer import DecoderLayer
from .denoising import DenoisingOutput, DenoisingQueries, full_attention_mask, insert_temporal
from .instance_attention import InstanceAttention
from .state import BankState, BankTrace

__all__ = ["FrameOutput", "InstanceBank", "SparseHead"]


@dataclass(frozen=True)
class FrameOutput:
    """What one frame gives (A instances, one list entry per decoder).

    Attributes:
        cls: (B, A, classes) logits, or None where not computed.
        box: (B, A, 11) box states.
        quality: (B, A, 2) logits (centerness, yawness), or None where not computed.
        track_ids: (B, A) int64, -1 for none; they belong to the last decoder's rows.
        bank: the state for the next frame.
        denoising: predictions of the noisy rows, where there were any.
        trace: what the bank decided.
    """

    cls: list[Tensor | None]
    box: list[Tensor]
    quality: list[Tensor | None]
    track_ids: Tensor
    bank: BankState
    denoising: DenoisingOutput | None
    trace: BankTrace


class InstanceBank(nn.Module):
    """Parameters of the free instances: their start boxes and features.

    `handler_fix_scale` takes no part in anything. The published files have it, and a converted
    checkpoint keeps every entry.
    """

    def __init__(self, anchors: Tensor, embed_dims: int) -> None:
        super().__init__()
        self.anchor = nn.Parameter(anchors.clone())
        self.feature = nn.Parameter(torch.zeros(anchors.shape[0], embed_dims), requires_grad=False)
        self.handler_fix_scale = nn.Parameter(torch.zeros(1, 3), requires_grad=False)

    def forward(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Start features (B, A, C) and boxes (B, A, 11)."""
        return (
            self.feature.expand(batch_size, -1, -1),
            self.anchor.expand(batch_size, -1, -1),
        )


class SparseHead(nn.Module):
    """All decoders with the bank; see `forward`."""

    def __init__(self, config: Sparse4DConfig, anchors: Tensor) -> None:
        super().__init__()
        self.config = config
        self.bank = InstanceBank(anchors, config.embed_dims)
        self.anchor_encoder = AnchorEncoder(config.anchor_encoder, config.embed_dims)
        self.instance_attention = InstanceAttention(config.embed_dims, config.decoder.decoupled)
        self.layers = nn.ModuleList(
            DecoderLayer(
                config,
                with_self_attention=i > 0,
                with_temporal_attention=i >= config.decoder.num_single_frame,
            )
            for i in range(config.decoder.num_layers)
        )

    @property
    def decoders(self) -> list[DecoderLayer]:
        """The decoders in order."""
        return list(self.layers)  # type: ignore[arg-type]

    def forward(
        self,
        maps: FeatureMaps,
        lidar2img: Tensor,
        image_wh: Tensor,
        prev_to_current: Tensor,
        time_interval: Tensor,
        bank: BankState,
        denoising: DenoisingQueries | None = None,
        every_layer: bool = False,
    ) -> FrameOutput:
        """One frame. Arguments and result as in `Sparse4D.frame`, with features for images."""
        config = self.config
        single, last = config.decoder.num_single_frame, len(self.layers) - 1
        mask, interval = temporal_mask(bank, time_interval, config)
        past_box = project_boxes(
            bank.anchor, prev_to_current, time_interval, config.legacy_yaw_order
        )
        feature, box, visible = self._start(maps.feature.shape[0], denoising)
        embed = self.anchor_encoder(box)
        past_embed = self.anchor_encoder(past_box)
        past = self.instance_attention.past(bank.feature, bank.valid, visible, feature.shape[1])

        cls_list: list[Tensor | None] = []
        box_list: list[Tensor] = []
        quality_list: list[Tensor | None] = []
        update_index = None
        for i, layer in enumerate(self.decoders):
            feature = layer.interact(
                self.instance_attention, feature, embed, visible, past, past_embed
            )
            feature = layer.look(feature, box, embed, maps, lidar2img, image_wh)
            box = layer.refinement(feature, box, embed, interval)
            # Scores between the first and the last decoder serve losses only.
            scored = self.training or every_layer or i in (single - 1, last)
            cls, quality = layer.refinement.scores(feature, embed) if scored else (None, None)
            box_list.append(box)
            cls_list.append(cls)
            quality_list.append(quality)
            if i == last:
                break
            if i == single - 1:
                feature, box, update_index = self._merge_past(
                    feature, box, cls, bank.feature, past_box, mask
                )
                if denoising is not None and denoising.temporal is not None:
                    feature, box = self._merge_noisy(
                        feature, box, denoising, mask, prev_to_current, time_interval
                    )
            embed = self.anchor_encoder(box)
            if i >= single:
                # The keys stay the carried features, their embedding follows the rows that took
                # their place. After a gap those rows are unrelated: so does the reference.
                past_embed = embed[:, : config.num_temporal]

        return self._finish(
            feature,
            cls_list,
            box_list,
            quality_list,
            bank,
            denoising,
            (interval, mask, past_box, update_index),
        )

    def _start(
        self, batch: int, denoising: DenoisingQueries | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """First features and boxes, noisy rows included, and what rows see of each other."""
        feature, box = self.bank(batch)
        if denoising is None:
            return feature, box, None
        noisy = denoising.anchor.to(box.dtype)
        blank = feature.new_zeros(batch, noisy.shape[1], feature.shape[-1])
        blocked = full_attention_mask(denoising, self.config.num_anchors)
        return torch.cat([feature, blank], dim=1), torch.cat([box, noisy], dim=1), ~blocked

    def _merge_past(
        self,
        feature: Tensor,
        box: Tensor,
        cls: Tensor | None,
        past_feature: Tensor,
        past_box: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`merge` on the free rows; noisy rows stay as they are."""
        assert cls is not None
        free = self.config.num_anchors
        new_feature, new_box, index = merge(
            feature[:, :free], box[:, :free], cls[:, :free], past_feature, past_box, mask
        )
        if feature.shape[1] > free:
            new_feature = torch.cat([new_feature, feature[:, free:]], dim=1)
            new_box = torch.cat([new_box, box[:, free:]], dim=1)
        return new_feature, new_box, index

    def _merge_noisy(
        self,
        feature: Tensor,
        box: Tensor,
        denoising: DenoisingQueries,
        mask: Tensor,
        prev_to_current: Tensor,
        time_interval: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`insert_temporal` on the noisy rows; free rows stay as they are."""
        free = self.config.num_anchors
        noisy_feature, noisy_box = insert_temporal(
            denoising,
            feature[:, free:],
            box[:, free:],
            mask,
            prev_to_current,
            time_interval,
            self.config.legacy_yaw_order,
        )
        return (
            torch.cat([feature[:, :free], noisy_feature], dim=1),
            torch.cat([box[:, :free], noisy_box], dim=1),
        )

    def _finish(
        self,
        feature: Tensor,
        cls_list: list[Tensor | None],
        box_list: list[Tensor],
        quality_list: list[Tensor | None],
        bank: BankState,
        denoising: DenoisingQueries | None,
        decided: tuple[Tensor, Tensor, Tensor, Tensor | None],
    ) -> FrameOutput:
        """Split off the noisy rows, choose what is carried on, give ids."""
        interval, mask, past_box, update_index = decided
        free = self.config.num_anchors
        noisy = None
        if denoising is not None:
            noisy = DenoisingOutput(
                cls=[x[:, free:] for x in cls_list if x is not None],
                box=[x[:, free:] for x in box_list],
                feature=feature[:, free:],
                anchor=box_list[-1][:, free:],
                temporal_mask=mask & (denoising.temporal is not None),
            )
            feature = feature[:, :free]
            cls_list = [None if x is None else x[:, :free] for x in cls_list]
            box_list = [x[:, :free] for x in box_list]
            quality_list = [None if x is None else x[:, :free] for x in quality_list]
        cls = cls_list[-1]
        assert cls is not None and update_index is not None
        carried, confidence, cached_index = remember(feature, box_list[-1], cls, bank, self.config)
        ids, counter = assign_ids(cls, bank, mask, self.config)
        next_bank = BankState(
            feature=carried.feature,
            anchor=carried.box,
            confidence=carried.confidence,
            track_id=ids.gather(1, cached_index),
            id_counter=counter,
            valid=torch.ones_like(bank.valid),
        )
        trace = BankTrace(interval, mask, past_box, update_index, confidence, cached_index)
        return FrameOutput(cls_list, box_list, quality_list, ids, next_bank, noisy, trace)
