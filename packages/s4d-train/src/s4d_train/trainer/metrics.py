"""Losses on their way from the device to the host, one step late."""

from __future__ import annotations

import torch
from torch import Tensor

from ..objectives.reduce import mean_over_ranks


class DelayedValues:
    """Named numbers of a step, read by the host one step later, so that it never waits for them.

    The values are averaged over the ranks on the way.
    """

    def __init__(self) -> None:
        self._waiting: tuple[int, list[str], Tensor, torch.Event | None] | None = None

    def push(self, step: int, values: dict[str, Tensor]) -> tuple[int, dict[str, float]] | None:
        """Hands over a step's values; returns those of the step before, if there are any."""
        stacked = torch.stack([value.detach().float() for value in values.values()])
        stacked = mean_over_ranks(stacked)
        event = None
        if stacked.device.type == "cuda":
            host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            host.copy_(stacked, non_blocking=True)
            event = torch.Event(device=stacked.device)
            event.record()
        else:
            host = stacked.cpu()
        before = self.flush()
        self._waiting = (step, list(values), host, event)
        return before

    def flush(self) -> tuple[int, dict[str, float]] | None:
        """The values that are still on their way."""
        if self._waiting is None:
            return None
        step, names, host, event = self._waiting
        self._waiting = None
        if event is not None:
            event.synchronize()
        return step, dict(zip(names, host.tolist(), strict=True))
