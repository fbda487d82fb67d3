"""Quantisation-aware fine-tuning: convolutions that already compute as their eight-bit selves.

    calibration = load_calibration("int8.s4d")
    graph = export_graph(model)
    prepare_qat(model, find_points(graph), calibration)   # then train as usual
    ...
    remove_qat(model)                                     # then export and quantise as usual

Ranges of activations stay those of the calibration; weights learn around their rounding. Gradients
pass straight through the rounding and stop where a value is clipped (Jacob et al., CVPR 2018).
Parameters, their names and the state dict stay as they are, so optimisers, averaging and
checkpoints notice nothing. Batch norms may stay unfolded: a weight has one scale per output
channel, so folding a norm into it multiplies the scale and leaves the integers as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import QuantizationError
from ..graph.naming import module_of
from .calibration import Calibration
from .quantize import LEVELS, Point

__all__ = ["FakeQuantConv2d", "fake_quantize", "prepare_qat", "remove_qat"]

SMALLEST = 2.0**-100


def fake_quantize(x: Tensor, amax: Tensor) -> Tensor:
    """x rounded to the 255 values that eight bits hold, in float32, with straight-through gradient.

    Args:
        x: any shape and float type.
        amax: largest magnitude, of a shape that broadcasts with x.
    """
    exact = x.float()
    limit = amax.clamp(min=SMALLEST * LEVELS)
    clipped = torch.minimum(torch.maximum(exact, -limit), limit)
    scale = limit / LEVELS
    stored = torch.round(clipped.detach() / scale) * scale
    return (clipped + (stored - clipped.detach())).to(x.dtype)


class FakeQuantConv2d(nn.Conv2d):
    """A convolution whose input and weight are rounded to eight bits.

    Made by ``prepare_qat`` from an ordinary one, which it replaces in place.
    """

    input_amax: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """As ``nn.Conv2d``."""
        largest = self.weight.detach().float().abs().amax(dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(
            fake_quantize(x, self.input_amax), fake_quantize(self.weight, largest), self.bias
        )


class _RoundInput:
    """A forward pre-hook: rounds what a residual block reads, shortcut included."""

    def __init__(self, amax: float) -> None:
        self.amax = amax

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        first: Tensor = args[0]
        return (fake_quantize(first, first.new_tensor(self.amax).float()), *args[1:])


def prepare_qat(model: nn.Module, points: Iterable[Point], calibration: Calibration) -> list[str]:
    """Make the convolutions of a model compute as in the quantised graph, in place.

    Args:
        model: the model that the graph was exported from.
        points: where the graph is quantised (``find_points``, with its exclusions).
        calibration: ranges of the graph's tensors.

    Returns:
        Paths of the modules that changed.

    Raises:
        QuantizationError: the model was prepared before, lacks a module of the graph, or the
            calibration lacks a tensor.
    """
    changed: list[str] = []
    for point in points:
        path = module_of(point.node)
        if point.tensor not in calibration.ranges:
            raise QuantizationError(
                f"the calibration has no range for {point.tensor!r}; calibrate this model"
            )
        amax = calibration.ranges[point.tensor]
        try:
            module = model.get_submodule(path)
        except AttributeError:
            raise QuantizationError(f"the model has no module {path!r}; export it again") from None
        if isinstance(module, FakeQuantConv2d):
            raise QuantizationError(f"{path!r} is prepared already")
        if not point.weight:
            module.register_forward_pre_hook(_RoundInput(amax))
        elif type(module) is nn.Conv2d:
            module.__class__ = FakeQuantConv2d
            value = torch.tensor(amax, device=module.weight.device)
            module.register_buffer("input_amax", value, persistent=False)
        else:
            raise QuantizationError(f"expected a Conv2d at {path!r}, got {type(module).__name__}")
        changed.append(path)
    return changed


def remove_qat(model: nn.Module) -> None:
    """Undo ``prepare_qat``; the fine-tuned weights stay."""
    for module in model.modules():
        if isinstance(module, FakeQuantConv2d):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
            del module.input_amax
        hooks = module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, _RoundInput)]:
            del hooks[key]
