"""Inputs for the GPU tests of deformable aggregation, and the double-precision truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from s4d_ops import reference

TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float64: 1e-12}


@dataclass(frozen=True)
class Case:
    name: str
    batch: int = 2
    anchors: int = 37
    points: int = 13
    groups: int = 8
    channels: int = 256
    maps: tuple = (((16, 44), (8, 22), (4, 11), (2, 6)),) * 6
    visible: float = 0.5
    spread: float = 0.05


CASES = (
    Case("model"),
    Case("one anchor", batch=1, anchors=1),
    Case("tiny model", channels=64, anchors=11),
    Case("96 channels", channels=96),
    Case("128 channels", channels=128, visible=1.0),
    Case("512 channels", channels=512, anchors=5),
    Case("1024 channels", channels=1024, anchors=3),
    Case("three vectors a group", channels=24, groups=2),
    Case("one group", channels=256, groups=1, anchors=7),
    Case("group across lanes", channels=144, groups=3, anchors=7),
    Case("odd channels", channels=21, groups=7),
    Case("one channel", channels=1, groups=1, points=1, maps=(((3, 5),),)),
    Case("channels 8", channels=8, groups=1, anchors=3),
    Case("a group per channel", channels=16, groups=16, anchors=5),
    Case("unequal views", maps=(((9, 31), (5, 7)), ((1, 1), (1, 6)), ((6, 1), (13, 2)))),
    Case("seven levels", maps=(tuple((20 - i, 30 + i) for i in range(7)),) * 2, points=5),
    Case("many points", points=150, anchors=3, maps=(((16, 44), (4, 11)),) * 3, visible=1.0),
    Case("far points", spread=0.5, visible=1.0),
    Case("nothing visible", visible=0.0),
    Case("no anchors", anchors=0),
    Case("no points", points=0),
    Case("no samples", batch=0),
)


def make_inputs(
    case: Case,
    dtype: torch.dtype = torch.float32,
    location_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    device: str = "cuda",
    index_dtype: torch.dtype = torch.int32,
) -> tuple[torch.Tensor, ...]:
    """Fresh random inputs; some locations on the border, NaN or infinite."""
    shapes = torch.tensor(case.maps, dtype=torch.int64)
    sizes = shapes.prod(-1).flatten()
    starts = (sizes.cumsum(0) - sizes).reshape(shapes.shape[:2])
    views, levels = shapes.shape[:2]
    shape = (case.batch, case.anchors, case.points, views)
    features = torch.randn(case.batch, int(sizes.sum()), case.channels, device=device)
    centre = torch.rand(case.batch, case.anchors, 1, views, 2, device=device)
    locations = centre + (2 * torch.rand(*shape, 2, device=device) - 1) * case.spread
    seen = torch.rand(case.batch, case.anchors, 1, views, 1, device=device) < case.visible
    locations = torch.where(seen, locations, locations + 2.0)
    special = torch.tensor(
        [0.0, 1.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-7, 1 - 6e-8, 3e7],
        device=device,
    )
    flat = locations.view(-1)
    count = min(len(special), flat.numel() // 8)
    if count:
        places = torch.randperm(flat.numel(), device=device)[:count]
        flat[places] = special[torch.randperm(len(special), device=device)[:count]]
    weights = torch.randn(*shape, levels, case.groups, device=device)
    return (
        features.to(dtype),
        shapes.to(device, index_dtype),
        starts.to(device, index_dtype),
        locations.to(location_dtype or (dtype if dtype == torch.float64 else torch.float32)),
        weights.to(weight_dtype or dtype),
    )


def truth(inputs: tuple[torch.Tensor, ...], grad: torch.Tensor | None = None):  # type: ignore[no-untyped-def]
    """The result in float64 from the very values of the inputs; with `grad`, also gradients."""
    shapes, starts = inputs[1:3]
    wide = [value.double().requires_grad_(grad is not None) for value in inputs[:1] + inputs[3:]]
    output = reference.deformable_aggregation(
        wide[0], shapes.tolist(), starts.tolist(), wide[1], wide[2]
    )
    if grad is None:
        return output
    if output.numel() == 0 or not output.requires_grad:
        return output, [torch.zeros_like(value) for value in wide]
    found = torch.autograd.grad(output, wide, grad.double(), allow_unused=True)
    return output.detach(), [
        torch.zeros_like(value) if gradient is None else gradient
        for value, gradient in zip(wide, found, strict=True)
    ]


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    """||value - expected|| / ||expected||; 0 when both are zero, inf at a NaN."""
    error = (value.double() - expected.double()).norm().item()
    scale = expected.double().norm().item()
    if error != error:
        return float("inf")
    return error / scale if scale else error
