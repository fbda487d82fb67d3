"""The temporal state of training as plain dictionaries of tensors, and back."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from s4d_core import BankState, FeatureQueue, State

from ..objectives.temporal_denoising import DenoisingState
from .step import TemporalState


def pack_state(state: TemporalState) -> dict[str, Any]:
    """Tensors on the CPU, in dictionaries; None where there is no state."""
    packed: dict[str, Any] = {"model": None, "denoising": None, "owner": None}
    if state.model is not None:
        packed["model"] = {
            "bank": _tensors(dataclasses.replace(state.model.bank, queue=None)),
            "queue": None if state.model.bank.queue is None else _tensors(state.model.bank.queue),
            "timestamp": state.model.timestamp.cpu(),
            "lidar2global": state.model.lidar2global.cpu(),
        }
    if state.denoising is not None:
        packed["denoising"] = _tensors(state.denoising)
    if state.owner is not None:
        packed["owner"] = state.owner.cpu()
    return packed


def unpack_state(packed: dict[str, Any], device: torch.device) -> TemporalState:
    """The inverse of `pack_state`, on `device`."""
    model, denoising = None, None
    if packed["model"] is not None:
        content = packed["model"]
        queue = content.get("queue")
        bank = BankState(**content["bank"], queue=None if queue is None else FeatureQueue(**queue))
        model = State(bank, content["timestamp"], content["lidar2global"]).to(device)
    if packed["denoising"] is not None:
        denoising = DenoisingState(**packed["denoising"]).to(device)
    owner = packed.get("owner")
    return TemporalState(model, denoising, None if owner is None else owner.to(device))


def _tensors(values: Any) -> dict[str, torch.Tensor]:
    named = {f.name: getattr(values, f.name) for f in dataclasses.fields(values)}
    return {name: value.cpu() for name, value in named.items() if value is not None}
