"""What a frame gives: of the head alone, and of the whole model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .denoising import DenoisingOutput
from .state import BankState, BankTrace, State

__all__ = ["FrameOutput", "Sparse4DOutput"]


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


@dataclass(frozen=True)
class Sparse4DOutput:
    """Predictions of one frame and the state for the next.

    Attributes:
        cls, box, quality, track_ids, denoising, trace: as in `FrameOutput`.
        state: hand it to the next call.
        depth: per level (B * N, 1, H_l, W_l) metres where `focal` was given in training, or None.
        depth_confidence: (B, G, P) of the fixed key points of the boxes that were given, or None.
    """

    cls: list[Tensor | None]
    box: list[Tensor]
    quality: list[Tensor | None]
    track_ids: Tensor
    state: State
    denoising: DenoisingOutput | None
    trace: BankTrace
    depth: list[Tensor] | None
    depth_confidence: Tensor | None = None
