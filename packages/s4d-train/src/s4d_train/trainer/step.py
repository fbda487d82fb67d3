"""One training step as functions of values: batch and temporal states in, losses and states out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from s4d_core import (
    DenoisingQueries,
    Observation,
    Sparse4D,
    Sparse4DConfig,
    Sparse4DOutput,
    State,
    TemporalDenoising,
)

from ..data.batch import Batch
from ..objectives.assignment import assign
from ..objectives.continuity import carried_owner, same_object
from ..objectives.denoising import DenoisingTargets, make_denoising
from ..objectives.detection import (
    LossConfig,
    Predictions,
    average_factors,
    denoising_losses,
    dense_depth_loss,
    detection_losses,
    distance_loss,
    no_denoising_losses,
)
from ..objectives.draws import Draws
from ..objectives.ground_truth import GroundTruth, pack_ground_truth
from ..objectives.temporal_denoising import DenoisingState, carry, keep
from .precision import Precision


@dataclass(frozen=True)
class TemporalState:
    """What a step hands to the next.

    Attributes:
        model: the model's state.
        denoising: the kept denoising groups.
        owner: (B, T) id of the object of each carried instance, -1 for none; see
            `objectives.continuity`. None where the assignment does not ask for it.
    """

    model: State | None = None
    denoising: DenoisingState | None = None
    owner: Tensor | None = None

    def reset(self, where: Tensor) -> TemporalState:
        """Forgets the past of the samples where the (B,) bool `where` is True."""
        if self.model is None or self.model.timestamp.shape[0] != where.shape[0]:
            return TemporalState()
        return TemporalState(self.model.reset(where), self.denoising, self.owner)


@dataclass(frozen=True)
class Targets:
    """What a batch should become: made on the host, ready on the device.

    `noisy` is None for a batch without objects, or where denoising is off.
    """

    truth: GroundTruth
    noisy: DenoisingTargets | None


class TrainingModule(nn.Module):
    """The model with its training precision; what DistributedDataParallel wraps."""

    def __init__(self, model: Sparse4D, precision: Precision) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        # The model's own method, run in the precision of backbone and neck.
        object.__setattr__(model, "pyramid", precision.for_features(model.pyramid))

    def forward(self, *arguments: Any) -> Sparse4DOutput:
        """As `Sparse4D.forward`, for prepared images (B, N, 3, H, W)."""
        with self.precision.for_head():
            return self.model(*arguments)


def make_targets(batch: Batch, config: LossConfig, draws: Draws, device: torch.device) -> Targets:
    """Ground truth and noisy anchors of a batch whose ground truth is still on the host."""
    truth = pack_ground_truth(batch.boxes, batch.labels, batch.track_ids)
    noisy = make_denoising(truth, config.denoising, config.cost, draws)
    return Targets(truth.to(device), None if noisy is None else noisy.to(device))


def forward_losses(
    module: Callable[..., Sparse4DOutput],
    images: Tensor,
    batch: Batch,
    targets: Targets,
    past: TemporalState,
    config: LossConfig,
    draws: Draws,
    future: Sequence[Observation] = (),
) -> tuple[dict[str, Tensor], TemporalState]:
    """All losses of a step, and the temporal state after it.

    Args:
        module: a `TrainingModule`, maybe inside GraphedModule and DistributedDataParallel.
        images: (B, N, 3, H, W), augmented and normalised.
        batch: on the device; its ground truth is not looked at.
        targets: of the batch.
        past: state after the step before.
        config: weights of the objective.
        draws: chooses the denoising groups that live on.
        future: frames to come, the nearest first, for models that sample them.
    """
    noisy, groups = targets.noisy, config.denoising.groups
    model = _model_config(module)
    temporal = config.denoising.temporal_groups > 0
    kept = past.denoising if temporal and noisy is not None else None
    if kept is not None and (past.model is None or kept.label.shape[0] != len(batch)):
        kept = None
    queries = None
    if noisy is not None:
        before = None if kept is None else TemporalDenoising(kept.feature, kept.anchor)
        queries = DenoisingQueries(noisy.anchor, groups, None, before)

    output = module(
        images,
        batch.lidar2img,
        batch.image_wh,
        batch.timestamp,
        batch.lidar2global,
        past.model,
        queries,
        batch.focal if batch.depth else None,
        *_further(model, targets.truth, images.dtype, future),
    )

    after = noisy
    if noisy is not None and kept is not None:
        assert output.denoising is not None
        after = carry(kept, output.denoising.temporal_mask, noisy, groups)
    quality = _present(output.quality) or None
    free = Predictions.stack(_present(output.cls), output.box, quality)
    factor, first_factor, after_factor = average_factors(targets.truth, [noisy, after], free.cls)
    losses: dict[str, Tensor] = {}
    if output.depth is not None and config.depth > 0:
        losses |= dense_depth_loss(output.depth, batch.depth, config)
    if output.depth_confidence is not None:
        losses |= distance_loss(output.depth_confidence, targets.truth, factor, config)
    next_denoising = None
    if noisy is not None and after is not None and output.denoising is not None:
        rows = Predictions.stack(output.denoising.cls, output.denoising.box)
        single = model.decoder.num_single_frame
        layers = range(rows.cls.shape[0])
        losses |= denoising_losses(
            rows,
            [noisy if i < single else after for i in layers],
            [first_factor if i < single else after_factor for i in layers],
            config,
        )
        if temporal:
            next_denoising = keep(
                output.denoising.feature,
                output.denoising.anchor,
                after,
                groups,
                config.denoising.temporal_groups,
                draws,
            )
    elif groups > 0:
        losses |= no_denoising_losses(free)
    # Last, because the assignment waits for the device: the work above is queued by then.
    together = None
    if past.owner is not None and past.owner.shape[0] == len(batch):
        together = same_object(past.owner, output.trace.temporal_mask, targets.truth.track_id)
    matched = assign(
        free.cls.detach(),
        free.box.detach(),
        targets.truth,
        config.cost,
        config.class_columns,
        together,
        model.decoder.num_single_frame,
    )
    losses |= detection_losses(free, targets.truth, factor, config, matched)
    owner = None
    if config.cost.continuity > 0:
        owner = carried_owner(
            matched[-1], targets.truth.track_id, free.cls.shape[2], output.trace.cached_index
        )
    return losses, TemporalState(output.state, next_denoising, owner)


def _present(tensors: list[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _model_config(module: object) -> Sparse4DConfig:
    inner = getattr(module, "module", module)  # inside DistributedDataParallel
    inner = getattr(inner, "inner", inner)  # inside GraphedModule
    assert isinstance(inner, TrainingModule)
    return inner.model.config


def _further(
    model: Sparse4DConfig, truth: GroundTruth, dtype: torch.dtype, future: Sequence[Observation]
) -> tuple[Any, ...]:
    """Further arguments of the model: frames to come, and (B, G, 11) boxes of objects.

    The boxes are for models that learn at which distance an object is. Without objects in the
    batch a row of padding stands in: a loss of 0 through every weight.
    """
    if model.depth_reweight is None:
        return (False, tuple(future)) if future else ()
    box = pad(truth.target.nan_to_num(nan=0.0), (0, 1)).to(dtype)
    if box.shape[1] == 0:
        box = box.new_zeros(box.shape[0], 1, box.shape[2])
    return (False, tuple(future), box)


def finite_state(state: TemporalState) -> TemporalState:
    """The state with every value that is not finite replaced by 0 and its sample made invalid.

    A NaN would otherwise live on: stale instances still take part in attention.
    """
    if state.model is None:
        return state
    bank, queue = state.model.bank, state.model.bank.queue
    values = [bank.feature, bank.anchor, bank.confidence]
    if queue is not None:
        values.append(queue.maps)
        queue = replace(queue, maps=queue.maps.nan_to_num(0.0, 0.0, 0.0))
    fine = torch.stack([v.isfinite().flatten(1).all(dim=1) for v in values]).all(dim=0)
    cleaned = replace(
        bank,
        feature=bank.feature.nan_to_num(0.0, 0.0, 0.0),
        anchor=bank.anchor.nan_to_num(0.0, 0.0, 0.0),
        confidence=bank.confidence.nan_to_num(0.0, 0.0, 0.0),
        valid=bank.valid & fine,
        queue=queue,
    )
    model = State(cleaned, state.model.timestamp, state.model.lidar2global)
    noisy = state.denoising
    if noisy is not None:
        noisy = DenoisingState(
            noisy.feature.nan_to_num(0.0, 0.0, 0.0),
            noisy.anchor.nan_to_num(0.0, 0.0, 0.0),
            noisy.label,
            noisy.valid,
            noisy.track_id,
        )
    return TemporalState(model, noisy, state.owner)
