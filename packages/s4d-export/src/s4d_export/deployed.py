"""The model as the deployed graph sees it: one frame, batch 1, plain tensors in and out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s4d_core import BankState, Sparse4D, decode_tensors

from .contract import GraphContract, graph_contract

__all__ = ["DeployedModel", "example_inputs"]


class DeployedModel(nn.Module):
    """Wraps ``Sparse4D.frame`` between the input and output tables of ``graph_contract``.

    Normalisation, the step itself and decoding are inside; ids are int32 outside.
    """

    image_wh: Tensor

    def __init__(self, model: Sparse4D) -> None:
        super().__init__()
        self.model = model
        self.contract: GraphContract = graph_contract(model.config)
        height, width = model.config.image.size
        size = torch.tensor([float(width), float(height)])
        self.register_buffer(
            "image_wh", size.expand(1, model.config.num_cameras, 2).clone(), persistent=False
        )

    def forward(
        self,
        images: Tensor,
        lidar2img: Tensor,
        prev_to_current: Tensor,
        time_interval: Tensor,
        state_valid: Tensor,
        state_feature: Tensor,
        state_anchor: Tensor,
        state_confidence: Tensor,
        state_track_id: Tensor,
        state_id_counter: Tensor,
    ) -> tuple[Tensor, ...]:
        """Shapes and types as in ``graph_contract``; returns its outputs in order."""
        bank = BankState(
            feature=state_feature.unsqueeze(0),
            anchor=state_anchor.unsqueeze(0),
            confidence=state_confidence.unsqueeze(0),
            track_id=state_track_id.to(torch.int64).unsqueeze(0),
            id_counter=state_id_counter.to(torch.int64),
            valid=state_valid != 0,
        )
        # Cast first: TensorRT takes uint8 as an input of a graph and of nothing but a Cast.
        pixels = images.to(torch.float32).unsqueeze(0)
        out = self.model.frame(
            self.model.normalise(pixels),
            lidar2img.unsqueeze(0),
            self.image_wh,
            prev_to_current.unsqueeze(0),
            time_interval,
            bank,
        )
        cls, quality = out.cls[-1], out.quality[-1]
        assert cls is not None and quality is not None  # the last decoder always has them
        boxes, scores, labels, ids = decode_tensors(
            cls, quality, out.box[-1], out.track_ids, self.model.config
        )
        following = out.bank
        return (
            boxes.squeeze(0),
            scores.squeeze(0),
            labels.squeeze(0).to(torch.int32),
            ids.squeeze(0).to(torch.int32),
            following.feature.squeeze(0),
            following.anchor.squeeze(0),
            following.confidence.squeeze(0),
            following.track_id.squeeze(0).to(torch.int32),
            following.id_counter.to(torch.int32),
        )


def example_inputs(contract: GraphContract) -> tuple[Tensor, ...]:
    """Inputs of the right types and shapes, to trace with; values do not matter."""
    return tuple(
        torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in contract.inputs
    )
