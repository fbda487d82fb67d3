"""The model as the deployed graph sees it: one frame, batch 1, plain tensors in and out."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from s4d_core import BankState, FeatureQueue, Sparse4D, decode_tensors

from .contract import GraphContract, graph_contract, looks_ahead

__all__ = ["DeployedModel", "example_inputs"]


class DeployedModel(nn.Module):
    """Wraps a frame of the model between the input and output tables of ``graph_contract``.

    Normalisation, the step itself and decoding are inside; ids are int32 outside.
    """

    image_wh: Tensor

    def __init__(self, model: Sparse4D) -> None:
        super().__init__()
        self.model = model
        self.contract: GraphContract = graph_contract(model.config)
        self._state = [name.removeprefix("state_") for name in self.contract.state]
        self._ahead = looks_ahead(model.config)
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
        *state: Tensor,
    ) -> tuple[Tensor, ...]:
        """Shapes, types and order as in ``graph_contract``; returns its outputs in order."""
        bank = self._bank(state, state_valid)
        # Cast first: TensorRT takes uint8 as an input of a graph and of nothing but a Cast.
        pixels = images.to(torch.float32).unsqueeze(0)
        arguments = (
            self.model.normalise(pixels),
            lidar2img.unsqueeze(0),
            self.image_wh,
            prev_to_current.unsqueeze(0),
            time_interval,
            bank,
        )
        ready = None
        if self._ahead:
            out, ready = self.model.delayed_frame(*arguments)
        else:
            out = self.model.frame(*arguments)
        cls = out.cls[-1]
        assert cls is not None  # the last decoder always has it
        boxes, scores, labels, ids = decode_tensors(
            cls, out.quality[-1], out.box[-1], out.track_ids, self.model.config
        )
        if ready is not None:  # no frame was searched: nothing was found
            scores = torch.where(ready[:, None], scores, 0.0)
        return (
            boxes.squeeze(0),
            scores.squeeze(0),
            labels.squeeze(0).to(torch.int32),
            ids.squeeze(0).to(torch.int32),
            *self._following(out.bank),
        )

    def _bank(self, state: tuple[Tensor, ...], valid: Tensor) -> BankState:
        """The state's tensors as the model's value; what the model does not carry is empty."""
        given = dict(zip(self._state, state, strict=True))
        none = BankState.empty(replace(self.model.config, queue=None), 1, valid.device)
        queue = None
        if "maps" in given:
            queue = FeatureQueue(
                maps=given["maps"].unsqueeze(0),
                lidar2img=given["lidar2img"].unsqueeze(0),
                from_newest=given["from_newest"].unsqueeze(0),
                age=given["age"].unsqueeze(0),
                filled=given["filled"].unsqueeze(0) != 0,
            )
        if "feature" not in given:
            return replace(none, valid=valid != 0, queue=queue)
        return BankState(
            feature=given["feature"].unsqueeze(0),
            anchor=given["anchor"].unsqueeze(0),
            confidence=given["confidence"].unsqueeze(0),
            track_id=given["track_id"].to(torch.int64).unsqueeze(0),
            id_counter=given["id_counter"].to(torch.int64),
            valid=valid != 0,
            queue=queue,
        )

    def _following(self, bank: BankState) -> list[Tensor]:
        """The next state's tensors, in the contract's order."""
        result = []
        for name in self._state:
            if name == "id_counter":
                result.append(bank.id_counter.to(torch.int32))
                continue
            source = bank if hasattr(bank, name) else bank.queue
            value = getattr(source, name).squeeze(0)
            integer = value.dtype in (torch.int64, torch.bool)
            result.append(value.to(torch.int32) if integer else value)
        return result


def example_inputs(contract: GraphContract) -> tuple[Tensor, ...]:
    """Inputs of the right types and shapes, to trace with; values do not matter."""
    return tuple(
        torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in contract.inputs
    )
