"""The training objective: all losses of all decoders, for free instances and for noisy ones.

The keys are the same on every rank and for every batch: `loss_{cls,box,cns,yns}_i` and, with
denoising, `loss_{cls,box}_dn_i` for each decoder i, and `loss_dense_depth` with depth supervision.
What has no ground truth is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .assignment import CostWeights, assign, target_weights
from .boxes import TARGET_COLUMNS
from .denoising import DenoisingConfig, DenoisingTargets
from .ground_truth import GroundTruth
from .losses import (
    LOG_EPS,
    average,
    centerness_loss,
    depth_loss,
    flip_reversible,
    focal_loss,
    l1_loss,
    yawness_loss,
)
from .reduce import mean_over_ranks

BARRIER, TRAFFIC_CONE = 5, 9
"""Indices in the class order of Sparse4D (car first, traffic cone last)."""
CENTERNESS, YAWNESS = 0, 1


@dataclass(frozen=True)
class LossConfig:
    """Weights of the objective; the defaults are those of Sparse4D v3.

    Attributes:
        classification, box: loss weights of focal loss and L1.
        alpha, gamma: of the focal loss.
        columns: weight of each target column in the L1 loss.
        class_columns: per class index, a vector that replaces the 0/1 weights of missing values, in
            the cost and in the loss of the free instances.
        box_score_threshold: boxes whose best class score is not above it get no box and quality
            loss.
        reversible: classes whose yaw may differ by pi.
        depth, max_depth: weight of the depth loss, and the clip of its predictions in metres.
        distance: weight of the loss of v1's depth reweighting.
        cost, denoising: of the assignment and of the denoising task.
    """

    classification: float = 2.0
    box: float = 0.25
    alpha: float = 0.25
    gamma: float = 2.0
    columns: tuple[float, ...] = (2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    class_columns: dict[int, tuple[float, ...]] = field(
        default_factory=lambda: {
            TRAFFIC_CONE: (2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0),
        }
    )
    box_score_threshold: float = 0.05
    reversible: tuple[int, ...] = (BARRIER,)
    depth: float = 0.2
    max_depth: float = 60.0
    distance: float = 1.0
    cost: CostWeights = field(default_factory=CostWeights)
    denoising: DenoisingConfig = field(default_factory=DenoisingConfig)


@dataclass(frozen=True)
class Predictions:
    """Stacked predictions of D decoders, all in one floating type of at least 32 bits.

    Attributes:
        cls: (D, B, A, C) logits, box: (D, B, A, 11), quality: (D, B, A, 2) logits or None.
    """

    cls: Tensor
    box: Tensor
    quality: Tensor | None = None

    @classmethod
    def stack(
        cls,
        logits: Sequence[Tensor],
        boxes: Sequence[Tensor],
        quality: Sequence[Tensor] | None = None,
    ) -> Predictions:
        """Stacks one entry per decoder; half-precision entries become float32."""

        def joined(tensors: Sequence[Tensor]) -> Tensor:
            stacked = torch.stack(list(tensors))
            return stacked.float() if stacked.dtype.itemsize < 4 else stacked

        return cls(joined(logits), joined(boxes), joined(quality) if quality is not None else None)


def average_factors(
    truth: GroundTruth, noisy: Sequence[DenoisingTargets | None], like: Tensor
) -> tuple[Tensor, ...]:
    """Mean over the ranks of the matched objects and of the valid noisy instances, each at least 1.

    The first factor is for the free instances, then one for each entry of `noisy`. The noisy count
    includes negatives. One reduction for all of them, and no host synchronisation.
    """
    counts = [torch.full((), float(truth.total), dtype=like.dtype, device=like.device)]
    for targets in noisy:
        counts.append(
            torch.zeros_like(counts[0]) if targets is None else targets.valid.sum().to(like.dtype)
        )
    return mean_over_ranks(torch.stack(counts)).clamp(min=1.0).unbind()


def detection_losses(
    predictions: Predictions,
    truth: GroundTruth,
    factor: Tensor,
    config: LossConfig,
    matched: Tensor | None = None,
) -> dict[str, Tensor]:
    """Losses of the free instances.

    Args:
        predictions: of all decoders.
        truth: ground truth on the predictions' device.
        factor: averaging factor, from `average_factors`.
        config: weights.
        matched: (D, B, G) indices of `assign`; None: assigned here, without regard to the past.
    """
    cls, box = predictions.cls, predictions.box
    if matched is None:
        matched = assign(cls.detach(), box.detach(), truth, config.cost, config.class_columns)
    decoders, batch, count, classes = cls.shape
    real = matched >= 0
    row = matched.clamp(min=0)

    # Background everywhere, then the objects' classes; column `count` takes what is not matched.
    label = torch.full((decoders, batch, count + 1), classes, dtype=torch.long, device=cls.device)
    label.scatter_(2, torch.where(real, row, count), truth.label.expand(decoders, -1, -1))
    everywhere = torch.ones((), dtype=torch.bool, device=cls.device)
    focal = focal_loss(cls, label[..., :count], config.alpha, config.gamma)
    loss_cls = average(focal, everywhere, factor, (1, 2, 3)) * config.classification

    def at(values: Tensor) -> Tensor:
        return values.gather(2, row[..., None].expand(-1, -1, -1, values.shape[-1]))

    chosen = at(box)[..., :TARGET_COLUMNS]
    confident = at(cls).max(dim=-1).values.sigmoid() > config.box_score_threshold
    mask = real & confident if config.box_score_threshold > 0 else real
    target_label = truth.label.expand(decoders, -1, -1)
    weight = target_weights(truth.target, truth.label, config.class_columns)
    weight = weight * torch.tensor(config.columns, dtype=weight.dtype).to(
        weight.device, non_blocking=True
    )
    target = truth.target.nan_to_num(nan=0.0).to(chosen.dtype).expand(decoders, -1, -1, -1)
    target = flip_reversible(target, chosen, target_label, config.reversible)

    loss_box = average(
        l1_loss(chosen, target, weight.to(chosen.dtype)), mask[..., None], factor, (1, 2, 3)
    )
    losses = {"cls": loss_cls, "box": loss_box * config.box}
    if predictions.quality is not None:
        quality = at(predictions.quality)
        centre = centerness_loss(quality[..., CENTERNESS], chosen, target)
        yaw = yawness_loss(quality[..., YAWNESS], chosen, target)
        losses["cns"] = average(centre, mask, factor, (1, 2))
        losses["yns"] = average(yaw, mask, factor, (1, 2))
    return {f"loss_{k}_{i}": v[i] for i in range(decoders) for k, v in losses.items()}


def denoising_losses(
    predictions: Predictions,
    targets: Sequence[DenoisingTargets],
    factors: Sequence[Tensor],
    config: LossConfig,
) -> dict[str, Tensor]:
    """Losses of the noisy instances; `targets` and `factors` have one entry per decoder.

    No class has weights of its own here and no yaw is turned.
    """
    losses: dict[str, Tensor] = {}
    columns = torch.tensor(config.columns, dtype=predictions.box.dtype).to(
        predictions.box.device, non_blocking=True
    )
    for i, (of, factor) in enumerate(zip(targets, factors, strict=True)):
        focal = focal_loss(predictions.cls[i], of.label, config.alpha, config.gamma)
        loss_cls = average(focal, of.valid[..., None], factor, (0, 1, 2))
        error = l1_loss(
            predictions.box[i, ..., :TARGET_COLUMNS], of.target.to(columns.dtype), columns
        )
        positive = of.valid & (of.label >= 0)
        loss_box = average(error, positive[..., None], factor, (0, 1, 2))
        losses[f"loss_cls_dn_{i}"] = loss_cls * config.classification
        losses[f"loss_box_dn_{i}"] = loss_box * config.box
    return losses


def no_denoising_losses(predictions: Predictions) -> dict[str, Tensor]:
    """The keys of `denoising_losses` with zeros, for a batch without objects."""
    zero = predictions.cls.new_zeros(())
    decoders = range(predictions.cls.shape[0])
    return {f"loss_{kind}_dn_{i}": zero for i in decoders for kind in ("cls", "box")}


def dense_depth_loss(
    predictions: Sequence[Tensor], targets: Sequence[Tensor], config: LossConfig
) -> dict[str, Tensor]:
    """The auxiliary depth loss under its key; levels as in `losses.depth_loss`."""
    loss = depth_loss(predictions, targets, config.depth, config.max_depth)
    return {"loss_dense_depth": loss}


def distance_loss(
    confidence: Tensor, truth: GroundTruth, factor: Tensor, config: LossConfig
) -> dict[str, Tensor]:
    """The loss of v1's depth reweighting under its key (REFERENCE C6).

    Args:
        confidence: (B, G, P) that the key points of objects are at their objects' distance.
        truth, factor: as in `detection_losses`.
    """
    real = (truth.label >= 0)[..., None]
    surprise = -torch.where(real, confidence, 1.0).clamp(min=LOG_EPS).log()
    loss = surprise.sum() / factor / confidence.shape[-1]
    return {"loss_distance": loss * config.distance}
