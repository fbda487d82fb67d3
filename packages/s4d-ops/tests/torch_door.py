"""The torch door in tests: inputs as tensors, a call with gradients, limits of errors."""

from __future__ import annotations

import dataclasses

import pytest
from cases import Case, backward, error, forward

torch = pytest.importorskip("torch", reason="the torch door needs torch")

from s4d_ops import MissingLibraryError  # noqa: E402

try:
    from s4d_ops import torch as door
except MissingLibraryError as missing:
    pytest.skip(f"torch door not built: {missing}", allow_module_level=True)

__all__ = ["TOLERANCE", "check", "door", "run", "tensors"]

TOLERANCE = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (1e-6, 1e-5),
    torch.float16: (2e-3, 4e-3),
    torch.bfloat16: (1e-2, 2e-2),
}


def tensors(case: Case, dtype=torch.float32):
    """The five inputs; float64 for all, or the type for features and float32 for the others."""
    rest = torch.float64 if dtype == torch.float64 else torch.float32
    features, shapes, starts, locations, weights = (torch.from_numpy(v) for v in case.inputs)
    return [features.to(dtype), shapes, starts, locations.to(rest), weights.to(rest)]


def rounded(case: Case, dtype) -> Case:
    """What the kernel sees: features and the output's gradient rounded to the type."""

    def through(value):
        return torch.from_numpy(value).to(dtype).double().numpy()

    return dataclasses.replace(
        case, features=through(case.features), grad_output=through(case.grad_output)
    )


def run(values, grad_output):
    leaves = [values[i].detach().clone().requires_grad_() for i in (0, 3, 4)]
    out = door.deformable_aggregation(leaves[0], values[1], values[2], leaves[1], leaves[2])
    grads = torch.autograd.grad(out, leaves, torch.from_numpy(grad_output).to(out.dtype))
    return out.detach(), grads


def check(case: Case, dtype=torch.float32):
    out, grads = run(tensors(case, dtype), case.grad_output)
    assert out.dtype == dtype
    case = rounded(case, dtype)
    assert error(out.double().numpy(), forward(case)) <= TOLERANCE[dtype][0]
    for ours, expected in zip(grads, backward(case), strict=True):
        assert error(ours.double().numpy(), expected) <= TOLERANCE[dtype][1]
