"""Loss terms as pure functions. Each returns a value per element; the caller masks and reduces.

Formulas: focal loss (Lin et al. 2017) on sigmoid logits; centerness and yawness as in Sparse4D v3
(Lin et al. 2023), the latter a Gaussian focal loss (Law and Deng 2018) on 0/1 targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .boxes import CENTRE, DIRECTION

AVERAGE_EPS = torch.finfo(torch.float32).eps
"""Added to every averaging factor, in every precision, as the released checkpoints had it."""
LOG_EPS = 1e-12


def average(values: Tensor, mask: Tensor, factor: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Sum of `values` where `mask`, over `dims`, divided by `factor`.

    Masked entries are replaced before the sum, so a NaN in one of them does not reach it. No entry
    is selected by index: the host never waits for the device.
    """
    return torch.where(mask, values, 0.0).sum(dim=dims) / (factor + AVERAGE_EPS)


def focal_loss(logits: Tensor, label: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (..., C) of logits (..., C) for integer labels (...).

    A label outside 0..C-1 is background: the target of every class is 0.
    """
    classes = torch.arange(logits.shape[-1], device=logits.device)
    positive = label[..., None] == classes
    probability = logits.sigmoid()
    log_true = F.logsigmoid(torch.where(positive, logits, -logits))
    wrong = torch.where(positive, 1 - probability, probability)
    weight = torch.where(positive, alpha, 1 - alpha).to(logits.dtype)
    return -weight * wrong.pow(gamma) * log_true


def l1_loss(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted absolute difference, same shape as the inputs."""
    return (prediction - target).abs() * weight


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine (...) of the angle between two (sin, cos) pairs (..., 2) of any length."""
    return F.cosine_similarity(first, second, dim=-1)


def flip_reversible(
    target: Tensor, prediction: Tensor, label: Tensor, reversible: Sequence[int]
) -> Tensor:
    """Targets (..., 10) whose yaw is turned by pi where that brings them nearer to the prediction.

    Only for the classes in `reversible` (a barrier has no front).
    """
    if not reversible:
        return target
    wanted = label == reversible[0]
    for other in reversible[1:]:
        wanted = wanted | (label == other)
    away = cosine(target[..., DIRECTION], prediction[..., DIRECTION]) < 0
    sign = torch.where(wanted & away, -1.0, 1.0).to(target.dtype)[..., None]
    return torch.cat(
        [
            target[..., : DIRECTION.start],
            target[..., DIRECTION] * sign,
            target[..., DIRECTION.stop :],
        ],
        dim=-1,
    )


def centerness_loss(logit: Tensor, prediction: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy (...) of the centerness logit against exp(-distance of the centres)."""
    distance = torch.linalg.vector_norm(target[..., CENTRE] - prediction[..., CENTRE], dim=-1)
    return F.binary_cross_entropy_with_logits(logit, (-distance).exp(), reduction="none")


def yawness_loss(logit: Tensor, prediction: Tensor, target: Tensor) -> Tensor:
    """Gaussian focal loss (...) of the yawness logit; target 1 where the yaw is within pi/2."""
    probability = logit.sigmoid()
    right = cosine(target[..., DIRECTION], prediction[..., DIRECTION]) > 0
    of_right = -(probability + LOG_EPS).log() * (1 - probability).square()
    of_wrong = -(1 - probability + LOG_EPS).log() * probability.square()
    return torch.where(right, of_right, of_wrong)


def depth_loss(
    predictions: Sequence[Tensor], targets: Sequence[Tensor], weight: float, max_depth: float
) -> Tensor:
    """Dense depth loss, one number.

    Args:
        predictions: per level, metres, any shape of B * N * h * w elements, camera-major.
        targets: per level (B, N, h, w), metres; <= 0 means no LiDAR return there.
        weight: loss weight.
        max_depth: predictions are clipped to 0..max_depth metres.

    Each level's absolute error is summed and divided by (returns in it) * (levels). The count is
    this rank's own.
    """
    total = predictions[0].new_zeros(())
    for prediction, target in zip(predictions, targets, strict=True):
        prediction = prediction.reshape(-1)
        target = target.reshape(-1).to(prediction.dtype)
        known = (target > 0) & ~prediction.isnan()
        error = (prediction.clamp(0.0, max_depth) - target).abs()
        count = known.sum().to(prediction.dtype) * len(predictions)
        total = total + torch.where(known, error, 0.0).sum() / count.clamp(min=1.0)
    return total * weight
