"""Ranges of settings: what no run can make sense of is an error before it starts."""

from __future__ import annotations

from functools import reduce

from ..errors import ConfigError
from .config import FitConfig

__all__ = ["check_limits"]

_AT_LEAST = {
    "run.batch": 1,
    "run.epochs": 1,
    "run.steps": 0,
    "run.workers": 0,
    "run.log_every": 1,
    "run.save_every": 0,
    "run.keep": 1,
    "run.max_skips": 1,
    "optimiser.reference_batch": 1,
    "optimiser.warmup_steps": 0,
    "optimiser.weight_decay": 0,
    "optimiser.clip": 0,
    "data.sequence_parts": 0,
    "loss.denoising.groups": 0,
    "loss.denoising.temporal_groups": 0,
}
_POSITIVE = ("optimiser.lr", "run.loss_scale", "data.max_distance", "data.max_depth")
_SHARES = (
    "optimiser.ema",
    "optimiser.min_ratio",
    "optimiser.warmup_ratio",
    "data.skip_probability",
    "data.reverse_probability",
    "data.augment.grid_mask_probability",
)


def check_limits(config: FitConfig) -> None:
    """Looks at every setting that has a range.

    Raises:
        ConfigError: one is outside; names it, its range and its value.
    """
    for names, text, fits in (
        (_POSITIVE, "more than 0", lambda value, name: value > 0),
        (_SHARES, "from 0 to 1", lambda value, name: 0 <= value <= 1),
        (_AT_LEAST, "at least {}", lambda value, name: value >= _AT_LEAST[name]),
    ):
        for name in names:
            value = reduce(getattr, name.split("."), config)
            if not fits(value, name):
                needed = text.format(_AT_LEAST.get(name))
                raise ConfigError(f"setting '{name}' must be {needed}; got {value}.")
