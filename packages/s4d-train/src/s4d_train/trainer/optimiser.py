"""AdamW with a rate of its own for the backbone, and steps that can be skipped on the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..configs.config import OptimiserSettings

BACKBONE = "backbone"


def parameter_groups(model: nn.Module, settings: OptimiserSettings) -> list[dict[str, object]]:
    """Two groups, `backbone` and `rest`, of the parameters that are trained.

    Each has its factor on the learning rate under `multiplier`. Weight decay is the same for all.
    """
    backbone: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (backbone if BACKBONE in name.split(".") else rest).append(parameter)
    groups: list[dict[str, object]] = [
        {"params": backbone, "name": BACKBONE, "multiplier": settings.backbone_multiplier},
        {"params": rest, "name": "rest", "multiplier": 1.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimiser(
    model: nn.Module, settings: OptimiserSettings, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; on CUDA the fused kernel, which can skip a step by itself.

    The rate of a fused optimiser is a plain number per group, set by `set_rate` each step.
    """
    return torch.optim.AdamW(
        parameter_groups(model, settings),
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True if device.type == "cuda" else None,
    )


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Sets each group's rate to `rate` times its multiplier."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["multiplier"]


def guarded_step(optimiser: torch.optim.Optimizer, bad: Tensor) -> None:
    """One step, or none where `bad` is 1.

    A fused optimiser takes the decision on the device; another one asks the host.
    """
    if optimiser.defaults.get("fused"):
        optimiser.grad_scale = None  # type: ignore[attr-defined]
        optimiser.found_inf = bad  # type: ignore[attr-defined]
        optimiser.step()
    elif not bool(bad):
        optimiser.step()
