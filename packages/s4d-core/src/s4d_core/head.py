"""The sparse head: instances refined decoder by decoder, the past merged in once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from .aggregation_op import deformable_aggregation
from .anchor_encoder import AnchorEncoder
from .bank import assign_ids, remember, temporal_mask
from .box import project_boxes
from .config import Sparse4DConfig
from .decoder_layer import DecoderLayer
from .denoising import DenoisingQueries
from .feature_queue import FeatureQueue, past_frames, push
from .instance_attention import InstanceAttention
from .instances import InstanceBank, append_noisy, merge_past, split
from .key_points import place_points, project_points
from .layers import no_autocast
from .outputs import FrameOutput
from .state import BankState, BankTrace
from .temporal_sampling import DepthReweight, Other, Scene, View

__all__ = ["SparseHead"]


class SparseHead(nn.Module):
    """All decoders with the bank; see `forward`."""

    def __init__(self, config: Sparse4DConfig, anchors: Tensor) -> None:
        super().__init__()
        self.config = config
        self.bank = InstanceBank(config, anchors)
        self.anchor_encoder = AnchorEncoder(config.anchor_encoder, config.embed_dims)
        self.instance_attention = InstanceAttention(config.embed_dims, config.decoder.decoupled)
        self.layers = nn.ModuleList(
            DecoderLayer(
                config,
                with_self_attention=i > 0 or config.decoder.first_attention,
                with_temporal_attention=i >= config.decoder.num_single_frame,
            )
            for i in range(config.decoder.num_layers)
        )
        reweight = config.depth_reweight
        self.depth_reweight = DepthReweight(reweight, config.embed_dims) if reweight else None

    @property
    def decoders(self) -> list[DecoderLayer]:
        """The decoders in order."""
        return list(self.layers)  # type: ignore[arg-type]

    def forward(
        self,
        view: View,
        image_wh: Tensor,
        prev_to_current: Tensor,
        time_interval: Tensor,
        bank: BankState,
        denoising: DenoisingQueries | None = None,
        every_layer: bool = False,
        future: Sequence[Other] = (),
    ) -> FrameOutput:
        """One frame. Arguments and result as in `Sparse4D.frame`, with features for images.

        `future` are frames to come, the farthest first, in a model that samples them.
        """
        config = self.config
        single, last = config.decoder.num_single_frame, len(self.layers) - 1
        mask, interval = temporal_mask(bank, time_interval, config)
        past_box = project_boxes(
            bank.anchor, prev_to_current, time_interval, config.legacy_yaw_order
        )
        others = list(future)
        if bank.queue is not None:
            others = past_frames(bank.queue, bank.valid, prev_to_current, time_interval, view.maps)
        feature, box = self.bank(view.maps.feature.shape[0])
        feature, box, visible = append_noisy(feature, box, denoising)
        embed = self.anchor_encoder(box)
        past = past_embed = None
        if config.num_temporal:
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
            scene = Scene(view, image_wh, self._elsewhere(box, others), self.depth_reweight)
            feature = layer.look(feature, box, embed, scene)
            box = layer.refinement(feature, box, embed, interval)
            # Scores between the first and the last decoder serve losses only.
            scored = self.training or every_layer or i in (single - 1, last)
            cls, quality = layer.refinement.scores(feature, embed) if scored else (None, None)
            box_list.append(box)
            cls_list.append(cls)
            quality_list.append(quality)
            if i == last:
                break
            if i == single - 1 and config.num_temporal:
                assert cls is not None
                feature, box, update_index = merge_past(
                    feature,
                    box,
                    cls,
                    (bank.feature, past_box),
                    denoising,
                    (mask, prev_to_current, time_interval),
                    config,
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
            push(bank.queue, view, others) if bank.queue is not None else None,
        )

    def depth_confidence(self, view: View, box: Tensor, image_wh: Tensor) -> Tensor:
        """How well image features fit the distance of known boxes (REFERENCE C6).

        Args:
            view: current features; image_wh: (B, N, 2).
            box: (B, G, 11).

        Returns:
            (B, G, P) for the P fixed key points; features are the mean over cameras and levels.
        """
        assert self.depth_reweight is not None
        scale = self.decoders[0].aggregation.key_points.fix_scale
        with no_autocast(box):
            points = place_points(scale.expand(*box.shape[:2], -1, -1), box)
        count, groups = points.shape[2], self.config.aggregation.num_groups
        points = points.flatten(1, 2).unsqueeze(2)
        shape = (*points.shape[:3], image_wh.shape[1], len(view.maps.sizes), groups)
        weights = points.new_full(shape, 1.0 / (shape[3] * shape[4]))
        locations = project_points(points, view.lidar2img, image_wh)
        feature = deformable_aggregation(view.maps, locations, weights).unflatten(1, (-1, count))
        return self.depth_reweight.confidence(feature, box).squeeze(-1)

    def _elsewhere(self, box: Tensor, others: list[Other]) -> list[tuple[Other, Tensor, Tensor]]:
        """Each other frame with the boxes as they were there, and their embeddings."""
        if not others:
            return []
        boxes = [other.boxes(box, self.config.legacy_yaw_order) for other in others]
        embeds = self.anchor_encoder(torch.cat(boxes)).chunk(len(boxes))
        return list(zip(others, boxes, embeds, strict=True))

    def _finish(
        self,
        feature: Tensor,
        cls_list: list[Tensor | None],
        box_list: list[Tensor],
        quality_list: list[Tensor | None],
        bank: BankState,
        denoising: DenoisingQueries | None,
        decided: tuple[Tensor, Tensor, Tensor, Tensor | None],
        queue: FeatureQueue | None,
    ) -> FrameOutput:
        """Split off the noisy rows, choose what is carried on, give ids."""
        interval, mask, past_box, update_index = decided
        noisy = None
        if denoising is not None:
            feature, cls_list, box_list, quality_list, noisy = split(
                self.config.num_anchors,
                feature,
                cls_list,
                box_list,
                quality_list,
                mask & (denoising.temporal is not None),
            )
        cls = cls_list[-1]
        assert cls is not None
        if self.config.num_temporal == 0:
            ids = torch.full(cls.shape[:2], -1, dtype=torch.int64, device=cls.device)
            next_bank = replace(bank, valid=torch.ones_like(bank.valid), queue=queue)
            confidence = cls.detach().amax(dim=-1).sigmoid()
            trace = BankTrace(interval, mask, past_box, None, confidence, bank.track_id)
            return FrameOutput(cls_list, box_list, quality_list, ids, next_bank, noisy, trace)
        carried, confidence, cached_index = remember(feature, box_list[-1], cls, bank, self.config)
        ids, counter = assign_ids(cls, bank, mask, self.config)
        next_bank = BankState(
            feature=carried.feature,
            anchor=carried.box,
            confidence=carried.confidence,
            track_id=ids.gather(1, cached_index),
            id_counter=counter,
            valid=torch.ones_like(bank.valid),
            queue=queue,
        )
        trace = BankTrace(interval, mask, past_box, update_index, confidence, cached_index)
        return FrameOutput(cls_list, box_list, quality_list, ids, next_bank, noisy, trace)
