"""Learning rate as a function of the step."""

from __future__ import annotations

import math

from ..configs.config import OptimiserSettings

HALVING = math.log2(1.5)
"""Half the batch, two thirds of the rate: rate ~ batch ** log2(3/2), the authors' rule of thumb."""


def scaled_rate(settings: OptimiserSettings, total_batch: int) -> float:
    """Peak learning rate for `total_batch` samples per step over all devices.

    A smaller batch than the published one gets a smaller rate: halving the batch takes a third off,
    the authors' advice for runs that diverge. A larger batch keeps the published rate: 6e-4 was
    published for 48 and for 88 samples.
    """
    if not settings.scale_lr or total_batch >= settings.reference_batch:
        return settings.lr
    return settings.lr * (total_batch / settings.reference_batch) ** HALVING


def rate_factor(step: int, total_steps: int, settings: OptimiserSettings) -> float:
    """Factor on the peak rate at `step` (from 0) of `total_steps`.

    Cosine from 1 to `min_ratio`; during the first `warmup_steps` it is multiplied by a line from
    `warmup_ratio` to 1.
    """
    progress = min(step / max(total_steps, 1), 1.0)
    low = settings.min_ratio
    factor = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))
    if step < settings.warmup_steps:
        left = 1 - step / settings.warmup_steps
        factor *= 1 - left * (1 - settings.warmup_ratio)
    return factor
