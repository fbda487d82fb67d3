"""Steps that went wrong: skipped on the device, named on the host one step later.

Whether the gradients are finite is decided on the device, so the host does not wait for it: a bad
step leaves weights and moments as they are. The losses reach the host one step late; then the
guard says which one was not finite and how often in a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..errors import NonFiniteError


class GradientScale:
    """Loss scale for fp16 gradients, kept on the device; 1 and constant where not enabled.

    A step with a gradient that is not finite halves it; `interval` good steps in a row double it.
    """

    def __init__(
        self, device: torch.device, initial: float, enabled: bool, interval: int = 1000
    ) -> None:
        self.enabled = enabled
        self.interval = interval
        self.value = torch.full((), initial if enabled else 1.0, device=device)
        self.good = torch.zeros((), device=device)

    def update(self, bad: Tensor) -> None:
        """After a step; `bad` is 1 where it had a gradient that was not finite, else 0."""
        if not self.enabled:
            return
        good = (self.good + 1) * (1 - bad)
        grow = good >= self.interval
        self.value = torch.where(bad > 0, (self.value * 0.5).clamp(min=1.0), self.value)
        self.value = torch.where(grow, self.value * 2, self.value)
        self.good = torch.where(grow, 0.0, good)

    def state_dict(self) -> dict[str, Tensor]:
        return {"value": self.value.cpu(), "good": self.good.cpu()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.value = state["value"].to(self.value.device)
        self.good = state["good"].to(self.good.device)


def clip_gradients(
    parameters: Iterable[torch.nn.Parameter], limit: float, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Takes the loss scale out of the gradients and clips their common L2 norm to `limit`.

    Returns the norm before clipping and 1 or 0 for a norm that is not finite, both on the device.
    Nothing is clipped where `limit` is 0.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = list(torch._foreach_norm(gradients))
    norm = torch.linalg.vector_norm(torch.stack(norms)) / scale
    factor = (limit / (norm + 1e-6)).clamp(max=1.0) if limit > 0 else torch.ones_like(norm)
    torch._foreach_mul_(gradients, factor / scale)
    return norm, (~norm.isfinite()).to(norm.dtype)


class StatisticsBackup:
    """Running statistics of batch norm before the last two steps.

    A bad step leaves the weights alone, but its forward pass may already have put a NaN into the
    running statistics. The host learns of it one step later; two copies are enough to go back.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._live = [
            buffer
            for name, buffer in model.named_buffers()
            if name.endswith(("running_mean", "running_var"))
        ]
        self._slots = [[buffer.clone() for buffer in self._live] for _ in range(2)]

    def keep(self, step: int) -> None:
        """Before step number `step`."""
        if self._live:
            torch._foreach_copy_(self._slots[step % 2], self._live)

    def restore(self, step: int) -> None:
        """After step `step`, the last or last but one, has turned out bad."""
        if self._live:
            torch._foreach_copy_(self._live, self._slots[step % 2])
            torch._foreach_copy_(self._slots[(step + 1) % 2], self._live)


class NonFiniteGuard:
    """Names losses that are NaN or infinite, and stops a run that does not recover."""

    def __init__(self, policy: str, max_skips: int) -> None:
        self.policy = policy
        self.max_skips = max_skips
        self.in_row = 0
        self.total = 0

    def check(self, step: int, values: Mapping[str, float]) -> str | None:
        """A warning for a bad step, None for a good one.

        `values` are the step's losses and, under `grad_norm`, the norm of the gradients.

        Raises:
            NonFiniteError: the policy is `stop`, or too many steps in a row were bad.
        """
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if not bad:
            self.in_row = 0
            return None
        self.in_row += 1
        self.total += 1
        losses = [name for name in bad if name.startswith("loss_")]
        named = ", ".join(losses) if losses else "the gradients (all losses are finite)"
        message = f"step {step}: not finite: {named}; the step was skipped"
        if self.policy == "stop":
            raise NonFiniteError(
                f"step {step}: not finite: {named}. The run stops because run.non_finite is "
                "'stop'; lower optimiser.lr or optimiser.clip and resume."
            )
        if self.in_row >= self.max_skips:
            raise NonFiniteError(
                f"{self.in_row} steps in a row up to step {step} were not finite, last: {named}. "
                "Lower optimiser.lr or optimiser.clip, then resume from the last checkpoint."
            )
        return message
